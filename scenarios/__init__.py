"""Scenarios: the questions people ask of the model, as files, and the program that asks them.

A scenario is a YAML file of one machine, one VM, its memory and what each vCPU and each host thread does; it states its
question and what it expects. This package reads and checks it (`yaml_loader`, `units`, `schema`), wires the model together
for it (`build`), runs it (`run`), searches it (`campaign`) and shows the result (`commands`, `cli`). The files under `library/` are the textbook:
each runs in the tests against its own expectations.

How a file becomes a run::

    text --yaml_loader--> Document (data + places) --schema--> Scenario --build--> world --run--> RunResult --commands--> text

Every mistake in a file raises `ScenarioError` with file, line, column, the key's path and the nearest valid name; all of
them at once. Nothing below this package knows that scenarios exist.

Left out: a programming language. There are no variables and no conditions; a grid of parameters is `sweep`, a changed
protocol is a patch (a Python file), and a guest that decides something is a guest program in `vcpu`.

Who may import whom: `scenarios` sees every other package, no package sees `scenarios`. Importing this package costs
nothing: the command line starts quickly because each part loads what it needs when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scenarios.campaign.hunt import hunt as hunt


def __getattr__(name: str) -> Any:
    """`from scenarios import hunt`, loaded when it is asked for."""
    if name == "hunt":
        from scenarios.campaign.hunt import hunt

        return hunt
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
