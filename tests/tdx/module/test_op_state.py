"""The life of a TD: which call takes it from which op_state to which, and that no other does."""

import pytest

from tdx.module import (
    COMMAND_IN_ORDER_DONE,
    COMMAND_RESUME,
    LEAVES,
    MBMD_BUFFER,
    SHARED_PAGE,
    GpaOperation,
    MemoryBundle,
    Operand,
    OpState,
    Registers,
    StateBundle,
    Status,
    TokenBuffer,
    dispatch,
    exchange_keys,
    page_list_info,
    tdh_export_state_immutable,
    tdh_export_state_td,
    tdh_export_state_vp,
    tdh_export_track,
    tdh_import_abort,
    tdh_import_commit,
    tdh_import_mem,
    tdh_import_state_immutable,
    tdh_import_state_td,
    tdh_import_state_vp,
    tdh_vp_enter,
    tdh_vp_flush,
)
from tdx.module.objects import LogicalProcessor, VcpuState
from tdx.module.sept_states import ALLOWED_OP_STATES
from tests.tdx.module.migrations import Destination, Irq, Source, importing, listed
from tests.tdx.module.worlds import GFN, run
from vcpu.addresses import PAGE_SHIFT

BUILD = {("TDH.MNG.INIT", 0, 1), ("TDH.MR.FINALIZE", 1, 2)}
EXPORT = {
    ("TDH.EXPORT.STATE.IMMUTABLE", 2, 3),
    ("TDH.EXPORT.STATE.IMMUTABLE", 9, 3),
    ("TDH.EXPORT.PAUSE", 3, 4),
    ("TDH.EXPORT.TRACK", 4, 5),
    ("TDH.EXPORT.ABORT", 3, 2),
    ("TDH.EXPORT.ABORT", 4, 2),
    ("TDH.EXPORT.ABORT", 5, 2),
}
IMPORT = {
    ("TDH.IMPORT.STATE.IMMUTABLE", 0, 6),
    ("TDH.IMPORT.STATE.TD", 6, 7),
    ("TDH.IMPORT.TRACK", 7, 8),
    ("TDH.IMPORT.COMMIT", 8, 9),
    ("TDH.IMPORT.END", 8, 2),
    ("TDH.IMPORT.END", 9, 2),
}
FAILURE = {
    ("TDH.IMPORT.STATE.IMMUTABLE", 0, 10),
    ("TDH.IMPORT.STATE.TD", 6, 10),
    ("TDH.IMPORT.STATE.VP", 7, 10),
    ("TDH.IMPORT.TRACK", 6, 10),
    ("TDH.IMPORT.TRACK", 7, 10),
    *(("TDH.IMPORT.MEM", state, 10) for state in (6, 7, 8)),
    ("TDH.IMPORT.MEM", 9, 2),
    *(("TDH.IMPORT.ABORT", state, 10) for state in (6, 7, 8)),
}


def at(state):
    """A TD that came to that op_state by the calls that lead there, and its other half, which is one step ahead or waits."""
    if state == OpState.UNINITIALIZED:
        source, destination = Source(), Destination()
        exchange_keys(source.migration, destination.migration)
        return destination, source
    if state == OpState.INITIALIZED:
        return Source(finalize=False), None
    source, destination = Source(), Destination()
    if state == OpState.RUNNABLE:
        exchange_keys(source.migration, source.migration)
        return source, destination
    source.begin(destination)
    if state == OpState.MEMORY_IMPORT:
        source.pause()
        return destination, source
    if state == OpState.LIVE_EXPORT:
        return source, destination
    if state == OpState.FAILED_IMPORT:
        assert destination.do(tdh_import_abort, td=destination.td).ok
        return destination, source
    source.pause()
    if state == OpState.PAUSED_EXPORT:
        return source, destination
    source.send_state(destination)
    if state == OpState.STATE_IMPORT:
        return destination, source
    source.next_epoch(destination, done=True)
    if state == OpState.POST_EXPORT:
        return source, destination
    if state == OpState.LIVE_IMPORT:
        destination.of(tdh_import_commit)
        exchange_keys(destination.migration, destination.migration)
    return destination, source


def nothing(_world, _peer):
    return {}


def bundle_of(world, peer):
    """The metadata that the world waits for."""
    bundle = StateBundle()
    if world.tdcs.op_state is OpState.UNINITIALIZED:
        peer.of(tdh_export_state_immutable, bundle=bundle)
    elif world.tdcs.op_state is OpState.MEMORY_IMPORT:
        peer.of(tdh_export_state_td, bundle=bundle)
    return {"bundle": bundle}


