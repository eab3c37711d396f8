"""The loop that reads lines: from a terminal with history and TAB, or from a pipe, where every line is echoed.

A line that is not understood is told, with a mark under the word, and the session goes on.
"""

from __future__ import annotations

import cmd
import sys
from typing import Final, TextIO

import click

from scenarios.errors import ScenarioError
from scenarios.seamcall.completion import completions
from scenarios.seamcall.session import Session
from scenarios.seamcall.show import lines_of

PROMPT: Final = "seamcall> "
ENDS: Final = {"quit", "q", "eof"}


class Repl(cmd.Cmd):
    """The loop. `mistakes` counts the lines that were not understood."""

    prompt = PROMPT

    def __init__(self, session: Session, *, source: TextIO | None = None) -> None:
        super().__init__()
        self.session = session
        self.mistakes = 0
        self._source = source

    def run(self) -> None:
        """Read and do lines until `quit` or the end of input."""
        click.echo(f"TDX module {self.session.profile}: {self.session.greeting()}.")
        if self._source is not None:
            for line in self._source:
                if line.strip():
                    click.echo(f"\n{PROMPT}{line.strip()}")
                if self.onecmd(line.rstrip("\n")):
                    return
            return
        click.echo(
            "`help` lists what can be said, `help demote` explains a leaf, TAB completes, `quit` ends."
        )
        while True:
            try:
                self.cmdloop()
            except KeyboardInterrupt:
                click.echo("\n`quit` ends the session; `show calls` tells what is in the middle")
                continue
            click.echo("")
            return

    def onecmd(self, line: str) -> bool:
        """Do one line; returns whether it was the last."""
        if line.strip().lower() in ENDS:
            return True
        try:
            for report in self.session.do(line):
                for told in lines_of(report):
                    click.echo(told)
        except ScenarioError as exc:
            self.mistakes += 1
            click.echo(mistake(line, exc))
        return False

    def emptyline(self) -> bool:
        """An empty line does nothing; in particular it does not repeat the last one."""
        return False

    def completenames(self, text: str, *ignored: object) -> list[str]:
        """TAB on the first word."""
        return completions(self.session, "", text)

    def completedefault(self, *args: object) -> list[str]:
        """TAB on another word: text, line, and where the text begins and ends."""
        text, line, begin, _ = args
        assert isinstance(text, str)
        assert isinstance(line, str)
        assert isinstance(begin, int)
        return completions(self.session, line[:begin], text)


def mistake(line: str, exc: ScenarioError) -> str:
    """What was not understood, with a mark under the word."""
    text = exc.message + (f"; {exc.remedy}" if exc.remedy else "")
    if not exc.column or exc.column > len(line):
        return f"  {text}"
    return f"{' ' * (len(PROMPT) + exc.column - 1)}^ {text}"


def run_interactive(session: Session) -> int:
    """A session with whoever is at the other end of stdin. Returns: lines of a pipe that were not understood."""
    terminal = sys.stdin.isatty()
    repl = Repl(session, source=None if terminal else sys.stdin)
    repl.run()
    return 0 if terminal else repl.mistakes
