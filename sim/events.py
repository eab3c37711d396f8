"""The event vocabulary's base, and the log that structlog renders.

A package declares its events once, as classes in its `events.py`; a class is the log line, its schema, the report's column
and what tests match on. The recorder stamps `now_ns`, `step` and `thread`. Kernel tracepoints keep the kernel's names.
"""

from __future__ import annotations

from typing import IO, Any, ClassVar

import msgspec


class Event(msgspec.Struct, gc=False):
    """Something that happened. Subclass it with `name`, and say in the docstring where the kernel traces it."""

    name: ClassVar[str] = ""


def vocabulary() -> dict[str, type[Event]]:
    """All events declared so far, by name, sorted."""
    found: dict[str, type[Event]] = {}
    todo = list(Event.__subclasses__())
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        if kind.name:
            found[kind.name] = kind
    return dict(sorted(found.items()))


STAMPS = ("now_ns", "step", "thread", "event")


class EventLog:
    """Writes events as JSON lines through structlog, streaming; flushes by block and at `close`."""

    def __init__(self, file: IO[bytes]) -> None:
        import structlog  # noqa: PLC0415 - a dark run never needs it, and it is slow to import

        encode = msgspec.json.Encoder().encode

        def render(_logger: Any, _method: str, fields: Any) -> bytes:
            """The stamps and the event's name first, for people read the start of a line."""
            return encode({name: fields.pop(name) for name in STAMPS} | fields)

        self._file = file
        self._log = structlog.wrap_logger(
            _Lines(file),
            processors=[render],
            wrapper_class=structlog.BoundLogger,
        ).bind()
        self.written = 0

    def write(self, now_ns: int, step: int, thread: str, event: Event) -> None:
        """Log one event with its stamps."""
        fields: dict[str, Any] = {"now_ns": now_ns, "step": step, "thread": thread}
        for name in event.__struct_fields__:
            fields[name] = getattr(event, name)
        self._log.info(event.name, **fields)
        self.written += 1

    def close(self) -> None:
        """Flush."""
        self._file.flush()


class _Lines:
    """What structlog calls a logger: takes finished lines."""

    __slots__ = ("_write",)

    def __init__(self, file: IO[bytes]) -> None:
        self._write = file.write

    def info(self, line: bytes) -> None:
        self._write(line + b"\n")
