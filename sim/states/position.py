"""Where a generator stands, exactly: equal positions, equal futures.

The position of a thread is what its future depends on besides the values it will be given: for each generator of the chain the
place in its code, the local variables that still matter and its value stack (the iterator of a `for`, the left side of a `+`), and everything
reachable from there, by structure. An object that can change counts with its identity: two lists that are one differ from two
equal ones. What all threads share (words, locks, the kernel) is named by whoever takes the position, and not looked into.

The value stack is read by `gc.get_referents`, which lists what a suspended frame holds in its order; `readable` says whether
this interpreter does that. Module globals are constants here: code that assigns one is refused.
"""

from __future__ import annotations

import dis
import gc
import sys
from collections import deque
from collections.abc import Generator, Hashable
from enum import Enum
from functools import cache, partial
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    GeneratorType,
    MethodType,
    ModuleType,
    NoneType,
)
from typing import Any, Generic

from sim.states.liveness import live_after

Names = dict[int, Hashable]
"""What is not looked into: id of an object that lives as long as the table does, and the name that stands for it."""

_AS_THEY_ARE = (int, str, bytes, NoneType)
_BY_IDENTITY = (BuiltinFunctionType, CodeType, ModuleType, type, Enum)
_NO_STATE = {"__dict__", "__weakref__"}
_HEAP_TYPE = 1 << 9
_IMMUTABLE_TYPE = 1 << 8
"""Py_TPFLAGS_HEAPTYPE and _IMMUTABLETYPE: a class statement makes the former, most of C's classes are the latter."""

_kept: dict[int, Any] = {}
"""Objects that stand for themselves: few, since code, classes and constants are few."""

_EMPTY: tuple[Any, ...] = ([], (), range(0), range(1 << 70), "", b"", {}, {}.values(), {}.items(), set())
_ITERATORS = (*(type(iter(empty)) for empty in _EMPTY), type(reversed([])), enumerate, zip, map, filter)


class Opaque(ValueError):
    """An object whose state cannot be read, in a world that is to be told apart by its state. Args: a noun phrase."""


def require_readable() -> None:
    """Raises: Opaque: this interpreter does not show where a generator stands."""
    if not readable():
        raise Opaque("a generator: this Python does not show the value stack of one that is suspended")