def token_of(_world, peer, command=0):
    """The token that the source makes now."""
    token = TokenBuffer()
    if peer is not None and peer.tdcs.op_state is OpState.PAUSED_EXPORT:
        peer.of(tdh_export_track, token=token, stream=command)
    return {"token": token}


def start_token_of(world, peer):
    """The source's last token."""
    return token_of(world, peer, COMMAND_IN_ORDER_DONE)


def abort_token_of(world, peer):
    """The destination's word that it has given up."""
    token = TokenBuffer()
    if world.tdcs.op_state is OpState.POST_EXPORT:
        assert peer.do(tdh_import_abort, td=peer.td, token=token).ok
    return {"token": token}


def pages_of(world, _peer, operation=GpaOperation.NOP):
    """A list with one entry, as an honest source would send it."""
    gpa_list = listed(GFN, operation=operation)
    return {"gpa_list": gpa_list, "bundle": MemoryBundle.sent_to(world.migration, gpa_list)}


def wrong_pages_of(world, peer):
    """A page that is sent again and was never there."""
    return pages_of(world, peer, GpaOperation.REMIGRATE)


ATTEMPTS = {
    "TDH.IMPORT.STATE.IMMUTABLE": (nothing, bundle_of),
    "TDH.IMPORT.STATE.TD": (nothing, bundle_of),
    "TDH.IMPORT.STATE.VP": (nothing, bundle_of),
    "TDH.IMPORT.TRACK": (nothing, token_of, start_token_of),
    "TDH.IMPORT.MEM": (pages_of, wrong_pages_of),
    "TDH.EXPORT.TRACK": (nothing, lambda _world, _peer: {"r10": COMMAND_IN_ORDER_DONE}),
    "TDH.EXPORT.ABORT": (lambda _world, _peer: {"r8": 0}, abort_token_of),
}
"""What a call is given beside plain registers."""
PAGE_LISTS = {"IMMUTABLE": 3, "TD": 2, "VP": 5}


def registers_for(leaf, world):
    """Words that make sense to the call; a register that carries something else holds 0."""
    td = world.td.tdr_pfn << PAGE_SHIFT
    tdvpr = world.tdvprs[0] << PAGE_SHIFT if world.tdvprs else 0
    words = {
        "td": td,
        "td+allow_existing": td,
        "tdvpr_pfn": tdvpr,
        "vcpu_and_flags": tdvpr,
        "mbmd_buffer": MBMD_BUFFER,
        "mig_buffers": SHARED_PAGE,
        "mac_list_0": SHARED_PAGE,
        "mac_list_1": SHARED_PAGE,
        "page_list": page_list_info(PAGE_LISTS.get(leaf.name.rsplit(".", 1)[-1], 1)),
    }
    return {register: words.get(carries, 0) for register, carries in leaf.inputs.items()}


def transitions_from(state):
    """Every leaf, allowed or not, with every attempt: what changed."""
    found = set()
    for name, leaf in sorted(LEAVES.items()):
        for attempt in ATTEMPTS.get(name, (nothing,)):
            world, peer = at(state)
            registers = registers_for(leaf, world)
            context = attempt(world, peer)
            registers |= {
                register: context.pop(register) for register in ("r8", "r10") if register in context
            }
            context |= {"lp": world.lps[0], "guest": world.leave}
            run(world.kernel, dispatch(world.module, Registers(leaf.number, **registers), **context))
            tdr = world.module.pamt.entry(world.td.tdr_pfn, 1).holds
            if tdr is not None and tdr.tdcs.op_state is not state:
                found.add((name, int(state), int(tdr.tdcs.op_state)))
    return found


@pytest.mark.parametrize("state", list(OpState), ids=lambda state: state.name)
def test_the_graph_of_op_states(state):
    """All transitions of the reference, and no other, whatever call is made."""
    expected = {edge for edge in BUILD | EXPORT | IMPORT | FAILURE if edge[1] == state}

    assert transitions_from(state) == expected


def test_every_op_state_is_reached_and_left_or_final():
    """Only FAILED_IMPORT has no way out."""
    edges = BUILD | EXPORT | IMPORT | FAILURE

    assert {after for _, _, after in edges} == set(OpState) - {OpState.UNINITIALIZED}
    assert set(OpState) - {before for _, before, _ in edges} == {OpState.FAILED_IMPORT}


def test_a_planted_transition_is_seen(monkeypatch):
    """The graph's test would notice a call that is allowed where it must not be."""
    monkeypatch.setitem(ALLOWED_OP_STATES, "TDH.IMPORT.END", frozenset(OpState))

    assert ("TDH.IMPORT.END", 3, 2) in transitions_from(OpState.LIVE_EXPORT)


# Metadata bundles.


