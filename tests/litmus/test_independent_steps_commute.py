"""Neighbouring steps of the full model that are declared independent are swapped: the whole world must come out the same.

A step is an access and the plain calls behind it. Whatever they touch beside the access's own word they must say
(`sim.dependence.note`), else `dpor` leaves orders out. Here that is checked against the state itself: everything reachable
from the world and from the threads' local variables, by path.
"""

from __future__ import annotations

import enum
import random
import types
from collections import deque
from itertools import pairwise
from pathlib import Path

import pytest

from scenarios.build import build
from scenarios.library_index import LIBRARY
from scenarios.loading import load
from sim import INFINITY, Kernel, Thread
from sim.access import CellAccess, Cmpxchg
from sim.dependence import READ, Notes, conflict
from sim.kernel import StopExecution

PLANTS = Path(__file__).resolve().parents[1] / "plants"

NOT_STATE = {
    *("kernel", "env", "tie", "steps", "step", "due_ns", "debt_ns", "blocked_since_ns", "filled", "began_ns"),
    *(
        "exited_ns",
        "slice_began_ns",
        "send",
        "progress",
        "_line_free_ns",
        "_line_owner",
        "__pydantic_fields_set__",
    ),
}
"""Clocks, counts of steps and what belongs to the engine."""
PLAIN = (int, str, bytes, bool, float, type(None))
NAMELESS = (Kernel, type, types.ModuleType, types.BuiltinFunctionType, types.CodeType)


def _key(number, key):
    return repr(key) if isinstance(key, (*PLAIN, enum.Enum)) else f"{key if hasattr(key, 'name') else number}"


def _parts(o):
    """What an object is made of: names and values, and a value of its own or None."""
    if isinstance(o, dict):
        return sorted((f"[{_key(i, key)}]", value) for i, (key, value) in enumerate(o.items())), len(o)
    if hasattr(o, "_fields"):
        return [(f".{name}", getattr(o, name)) for name in o._fields if name not in NOT_STATE], type(
            o
        ).__name__
    if isinstance(o, (list, tuple, deque)):
        return [(f"[{i}]", value) for i, value in enumerate(o)], len(o)
    if isinstance(o, types.GeneratorType):
        frame = o.gi_frame
        if frame is None:
            return [], "ended"
        local = [
            (f".{name}", value) for name, value in sorted(frame.f_locals.items()) if name not in NOT_STATE
        ]
        return [*local, (">", o.gi_yieldfrom)], f"{frame.f_code.co_name}:{frame.f_lineno}"
    if isinstance(o, types.FunctionType):
        closure = zip(o.__code__.co_freevars, o.__closure__ or (), strict=True)
        return [(f"<{name}>", cell.cell_contents) for name, cell in closure], o.__qualname__
    if isinstance(o, types.MethodType):
        return [(".self", o.__self__)], o.__name__
    if isinstance(o, Thread):
        return [(">", o._generator), (".pending", o.pending)], (o.done, o.ready, repr(o.blocked_on))
    names = {name for kind in type(o).__mro__ for name in getattr(kind, "__slots__", ())} | set(
        getattr(o, "__dict__", ())
    )
    present = [name for name in sorted(names - NOT_STATE) if hasattr(o, name)]
    return [(f".{name}", getattr(o, name)) for name in present], type(o).__name__


def everything(world, kernel):
    """All values that can be reached, by path; an object that was met before is named by where."""
    found = {}
    met = {}
    todo = [
        ("world", world),
        *((f"thread {t.name}", t) for t in sorted(kernel.threads, key=lambda t: t.name)),
    ]
    todo.reverse()
    while todo:
        path, o = todo.pop()
        if isinstance(o, enum.Enum):
            found[path] = o.name
        elif isinstance(o, PLAIN):
            found[path] = o
        elif isinstance(o, (set, frozenset)):
            found[path] = sorted(map(str, o))
        elif id(o) in met:
            found[path] = f"the same as {met[id(o)][0]}"
        elif not isinstance(o, NAMELESS):
            met[id(o)] = path, o
            parts, found[path] = _parts(o)
            todo += [(path + name, value) for name, value in reversed(parts)]
    return found


def run(scenario, choose, stop=None):
    """An execution, up to `stop` steps: who made each step, what it touched, who could have; and the state at `stop`."""
    kernel = Kernel(window_ns=INFINITY)
    world = build(kernel, scenario)
    names, made, could = [], [], []
    state = None

    def pick(_kernel, candidates):
        nonlocal state
        if names:
            made[-1] = made[-1], tuple(Notes.taken)
            Notes.taken.clear()
        if len(names) == stop:
            state = everything(world, kernel)
            raise StopExecution
        index = choose(len(names), candidates)
        names.append(candidates[index].name)
        made.append(candidates[index].pending)
        could.append({thread.name for thread in candidates})
        return index

    Notes.taken = []
    try:
        kernel.execute(pick)
    finally:
        Notes.taken = None
    return names, made, could, state


def at_random(seed):
    """Threads that run for a while each."""
    draw = random.Random(seed)
    current = None

    def choose(_step, candidates):
        nonlocal current
        names = [thread.name for thread in candidates]
        if current not in names or draw.random() < 0.2:
            current = draw.choice(names)
        return names.index(current)

    return choose


def follow(names):
    return lambda step, candidates: [thread.name for thread in candidates].index(names[step])


def touched(step):
    access, notes = step
    return (*access.touched(), *notes)


def same_gate(one, two):
    """Waiting in line is no step: who stands in it differs on the way, and nothing else (`sim.dependence`)."""
    gates = one[0].gate(), two[0].gate()
    return None not in gates and gates[0].target is gates[1].target


def swaps(scenario, seeds, wanted=lambda _one, _two: True):
    """Some neighbours declared independent in some random executions: their steps, and the states of both orders."""
    for seed in range(seeds):
        names, made, could, _ = run(scenario, at_random(seed))
        places = [
            i
            for i, (one, two) in enumerate(pairwise(made[:-1]))
            if names[i] != names[i + 1]
            and names[i + 1] in could[i]
            and not conflict(touched(one), touched(two))
            and not same_gate(one, two)
            and wanted(one[0], two[0])
        ]
        for i in random.Random(seed).sample(places, min(3, len(places))):
            orders = [*names[:i], names[i], names[i + 1]], [*names[:i], names[i + 1], names[i]]
            states = [run(scenario, follow(order), stop=i + 2)[3] for order in orders]
            yield made[i][0], made[i + 1][0], *states


@pytest.mark.parametrize(
    "file",
    [
        LIBRARY / "prefault-vs-convert.yaml",
        PLANTS / "touch-vs-convert-next.yaml",
        PLANTS / "touch-vs-punch-holes.yaml",
    ],
    ids=lambda file: file.stem,
)
def test_neighbours_declared_independent_commute(file):
    """Each swap compares two whole worlds."""
    swapped = list(swaps(load(file), 10))

    assert len(swapped) > 15
    for one, two, there, back in swapped:
        assert there == back, (one, two)


def test_a_wrong_declaration_is_noticed(monkeypatch):
    """If stores said that they only read, some swap would show it."""
    monkeypatch.setattr(CellAccess, "touches", lambda access: ((access.target.name, READ),))
    monkeypatch.setattr(Cmpxchg, "touched", CellAccess.touches)
    scenario = load(PLANTS / "touch-vs-convert-next.yaml")
    swapped = swaps(scenario, 60, lambda one, two: one.target is two.target)

    assert any(there != back for _, _, there, back in swapped)
