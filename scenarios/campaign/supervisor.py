"""Worker processes, and the trio nursery that looks after them.

Each worker has one task that hands it one share at a time. A worker that dies has its share done again by a new one; a
share that kills three is told as such. Results are kept by index: in which order they come does not matter. Ctrl-C asks the
workers for what they have; it, or a first finding with every share before it done, then cancels the nursery, which ends them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from contextlib import nullcontext
from typing import Any

import trio

from scenarios.campaign.case import Case, Opened, repository_root
from scenarios.campaign.shares import Cut, Limit, Share, ShareResult, Tally, Tick
from scenarios.campaign.worker import HEADER, frame
from scenarios.errors import ScenarioError
from sim.strategies.dpor_split import as_json

DEATHS_MAX = 3
"""Workers that one share may cost."""
GRACE_S = 30.0
"""How much longer than the time limit a worker may take for the execution it is in."""

END_S = 5.0
"""How long a worker may take to hand in what it has, and how long to end."""


class CampaignFailure(RuntimeError):
    """A worker met a defect of tdsim, or a share kills its workers. Args: one sentence, or the worker's traceback."""


def run(
    opened: Opened, cut: Cut, *, jobs: int, limit: Limit, stop_at_first: bool, tick: Tick | None
) -> list[ShareResult]:
    """Do all shares in `jobs` processes; results by index. An interrupt expires `limit` and keeps what there is.

    Raises: ScenarioError: a patch that fails while it runs, or sources that changed meanwhile. CampaignFailure: a defect.
    """
    campaign = _Campaign(opened, cut, limit, stop_at_first, tick)
    trio.run(campaign.run, min(jobs, cut.count))
    if campaign.failure is not None:
        raise campaign.failure
    return campaign.in_order()


