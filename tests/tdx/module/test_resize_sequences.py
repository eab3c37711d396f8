"""Sequences of resizes, moves and removals: invariants and the bytes that the guest wrote are kept; planted errors are not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdx.module import (
    SeptState,
    tdg_mem_page_accept,
    tdh_mem_page_aug,
    tdh_mem_page_demote,
    tdh_mem_page_promote,
    tdh_mem_page_relocate,
    tdh_mem_page_remove,
    tdh_mem_range_block,
    tdh_mem_range_unblock,
    tdh_mem_track,
)
from tdx.module import resize as resize_file
from tdx.module.invariants import INVARIANTS
from tdx.module.leaves import tdh_mem_page_demote as demote_file
from tdx.module.leaves import tdh_mem_page_promote as promote_file
from tdx.module.memory import Memory
from tdx.module.pamt import PamtEntry
from tdx.module.septe import Septe, make
from tests.tdx.module.worlds import DATA, GFN, World, run
from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_2M, PG_LEVEL_4K, Gfn, Pfn, gpa_of

BIG = Gfn(GFN + 512)
FRAMES = (DATA, DATA + 1, DATA + 512, DATA + 513, DATA + 1024)
PLACES = (0, 1, 511)


class Ledger:
    """A TD, what its guest has written, and calls by short names; after each, the truth is compared."""

    def __init__(self, *, finalize=True, **options):
        self.world = World(finalize=finalize, **options)
        self.written = {}
        self.done = []

    def call(self, name, place, size, frame):
        level = PG_LEVEL_2M if size else PG_LEVEL_4K
        gfn = BIG if size else Gfn(BIG + PLACES[place])
        ret = getattr(self, name)(gfn, level, Pfn(FRAMES[frame]))
        if ret is not None and ret.ok:
            self.done.append(name)
        self.check()

    def aug(self, gfn, level, pfn):
        return self.world.on(tdh_mem_page_aug, gfn, level, pfn=pfn)

    def accept(self, gfn, level, _pfn):
        world = self.world
        steps = tdg_mem_page_accept(
            world.module,
            td=world.td,
            vcpu=world.vcpu(),
            gpa=gpa_of(gfn),
            level=level,
            interrupt_pending=lambda: False,
        )
        return run(world.kernel, steps).ret

    def block(self, gfn, level, _pfn):
        return self.world.on(tdh_mem_range_block, gfn, level)

    def unblock(self, gfn, level, _pfn):
        return self.world.on(tdh_mem_range_unblock, gfn, level)

    def track(self, _gfn, _level, _pfn):
        return self.world.do(tdh_mem_track, td=self.world.td)

    def demote(self, _gfn, _level, _pfn):
        return self.resize(tdh_mem_page_demote, pfn=self.world.page())

    def promote(self, _gfn, _level, _pfn):
        return self.resize(tdh_mem_page_promote)

    def resize(self, call, **operands):
        """With the block and track that it wants."""
        self.block(BIG, PG_LEVEL_2M, None)
        self.track(None, None, None)
        ret = self.world.on(call, BIG, PG_LEVEL_2M, lp=self.world.lps[0], **operands)
        if not ret.ok:
            self.unblock(BIG, PG_LEVEL_2M, None)
        return ret

    def relocate(self, gfn, _level, pfn):
        return self.world.on(tdh_mem_page_relocate, gfn, PG_LEVEL_4K, pfn=pfn)

    def remove(self, gfn, level, _pfn):
        ret = self.world.on(tdh_mem_page_remove, gfn, level)
        if ret.ok:
            gone = range(gfn, gfn + level.pages)
            self.written = {at: value for at, value in self.written.items() if at >> PAGE_SHIFT not in gone}
        return ret

    def write(self, gfn, _level, pfn):
        """The guest writes, if the page is there for it."""
        entry, level = self.leaf(gfn)
        if entry.state is SeptState.MAPPED and self.is_open(gfn):
            self.written[gpa_of(gfn) + 8] = pfn
            self.qword(entry, level, gpa_of(gfn) + 8).v = int(pfn)

    def is_open(self, gfn):
        entry = self.world.module.peek_septe(self.world.td, gfn, PG_LEVEL_2M)
        return entry.state is not SeptState.NL_BLOCKED

    def leaf(self, gfn):
        """The entry that decides about a frame, found through blocked tables too."""
        found = make(SeptState.FREE), PG_LEVEL_4K
        for first, level, entry in self.world.module.entries(self.world.module.tdcs(self.world.td)):
            if first <= gfn < first + level.pages:
                found = entry, level
        return found

    def qword(self, entry, level, gpa):
        return self.world.module.memory.qword(gpa_of(entry.pfn_at(level)) + (gpa & (level.size - 1)))

    def check(self):
        for text, invariant in INVARIANTS.items():
            assert invariant(self.world.module)() is True, text
        for gpa, value in self.written.items():
            entry, level = self.leaf(Gfn(gpa >> PAGE_SHIFT))
            assert entry.is_leaf
            assert self.qword(entry, level, gpa).peek() == value


NAMES = ("aug", "accept", "block", "unblock", "track", "demote", "promote", "relocate", "remove", "write")
CALLS = st.tuples(st.sampled_from(NAMES), st.integers(0, 2), st.booleans(), st.integers(0, len(FRAMES) - 1))
WHOLE_LIFE = [
    ("aug", 0, True, 0),
    ("accept", 0, True, 0),
    ("write", 1, False, 3),
    ("write", 2, False, 4),
    ("demote", 0, True, 0),
    ("block", 1, False, 0),
    ("track", 0, False, 0),
    ("relocate", 1, False, 2),
    ("promote", 0, True, 0),
    ("block", 1, False, 0),
    ("track", 0, False, 0),
    ("relocate", 1, False, 1),
    ("promote", 0, True, 0),
    ("write", 0, False, 2),
    ("block", 0, True, 0),
    ("track", 0, True, 0),
    ("remove", 0, True, 0),
]


def test_bytes_survive_a_split_a_move_and_a_merge():
    """The example by hand: a page that moved away and back, so that the range can be merged again."""
    ledger = Ledger()
    live(ledger)

    names = [name for name, *_ in WHOLE_LIFE if name != "write"]
    names.remove("promote")  # while a frame is out of line
    assert ledger.done == names


@settings(derandomize=True, deadline=None, max_examples=80)
@given(st.sampled_from([0, 2, 5]), st.lists(CALLS, max_size=25))
def test_any_sequence_keeps_invariants_and_bytes(prefix, calls):
    """Legal or not: what is refused changes nothing that matters, what succeeds keeps what was written."""
    ledger = Ledger()
    for call in [*WHOLE_LIFE[:prefix], *calls]:
        ledger.call(*call)


def live(ledger):
    for call in WHOLE_LIFE:
        ledger.call(*call)


def no_steps(*_args):
    return iter(())


def merge_nothing(*_args):
    return 0, 0
    yield


def free_uncounted(module, _tdr, page):
    module.pamt.entry(page.pfn, PG_LEVEL_4K).free()
    resize_file.free_sept_page(module, page)
    return gpa_of(page.pfn)
    yield


def fits_if_there(pattern, index, word):
    """All children fit that map anything."""
    if index == 0:
        pattern.first = Septe(word)
    return Septe(word).is_leaf


PLANTS = {
    "PAMT entries keep their type": (PamtEntry, "free", lambda _entry: None),
    "a split page stays one in the PAMT": (demote_file, "pamt_demote", no_steps),
    "a merged page stays 512 in the PAMT": (promote_file, "pamt_promote", merge_nothing),
    "children are one frame off": (
        demote_file,
        "split_page",
        lambda pfn, gfn, level, word, data: resize_file.split_page(pfn, gfn, level, word, data + 1),
    ),
    "a freed table is still counted": (promote_file, "_free", free_uncounted),
    "RELOCATE copies nothing": (Memory, "copy", lambda *_: None),
    "children need not fit": (resize_file.Pattern, "fits", fits_if_there),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_error_is_noticed_by_the_ledger(plant, monkeypatch):
    """The example by hand does not get through."""
    monkeypatch.setattr(*PLANTS[plant])
    ledger = Ledger()

    with pytest.raises(AssertionError):
        live(ledger)
