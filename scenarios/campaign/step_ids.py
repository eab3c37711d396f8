"""Which step of the reference a line of the model is: read from the comment at the end of its statement (`# F31`)."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_ID = r"(?:F[0-9][0-9A-F][a-e]?|[LZCV][0-9]{1,2})\b"
_COMMENT = re.compile(rf"#\s*({_ID}(?:\s*(?:,|to|and)\s*{_ID})*)")


@cache
def step_ids(file: str) -> dict[int, tuple[str, ...]]:
    """Line to ids, for every line of each statement that carries some; empty if the file cannot be read."""
    try:
        source = Path(file).read_text(encoding="utf-8")
        if not _COMMENT.search(source):
            return {}  # most files: spare them the parser
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError):
        return {}
    comments: dict[int, tuple[str, ...]] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and (match := _COMMENT.match(token.string)):
            comments[token.start[0]] = tuple(re.findall(_ID, match[1]))
    lines: dict[int, tuple[str, ...]] = {}
    if comments:
        for first, last in _ranges(tree):
            ids = [name for line in range(first, last + 1) for name in comments.get(line, ())]
            if ids:
                lines.update(dict.fromkeys(range(first, last + 1), tuple(dict.fromkeys(ids))))
    return lines


@cache
def yielding_ids(folders: tuple[str, ...]) -> frozenset[str]:
    """The ids that stand at a `yield` in the sources below the folders: those that an execution can show."""
    found: set[str] = set()
    for folder in folders:
        for path in sorted(Path(folder).rglob("*.py")):
            ids = step_ids(str(path))
            if ids:
                tree = ast.parse(path.read_text(encoding="utf-8"))
                found.update(
                    name
                    for node in ast.walk(tree)
                    if isinstance(node, ast.Yield | ast.YieldFrom)
                    for name in ids.get(node.lineno, ())
                )
    return frozenset(found)


def _ranges(tree: ast.AST) -> Iterator[tuple[int, int]]:
    """First and last line of each simple statement and of each compound statement's head."""
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and not isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        ):
            body = getattr(node, "body", None)
            last = node.end_lineno or node.lineno
            if body:
                last = max(node.lineno, body[0].lineno - 1)
            yield node.lineno, last
