"""GPA lists: entries that fail, interrupts between them, and what a destination refuses."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdx.module import (
    COMMAND_RESUME,
    GpaListEntry,
    GpaOperation,
    GpaStatus,
    ListInfo,
    MemoryBundle,
    Operand,
    OpState,
    PageListEntry,
    SeptState,
    Status,
    tdh_export_blockw,
    tdh_export_mem,
    tdh_export_unblockw,
    tdh_import_commit,
    tdh_import_mem,
    tdh_mem_track,
)
from tests.tdx.module.migrations import Destination, Irq, Source, hold, importing, listed
from tests.tdx.module.worlds import GFN, run
from vcpu.addresses import Pfn, gpa_of

PAGES = 6
OUTSIDE = GFN + 0x40000
"""Where there is no table."""


def resumed(world, call, *, commands=True, **operands):
    """One list call, resumed as often as an interrupt ends it. Returns the last return, and how often that was."""
    ret, calls = world.do(call, td=world.td, lp=world.lps[0], **operands), 0
    while ret.status is Status.TDX_INTERRUPTED_RESUMABLE:
        calls += 1
        if commands:
            operands["stream"] = COMMAND_RESUME
        ret = world.do(call, td=world.td, lp=world.lps[0], list_info=ret.rcx, **operands)
    assert ret.ok, str(ret)
    return ret, calls


def journey(irq):
    """BLOCKW, EXPORT.MEM, IMPORT.MEM of a list with good and bad entries. Returns what came of it, and how many interruptions."""
    source, destination = importing()
    for world in (source, destination):
        world.lps[0].interrupt_pending = irq
    gfns = [source.mapped(n, n + 1) for n in range(PAGES)]
    gpa_list = listed(*gfns[:2], OUTSIDE, *gfns[2:])
    gpa_list[4].operation = GpaOperation.NOP
    bundle = MemoryBundle()
    new_pages = destination.new_pages(len(gpa_list))
    _, first = resumed(source, tdh_export_blockw, commands=False, gpa_list=gpa_list)
    source.of(tdh_mem_track)
    exported, second = resumed(source, tdh_export_mem, gpa_list=gpa_list, bundle=bundle)
    _, third = resumed(destination, tdh_import_mem, gpa_list=gpa_list, bundle=bundle, new_pages=new_pages)
    for world in (source, destination):
        hold(world)
    arrived = [(gfn, destination.state(gfn)) for gfn in gfns]
    contents = [destination.contents(gfn) for gfn, state in arrived if state is SeptState.MAPPED]
    entries = [(entry.operation, entry.status) for entry in gpa_list]
    outcome = (arrived, contents, entries, [page.invalid for page in new_pages], exported.rdx, exported.rcx)
    return (*outcome, source.migration.mig_count.v), first + second + third


def test_a_list_with_bad_entries_goes_on():
    """What is wrong with an entry is its own business; it is skipped from then on."""
    (arrived, contents, entries, invalid, pages, rcx, mig_count), _ = journey(Irq())

    assert [state for _, state in arrived] == [SeptState.MAPPED] * 3 + [SeptState.FREE] + [
        SeptState.MAPPED
    ] * 2
    assert contents == [{0: n} for n in (1, 2, 3, 5, 6)]
    assert entries[2] == entries[4] == (GpaOperation.NOP, GpaStatus.SKIPPED)
    assert invalid == [n in (2, 4) for n in range(7)]
    assert (pages, ListInfo.from_word(rcx).first, mig_count) == (2 + 5, 7, 5)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.sets(st.integers(1, 20), max_size=8))
def test_interrupts_between_entries_change_nothing(at):
    """Each of three calls looks six times; whatever comes, the resumed calls do what uninterrupted ones would have done."""
    outcome, calls = journey(Irq(*at))
    whole, none = journey(Irq())

    assert outcome == whole
    assert (calls, none) == (len([n for n in at if n <= 18]), 0)


def test_only_the_same_call_resumes():
    """Another list-info word, another buffer, or a call in between: INVALID_RESUMPTION, and the stream forgets."""
    for spoil in ("list_info", "mig_buffers", "new call", "token"):
        source = Source()
        source.begin()
        gfns = [source.mapped(n) for n in range(3)]
        source.block(*gfns)
        source.lps[0].interrupt_pending = Irq(1)
        gpa_list = listed(*gfns)
        ret = source.do(tdh_export_mem, td=source.td, gpa_list=gpa_list, lp=source.lps[0])
        assert ret.status is Status.TDX_INTERRUPTED_RESUMABLE
        operands = {"list_info": ret.rcx, "gpa_list": gpa_list, "stream": COMMAND_RESUME}
        if spoil == "list_info":
            operands["list_info"] = ListInfo(2, 2).word
        elif spoil == "mig_buffers":
            operands["mig_buffers"] = 0x1000
        elif spoil == "new call":
            source.of(tdh_export_mem, gpa_list=listed(gfns[2]))
        else:
            source.next_epoch()
        again = source.do(tdh_export_mem, td=source.td, **operands)
        assert (again.status, again.rcx) == (Status.TDX_INVALID_RESUMPTION, operands["list_info"]), spoil


def test_one_bad_word_ends_an_export_call_at_its_entry():
    """Reserved bits in an entry: RCX names it; what came before stays done."""
    source = Source()
    gfns = [source.mapped(n) for n in range(3)]
    source.begin()
    gpa_list = listed(*gfns)
    gpa_list[1].reserved = 1 << 54
    ret = source.do(tdh_export_blockw, td=source.td, gpa_list=gpa_list)

    assert (ret.status, ret.operand) == (Status.TDX_OPERAND_INVALID, Operand.GPA_LIST_ENTRY)
    assert ListInfo.from_word(ret.rcx).first == 1
    assert gpa_list[1].status is GpaStatus.GPA_LIST_ENTRY_INVALID
    assert [source.state(gfn) for gfn in gfns] == [SeptState.BLOCKEDW, SeptState.MAPPED, SeptState.MAPPED]
    hold(source)


def test_a_bad_buffer_is_found_too_late():
    """EXPORT.MEM has written the entry and the counts when it looks at the buffer's address; the list does not say so."""
    source = Source()
    page = source.mapped(0)
    source.begin()
    source.block(page)
    gpa_list, bundle = listed(page), MemoryBundle(buffers=[PageListEntry(Pfn(1 << 41))])
    ret = source.do(tdh_export_mem, td=source.td, gpa_list=gpa_list, bundle=bundle)

    assert (ret.status, ret.operand) == (Status.TDX_OPERAND_INVALID, Operand.MIG_BUFF_LIST_ENTRY)
    assert source.state(page) is SeptState.EXPORTED_BLOCKEDW
    assert source.migration.mig_count.v == 1
    assert gpa_list == listed(page)
    hold(source)