def test_an_interrupted_import_of_a_vcpu_keeps_it_from_being_entered():
    """State IMPORT until a resumption completes it; it may be flushed and go on with another LP meanwhile."""
    source, destination = importing()
    source.pause()
    bundle = StateBundle()
    source.of(tdh_export_state_td, bundle=bundle)
    destination.of(tdh_import_state_td, bundle=bundle)
    bundle = StateBundle()
    assert source.do(tdh_export_state_vp, tdvpr_pfn=source.tdvprs[0], lp=source.lps[0], bundle=bundle).ok
    tdvpr, lp = destination.make_vcpu(), destination.lps[0]
    lp.interrupt_pending = Irq(2)
    ret = destination.do(tdh_import_state_vp, tdvpr_pfn=tdvpr, lp=lp, bundle=bundle)
    assert (ret.status, ret.rcx) == (Status.TDX_INTERRUPTED_RESUMABLE, tdvpr << PAGE_SHIFT)
    vcpu = destination.vcpu()
    assert vcpu.state.v is VcpuState.IMPORT
    destination.tdcs.op_state = OpState.LIVE_IMPORT  # by hand: no call leads here with a vCPU half imported
    ret = destination.do(tdh_vp_enter, tdvpr_pfn=tdvpr, lp=lp, guest=destination.leave)
    assert ret.status is Status.TDX_VCPU_STATE_INCORRECT
    destination.tdcs.op_state = OpState.STATE_IMPORT

    assert destination.do(tdh_vp_flush, tdvpr_pfn=tdvpr, lp=lp).ok
    other = LogicalProcessor(7)
    ret = destination.do(tdh_import_state_vp, tdvpr_pfn=tdvpr, lp=other, bundle=bundle, stream=COMMAND_RESUME)
    assert ret.ok
    assert (vcpu.state.v, vcpu.assoc_lpid.v) == (VcpuState.READY, 7)
    assert destination.migration.num_migrated_vcpus.v == 1


def test_a_vcpu_is_exported_once_and_imported_once():
    """The source knows the session in which it was; the destination knows how many there are."""
    source, destination = importing()
    source.pause()
    source.send_state(destination)
    again = source.do(tdh_export_state_vp, tdvpr_pfn=source.tdvprs[0], lp=source.lps[0])
    assert again.status is Status.TDX_VCPU_ALREADY_EXPORTED
    source.vcpu().export_count = 0
    bundle = StateBundle()
    assert source.do(tdh_export_state_vp, tdvpr_pfn=source.tdvprs[0], lp=source.lps[0], bundle=bundle).ok
    ret = destination.do(
        tdh_import_state_vp, tdvpr_pfn=destination.make_vcpu(), lp=destination.lps[0], bundle=bundle
    )
    assert (ret.status, ret.fatal) == (Status.TDX_ALL_VCPUS_IMPORTED, True)
    assert destination.tdcs.op_state is OpState.FAILED_IMPORT


def test_metadata_that_were_changed_end_the_import():
    """Their MAC covers every field and every page."""
    for spoil in ("field", "pages"):
        source, destination = Source(), Destination()
        exchange_keys(source.migration, destination.migration)
        bundle = StateBundle()
        source.of(tdh_export_state_immutable, bundle=bundle)
        operands = {}
        if spoil == "field":
            bundle.metadata = {**bundle.metadata, "MAX_VCPUS": 1}
        else:
            operands["page_list"] = page_list_info(4)
        ret = destination.do(tdh_import_state_immutable, td=destination.td, bundle=bundle, **operands)
        assert (ret.status, ret.fatal) == (Status.TDX_INCORRECT_MBMD_MAC, True)
        assert destination.tdcs.op_state is OpState.FAILED_IMPORT


def test_an_interrupted_export_of_metadata_has_used_the_key_and_goes_on():
    """op_state changes with the last page; a new call instead of a resumption needs a new key."""
    source = Source()
    exchange_keys(source.migration, source.migration)
    source.lps[0].interrupt_pending = Irq(1, 2)
    ret = source.do(tdh_export_state_immutable, td=source.td, lp=source.lps[0])
    assert (ret.status, ret.rdx) == (Status.TDX_INTERRUPTED_RESUMABLE, 1)
    assert source.tdcs.op_state is OpState.RUNNABLE
    ret = source.do(tdh_export_state_immutable, td=source.td)
    assert ret.status is Status.TDX_MIGRATION_DECRYPTION_KEY_NOT_SET
    ret = source.do(tdh_export_state_immutable, td=source.td, lp=source.lps[0], stream=COMMAND_RESUME)
    assert ret.rdx == 2
    ret = source.do(tdh_export_state_immutable, td=source.td, lp=source.lps[0], stream=COMMAND_RESUME)
    assert (ret.status, ret.rdx, source.tdcs.op_state) == (Status.TDX_SUCCESS, 3, OpState.LIVE_EXPORT)


