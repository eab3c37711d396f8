"""Text to data, with the place of every value kept.

PyYAML's C composer reads the syntax; this module builds the values, because PyYAML's own builder speaks YAML 1.1, where
`on` is true, `1:30` is 90 and `017` is 15, and keeps the last of two equal keys without a word. Here: YAML 1.2's core
schema, as editors assume it, duplicate keys refused, keys are text, no `!!` tags, and limits on size, depth and on what
aliases may blow up to. The builder never executes or imports anything.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import yaml

from scenarios.errors import ScenarioError, nearest, shown

YamlPath: TypeAlias = tuple[str | int, ...]

BYTES_MAX: Final = 4 << 20
NODES_MAX: Final = 200_000
DEPTH_MAX: Final = 48
DIGITS_MAX: Final = 40

UNCHECKED_CHARS_MAX: Final = 2_000
"""A shorter text cannot nest deep enough to harm the C composer, which recurses on the C stack and would crash."""

_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE: Final = frozenset({"true", "True", "TRUE"})
_FALSE: Final = frozenset({"false", "False", "FALSE"})
_INT: Final = re.compile(r"[-+]?[0-9][0-9_]*|0o[0-7_]*[0-7]|0x[0-9a-fA-F_]*[0-9a-fA-F]", re.ASCII)
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_TAG: Final = re.compile(r"(?:&\S+\s+)?(![^\s]*)")
_SPECIAL: Final = {
    ".inf": float("inf"), ".Inf": float("inf"), ".INF": float("inf"), "+.inf": float("inf"),
    "-.inf": float("-inf"), "-.Inf": float("-inf"), "-.INF": float("-inf"),
    ".nan": float("nan"), ".NaN": float("nan"), ".NAN": float("nan"),
}  # fmt: skip


class Mark(NamedTuple):
    """A place in an input: `file`, and line and column from 1 (0: the input as a whole)."""

    file: str
    line: int
    column: int


@dataclass
class Document:
    """One input: its data, and where each key and each value of it stands."""

    file: str
    data: Any = None
    values: dict[YamlPath, Mark] = field(default_factory=dict)
    keys: dict[YamlPath, Mark] = field(default_factory=dict)

    def mark(self, path: YamlPath, *, key: bool = False) -> Mark:
        """Where `path` stands: its value, or its key if asked for; the nearest enclosing place if it is absent."""
        for end in range(len(path), -1, -1):
            known = path[:end]
            if key and end == len(path) and known in self.keys:
                return self.keys[known]
            if known in self.values:
                return self.keys.get(known, self.values[known]) if end < len(path) else self.values[known]
        return Mark(self.file, 0, 0)

    def value(self, path: YamlPath) -> Any:
        """The value at `path`; KeyError if there is none."""
        data = self.data
        for part in path:
            in_mapping = isinstance(data, dict) and part in data
            if not in_mapping and not (
                isinstance(data, list) and isinstance(part, int) and 0 <= part < len(data)
            ):
                raise KeyError(path)
            data = data[part]
        return data

    def error(
        self, path: YamlPath, message: str, *, key: bool = False, got: bool = False, remedy: str = ""
    ) -> ScenarioError:
        """A mistake at `path`, ready to be raised."""
        mark = self.mark(path, key=key)
        if got:
            with suppress(KeyError):
                message = f"{message} (got {shown(self.value(path))})"
        return ScenarioError(message, mark.file, mark.line, mark.column, path_text(path), remedy)

    def graft(self, path: YamlPath, value: Document) -> None:
        """Put another document's data at `path`, places included; its parent must exist."""
        parent = self.value(path[:-1])
        parent[path[-1]] = value.data
        for places in (self.values, self.keys):
            for old in [known for known in places if known[: len(path)] == path]:
                del places[old]
        self.values.update({path + at: mark for at, mark in value.values.items()})
        self.keys.update({path + at: mark for at, mark in value.keys.items()})
        self.keys[path] = value.mark(())


def path_text(path: YamlPath) -> str:
    """A path as messages and `--set` write it: `threads.vcpu0.1.touch.at`."""
    return ".".join(part if isinstance(part, str) and part.isprintable() else ascii(part) for part in path)


