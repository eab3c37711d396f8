"""The README's chapter "Put your patch under the hunt", followed literally: its files, its commands, what they print."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
CHAPTER = README.partition("## Put your patch under the hunt")[2].partition("### Strategies")[0]
RATE = re.compile(r"\d+ executions \(")
"""A line that tells how quick this machine is."""


def files():
    """{name: text} of the files that the reader is told to save."""
    return dict(re.findall(r"[Ss]ave (?:it|this) as `([^`]+)`:\n\n```python\n(.*?)```", CHAPTER, re.DOTALL))


def sessions():
    """(arguments, the lines that are printed below) of every command."""
    for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", CHAPTER, re.MULTILINE):
        for command in block.split("    $ ")[1:]:
            first, *printed = command.splitlines()
            yield (
                first.split(),
                [
                    line.strip()
                    for line in printed
                    if line.strip() not in {"", "..."} and not RATE.search(line)
                ],
            )


def test_the_chapter_works_as_written(tmp_path):
    """Each line shown is printed, up to its dots."""
    for name, text in files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    asked = list(sessions())

    assert len(files()) == 3
    assert len(asked) == 5
    for (program, *arguments), expected in asked:
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
            start = line.partition("...")[0].rstrip()
            assert any(told.startswith(start) for told in printed), (arguments, line, done.stdout)


@pytest.mark.parametrize("verdict", ["failing", "proved", "none found", "inconclusive"])
def test_the_verdicts_are_named(verdict):
    """All four."""
    assert verdict in README
