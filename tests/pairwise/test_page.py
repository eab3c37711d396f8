"""docs/seamcall-pairs.md: what it shows of a result, and that the one in the docs is of this table."""

from pathlib import Path

from tests.pairwise import page
from tests.pairwise.__main__ import COMMAND, main
from tests.pairwise.calls import CALLS
from tests.pairwise.quirks import QUIRKS
from tests.pairwise.reach import Reach
from tests.pairwise.search import search_pair
from tests.pairwise.test_search import LINE, RUNNING, S

DOCS = Path(__file__).parents[2] / "docs" / "seamcall-pairs.md"


def test_the_page_says_who_loses_what():
    """The row's call is the loser; both sides of a pair have a cell; what only overlapping calls return is shown."""
    state = RUNNING._replace(entry=S.FREE)
    pairs = (("PAGE.AUG at entry", "PAGE.ACCEPT at entry"), ("PAGE.AUG at entry", "RANGE.BLOCK at entry"))
    results = [search_pair(LINE[one], LINE[other], [[state]]) for one, other in pairs]
    text = page.page(results, [Reach((state,), {state: None})] * 2, "the command")

    assert "    the command\n" in text
    assert "| 1 PAGE.AUG |   | T | C |" in text
    assert "| 2 RANGE.BLOCK | T |   |   |" in text
    assert "| 3 PAGE.ACCEPT | C |   |   |" in text
    assert "`SUCCESS` with `PAGE_SIZE_MISMATCH|0`".replace("|", "\\|") in text
    assert text == page.page(results, [Reach((state,), {state: None})] * 2, "the command")


def test_the_page_in_the_docs_is_of_this_table():
    """Made by the command that it names; every leaf has its row, every quirk too."""
    text = DOCS.read_text(encoding="utf-8")

    assert f"    {COMMAND}\n" in text
    for number, label in enumerate(dict.fromkeys(call.label for call in CALLS), 1):
        assert f"| {number} {label} |" in text
    for quirk in QUIRKS:
        assert quirk.text in text


def test_wrong_usage_is_said(capsys):
    """A leaf that is none, and a page of half the table: status 2 and why."""
    assert main(["--only", "PAGE.BUG"]) == 2
    assert "no leaf 'PAGE.BUG': there are EXPORT.BLOCKW" in capsys.readouterr().err
    assert main(["--only", "PAGE.AUG", "--write", "x.md"]) == 2
    assert "--write" in capsys.readouterr().err