@settings(deadline=None, derandomize=True)
@given(st.integers(0, (1 << 64) - 1))
def test_a_list_entry_is_its_word(word):
    """Taken apart and put together again, reserved bits included."""
    assert GpaListEntry.from_word(word).word == word


@settings(deadline=None, derandomize=True)
@given(st.integers(0, (1 << 64) - 1))
def test_list_info_is_its_word(word):
    """RCX as well."""
    assert ListInfo.from_word(word).word == word


# What the destination refuses.

BROKEN = {
    "contents": (
        lambda _, bundle: setattr(bundle.buffers[0], "contents", ((0, 5),)),
        Status.TDX_INVALID_PAGE_MAC,
    ),
    "operation": (
        lambda entry, _: setattr(entry, "operation", GpaOperation.NOP),
        Status.TDX_INVALID_PAGE_MAC,
    ),
    "address": (lambda entry, _: setattr(entry, "gpa", gpa_of(GFN + 1)), Status.TDX_INVALID_PAGE_MAC),
    "no buffer": (
        lambda _, bundle: setattr(bundle.buffers[0], "invalid", True),
        Status.TDX_OPERAND_INVALID,
    ),
    "counter": (lambda _, bundle: setattr(bundle.mbmd, "mb_counter", 7), Status.TDX_INVALID_MBMD),
    "epoch": (lambda _, bundle: setattr(bundle.mbmd, "mig_epoch", 7), Status.TDX_INVALID_MBMD),
    "iv": (lambda _, bundle: setattr(bundle.mbmd, "iv_counter", 7), Status.TDX_INCORRECT_MBMD_MAC),
}


