"""A file and the command line's overrides in, a checked `Scenario` out; or every mistake with its place.

pydantic finds what is wrong with a value; this module says it in the file's own terms: the union tags and inner fields
that pydantic adds to a location are dropped by walking it through the document, and what could have been written instead
comes from the JSON Schema at that place, the same that editors complete from.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from scenarios.checks import check, check_thread_names
from scenarios.errors import ScenarioError, ScenarioErrors, nearest
from scenarios.library_index import LIBRARY, library_names
from scenarios.schema import STRATEGIES, GuestStep, HostStep, Scenario
from scenarios.schema_json import scenario_schema
from scenarios.yaml_loader import Document, YamlPath, override, override_path, read_yaml

VARIANTS_MAX: Final = 1024
"""Combinations that one `sweep` may expand into."""

_WORDS: Final = {
    "model_type": "expected a mapping",
    "model_attributes_type": "expected a mapping",
    "dict_type": "expected a mapping",
    "tuple_type": "expected a list",
    "string_type": "expected text",
    "int_type": "expected a whole number",
    "bool_type": "expected true or false",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "finite_number": "expected a finite number",
}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Scenario:
    """The scenario in the file at `path`, with `key=value` overrides applied; `sweep` is left unexpanded.

    Raises: ScenarioErrors (a ScenarioError) with every mistake of the file and the overrides.
    """
    document = read_yaml(Path(path))
    _apply(document, overrides)
    return scenario_of(document, Path(path), Path(path).stem)


def load_all(path: str | Path, overrides: Sequence[str] = ()) -> list[Scenario]:
    """The scenario in the file, or one for each combination of its `sweep`, named `name[key=value,...]`.

    Raises: ScenarioErrors (a ScenarioError) with every mistake of the first combination that has any.
    """
    scenario = load(path, overrides)
    if not scenario.sweep:
        return [scenario]
    document = scenario._document
    assert document is not None
    count = prod(len(values) for values in scenario.sweep.values())
    if not 1 <= count <= VARIANTS_MAX:
        message = f"expected 1 to {VARIANTS_MAX} combinations (got {count})"
        raise document.error(("sweep",), message, remedy="shorten the lists")
    axes = [[(key, i) for i in range(len(values))] for key, values in scenario.sweep.items()]
    return [_variant(Path(path), overrides, combination) for combination in product(*axes)]


def resolve(name: str) -> Path:
    """The file that SCENARIO on the command line means: a path, or a name of the library.

    Raises: ScenarioError with the nearest name of the library.
    """
    path = Path(name)
    try:
        if path.is_file():
            return path
        if path.exists():
            raise ScenarioError("is not a file", ascii(name)[1:-1], remedy="name a scenario file")
        if (LIBRARY / f"{name}.yaml").is_file():
            return LIBRARY / f"{name}.yaml"
    except (OSError, ValueError):
        pass
    remedy = nearest(path.stem, library_names())
    raise ScenarioError("no such file, and no such scenario in the library", ascii(name)[1:-1], remedy=remedy)


def _variant(file: Path, overrides: Sequence[str], combination: Sequence[tuple[str, int]]) -> Scenario:
    document = read_yaml(file)
    _apply(document, overrides)
    label = []
    for key, i in combination:
        value = document.value(("sweep", key, i))
        source = Document(document.file, value)
        for places, into in ((document.values, source.values), (document.keys, source.keys)):
            into.update({at[3:]: mark for at, mark in places.items() if at[:3] == ("sweep", key, i)})
        target = override_path(document, key, document.file)
        _graft(document, target, source)
        label.append(f"{key}={value if not isinstance(value, dict | list) else i}")
    del document.data["sweep"]
    name = f"{document.data.get('scenario')}[{','.join(label)}]"
    document.data["scenario"] = name
    return scenario_of(document, file, name)


def _graft(document: Document, path: YamlPath, value: Document) -> None:
    for end in range(1, len(path)):
        parent = document.value(path[: end - 1])
        if isinstance(parent, dict) and path[end - 1] not in parent:
            document.graft(path[:end], Document(document.file, {}, {(): value.mark(())}))
    document.graft(path, value)


def _apply(document: Document, overrides: Sequence[str]) -> None:
    problems: list[ScenarioError] = []
    if overrides and document.data is None:
        document.data = {}
    if overrides and not isinstance(document.data, dict):
        raise document.error((), "expected a mapping")
    for setting in overrides:
        try:
            override(document, setting)
        except ScenarioError as exc:
            problems.extend(exc.errors)
    if problems:
        raise ScenarioErrors(problems)


def scenario_of(document: Document, file: Path, stem: str) -> Scenario:
    """The scenario that a read document describes; `stem` is the name it must have.

    Raises: ScenarioErrors: one or more mistakes, each with its place.
    """
    if not isinstance(document.data, dict):
        raise ScenarioErrors(
            [document.error((), "expected a mapping with the keys scenario, question, td, threads")]
        )
    problems = list(check_thread_names(document))
    scenario = None
    try:
        scenario = Scenario.model_validate(document.data)
    except ValidationError as exc:
        problems += _told(exc, document)
    name = document.data.get("scenario")
    if isinstance(name, str) and name != stem and scenario is not None:
        remedy = f"write scenario: {stem}" if stem.isprintable() else "rename the file"
        problems.append(
            document.error(("scenario",), "expected the file's name without .yaml", got=True, remedy=remedy)
        )
    if scenario is not None:
        scenario._document, scenario._file = document, file
        if not problems:
            problems += check(scenario, document)
    if problems or scenario is None:
        unique = {str(problem): problem for problem in problems}.values()
        raise ScenarioErrors(sorted(unique, key=lambda p: (p.file != document.file, p.line, p.column)))
    return scenario


def _told(exc: ValidationError, document: Document) -> Iterator[ScenarioError]:
    """Pydantic's complaints in the file's terms."""
    for error in exc.errors(include_url=False):
        yield _tell(error["type"], tuple(error["loc"]), error["msg"], error.get("ctx", {}), document)


def _tell(kind: str, loc: YamlPath, text: str, ctx: dict[str, Any], document: Document) -> ScenarioError:
    path = _path_in(document, loc[:-1] if kind == "missing" else loc)
    if kind == "missing":
        remedy = f"add {loc[-1]}:"
        unknown = [key for key in _keys(document, path) if key not in _names_at(path)]
        meant = difflib.get_close_matches(str(loc[-1]), unknown, n=1)
        if meant:
            remedy = f"is {meant[0]} meant?"
        return document.error(path, f"missing key {loc[-1]}", key=bool(path), remedy=remedy)
    if kind == "extra_forbidden":
        names = _names_at(path[:-1])
        what = (
            "unknown verb"
            if len(path) > 2 and isinstance(path[-2], int) and "wait" in names
            else "unknown key"
        )
        remedy = nearest(path[-1], names, listing=20)
        if what == "unknown verb" and path[-1] in {**GuestStep.model_fields, **HostStep.model_fields}:
            side = "guest" if path[-1] in GuestStep.model_fields else "host"
            what, remedy = f"a {side} verb", f"give it to a {'vCPU' if side == 'guest' else 'host'} thread"
        return document.error(path, what, key=True, remedy=remedy)
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(ctx.get("expected", "")))
        expected = str(ctx.get("expected", ""))
        if len(choices) > 6:
            expected = "a known one"
        remedy = nearest(_text_at(document, path), choices) if choices else ""
        if remedy.startswith("known: ") and len(choices) <= 6:
            remedy = ""
        return document.error(path, f"expected {expected}", got=True, remedy=remedy)
    if kind == "string_pattern_mismatch":
        if path[-1] == "strategy":
            return document.error(
                path, "unknown strategy", got=True, remedy=nearest(_text_at(document, path), STRATEGIES)
            )
        return document.error(path, "expected a leaf's name", got=True, remedy="for example TDH.MEM.PAGE.AUG")
    message = _WORDS.get(kind) or text.removeprefix("Value error, ")
    message = re.sub(r"^Input should be", "expected", message)
    message = re.sub(r"^(String|Tuple|Data|Value) should have", "expected", message)
    message = re.sub(r" after validation, not \d+$", "", message)
    return document.error(path, message, got=True)


def _path_in(document: Document, loc: YamlPath) -> YamlPath:
    """`loc` without the parts that the models added: what is left leads through the document."""
    path: list[str | int] = []
    data = document.data
    for part in loc:
        in_mapping = isinstance(data, dict) and part in data
        if not in_mapping and not (
            isinstance(data, list) and isinstance(part, int) and 0 <= part < len(data)
        ):
            continue
        data = data[part]
        path.append(part)
    return tuple(path)


def _keys(document: Document, path: YamlPath) -> Iterable[str]:
    value = document.value(path)
    return value if isinstance(value, dict) else ()


def _text_at(document: Document, path: YamlPath) -> str:
    try:
        return str(document.value(path))[:80]
    except KeyError:
        return ""


def _names_at(path: YamlPath) -> list[str]:
    """The keys that the schema allows in the mapping at `path`."""
    schema = scenario_schema()
    places = _options(schema, schema)
    for part in path:
        places = [deeper for place in places for deeper in _options(_below(place, part), schema)]
    return [name for place in places for name in place.get("properties", {})]


def _below(place: dict[str, Any], part: str | int) -> dict[str, Any]:
    if isinstance(part, int):
        items: dict[str, Any] = place.get("items", {})
        return items
    if part in place.get("properties", {}):
        found: dict[str, Any] = place["properties"][part]
        return found
    for pattern, below in place.get("patternProperties", {}).items():
        if re.search(pattern, part):
            deeper: dict[str, Any] = below
            return deeper
    rest = place.get("additionalProperties", {})
    return rest if isinstance(rest, dict) else {}


def _options(place: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas that `place` stands for, references and alternatives resolved."""
    if "$ref" in place:
        return _options(schema["$defs"][place["$ref"].rpartition("/")[2]], schema)
    if "anyOf" in place or "oneOf" in place:
        return [
            found
            for option in place.get("anyOf", place.get("oneOf")) or []
            for found in _options(option, schema)
        ]
    return [place]
