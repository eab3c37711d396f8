"""The JSON Schema of scenario files: what `tdsim schema` prints and editors complete from.

`scenarios/scenario.schema.json` is this module's output; a test fails when it is stale. To refresh it:
`tdsim schema > scenarios/scenario.schema.json`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Final

SCHEMA_FILE: Final = Path(__file__).parent / "scenario.schema.json"


@cache
def scenario_schema() -> dict[str, Any]:
    """The JSON Schema, as data; not to be changed."""
    from scenarios.schema import Scenario

    schema = Scenario.model_json_schema(by_alias=True)
    _without_titles(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tdsim scenario",
        **schema,
    }


def schema_text() -> str:
    """The JSON Schema, as the file has it."""
    return json.dumps(scenario_schema(), indent=1, ensure_ascii=False) + "\n"


def _without_titles(node: Any, *, names: bool = False) -> None:
    """Drop pydantic's titles, which only repeat the keys; `names` says that the keys here are the user's."""
    if isinstance(node, dict):
        if not names and isinstance(node.get("title"), str):
            del node["title"]
        for key, below in node.items():
            _without_titles(below, names=key in {"properties", "$defs", "patternProperties"} and not names)
    elif isinstance(node, list):
        for below in node:
            _without_titles(below)