def test_a_start_token_without_all_vcpus_ends_the_import():
    """The exact number must have come."""
    source, destination = importing(vcpus=2)
    source.pause()
    bundle = StateBundle()
    source.of(tdh_export_state_td, bundle=bundle)
    destination.of(tdh_import_state_td, bundle=bundle)
    token = source.next_epoch(done=True)
    ret = destination.do(LEAVES["TDH.IMPORT.TRACK"].call, td=destination.td, token=token)
    assert (ret.status, ret.fatal) == (Status.TDX_SOME_VCPUS_NOT_MIGRATED, True)


def test_a_failing_import_changes_op_state_under_a_shared_lock():
    """Another call of the same TD that holds OP_STATE shared, too, sees the TD fail while it is at work."""
    source, destination = importing()
    seen = []
    world = destination
    broken = listed(GFN, operation=GpaOperation.REMIGRATE)
    bundle = MemoryBundle.sent_to(world.migration, broken)

    def other():
        lock = world.tdcs.op_state_lock
        yield lock.try_shared()
        seen.append(world.tdcs.op_state)
        ret = yield from tdh_import_mem(world.module, td=world.td, gpa_list=broken, bundle=bundle)
        seen.append((ret.operand, world.tdcs.op_state))
        yield lock.release_shared()

    run(world.kernel, other())
    assert seen == [OpState.MEMORY_IMPORT, (Operand.GPA_LIST_ENTRY, OpState.FAILED_IMPORT)]
    assert source.tdcs.op_state is OpState.LIVE_EXPORT


STATE_CALLS = (
    (tdh_export_state_immutable, tdh_import_state_immutable),
    (tdh_export_state_td, tdh_import_state_td),
    (tdh_export_state_vp, tdh_import_state_vp),
)


def state_journey(irq):
    """All metadata from one side to the other, each call resumed as often as an interrupt ends it."""
    source, destination = Source(), Destination()
    exchange_keys(source.migration, destination.migration)
    source.vcpu().rip = 0x1234
    interruptions = 0
    for export, take in STATE_CALLS:
        bundle = StateBundle()
        if export is tdh_export_state_td:
            source.pause()
        for world, call in ((source, export), (destination, take)):
            world.lps[0].interrupt_pending = irq
            operands = {"lp": world.lps[0], "bundle": bundle, "page_list": page_list_info(5)}
            if call is not export:
                operands["page_list"] = page_list_info(bundle.pages)
            if call is tdh_import_state_vp:
                world.make_vcpu()
            operands |= {"tdvpr_pfn": world.tdvprs[0]} if export is tdh_export_state_vp else {"td": world.td}
            ret = world.do(call, **operands)
            while ret.status is Status.TDX_INTERRUPTED_RESUMABLE:
                interruptions += 1
                ret = world.do(call, **operands, stream=COMMAND_RESUME)
            assert ret.ok, str(ret)
    tdcs, vcpu = destination.tdcs, destination.vcpu()
    arrived = (tdcs.op_state, tdcs.attributes, tdcs.max_vcpus, vcpu.rip, vcpu.state.v, tdcs.num_assoc_vcpus.v)
    return arrived, interruptions


def test_interrupts_between_pages_of_metadata_change_nothing():
    """Each call looks between two pages: 2 + 2, 1 + 1, 4 + 4 times."""
    whole, none = state_journey(Irq())
    assert none == 0
    for n in range(1, 15):
        arrived, interruptions = state_journey(Irq(n))
        assert (arrived, interruptions) == (whole, 1), n
    assert state_journey(Irq(*range(1, 15))) == (whole, 14)


def test_another_call_does_not_resume_an_import_of_metadata():
    """With other operands it ends the session; with nothing to resume it is only refused."""
    source, destination = Source(), Destination()
    exchange_keys(source.migration, destination.migration)
    bundle = StateBundle()
    source.of(tdh_export_state_immutable, bundle=bundle)
    call = tdh_import_state_immutable
    early = destination.do(call, td=destination.td, bundle=bundle, stream=COMMAND_RESUME)
    assert early.status is Status.TDX_MIGRATION_STREAM_STATE_INCORRECT
    destination.lps[0].interrupt_pending = Irq(1)
    ret = destination.do(call, td=destination.td, bundle=bundle, lp=destination.lps[0])
    assert ret.status is Status.TDX_INTERRUPTED_RESUMABLE
    ret = destination.do(
        call, td=destination.td, bundle=bundle, stream=COMMAND_RESUME, page_list=page_list_info(4)
    )
    assert (ret.status, ret.fatal) == (Status.TDX_INVALID_RESUMPTION, True)
    assert destination.tdcs.op_state is OpState.FAILED_IMPORT