class Walk:
    """One walk over a thread, or over several objects that may share parts."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self.met: dict[int, Any] = {}
        """Objects that can change, in the order of the walk."""

    def of(self, value: Any) -> Hashable:
        """A value that stands for this one. Raises: Opaque."""
        kind = type(value)
        if kind in _AS_THEY_ARE or value is Ellipsis:
            return value  # type: ignore[no-any-return]
        if kind is tuple:
            return ("tuple", *map(self.of, value))
        if kind is bool or kind is float or kind is complex:
            return (kind.__name__, repr(value))
        name = self._names.get(id(value))
        if name is not None:
            return ("name", name)
        if isinstance(value, _BY_IDENTITY):
            return _one(value)
        if isinstance(value, tuple):
            return ("tuple", _one(kind), *map(self.of, value))
        for plain in (int, str, bytes, float):
            if isinstance(value, plain):
                return ("plain", _one(kind), plain.__repr__(value), *self._attributes(value, kind))
        if kind is frozenset:
            return ("frozenset", frozenset(map(self.of, value)))
        if kind is FunctionType:
            return self._function(value)
        if kind is MethodType:
            return ("method", self.of(value.__func__), self.of(value.__self__))
        number = self.met.get(id(value))
        if number is not None:
            return ("again", number[0])
        self.met[id(value)] = (len(self.met), value)
        return self._changing(value, kind)

    def _function(self, function: FunctionType) -> Hashable:
        """A function is its code and what it closed over; module-level functions have nothing more."""
        made = function.__closure__ or ()
        defaults = (function.__defaults__, function.__kwdefaults__)
        own = () if defaults == (None, None) else (self.of(defaults[0]), self.of(defaults[1]))
        return ("function", _one(function.__code__), own, *map(self.of, made))

    def _changing(self, value: Any, kind: type) -> Hashable:
        if kind is CellType:
            return ("cell", *map(self.of, _contents(value)))
        if isinstance(value, list | deque):
            return ("list", _one(kind), *map(self.of, value), *self._attributes(value, kind))
        if isinstance(value, dict):
            return (
                "dict",
                _one(kind),
                *self._attributes(value, kind),
                *[(self.of(key), self.of(entry)) for key, entry in value.items()],
            )
        if kind is set or kind is bytearray:
            return (kind.__name__, frozenset(map(self.of, value)) if kind is set else bytes(value))
        if kind is GeneratorType:
            return self._generator(value)
        if kind is range or kind is slice:
            return (kind.__name__, self.of((value.start, value.stop, value.step)))
        if kind in _ITERATORS:
            return ("iterator", kind.__name__, self.of(value.__reduce__()))
        if kind is partial:
            return ("partial", self.of((value.func, value.args, value.keywords)))
        return self._instance(value, kind)

    def _generator(self, generator: GeneratorType[Any, Any, Any]) -> Hashable:
        frame = generator.gi_frame
        if frame is None:
            return ("ended",)
        code = frame.f_code
        held = gc.get_referents(generator)
        start = next(i for i in range(1, len(held)) if held[i] is code and type(held[i - 1]) is FunctionType)
        del held[: start + 1]
        live = live_after(code).get(frame.f_lasti)
        if live is None:  # not started: its arguments are all there is
            return ("generator", _one(code), frame.f_lasti, *map(self.of, held))
        bound = frame.f_locals
        kept: list[Hashable] = []
        for name in (*code.co_varnames, *[name for name in code.co_cellvars if name not in code.co_varnames]):
            if name in code.co_cellvars or name in bound:
                value = held.pop(0)
                if name in code.co_cellvars or name in live:
                    kept.append((name, self.of(value)))
        return ("generator", _one(code), frame.f_lasti, *kept, *map(self.of, held))

    def _instance(self, value: Any, kind: type) -> Hashable:
        """An object of a class written in Python is its attributes; without any it is itself, if it is a module's constant."""
        if isinstance(value, BaseException):
            return ("exception", _one(kind), self.of(value.args), *self._attributes(value, kind))
        if kind.__module__ == "_hashlib":  # a running hash: equal so far, equal ever after
            return ("hash", value.name, value.hexdigest())
        if not all(map(_written_in_python, kind.__mro__)):
            raise Opaque(f"an object of type {kind.__name__}")
        if id(value) in _constants(kind):
            return _one(value)
        return ("object", _one(kind), self.met[id(value)][0], *self._attributes(value, kind))

    def _attributes(self, value: Any, kind: type) -> tuple[Hashable, ...]:
        slots = [slot for base in kind.__mro__ for slot in _slots(base) if slot not in _NO_STATE]
        values = [(slot, self.of(getattr(value, slot))) for slot in slots if hasattr(value, slot)]
        own = getattr(value, "__dict__", None) or {}
        return (*values, *[(name, self.of(entry)) for name, entry in own.items()])


@cache
def _written_in_python(kind: type) -> bool:
    """Whether attributes are all there is to an object of this class."""
    if kind is object or kind is Generic:
        return True
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    by_statement = bool(kind.__flags__ & _HEAP_TYPE) and not kind.__flags__ & _IMMUTABLE_TYPE
    return by_statement and (file.endswith(".py") or kind.__module__ == "__main__")


def _contents(cell: CellType) -> tuple[Any, ...]:
    """What a closure's variable holds; nothing before it is assigned."""
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


@cache
def _constants(kind: type) -> frozenset[int]:
    """Ids of the module globals of a class: sentinels, which are told apart by identity."""
    modules = list(sys.modules.values())
    return frozenset(
        id(_kept.setdefault(id(v), v)) for m in modules for v in vars(m).values() if type(v) is kind
    )


def _one(value: Any) -> Hashable:
    """An object that stands for itself; it is kept, so that no other is ever taken for it."""
    return ("one", id(_kept.setdefault(id(value), value)))


def _slots(base: type) -> tuple[str, ...]:
    slots = base.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def globals_written(code: CodeType) -> str | None:
    """The name of a module global that this code assigns, if any."""
    return next((step.argval for step in dis.get_instructions(code) if step.opname == "STORE_GLOBAL"), None)


def _probe() -> Generator[int, int, int]:
    kept = "a local"
    for _ in ("first", "second"):
        total = (yield 1) + (yield 2)
        del total
    return len(kept)


@cache
def readable() -> bool:
    """Whether this interpreter shows the value stack of a suspended generator: an iterator and the left side of a sum."""
    generator = _probe()
    try:
        next(generator)
        one = Walk({}).of(generator)
        generator.send(1 << 20)
        two = Walk({}).of(generator)
        generator.send(1)
        generator.send(1 << 21)
        three = Walk({}).of(generator)
    except (Opaque, StopIteration):
        return False
    finally:
        generator.close()
    return len({one, two, three}) == 3
