"""The scenarios that come with tdsim, and the schema that editors read."""

from __future__ import annotations

import json

import pytest

from scenarios.library_index import LIBRARY, library_names
from scenarios.loading import load_all
from scenarios.schema_json import SCHEMA_FILE, scenario_schema, schema_text


@pytest.mark.parametrize("name", library_names())
def test_a_library_file_is_right_and_says_what_it_asks(name):
    """Each file checks clean, asks a question and expects something; its first line serves editors."""
    file = LIBRARY / f"{name}.yaml"
    for scenario in load_all(file):
        assert scenario.question.rstrip().endswith("?")
        assert scenario.expect.counters
    assert file.read_text().startswith("# yaml-language-server: $schema=../scenario.schema.json\n")


def test_the_big_scenario_is_big():
    """64 vCPUs and at least 100,000 faults."""
    (scenario,) = load_all(LIBRARY / "big-first-touch.yaml")

    assert scenario.td.vcpus == 64
    parts = [program.part_of(program.steps[0].args) for program in scenario.programs().values()]
    assert sum(end - start for start, end in parts) // 4096 >= 100_000


def test_the_schema_file_is_fresh():
    """`tdsim schema > scenarios/scenario.schema.json` was run after the last change."""
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text()


def test_every_key_has_a_description():
    """Editors show it on hover; a mapping of its own may have it as the model's text."""
    models = scenario_schema()["$defs"].values()
    bare = [
        (model.get("description"), key)
        for model in [scenario_schema(), *models]
        for key, value in model.get("properties", {}).items()
        if "description" not in value and "$ref" not in value
    ]

    assert not bare
    assert json.dumps(scenario_schema())