class _Campaign:
    def __init__(
        self, opened: Opened, cut: Cut, limit: Limit, stop_at_first: bool, tick: Tick | None
    ) -> None:
        self.case = opened.case
        self.digest = opened.digest
        self.cut = cut
        self.limit = limit
        self.stop_at_first = stop_at_first
        self.workers: list[_Worker] = []
        self.todo_from = 0
        """Shares from here on have not been handed out; those in `again` were, to workers that died."""
        self.again: deque[Share] = deque()
        self.deaths: dict[int, int] = {}
        self.results: dict[int, ShareResult] = {}
        self.first_found: int | None = None
        self.failure: Exception | None = None
        self.cancel = trio.CancelScope()
        self._tally = Tally(tick)

    def in_order(self) -> list[ShareResult]:
        """What counts: up to the first share that found something, if that is where to stop."""
        last = self.first_found if self.stop_at_first else None
        return [self.results[index] for index in sorted(self.results) if last is None or index <= last]

    async def run(self, jobs: int) -> None:
        """Start the workers and wait for them."""
        left_s = self.limit.left_s
        if left_s is not None:
            self.cancel.deadline = trio.current_time() + left_s + GRACE_S
        with self.cancel:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._interrupts)
                async with trio.open_nursery() as workers:
                    for _ in range(jobs):
                        workers.start_soon(self._tend)
                nursery.cancel_scope.cancel()

    async def _interrupts(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        with trio.open_signal_receiver(signal.SIGINT) if main else nullcontext() as signals:
            if signals is None:
                return
            async for _ in signals:
                if self.limit.expired:
                    self.cancel.cancel()  # the second one does not wait
                self.limit.expire()
                self.cancel.deadline = trio.current_time() + END_S
                for worker in self.workers:
                    worker.hurry()

    async def _tend(self) -> None:
        """One worker after the other, until there are no more shares."""
        worker: _Worker | None = None
        try:
            while not self.limit.over and (share := self._next()) is not None:
                if worker is None:
                    worker = await _Worker.start(self.case)
                    self.workers.append(worker)
                answer = await worker.ask(
                    {
                        "index": share.index,
                        "seed": share.seed,
                        "executions": share.executions,
                        "root": None if share.root is None else as_json(share.root),
                        "left_s": self.limit.left_s,
                        "stop_at_first": self.stop_at_first,
                        "model_digest": self.digest,
                    }
                )
                if answer is None:
                    self.workers.remove(worker)
                    await worker.end()
                    worker = None
                    self._died(share)
                else:
                    self._answered(answer)
        finally:
            if worker is not None:
                with trio.CancelScope(shield=True):
                    await worker.end()

    def _next(self) -> Share | None:
        """The share to hand out next; None if what is left does not count."""
        if self.again:
            return self.again.popleft()
        index = self.todo_from
        if index >= (self.cut.count if self.first_found is None else self.first_found):
            return None
        # Parts of a tree share their executions; what is known to be used is not offered again.
        roots, executions = self.cut.roots, self.cut.executions
        used = sum(result.report.executions for result in self.results.values()) if roots else 0
        if roots and executions is not None and used >= executions:
            return None
        self.todo_from += 1
        return self.cut.share(index, used)

    def _died(self, share: Share) -> None:
        self.deaths[share.index] = self.deaths.get(share.index, 0) + 1
        if self.deaths[share.index] >= DEATHS_MAX:
            self._fail(
                CampaignFailure(f"share {share.index} (seed {share.seed}) killed {DEATHS_MAX} workers")
            )
        self.again.append(share)

    def _answered(self, answer: dict[str, Any]) -> None:
        if "wrong_input" in answer:
            self._fail(ScenarioError(*answer["wrong_input"]))
            return
        if "defect" in answer:
            self._fail(CampaignFailure(f"share {answer['share']}:\n{answer['defect']}"))
            return
        result = ShareResult.from_json(answer["result"])
        self.results[result.index] = result
        self._tally.add(result)
        if not self.stop_at_first:
            return
        if result.report.findings and (self.first_found is None or result.index < self.first_found):
            self.first_found = first = result.index
            self.again = deque(share for share in self.again if share.index < first)
        if self.first_found is not None and all(i in self.results for i in range(self.first_found)):
            self.cancel.cancel()

    def _fail(self, failure: Exception) -> None:
        if self.failure is None:
            self.failure = failure
        self.cancel.cancel()


class _Worker:
    """A process and its two pipes."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._rest = b""

    @classmethod
    async def start(cls, case: Case) -> _Worker:
        """A process that knows the case."""
        root = repository_root()
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH", "")])]
        process = await trio.lowlevel.open_process(
            # -P: a file called random.py in the user's folder is not for us.
            [sys.executable, "-P", "-m", "scenarios.campaign.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        worker = cls(process)
        try:
            await worker._send(case.as_json())
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await worker.end()
            raise
        return worker

    async def ask(self, order: dict[str, Any]) -> dict[str, Any] | None:
        """Its answer; None if it has died."""
        if not await self._send(order):
            return None
        header = await self._exactly(HEADER.size)
        if header is None:
            return None
        body = await self._exactly(HEADER.unpack(header)[0])
        if body is None:
            return None
        answer: dict[str, Any] = json.loads(body)
        return answer

    def hurry(self) -> None:
        """Ask for what it has of its share; then it ends."""
        self._process.terminate()

    async def end(self) -> None:
        """No process is left behind. It is asked first, so that it can remove its temporary files; nobody listens any more."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                await stream.aclose()
        self._process.terminate()
        with trio.move_on_after(END_S):
            await self._process.wait()
        self._process.kill()
        await self._process.wait()

    async def _send(self, message: dict[str, Any]) -> bool:
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send_all(frame(message))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    async def _exactly(self, length: int) -> bytes | None:
        stream = self._process.stdout
        assert stream is not None
        parts: list[bytes | bytearray] = [self._rest]
        have = len(self._rest)
        while have < length:
            try:
                part = await stream.receive_some()
            except trio.BrokenResourceError:
                return None
            if not part:
                return None
            parts.append(part)
            have += len(part)
        data = b"".join(parts)
        self._rest = data[length:]
        return data[:length]
