"""Text to data with places."""

from __future__ import annotations

import pytest

from scenarios.errors import ScenarioError
from scenarios.yaml_loader import BYTES_MAX, Mark, override, parse_yaml, read_yaml


def test_plain_values_follow_yaml_1_2():
    """`on`, `1:30` and `017` are what editors take them for."""
    data = parse_yaml("[on, 1:30, 017, 0o17, 1e-6, 0x10, ~, '5', true, yes, .5, 2026-01-01]", "f").data

    assert data == ["on", "1:30", 17, 15, 1e-06, 16, None, "5", True, "yes", 0.5, "2026-01-01"]


def test_every_key_and_value_has_its_place():
    """Lines and columns count from 1."""
    document = parse_yaml("a: 1\nb:\n  - {c: x}\n", "f")

    assert document.mark(("a",)) == Mark("f", 1, 4)
    assert document.mark(("a",), key=True) == Mark("f", 1, 1)
    assert document.mark(("b", 0, "c")) == Mark("f", 3, 9)
    assert document.mark(("b", 0, "absent")) == Mark("f", 3, 5)


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 10)}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "f:3:1: a: duplicate key; the first is in line 1; keep one of them"),
        ("a: !!int 5", "f:1:4: a: tags are not allowed (got '!!int'); write the plain value"),
        ("a: !!python/object:os.x {}", "f:1:4: a: tags are not allowed"),
        ("a: &x [*x]", "f:1:4: a.0: an alias contains itself"),
        ("1: 2", "f:1:1: a key must be text (got 1)"),
        ("<<: {a: 1}", "f:1:1: merge keys are not part of YAML 1.2"),
        ("a: [1", "f:1:6: not YAML:"),
        ("a: *b", "f:1:4: not YAML: found undefined alias"),
        ("a: 1\n---\nb: 1", "f:2:1: not YAML: expected a single document"),
        ("a: b\0", "f:1:5: not YAML:"),
        ("[" * 60 + "]" * 60, "nested deeper than 48 levels"),
        ("[" * 300_000, "f:1:49: nested deeper than 48 levels"),
        ("a: " + "9" * 5000, "f:1:4: a: a number of more than 40 digits"),
        (BOMB, "aliases and lists make more than 200000 values"),
    ],
)
def test_what_is_refused_names_its_place(text, message):
    """Each refusal has line, column and what to do."""
    with pytest.raises(ScenarioError) as caught:
        parse_yaml(text, "f")

    assert message in str(caught.value)


def test_files_that_cannot_be_read_are_wrong_input(tmp_path):
    """Absent, too large and badly encoded files are told, not raised."""
    large, latin = tmp_path / "large.yaml", tmp_path / "latin.yaml"
    large.write_bytes(b"#" * (BYTES_MAX + 1))
    latin.write_bytes(b"a: 1\nb: \xe9\n")

    for file, message in (
        (tmp_path / "none", "cannot be read"),
        (large, "larger than"),
        (latin, ":2:4: not UTF-8"),
    ):
        with pytest.raises(ScenarioError, match=message):
            read_yaml(file)


def test_overrides_reach_lists_dotted_keys_and_new_mappings():
    """`--set` names any key, also below mappings that are not written yet."""
    document = parse_yaml("a: {b.c: 1}\nl: [{x: 1}]\n", "f")
    for setting in ("a.b.c=2", "l.0.x=4K", "new.deep=[1, 2]", "expect.counters.fault.fixed={min: 1}"):
        override(document, setting)

    assert document.data == {
        "a": {"b.c": 2},
        "l": [{"x": "4K"}],
        "new": {"deep": [1, 2]},
        "expect": {"counters": {"fault.fixed": {"min": 1}}},
    }


@pytest.mark.parametrize("setting", ["a", "=1", "l.7=1", "l.x=1", "s.deeper=1", "a=[", "a=!!int 1"])
def test_overrides_that_fit_nowhere_are_wrong_input(setting):
    """A bad override is told with the option's text."""
    document = parse_yaml("l: [1]\ns: text\n", "f")
    with pytest.raises(ScenarioError) as caught:
        override(document, setting)

    assert str(caught.value).startswith(f"--set {setting}")