def read_yaml(file: Path) -> Document:
    """Read one scenario file.

    Raises: ScenarioError when it cannot be opened, is too large, is not UTF-8 or is not YAML.
    """
    name = str(file)
    try:
        with file.open("rb") as stream:
            raw = stream.read(BYTES_MAX + 1)
    except OSError as exc:
        raise ScenarioError(f"cannot be read: {exc.strerror}", name, 0, 0, "", "") from None
    except ValueError:
        raise ScenarioError("is no file name", ascii(name), 0, 0, "", "") from None
    if len(raw) > BYTES_MAX:
        raise ScenarioError(
            f"larger than {BYTES_MAX >> 20} MiB", name, 0, 0, "", "use repeat or sweep"
        ) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        before = raw[: exc.start].decode("utf-8", "replace")
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        raise ScenarioError("not UTF-8 text", name, line, column, "", "save the file as UTF-8") from None
    return parse_yaml(text, name)


def parse_yaml(text: str, file: str, *, column_shift: int = 0) -> Document:
    """Build the document in `text`; `file` only names it, `column_shift` places a part of a longer line.

    Raises: ScenarioError at the first mistake of the syntax.
    """
    if len(text) > BYTES_MAX:
        raise ScenarioError(f"larger than {BYTES_MAX >> 20} MiB", file, 0, 0, "", "use repeat or sweep")
    try:
        if len(text) > UNCHECKED_CHARS_MAX:
            _refuse_depth(text, file)
        node = yaml.compose(text, Loader=_Composer)
    except yaml.MarkedYAMLError as exc:
        place = exc.problem_mark or exc.context_mark
        line, column = (place.line + 1, place.column + 1 + column_shift) if place else (0, 0)
        lines = text.split("\n")
        if line > len(lines):  # the parser counts the end of the text as a line of its own
            line, column = len(lines), len(lines[-1]) + 1 + column_shift
        message = ", ".join(str(part) for part in (exc.context, exc.problem) if part)
        raise ScenarioError(f"not YAML: {message}", file, line, column, "", "") from None
    except yaml.reader.ReaderError as exc:
        before = text[: exc.position] if isinstance(exc.position, int) else ""
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1 + column_shift
        raise ScenarioError(
            f"not YAML: {exc.reason}", file, line, column, "", "remove the character"
        ) from None
    except (yaml.YAMLError, ValueError) as exc:
        raise ScenarioError(f"not YAML: {shown(str(exc))}", file, 1, 1, "", "") from None
    except RecursionError:
        raise ScenarioError(f"nested deeper than {DEPTH_MAX} levels", file, 1, 1, "", "") from None
    builder = _Builder(file, text, column_shift)
    if node is not None:
        builder.document.data = builder.build(node, (), frozenset())
    return builder.document


def _refuse_depth(text: str, file: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Composer):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_MAX:
                mark = event.start_mark
                assert mark is not None, "a parsed event has a place"
                message = f"nested deeper than {DEPTH_MAX} levels"
                raise ScenarioError(message, file, mark.line + 1, mark.column + 1, "", "")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


