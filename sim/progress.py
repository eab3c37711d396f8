"""Progress: livelock (retry loops that nobody ever leaves) and starvation (one that only one thread never leaves).

The model says where it tries again (`Kernel.retried`) and what counts as getting somewhere (`Kernel.progressed`). Waits
that the model writes as awaits on words never come here; what comes is a loop that runs.

*Livelock* is a lasso (algorithms.md section 14): at a retry the state is the same as at earlier retries, every thread that
could run has run in between (so it is no accident of the schedule), and nobody progressed. "The same" is judged by the
values of all cells touched since the last progress, and by where every thread stands (with the numbers in its frames, times
excepted) and what it would do next. State that the model keeps in plain attributes is not compared; so three equal visits
without progress are asked for.

*Starvation*: a thread has retried `STARVED` times since its own last progress, while others progressed and every thread that
could run did.

Under a strict priority schedule (pct) a thread may spin while others are ready: that is unfair, and is not judged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim.access import Cell

if TYPE_CHECKING:
    from sim.access import Access
    from sim.kernel import Kernel
    from sim.thread import Thread

Pending = dict["Thread", "Access | None"]

SUSPICIOUS = 4
"""So many retries of one thread without any progress, and the state is looked at."""
VISITS = 3
"""The same state so often is a lasso."""
STARVED = 300
"""So many retries in a row starve a thread."""


class Progress:
    """Watches the retries of one world, whose kernel asks it to `observe` steps while it is `looking`."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._retries: dict[Thread, int] = {}
        self._since: dict[Thread, int] = {}
        self._others: dict[Thread, int] = {}
        self.looking = False
        """Whether steps are wanted: only while a thread is suspicious."""
        self._touched: dict[Any, None] = {}
        self._visits: dict[Any, tuple[int, Pending]] = {}
        self._began: dict[Thread, Pending] = {}
        kernel.progress = self

    def observe(self, thread: Thread, access: Access) -> None:
        """A step has happened while `looking`."""
        if isinstance(access.target, Cell):
            self._touched[access.target] = None

    def progressed(self) -> None:
        """The running thread got somewhere: whatever is being looked at is no livelock."""
        thread = self.kernel.current
        self._retries.clear()
        self._since.pop(thread, None)
        for other in self._since:
            self._others[other] = self._others.get(other, 0) + 1
        self._others.pop(thread, None)
        self._began.pop(thread, None)
        if self.looking:
            self._forget()

    def retried(self, what: str) -> None:
        """The running thread is about to try again."""
        thread = self.kernel.current
        count = self._retries[thread] = self._retries.get(thread, 0) + 1
        since = self._since[thread] = self._since.get(thread, 0) + 1
        if since == 1:
            self._began[thread] = self._pending()
        if (
            since >= STARVED
            and self._others.get(thread, 0) >= STARVED // 10
            and self._all_ran(self._began[thread])
        ):
            self._since[thread] = 0
            self.kernel.find(
                "starvation",
                f"one thread retries for ever while others progress: {what}",
                thread=thread,
                retries=since,
                progress_of_others=self._others[thread],
            )
        if count < SUSPICIOUS:
            return
        if not self.looking:
            self._forget()
            self.looking = True
        self._look(thread, what)

    def _look(self, thread: Thread, what: str) -> None:
        state = self._state(thread, what)
        visits, before = self._visits.get(state) or (0, self._pending())
        self._visits[state] = visits + 1, before
        if visits + 1 >= VISITS and self._all_ran(before):
            blocked = [t for t in self.kernel.threads if not t.done and not t.daemon and t.blocked_on]
            details = {other.name: repr(other.blocked_on) for other in blocked if other is not thread}
            self._forget()
            self.kernel.find(
                "livelock", f"nobody progresses, and this is retried for ever: {what}", **details
            )

    def _pending(self) -> Pending:
        """What every thread that could run would do next."""
        return {other: other.pending for other in self.kernel.threads if other.ready}

    def _all_ran(self, before: Pending) -> bool:
        """Whether everybody who could run then, and still can, has run since."""
        return all(other.pending is not access or not other.ready for other, access in before.items())

    def _state(self, thread: Thread, what: str) -> Any:
        """Compared within this process only, so objects count by identity."""
        cells = tuple((id(cell), _value(cell.peek())) for cell in self._touched)
        places = tuple(_place(other) for other in self.kernel.threads if not other.done)
        return thread.index, what, cells, places

    def _forget(self) -> None:
        self.looking = False
        self._touched.clear()
        self._visits.clear()


def _value(value: Any) -> Any:
    return value if isinstance(value, int | tuple | str) else id(value)


def _place(thread: Thread) -> Any:
    """Where a thread stands: instruction and numbers of every frame (loops count in them), and what it would do next."""
    places = []
    for frame in thread.frames():
        counters = [
            (name, value)
            for name, value in frame.f_locals.items()
            if isinstance(value, int | str) and not name.endswith("_ns")
        ]
        places.append((id(frame.f_code), frame.f_lasti, *counters))
    pending = thread.pending if thread.ready else thread.blocked_on
    return tuple(places), None if pending is None else (pending.__class__, id(pending.target))
