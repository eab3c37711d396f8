"""The README followed literally: the files it tells to save, the commands, and what they print."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
TIMES = re.compile(r"\d+ executions \(|\.\.\.|  wall ")
"""Where a printed line begins to depend on the machine, or is left out."""


def chapter(first, last):
    """The text between two lines."""
    return README.partition(first)[2].partition(last)[0]


def files(text):
    """{name: content} of the files that the reader is told to save."""
    return dict(re.findall(r"[Ss]ave (?:it|this) as `([^`]+)`:\n\n```\w+\n(.*?)```", text, re.DOTALL))


def sessions(text):
    """(arguments, the lines that are printed below) of every `tdsim` command."""
    for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE):
        for command in block.split("    $ ")[1:]:
            first, *printed = command.splitlines()
            if first.startswith("tdsim "):
                told = [TIMES.split(line.strip())[0].rstrip() for line in printed]
                yield first.split(), [line for line in told if line]


@pytest.mark.parametrize(
    ("first", "last", "saved", "commands"),
    [
        ("## Five minutes", "A mistake is told", 1, 5),
        ("## Put your patch under the hunt", "### Strategies", 3, 5),
        ("## The module by hand", "### How far it can be trusted", 1, 2),
    ],
)
def test_a_chapter_works_as_written(tmp_path, first, last, saved, commands):
    """Each line shown is printed, as far as it is shown."""
    text = chapter(first, last)
    for name, content in files(text).items():
        (tmp_path / name).write_text(content, encoding="utf-8")

    assert len(files(text)) == saved
    assert len(list(sessions(text))) == commands
    for (program, *arguments), expected in sessions(text):
        done = subprocess.run(
            [Path(sys.executable).with_name(program), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in {0, 1}, done.stderr
        printed = [line.strip() for line in done.stdout.splitlines()]
        for line in expected:
            assert any(told.startswith(line) for told in printed), (arguments, line, done.stdout)


def test_a_mistake_is_told_as_written(tmp_path):
    """`touch` written `tuoch`."""
    wrong = files(chapter("## Five minutes", "A mistake is told"))["my-first-race.yaml"].replace(
        "touch", "tuoch"
    )
    (tmp_path / "my-first-race.yaml").write_text(wrong, encoding="utf-8")
    ((arguments, expected),) = sessions(chapter("A mistake is told", "## Reading a result"))
    done = subprocess.run(
        [Path(sys.executable).with_name(arguments[0]), *arguments[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.splitlines() == expected


@pytest.mark.parametrize("verdict", ["failing", "proved", "none found", "inconclusive"])
def test_the_verdicts_are_named(verdict):
    """All four."""
    assert verdict in README
