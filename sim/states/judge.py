"""Properties, asked about states: the words of a world of its own are given the state's values."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sim.access import Cell
from sim.findings import Broken
from sim.locks import Lock
from sim.states.laboratory import Laboratory, Misfit

if TYPE_CHECKING:
    from sim.kernel import Kernel
    from sim.locks import RwLock
    from sim.states.automata import Automata

State = tuple[int, ...]
"""The number of the value of every component."""


class _Noted(Cell[Any]):
    """A word that notes that it is looked at."""

    __slots__ = ()

    def _get(self) -> Any:
        _Noted.looked_at.append(self)
        return Cell.__dict__["v"].__get__(self)

    looked_at: list[Any] = []  # noqa: RUF012 - one property is asked at a time
    v = property(_get)


class _Closed(Laboratory):
    """The world that properties look at, and of which they may see words only."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return super().__getattribute__(name)
        if name == "counters":
            return self.__dict__["counters"]
        raise Misfit(f"a property looks at the kernel's {name}")


_WANTED = "sometimes"
"""The kind of a question that is answered yes only by a true value; the others are answered no only by a false one."""


class Question:
    """A property, and the answers it gave for the values of the words it looks at."""

    __slots__ = ("answers", "kind", "predicate", "text", "words")

    def __init__(self, text: str, kind: str, predicate: Callable[[], Any]) -> None:
        self.text = text
        self.kind = kind
        self.predicate = predicate
        self.words: tuple[int, ...] = ()
        """Every component it has looked at so far. Equal values of those, equal answer."""
        self.answers: dict[State, bool] = {}


class Judge:
    """The properties of a world."""

    def __init__(self, fill: Callable[[Kernel], None], automata: Automata) -> None:
        world = Laboratory(fill)
        self._automata = automata
        self._components = {id(word): automata.components[key] for key, word in world.words.items()}
        self._words = {automata.components[key]: word for key, word in world.words.items()}
        self._threads = list(world.threads)
        self.always = [Question(*entry) for entry in world._always]
        self.at_end = [Question(*entry) for entry in world._at_end]
        self.sometimes = [Question(text, _WANTED, asked) for text, asked in world._sometimes.items()]
        self._locks = [component for component, word in self._words.items() if not isinstance(word, Cell)]
        for word in world.words.values():
            if isinstance(word, Cell):
                word.__class__ = _Noted
        world.__class__ = _Closed

    def at_rest(self, state: State) -> tuple[int, ...] | str | None:
        """What is wrong with a state in which nobody can move: the threads that are stuck, a property, or nothing."""
        automata = self._automata
        at = enumerate(state[: len(automata.names)])
        stuck = tuple(t for t, local in at if not automata.daemons[t] and not automata.locals[t][local].ended)
        return stuck or self.broken(self.at_end, state)

    def broken(self, questions: list[Question], state: State) -> str | None:
        """The first of these properties that does not hold: what an execution would report."""
        return next((question.text for question in questions if not self.holds(question, state)), None)

    def holds(self, question: Question, state: State) -> bool:
        """Whether the property is true of a state."""
        key = tuple([state[component] for component in question.words])
        known = question.answers.get(key)
        if known is not None:
            return known
        for component, word in self._words.items():
            self._put(word, self._automata.value(component, state[component]))
        _Noted.looked_at.clear()
        verdict = question.predicate()
        answer = (
            bool(verdict)
            if question.kind == _WANTED
            else not (verdict is False or isinstance(verdict, Broken))
        )
        seen = {self._components[id(word)] for word in _Noted.looked_at} | set(self._locks)
        if not seen <= set(question.words):
            question.words = tuple(sorted(seen.union(question.words)))
            question.answers.clear()
            key = tuple([state[component] for component in question.words])
        question.answers[key] = answer
        return answer

    def _put(self, word: Any, value: Any) -> None:
        if isinstance(word, Cell):
            Cell.__dict__["v"].__set__(word, value)
        elif isinstance(word, Lock):
            writer, readers, _ = value
            lock: RwLock | Lock = word
            lock.writer = None if writer < 0 else self._threads[writer]
            lock.readers = {self._threads[reader]: None for reader in sorted(readers)}
        else:
            word.value = value
