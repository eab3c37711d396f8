"""A TD moves: whole journeys, what arrives, what is interrupted, and how it comes back."""

from dataclasses import replace

from tdx.module import (
    GpaOperation,
    GpaStatus,
    Operand,
    OpState,
    SeptState,
    Status,
    TokenBuffer,
    exchange_keys,
    tdh_export_abort,
    tdh_export_blockw,
    tdh_export_mem,
    tdh_export_pause,
    tdh_export_restore,
    tdh_export_state_immutable,
    tdh_export_unblockw,
    tdh_import_abort,
    tdh_import_commit,
    tdh_import_end,
    tdh_import_mem,
    tdh_mem_page_aug,
    tdh_mem_page_remove,
    tdh_mem_range_block,
    tdh_mem_track,
)
from tdx.module.migration import BEPOCH_MIGRATION
from tdx.module.status import FATAL
from tests.tdx.module.migrations import Destination, Source, fill, hold, importing, listed
from tests.tdx.module.worlds import DATA, run
from vcpu.addresses import Pfn


def test_a_live_migration_brings_contents_and_states():
    """Pages go while the guest runs, one is written again and sent again, the rest goes while it stands still, one after it left."""
    source, destination = Source(), Destination()
    early, rewritten, late = (source.mapped(n, 10 + n, 20 + n) for n in range(3))
    waiting, last = source.pending(3), source.mapped(4, 99)
    measurement = source.tdcs.measurement.hexdigest()
    source.begin(destination)
    source.block(early, rewritten, waiting)
    sent = source.send(destination, early, rewritten, waiting)
    assert [entry.pending for entry in sent] == [False, False, True]
    assert destination.contents(rewritten) == {0: 11, 8: 21}

    source.on(tdh_export_unblockw, rewritten)
    fill(source.module, DATA + 1, 77)
    source.next_epoch(destination)
    source.pause()
    again = source.send(destination, rewritten, late)
    assert [entry.operation for entry in again] == [GpaOperation.REMIGRATE, GpaOperation.MIGRATE]
    source.send_state(destination)
    source.next_epoch(destination, done=True)
    destination.of(tdh_import_commit)
    source.send(destination, last)
    destination.of(tdh_import_end)

    for gfn, contents in (
        (early, {0: 10, 8: 20}),
        (rewritten, {0: 77, 8: 21}),
        (late, {0: 12, 8: 22}),
        (last, {0: 99}),
    ):
        assert destination.state(gfn) is SeptState.MAPPED
        assert destination.contents(gfn) == contents
    assert destination.state(waiting) is SeptState.PENDING
    assert source.tdcs.op_state is OpState.POST_EXPORT
    assert destination.tdcs.op_state is OpState.RUNNABLE
    assert destination.tdcs.measurement.hexdigest() == measurement
    assert source.migration.dirty_count.v == 0
    assert source.migration.mig_count.v == 5
    assert source.migration.total_mb_count.v == destination.migration.total_mb_count.v
    assert (destination.migration.import_count, destination.migration.export_count) == (1, 1)
    for world in (source, destination):
        hold(world)
    ret = run(destination.kernel, destination.enter(destination.leave))
    assert ret.status is Status.TDX_SUCCESS


def test_an_aborted_export_is_restored_and_can_be_tried_again():
    """Every exported state goes back to MAPPED or PENDING; until then no new session begins."""
    source = Source()
    clean, dirty, blocked = (source.mapped(n, n) for n in range(3))
    waiting, opened = source.pending(3), source.pending(4)
    unsent = source.mapped(5)
    source.begin()
    source.block(clean, dirty, blocked, waiting, opened, unsent)
    source.export(clean, dirty, blocked, waiting, opened)
    for gfn in (dirty, blocked, opened):
        assert source.on(tdh_export_unblockw, gfn).ok
    source.block(blocked)
    assert (source.migration.mig_count.v, source.migration.dirty_count.v) == (5, 3)

    source.of(tdh_export_abort)
    exchange_keys(source.migration, source.migration)
    ret = source.do(tdh_export_state_immutable, td=source.td)
    assert ret.status is Status.TDX_PREVIOUS_EXPORT_CLEANUP_INCOMPLETE

    source.of(tdh_export_restore, gpa_list=listed(clean, dirty, blocked, waiting, opened))
    assert source.on(tdh_export_unblockw, unsent).ok
    states = [source.state(gfn) for gfn in (clean, dirty, blocked, unsent, waiting, opened)]
    assert states == [SeptState.MAPPED] * 4 + [SeptState.PENDING] * 2
    assert source.migration.mig_count.v == 0
    source.begin()
    assert (source.migration.dirty_count.v, source.migration.export_count) == (0, 2)
    hold(source)


def test_after_the_start_token_only_the_destinations_token_aborts():
    """Its MAC binds it to this session; with it the source runs again."""
    source, destination = importing()
    source.pause()
    source.send_state(destination)
    source.next_epoch(destination, done=True)
    assert source.do(tdh_export_abort, td=source.td).operand is Operand.R8
    assert source.do(tdh_export_abort, td=source.td, token=TokenBuffer()).status is Status.TDX_INVALID_MBMD
    token = TokenBuffer()
    ret = destination.do(tdh_import_abort, td=destination.td, token=token)
    assert (ret.status, ret.rax) == (Status.TDX_SUCCESS, FATAL)
    assert destination.tdcs.op_state is OpState.FAILED_IMPORT

    forged = TokenBuffer(replace(token.mbmd, iv_counter=9))
    refused = source.do(tdh_export_abort, td=source.td, token=forged)
    assert refused.status is Status.TDX_INCORRECT_MBMD_MAC
    assert source.tdcs.op_state is OpState.POST_EXPORT
    source.of(tdh_export_abort, token=token)
    assert source.tdcs.op_state is OpState.RUNNABLE