@pytest.mark.parametrize("what", sorted(BROKEN))
def test_what_was_changed_on_the_way_is_refused(what):
    """A bad MBMD leaves the session alone; a bad page ends it. Neither makes a page."""
    source, destination = Source(), Destination()
    page = source.mapped(0, 1)
    source.begin(destination)
    source.block(page)
    gpa_list, bundle = source.export(page)
    change, status = BROKEN[what]
    change(gpa_list[0], bundle)
    ret = destination.do(
        tdh_import_mem,
        td=destination.td,
        gpa_list=gpa_list,
        bundle=bundle,
        new_pages=destination.new_pages(1),
    )

    ended = status not in (Status.TDX_INVALID_MBMD, Status.TDX_INCORRECT_MBMD_MAC)
    assert (ret.status, ret.fatal) == (status, ended)
    assert destination.tdcs.op_state is (OpState.FAILED_IMPORT if ended else OpState.MEMORY_IMPORT)
    assert destination.state(page) is SeptState.FREE
    hold(destination)


def test_a_bundle_is_not_imported_twice():
    """The stream expects the next one."""
    source, destination = Source(), Destination()
    page = source.mapped(0, 1)
    source.begin(destination)
    source.block(page)
    gpa_list, bundle = source.export(page)
    destination.take(gpa_list, bundle)
    ret = destination.do(tdh_import_mem, td=destination.td, gpa_list=gpa_list, bundle=bundle)

    assert ret.status is Status.TDX_INVALID_MBMD
    assert destination.tdcs.op_state is OpState.MEMORY_IMPORT


def test_a_page_comes_once_in_an_epoch():
    """Sent twice without a token in between, it is refused, and the import ends."""
    source, destination = Source(), Destination()
    page = source.mapped(0, 1)
    source.begin(destination)
    source.block(page)
    source.send(destination, page)
    source.on(tdh_export_unblockw, page)
    source.block(page)
    gpa_list, bundle = source.export(page)
    ret = destination.do(tdh_import_mem, td=destination.td, gpa_list=gpa_list, bundle=bundle)

    assert (ret.status, ret.operand) == (Status.TDX_MIGRATED_IN_CURRENT_EPOCH, Operand.GPA_LIST_ENTRY)
    assert gpa_list[0].status is GpaStatus.MIGRATED_IN_CURRENT_EPOCH
    assert destination.contents(page) == {0: 1}


def test_in_place_the_buffer_becomes_the_page():
    """Without new pages, the migration buffer's own frame is taken from the host."""
    source, destination = Source(), Destination()
    page = source.mapped(0, 1)
    source.begin(destination)
    source.block(page)
    gpa_list, bundle = source.export(page)
    frame = destination.page()
    bundle.buffers[0].pfn = frame
    destination.of(tdh_import_mem, gpa_list=gpa_list, bundle=bundle)

    assert destination.module.peek_septe(destination.td, page).pfn_at(1) == frame
    assert destination.contents(page) == {0: 1}
    hold(destination)


def test_after_the_start_token_a_busy_tree_is_only_counted():
    """In order, a page that is there already ends the import; out of order it is left alone."""
    for committed in (False, True):
        source, destination = Source(), Destination()
        page = source.mapped(0, 1)
        source.begin(destination)
        source.pause()
        source.send(destination, page)
        if committed:
            source.send_state(destination)
            source.next_epoch(destination, done=True)
            destination.of(tdh_import_commit)
        else:
            source.next_epoch(destination)
        sent = listed(page)
        bundle = MemoryBundle.sent_to(destination.migration, sent, {0: ((0, 9),)})
        ret = destination.do(
            tdh_import_mem,
            td=destination.td,
            gpa_list=sent,
            bundle=bundle,
            new_pages=destination.new_pages(1),
        )

        assert sent[0].status is GpaStatus.SEPT_ENTRY_STATE_INCORRECT
        assert destination.contents(page) == {0: 1}
        if committed:
            assert (ret.status, ret.operand) == (Status.TDX_SUCCESS, 1)
            assert destination.tdcs.op_state is OpState.LIVE_IMPORT
        else:
            assert (ret.status, ret.fatal) == (Status.TDX_EPT_ENTRY_STATE_INCORRECT, True)
            assert destination.tdcs.op_state is OpState.FAILED_IMPORT


