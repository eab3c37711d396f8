"""Patches: replace named functions of the model, for one world only.

    @replaces(invalidate.is_page_fault_stale)
    def is_page_fault_stale(mmu, fault): ...

A patch file is executed with `collecting`, which gathers its `@replaces`; `applied` swaps the functions in their modules
(and wherever else a module imported them by name) and swaps them back, whatever happens. Not for concurrent worlds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class BadPatch(ValueError):
    """A patch cannot be used. Args: one sentence with what to do about it."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """One function and what stands in for it."""

    original: FunctionType
    replacement: Callable[..., Any]


_collected: list[Replacement] | None = None


def replaces(original: Any) -> Callable[[F], F]:
    """Say that the decorated function stands in for `original`, a function or method of the model."""
    target = getattr(original, "__func__", original)
    if not isinstance(target, FunctionType):
        raise BadPatch(f"@replaces wants a function of the model, not {original!r}")

    def decorate(function: F) -> F:
        if _collected is None:
            raise BadPatch("@replaces only works in a file given as a patch (`--patch FILE`)")
        _collected.append(Replacement(target, function))
        return function

    return decorate


def read(path: Path) -> list[Replacement]:
    """Execute a patch file and return what it replaces.

    Raises: BadPatch: it cannot be read or run, or replaces nothing.
    """
    global _collected  # noqa: PLW0603 - decorators run in the file have no other way to report
    try:
        source = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadPatch(f"{path}: cannot be read: {error.strerror}") from error
    _collected = []
    try:
        exec(compile(source, str(path), "exec"), {"__name__": path.stem, "__file__": str(path)})  # noqa: S102
        found = _collected
    except BadPatch as error:
        raise BadPatch(f"{path}: {error}") from error
    except Exception as error:
        raise BadPatch(f"{path}: {type(error).__name__}: {error}") from error
    finally:
        _collected = None
    if not found:
        raise BadPatch(f"{path}: replaces nothing: decorate a function with @replaces(module.function)")
    return found


@contextmanager
def applied(replacements: Sequence[Replacement]) -> Iterator[None]:
    """Swap the functions for the time of the block. They leave no trace."""
    before = [
        (r.original, r.original.__code__, r.original.__defaults__, r.original.__kwdefaults__)
        for r in replacements
    ]
    try:
        for r in replacements:
            _redirect(r)
        yield
    finally:
        for original, code, defaults, kwdefaults in before:
            original.__code__ = code
            original.__defaults__ = defaults
            original.__kwdefaults__ = kwdefaults
            original.__dict__.pop("patched_by", None)


def _redirect(r: Replacement) -> None:
    """Make `original` call the replacement: by code, so that every name it was imported under changes as well."""
    code = r.original.__code__
    if code.co_freevars:
        raise BadPatch(f"{r.original.__qualname__} closes over variables and cannot be replaced")
    r.original.__dict__["patched_by"] = r.replacement

    template = (
        "def patched(*args, **kwargs):\n"
        f"    return __import__('sys').modules[{r.original.__module__!r}]{_path(r.original)}"
        ".__dict__['patched_by'](*args, **kwargs)\n"
    )
    scope: dict[str, Any] = {}
    exec(template, scope)  # noqa: S102
    r.original.__defaults__ = None
    r.original.__kwdefaults__ = None
    r.original.__code__ = scope["patched"].__code__.replace(co_name=code.co_name)


def _path(function: FunctionType) -> str:
    module = sys.modules[function.__module__]
    owner: Any = module
    path = ""
    for part in function.__qualname__.split("."):
        owner = getattr(owner, "__dict__", {}).get(part)
        path += f".__dict__[{part!r}]"
    if owner is not function:
        raise BadPatch(f"{function.__qualname__} is not what its module calls by that name")
    return path
