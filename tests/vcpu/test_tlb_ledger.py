"""The TLB and content ledgers by themselves: what is promised is judged, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import Kernel
from vcpu.addresses import PG_LEVEL_4K, Gfn, Pfn
from vcpu.content import ContentLedger
from vcpu.memory import Content, Memory
from vcpu.tlb import Translation
from vcpu.tlb_ledger import TlbLedger

TD, OTHER = 32, 0


def a_kernel():
    """A kernel that goes on after findings, with a current thread to name."""
    kernel = Kernel(stop_at_finding=False)
    kernel.current = kernel.thread("t", (step for step in ()))
    return kernel


def translation(gfn, filled):
    return Translation(Gfn(gfn), Pfn(7), PG_LEVEL_4K, writable=True, executable=True, filled=filled)


events = st.lists(
    st.tuples(
        st.sampled_from(["promise", "use"]),
        st.sampled_from(["ept", "sept"]),
        st.integers(0, 7),
        st.integers(1, 4),
        st.integers(0, 5),
    ),
    max_size=20,
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(events)
def test_an_access_is_accused_exactly_if_a_younger_promise_covers_it(history):
    """Against the definition: some promise of that space and frame is younger than the walk."""
    kernel = a_kernel()
    ledger = TlbLedger(kernel)
    promises = []
    for step, (what, space, gfn, pages, age) in enumerate(history):
        kernel.steps = step
        if what == "promise":
            ledger.promise(space, gfn, gfn + pages, "a zap", "here")
            promises.append((space, gfn, gfn + pages, step))
            continue
        kernel.findings.clear()
        filled = step - age
        ledger.judge("vcpu0", space, gfn, translation(gfn, filled))
        broken = any(s == space and low <= gfn < high and filled < at for s, low, high, at in promises)
        assert [finding.kind for finding in kernel.findings] == ["stale-tlb"] * broken


def test_a_range_that_is_promised_again_and_again_is_kept_once():
    """A long run promises the same ranges: memory and the time of an access do not grow with it."""
    kernel = a_kernel()
    ledger = TlbLedger(kernel)
    for step in range(100):
        kernel.steps = step
        ledger.promise("ept", step % 2, 8, "a zap", "here")

    assert [promise.step for promise in ledger._promises.values()] == [98, 99]


def test_the_finding_says_where_the_promise_was_made_and_when_the_entry_was_filled():
    """What a reader needs to look at both sides."""
    kernel = a_kernel()
    ledger = TlbLedger(kernel)
    kernel.steps = 9
    ledger.promise("ept", 0x10, 0x20, "a punched hole", "mmu/gmem_paths.py:27 kvm_gmem_punch_hole")
    ledger.judge("vcpu3", "ept", 0x11, translation(0x11, 4))

    (finding,) = kernel.findings
    assert finding.details["filled"] == "step 4"
    assert finding.details["promised"] == (
        "a punched hole, step 9, t at mmu/gmem_paths.py:27 kvm_gmem_punch_hole, gfns [0x10, 0x20)"
    )


@pytest.fixture
def content():
    """A ledger over empty memory."""
    kernel = a_kernel()
    return ContentLedger(kernel, Memory(kernel))


def kinds(ledger):
    return [finding.kind for finding in ledger.kernel.findings]


def test_a_read_must_see_the_last_write(content):
    """Version 2 is there, so version 1 was lost."""
    content.wrote(5, 2)
    content.saw("vcpu0", 5, 2)
    assert kinds(content) == []

    content.saw("vcpu0", 5, 1)
    assert kinds(content) == ["content-lost"]


def test_an_accept_of_a_written_page_is_a_loss(content):
    """Nobody asked for the page to be taken away."""
    content.wrote(5, 2)
    content.accepted("vcpu0", 5, content.before_accept(5))

    assert kinds(content) == ["content-lost"]


@pytest.mark.parametrize("how", ["converted", "given up", "in transit", "asked meanwhile"])
def test_what_the_guest_or_the_scenario_gave_away_is_no_loss(content, how):
    """A conversion before, around or during the ACCEPT, and a host that the scenario lets loose."""
    if how == "in transit":
        content.conversion_begins([5])
    if how == "given up":
        content.give_up([5])
    content.wrote(5, 2)
    before = content.before_accept(5)
    if how == "converted":
        content.conversion_begins([5])
        content.conversion_ends([5])
        before = content.before_accept(5)
    if how == "asked meanwhile":
        content.conversion_begins([5])
    content.accepted("vcpu0", 5, before)
    content.saw("vcpu0", 5, 0)

    assert kinds(content) == []


def test_writes_count_again_after_a_conversion_has_ended(content):
    """In transit only from request to end, also when two conversions of a page overlap."""
    content.conversion_begins([5])
    content.conversion_begins([5])
    content.conversion_ends([5])
    content.wrote(5, 1)
    assert content.before_accept(5) is None

    content.conversion_ends([5])
    content.wrote(5, 2)
    assert content.before_accept(5) is not None


@pytest.mark.parametrize(("key", "found"), [(TD, ["content-lost"]), (OTHER, [])])
def test_a_frame_must_be_reset_before_the_host_gets_it(content, key, found):
    """Content under the host's own key may go back as it is."""
    content.memory.cell(Pfn(9)).v = Content(3, key)
    content.frames_freed(Pfn(8), 2)

    assert kinds(content) == found