def test_a_committed_import_that_aborts_runs():
    """LIVE_IMPORT -> RUNNABLE without the fatal bit: the TD lives here only, and misses what had not come."""
    source, destination = importing()
    source.pause()
    source.send_state(destination)
    source.next_epoch(destination, done=True)
    destination.of(tdh_import_commit)
    sent = listed(GFN, operation=GpaOperation.REMIGRATE)
    bundle = MemoryBundle.sent_to(destination.migration, sent)
    ret = destination.do(
        tdh_import_mem, td=destination.td, gpa_list=sent, bundle=bundle, new_pages=destination.new_pages(1)
    )

    assert (ret.status, ret.operand, ret.fatal) == (Status.TDX_OP_STATE_INCORRECT, None, False)
    assert destination.tdcs.op_state is OpState.RUNNABLE


def test_each_reason_to_refuse_a_page_has_its_status():
    """In order, each ends the session; the list says which entry it was and why."""

    def pending_over_mapped(_destination, entry, _new_pages):
        entry.operation, entry.pending = GpaOperation.REMIGRATE, True

    def cancel_while_held(destination, entry, _new_pages):
        entry.operation = GpaOperation.CANCEL
        pfn = destination.module.peek_septe(destination.td, GFN).pfn_at(1)
        assert run(destination.kernel, one(destination.module.pamt.entry(pfn, 1).lock.try_shared())) == 0

    def cancel_of_nothing(_destination, entry, _new_pages):
        entry.operation, entry.gpa = GpaOperation.CANCEL, gpa_of(GFN + 1)

    def again_of_nothing(_destination, entry, _new_pages):
        entry.operation, entry.gpa = GpaOperation.REMIGRATE, gpa_of(GFN + 1)

    def page_of_somebody(destination, entry, new_pages):
        entry.gpa, new_pages[0].pfn = gpa_of(GFN + 1), destination.module.tdr(destination.td).tdcx[0]

    def page_of_nowhere(_destination, entry, new_pages):
        entry.gpa, new_pages[0].pfn = gpa_of(GFN + 1), Pfn(1 << 41)

    def no_page(_destination, entry, new_pages):
        entry.gpa, entry.pending, new_pages[0].invalid = gpa_of(GFN + 1), True, True

    def reserved(_destination, entry, _new_pages):
        entry.reserved = 1 << 3

    def reserved_nop(_destination, entry, _new_pages):
        entry.operation, entry.reserved = GpaOperation.NOP, 1 << 3

    expected = {
        pending_over_mapped: (Status.TDX_IMPORT_MISMATCH, GpaStatus.SEPT_ENTRY_STATE_INCORRECT),
        cancel_while_held: (Status.TDX_OPERAND_BUSY, GpaStatus.TD_PAGE_BUSY_HOST_PRIORITY),
        cancel_of_nothing: (Status.TDX_EPT_ENTRY_STATE_INCORRECT, GpaStatus.SEPT_ENTRY_STATE_INCORRECT),
        again_of_nothing: (Status.TDX_EPT_ENTRY_STATE_INCORRECT, GpaStatus.SEPT_ENTRY_STATE_INCORRECT),
        page_of_somebody: (Status.TDX_PAGE_METADATA_INCORRECT, GpaStatus.NEW_PAGE_NOT_AVAILABLE),
        page_of_nowhere: (Status.TDX_OPERAND_INVALID, GpaStatus.NEW_PAGE_NOT_AVAILABLE),
        no_page: (Status.TDX_OPERAND_INVALID, GpaStatus.MIG_BUFFER_NOT_AVAILABLE),
        reserved: (Status.TDX_OPERAND_INVALID, GpaStatus.GPA_LIST_ENTRY_INVALID),
        reserved_nop: (Status.TDX_OPERAND_INVALID, GpaStatus.GPA_LIST_ENTRY_INVALID),
    }
    for spoil, (status, entry_status) in expected.items():
        source, destination = Source(), Destination()
        source.mapped(0, 1)
        source.begin(destination)
        source.block(GFN)
        source.send(destination, GFN)
        source.next_epoch(destination)
        gpa_list, new_pages = listed(GFN), destination.new_pages(1)
        spoil(destination, gpa_list[0], new_pages)
        bundle = MemoryBundle.sent_to(destination.migration, gpa_list)
        ret = destination.do(
            tdh_import_mem, td=destination.td, gpa_list=gpa_list, bundle=bundle, new_pages=new_pages
        )
        assert (ret.status, gpa_list[0].status, ret.fatal) == (status, entry_status, True), spoil.__name__
        assert destination.contents(GFN) == {0: 1}
        assert new_pages[0].invalid
        hold(destination)


def one(access):
    """One access as a sequence."""
    return (yield access)
