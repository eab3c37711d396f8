"""Mutated scenario files: `check` accepts or refuses, and never anything else."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scenarios.cli import tdsim
from scenarios.errors import ScenarioError
from scenarios.library_index import LIBRARY, library_names
from scenarios.loading import load_all
from scenarios.yaml_loader import parse_yaml
from tests.scenarios.helpers import GOOD

TEXTS = [GOOD, *((LIBRARY / f"{name}.yaml").read_text() for name in library_names())]
STRUCTURES = [parse_yaml(text, "f").data for text in TEXTS]

SNIPPETS = st.sampled_from(
    ["", " ", "\n", "\t", ":", "-", "[", "]", "{", "}", "&a ", "*a", "!!int ", "!x ", "<<: ", "'", '"', "#", "|", ">", "---",
     "0x", "-1", "1e999", ".nan", "4K", "9" * 60, "null", "vcpu*", "host[9-1]", "vcpu[0-9999]", "\x00", "\u2028", "\ud7ff",
     "é", "touch", "repeat", "?", "sweep: {td.vcpus: [1, x]}\n", "threads.vcpu0"]
)  # fmt: skip
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(
        ["4K", "2M", "1us", "private", "shared", "vcpu0", "pct:3", "none", "tdx", "plain", "snp", "manual"]
    )
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
QUIET = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def outcome(folder: Path, text: bytes, *options: str) -> int:
    """The exit status of `check`, which is 0 or 2; a defect shows its exception."""
    file = folder / "good.yaml"
    file.write_bytes(text)
    with suppress(ScenarioError):
        load_all(file)
    result = CliRunner().invoke(tdsim, ["check", str(file), *options])
    assert result.exit_code in {0, 2}, result.output
    assert (result.exit_code == 2) == bool(result.stderr)
    return result.exit_code


@QUIET
@given(data=st.data())
def test_mutated_text_is_accepted_or_refused(tmp_path, data):
    """Cut, insert and swap pieces of a valid file."""
    text = data.draw(st.sampled_from(TEXTS))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 12)))
        text = text[:start] + data.draw(SNIPPETS) + text[end:]
    outcome(tmp_path, text.encode("utf-8", "surrogatepass"))


@QUIET
@given(raw=st.binary(max_size=200))
def test_any_bytes_are_accepted_or_refused(tmp_path, raw):
    """A file need not even be text."""
    outcome(tmp_path, raw)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all keys and items."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [found for key, below in children for found in [(*path, key), *places(below, (*path, key))]]


@QUIET
@given(data=st.data())
def test_mutated_structure_is_accepted_or_refused(tmp_path, data):
    """Replace, drop, rename and copy parts of a valid structure; names and values stay plausible YAML."""
    structure = json.loads(json.dumps(data.draw(st.sampled_from(STRUCTURES))))
    structure["scenario"] = "good"
    for _ in range(data.draw(st.integers(1, 3))):
        choices = places(structure)
        if not choices:
            break
        path = data.draw(st.sampled_from(choices))
        parent = structure
        for part in path[:-1]:
            parent = parent[part]
        match data.draw(st.sampled_from(["replace", "drop", "rename", "copy"])):
            case "replace":
                parent[path[-1]] = data.draw(VALUES)
            case "drop":
                del parent[path[-1]]
            case "rename" if isinstance(parent, dict):
                parent[
                    data.draw(st.text(max_size=6) | st.sampled_from(["vcpu*", "host*", "at", "repeat"]))
                ] = parent.pop(path[-1])
            case _:
                other = structure
                for part in data.draw(st.sampled_from(choices)):
                    other = other[part] if isinstance(other, dict | list) and part in (other if isinstance(other, dict) else range(len(other))) else other  # fmt: skip
                parent[path[-1]] = json.loads(json.dumps(other))
    outcome(tmp_path, json.dumps(structure, allow_nan=True).encode())


@QUIET
@given(setting=st.text(max_size=30) | st.builds("{}={}".format, st.sampled_from([
    "td.vcpus", "td", "memory.0.size", "threads", "expect.counters.x.y", "sweep.td.vcpus", "memory", "hunt.window", "patches"
]), st.text(max_size=12) | SNIPPETS))  # fmt: skip
def test_any_override_is_accepted_or_refused(tmp_path, setting):
    """`--set` takes whatever a shell can pass."""
    outcome(tmp_path, GOOD.encode(), f"--set={setting}")
