"""A worker process: `python -m scenarios.campaign.worker`. Frames come on stdin and go to stdout, until stdin ends.

A frame is four bytes of length, then JSON. The first frame is the case, each later one a share; each share is answered by
its result, or by what went wrong. What the model prints goes to stderr, so that it cannot break a frame. Ctrl-C is the
supervisor's: it reaches the whole process group, and a worker that died of it would only be started again. SIGTERM ends the
worker: at once if it has nothing to do, else after the execution it is in, when it hands in what it has.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from scenarios.campaign.shares import Limit

HEADER = struct.Struct(">I")


def frame(message: dict[str, Any]) -> bytes:
    """A message as it goes through the pipe."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return HEADER.pack(len(body)) + body


def _receive(stream: BinaryIO) -> dict[str, Any] | None:
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (length,) = HEADER.unpack(header)
    body = stream.read(length)
    if len(body) < length:
        return None
    message: dict[str, Any] = json.loads(body)
    return message


def main() -> None:
    """Do shares until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))  # while there is nothing to do
    with os.fdopen(os.dup(1), "wb") as out, os.fdopen(os.dup(0), "rb") as source:
        os.dup2(2, 1)
        first = _receive(source)
        if first is None:
            return
        try:
            _serve(first, source, out)
        except BrokenPipeError:
            return


def _expiring(limit: Limit) -> Callable[[int, object], None]:
    return lambda _number, _frame: limit.expire()


def _serve(first: dict[str, Any], source: BinaryIO, out: BinaryIO) -> None:
    from scenarios.campaign.case import Case
    from scenarios.campaign.shares import Limit, Share, run_share
    from scenarios.errors import ScenarioError
    from sim.strategies.dpor_split import from_json

    def answer(message: dict[str, Any]) -> None:
        out.write(frame(message))
        out.flush()

    with Case.from_json(first, "the supervisor").opened() as opened:
        while (order := _receive(source)) is not None:
            if order["model_digest"] != opened.digest:
                answer({"wrong_input": ["the model's sources were changed during the hunt: begin again"]})
                continue
            told = order["root"]
            root = None if told is None else from_json(told)
            share = Share(order["index"], order["seed"], order["executions"], root)
            limit = Limit(order["left_s"])
            idle = signal.signal(signal.SIGTERM, _expiring(limit))
            try:
                result = run_share(opened, share, limit=limit, stop_at_first=order["stop_at_first"])
            except ScenarioError as exc:
                answer({"wrong_input": list(exc.args)})
            except Exception as exc:  # noqa: BLE001 - whatever it is, the supervisor tells it
                patches = opened.patch_error(exc)
                if patches is not None:
                    answer({"wrong_input": list(patches.args)})
                else:
                    answer({"defect": traceback.format_exc(), "share": share.index})
            else:
                answer({"result": result.as_json()})
            if limit.expired:
                return
            signal.signal(signal.SIGTERM, idle)


if __name__ == "__main__":
    main()