def test_a_cancelled_page_is_removed_and_can_be_augmented_later():
    """Export: CANCEL makes an ordinary page of it. Import: REMOVED, which remembers the epoch."""
    source, destination = Source(), Destination()
    kept, cancelled = source.mapped(0, 1), source.mapped(1, 2)
    source.begin(destination)
    source.block(kept, cancelled)
    source.send(destination, kept, cancelled)
    source.next_epoch(destination)
    source.send(destination, cancelled, operation=GpaOperation.CANCEL)

    assert source.state(cancelled) is SeptState.MAPPED
    assert source.migration.mig_count.v == 1
    assert destination.state(cancelled) is SeptState.REMOVED
    assert destination.module.peek_septe(destination.td, cancelled).mig_epoch == 1
    hold(destination)
    source.pause()
    source.send_state(destination)
    source.next_epoch(destination, done=True)
    destination.of(tdh_import_commit)
    assert destination.on(tdh_mem_page_aug, cancelled, pfn=Pfn(DATA)).ok
    assert destination.state(cancelled) is SeptState.PENDING
    hold(destination)


def test_a_page_removed_here_is_not_imported_over_in_the_same_epoch():
    """The entry remembers when; a later epoch of the source's is newer."""
    source, destination = Source(), Destination()
    page = source.mapped(0, 1)
    source.begin(destination)
    source.block(page)
    source.send(destination, page)
    source.next_epoch(destination)
    source.send(destination, page, operation=GpaOperation.CANCEL)
    source.block(page)
    gpa_list, bundle = source.export(page)
    ret = destination.do(
        tdh_import_mem,
        td=destination.td,
        gpa_list=gpa_list,
        bundle=bundle,
        new_pages=destination.new_pages(1),
    )

    assert ret.status is Status.TDX_DISALLOWED_IMPORT_OVER_REMOVED
    assert ret.fatal
    assert gpa_list[0].status is GpaStatus.DISALLOWED_IMPORT_OVER_REMOVED
    assert destination.tdcs.op_state is OpState.FAILED_IMPORT


def test_an_imported_page_must_be_blocked_again_before_it_is_removed():
    """Its BEPOCH is in migration form, which never counts as tracked."""
    source, destination = Source(), Destination()
    page = source.mapped(0, 1)
    source.begin(destination)
    source.block(page)
    source.send(destination, page)
    entry = destination.module.peek_septe(destination.td, page)
    bepoch = destination.module.pamt.entry(entry.pfn_at(1), 1).bepoch.v
    assert bepoch == BEPOCH_MIGRATION | 1 << 32
    source.pause()
    source.send_state(destination)
    source.next_epoch(destination, done=True)
    destination.of(tdh_import_end)

    assert destination.on(tdh_mem_page_remove, page).status is Status.TDX_GPA_RANGE_NOT_BLOCKED
    destination.on(tdh_mem_range_block, page)
    destination.of(tdh_mem_track)
    assert destination.on(tdh_mem_page_remove, page).ok


def test_write_blocking_is_one_epoch_for_the_whole_td():
    """A page blocked and tracked long ago waits for a page that was blocked just now."""
    source = Source()
    old, new = source.mapped(0), source.mapped(1)
    source.begin()
    source.block(old)
    source.of(tdh_export_blockw, gpa_list=listed(new))
    gpa_list = listed(old)
    ret = source.of(tdh_export_mem, gpa_list=gpa_list)
    assert (ret.operand, gpa_list[0].status) == (1, GpaStatus.TLB_TRACKING_NOT_DONE)
    source.of(tdh_mem_track)
    source.export(old, new)
    assert {source.state(gfn) for gfn in (old, new)} == {SeptState.EXPORTED_BLOCKEDW}


def test_a_page_exported_while_it_was_writable_keeps_its_write_permission():
    """In PAUSED_EXPORT the state says write-blocked, the word does not: nobody runs."""
    source = Source()
    page = source.mapped(0)
    source.begin()
    source.pause()
    source.export(page)

    entry = source.module.peek_septe(source.td, page)
    assert (entry.state, entry.rwx) == (SeptState.EXPORTED_BLOCKEDW, 7)


def test_pause_begins_an_epoch_and_waits_for_no_guest_inside():
    """A vCPU inside holds the TDR shared."""
    source = Source()
    source.begin()
    inside = []

    def guest():
        ret = yield from tdh_export_pause(source.module, td=source.td)
        inside.append(ret)
        return (yield from source.leave())

    run(source.kernel, source.enter(guest))
    before = source.tdcs.epoch.v.epoch
    source.pause()
    assert (inside[0].status, inside[0].operand) == (Status.TDX_OPERAND_BUSY, Operand.RCX)
    assert source.tdcs.epoch.v.epoch == before + 1