_Composer: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Builder:
    """Turns composed nodes into data, and remembers places by path."""

    def __init__(self, file: str, text: str, column_shift: int) -> None:
        self.document = Document(file)
        self._text = text
        self._shift = column_shift
        self._built = 0

    def build(self, node: yaml.Node, path: YamlPath, within: frozenset[int]) -> Any:
        self._built += 1
        if self._built > NODES_MAX:
            raise self._error(
                node, path, f"aliases and lists make more than {NODES_MAX} values", "use repeat or sweep"
            )
        if len(path) > DEPTH_MAX:
            raise self._error(node, path, f"nested deeper than {DEPTH_MAX} levels", "")
        if id(node) in within:
            raise self._error(node, path, "an alias contains itself", "write the value out")
        self.document.values[path] = self._mark(node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self._refuse_tag(node, path)
        within |= {id(node)}
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, i), within) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.MappingNode)
        return self._mapping(node, path, within)

    def _mapping(self, node: yaml.MappingNode, path: YamlPath, within: frozenset[int]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if key == "<<":
                raise self._error(key_node, path, "merge keys are not part of YAML 1.2", "write the keys out")
            if not isinstance(key, str):
                got = (
                    f" (got {shown(key)})"
                    if isinstance(key_node, yaml.ScalarNode)
                    else " (got a list or mapping)"
                )
                raise self._error(key_node, path, f"a key must be text{got}", "")
            here = (*path, key)
            if key in data:
                first = self.document.keys[here]
                remedy = f"the first is in line {first.line}; keep one of them"
                raise self._error(key_node, here, "duplicate key", remedy)
            self.document.keys[here] = self._mark(key_node)
            data[key] = self.build(value_node, here, within)
        return data

    def _scalar(self, node: yaml.ScalarNode, path: YamlPath) -> Any:
        self._refuse_tag(node, path)
        if not node.style:  # '' from the C parser, None from the pure one: a plain scalar
            return self._plain(node, node.value, path)
        return node.value

    def _plain(self, node: yaml.ScalarNode, text: str, path: YamlPath) -> Any:
        if text in _NULL:
            return None
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        if _INT.fullmatch(text):
            if len(text) > DIGITS_MAX:
                raise self._error(node, path, f"a number of more than {DIGITS_MAX} digits", "")
            digits = text.replace("_", "")
            return int(digits, 0) if digits[:2] in {"0x", "0o"} else int(digits, 10)
        if text in _SPECIAL:
            return _SPECIAL[text]
        if len(text) <= DIGITS_MAX and _FLOAT.fullmatch(text):
            return float(text)
        return text

    def _refuse_tag(self, node: yaml.Node, path: YamlPath) -> None:
        """Refuse a written tag; the composer fills in implied ones, so the text itself is asked."""
        written = _TAG.match(self._text, node.start_mark.index)
        if written:
            raise self._error(
                node, path, f"tags are not allowed (got {shown(written[1])})", "write the plain value"
            )

    def _mark(self, node: yaml.Node) -> Mark:
        return Mark(self.document.file, node.start_mark.line + 1, node.start_mark.column + 1 + self._shift)

    def _error(self, node: yaml.Node, path: YamlPath, message: str, remedy: str) -> ScenarioError:
        mark = self._mark(node)
        return ScenarioError(message, mark.file, mark.line, mark.column, path_text(path), remedy)


# --- values given on the command line ------------------------------------------------------------------------------

_OPEN_MAPPINGS: Final = {("expect", "counters"), ("expect", "latency"), ("costs",), ("sweep",)}
"""Mappings whose keys are the user's and may contain dots."""


def override(document: Document, setting: str) -> None:
    """Apply one `--set key=value`, whose key is a path such as `td.vcpus` or `threads.vcpu0.0.touch.at`.

    Raises: ScenarioError, placed in the option's own text.
    """
    file = f"--set {setting}" if setting.isprintable() else "--set"
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise ScenarioError("expected key=value", file, 0, 0, "", "for example --set td.vcpus=4")
    value = parse_yaml(text, file, column_shift=len("--set ") + len(key) + 1)
    if not value.values:
        value.values[()] = Mark(file, 1, len("--set ") + len(key) + 2)
    path = override_path(document, key.strip(), file)
    for end in range(1, len(path)):
        if document.value(path[: end - 1]).__class__ is dict and path[end - 1] not in document.value(
            path[: end - 1]
        ):
            empty = Document(file, {}, {(): Mark(file, 1, len("--set ") + 1)})
            document.graft(path[:end], empty)
    document.graft(path, value)


def override_path(document: Document, key: str, file: str) -> YamlPath:
    """The path that `key` names in `document`; existing keys that contain dots win over a split at the dot.

    Raises: ScenarioError when the key leads through a plain value or outside a list.
    """
    parts = key.split(".")
    path: YamlPath = ()
    data: Any = document.data
    while parts:
        if data is None:
            data = {}
        if isinstance(data, list):
            if (
                not parts[0].isascii()
                or not parts[0].isdigit()
                or len(parts[0]) > 6
                or int(parts[0]) >= len(data)
            ):
                remedy = f"the list has the items 0 to {len(data) - 1}" if data else "the list is empty"
                raise ScenarioError(f"no list item {shown(parts[0])}", file, 0, 0, path_text(path), remedy)
            path, data, parts = (*path, int(parts[0])), data[int(parts[0])], parts[1:]
            continue
        if not isinstance(data, dict):
            remedy = nearest(key, [path_text(path)]) or "name a key"
            raise ScenarioError(
                f"{path_text(path)} has no keys below it", file, 0, 0, path_text(path), remedy
            )
        taken = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in data), 0)
        if not taken:
            taken = len(parts) if path in _OPEN_MAPPINGS else 1
        name = ".".join(parts[:taken])
        path, data, parts = (*path, name), data.get(name), parts[taken:]
    return path
