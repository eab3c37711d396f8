"""The event vocabulary: declared once, logged as JSON lines."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import mmu.events
import scenarios.output
import tdx.module.events
import vcpu.events
from sim import Event, EventLog, Kernel
from sim.events import vocabulary

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "events.txt"
DECLARED_BY = {module.__name__ for module in (mmu.events, scenarios.output, tdx.module.events, vcpu.events)}


class Rung(Event):
    """A bell rang (only here)."""

    name = "test.bell_rung"
    pitch: int
    why: str


def model_events():
    """The vocabulary of the model, without what tests declare."""
    return {name: kind for name, kind in vocabulary().items() if kind.__module__ in DECLARED_BY}


def test_the_vocabulary_is_the_golden_one():
    """A new or changed event shows in review; to renew the file, write `text` to it."""
    text = "".join(f"{' '.join([name, *kind.__struct_fields__])}\n" for name, kind in model_events().items())

    assert text == GOLDEN.read_text(encoding="utf-8")


def test_every_event_has_a_sentence_and_a_sound_name():
    """The docstring says what happened; the name is lower case."""
    for name, kind in model_events().items():
        assert kind.__doc__, name
        assert re.fullmatch(r"[a-z0-9_.]+", name), name


def test_an_event_is_stamped_and_written_as_one_json_line():
    """now_ns, step and thread come from the kernel; the fields in their order."""
    k, file = Kernel(), io.BytesIO()
    k.events = EventLog(file)

    def steps():
        k.spend(30)
        yield k.cell("x", 0).read()
        k.spend(5)
        k.emit(Rung(440, "noon"))

    k.emit(Rung(1, "before"))
    k.thread("ringer", steps())
    k.execute()
    k.events.close()

    before, during = [json.loads(line) for line in file.getvalue().splitlines()]
    assert (before["now_ns"], before["step"], before["thread"]) == (0, 0, "-")
    assert {**during} == {
        "now_ns": 35, "step": 1, "thread": "ringer", "pitch": 440, "why": "noon", "event": "test.bell_rung",
    }  # fmt: skip
    assert k.events.written == 2


def test_a_dark_kernel_writes_nothing():
    """`emit` without a log is no error."""
    Kernel().emit(Rung(1, "unheard"))
