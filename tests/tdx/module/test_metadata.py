"""MNG.RD and WR, VP.RD and WR: who may see and change which field, and what an id must look like."""

import pytest

from tdx.module import (
    LogicalProcessor,
    Operand,
    Registers,
    Status,
    dispatch,
    tdh_mng_rd,
    tdh_mng_wr,
    tdh_vp_enter,
    tdh_vp_rd,
    tdh_vp_wr,
)
from tdx.module.metadata import FIELD_ID_NA, TD_FIELDS, VP_FIELDS
from tdx.module.objects import DEBUG, VcpuState
from tests.tdx.module.worlds import World, run
from vcpu.addresses import PAGE_SHIFT

TD = {field.name: field for field in TD_FIELDS}
VP = {field.name: field for field in VP_FIELDS}
US_PER_S = 1_000_000


def read(world, name, **operands):
    return world.do(tdh_mng_rd, td=world.td, field_id=TD[name].id, **operands)


def write(world, name, data, **operands):
    return world.do(tdh_mng_wr, td=world.td, field_id=TD[name].id, data=data, **operands)


def vcpu_read(world, name, **operands):
    return world.do(
        tdh_vp_rd, tdvpr_pfn=world.tdvprs[0], field_id=VP[name].id, **{"lp": world.lps[0]} | operands
    )


def test_a_host_reads_what_the_td_is():
    """Counts and states, as the calls left them."""
    world = World(vcpus=2)
    seen = {
        name: read(world, name).r8
        for name in ("NUM_VCPUS", "OP_STATE", "TD_EPOCH", "NUM_TDCX", "CHLDCNT", "HKID")
    }

    assert seen == {
        "NUM_VCPUS": 2,
        "OP_STATE": 2,
        "TD_EPOCH": 1,
        "NUM_TDCX": 6,
        "CHLDCNT": world.module.chldcnt(world.td),
        "HKID": 32,
    }


@pytest.mark.parametrize("name", ["NOTIFY_ENABLES", "TD_CTLS"])
def test_a_secret_of_production_is_a_debuggers(name):
    """NOT_READABLE of a production TD."""
    assert read(World(), name).status is Status.TDX_METADATA_FIELD_NOT_READABLE
    assert read(World(attributes=DEBUG), name).ok


def test_a_debugger_may_set_one_bit_of_notify_enables():
    """Bit 0 only: an attempt to change another is VALUE_NOT_VALID, and a mask without bit 0 is NOT_WRITABLE."""
    world = World(attributes=DEBUG)
    assert write(world, "NOTIFY_ENABLES", 1).r8 == 0
    assert world.module.tdcs(world.td).notify_enables == 1
    assert write(world, "NOTIFY_ENABLES", 3).status is Status.TDX_METADATA_FIELD_VALUE_NOT_VALID
    assert write(world, "NOTIFY_ENABLES", 2, mask=2).status is Status.TDX_METADATA_FIELD_NOT_WRITABLE
    assert write(World(), "NOTIFY_ENABLES", 1).status is Status.TDX_METADATA_FIELD_NOT_WRITABLE


@pytest.mark.parametrize(
    ("microseconds", "fits"),
    [(9_999, False), (10_000, True), (100 * US_PER_S, True), (100 * US_PER_S + 1, False)],
)
def test_the_host_priority_timeout_has_a_range(microseconds, fits):
    """10 ms to 100 s, in microseconds; R8 is what it was."""
    world = World()
    ret = write(world, "HP_LOCK_TIMEOUT", microseconds)

    assert ret.status is (Status.TDX_SUCCESS if fits else Status.TDX_METADATA_FIELD_VALUE_NOT_VALID)
    assert read(world, "HP_LOCK_TIMEOUT").r8 == (microseconds if fits else US_PER_S)
    assert ret.r8 == (US_PER_S if fits else 0)


def test_the_timeout_is_written_as_a_whole():
    """No part of it."""
    ret = write(World(), "HP_LOCK_TIMEOUT", 20_000, mask=0xFFFF)

    assert ret.status is Status.TDX_METADATA_WR_MASK_NOT_VALID


def test_what_was_decided_at_birth_is_not_writable():
    """ATTRIBUTES, also of a debug TD."""
    assert write(World(attributes=DEBUG), "ATTRIBUTES", 0).status is Status.TDX_METADATA_FIELD_NOT_WRITABLE


@pytest.mark.parametrize("bit", [24, 34, 38, 47, 55, 62])
def test_reserved_bits_of_an_id_must_be_clear(bit):
    """And so must the counts of a sequence; size, context and the architectural bit are not looked at."""
    world = World()
    plain = TD["NUM_VCPUS"].id
    assert (
        world.do(tdh_mng_rd, td=world.td, field_id=plain | 1 << bit).status
        is Status.TDX_METADATA_FIELD_ID_INCORRECT
    )
    for ignored in (32, 50, 51, 52, 63):
        assert world.do(tdh_mng_rd, td=world.td, field_id=plain ^ 1 << ignored).r8 == 1


def test_an_unknown_field_is_an_incorrect_id():
    """A code that is nobody's."""
    world = World()
    ret = world.do(tdh_mng_rd, td=world.td, field_id=0xFFFF)

    assert ret.status is Status.TDX_METADATA_FIELD_ID_INCORRECT


@pytest.mark.parametrize("debug", [False, True])
def test_version_1_leads_from_field_to_field(debug):
    """From the null id through all fields that may be read, to the end; version 0 knows no null id."""
    world = World(attributes=DEBUG if debug else 0)
    ret = world.do(tdh_mng_rd, td=world.td, field_id=FIELD_ID_NA, version=1)
    assert ret.status is Status.TDX_METADATA_FIRST_FIELD_ID_IN_CONTEXT
    names = []
    while ret.rdx != FIELD_ID_NA:
        names.append(next(field.name for field in TD_FIELDS if field.id == ret.rdx))
        ret = world.do(tdh_mng_rd, td=world.td, field_id=ret.rdx, version=1)
        assert ret.ok
    assert names == [field.name for field in TD_FIELDS if debug or field.readable[0]]
    assert (
        world.do(tdh_mng_rd, td=world.td, field_id=FIELD_ID_NA).status
        is Status.TDX_METADATA_FIELD_ID_INCORRECT
    )


def test_an_error_of_version_1_says_that_there_is_no_next_field():
    """RDX, whatever went wrong."""
    world = World()
    words = Registers(1 << 16 | 11, rcx=world.page() << PAGE_SHIFT, rdx=TD["OP_STATE"].id)
    ret = run(world.kernel, dispatch(world.module, words))

    assert (ret.status, ret.operand) == (Status.TDX_PAGE_METADATA_INCORRECT, Operand.RCX)
    assert (ret.rdx, ret.r8) == (FIELD_ID_NA, 0)


def test_reading_a_vcpu_takes_it_to_this_lp():
    """The association stays, also when the field does not exist; another LP must flush first."""
    world = World()
    world.vcpu().assoc_lpid.v = -1
    world.module.tdcs(world.td).num_assoc_vcpus.v = 0
    lp = LogicalProcessor(5)
    ret = world.do(tdh_vp_rd, tdvpr_pfn=world.tdvprs[0], lp=lp, field_id=1)
    assert ret.status is Status.TDX_METADATA_FIELD_ID_INCORRECT
    assert vcpu_read(world, "ASSOC_LPID", lp=lp).r8 == 5
    assert vcpu_read(world, "ASSOC_LPID").status is Status.TDX_VCPU_ASSOCIATED
    assert world.module.tdcs(world.td).num_assoc_vcpus.v == 1


def test_a_vcpu_that_runs_is_not_read():
    """It is ACTIVE: the state is looked at before the association."""
    world = World()
    seen = []

    def guest():
        seen.append(
            (yield from tdh_vp_rd(world.module, tdvpr_pfn=world.tdvprs[0], lp=world.lps[0], field_id=0))
        )
        return (yield from world.leave())

    world.do(tdh_vp_enter, tdvpr_pfn=world.tdvprs[0], lp=world.lps[0], guest=guest)
    assert seen[0].status is Status.TDX_VCPU_STATE_INCORRECT


def test_a_disabled_vcpu_may_be_read_and_not_written():
    """A host looks at what is left of it."""
    world = World(attributes=DEBUG)
    world.vcpu().state.v = VcpuState.DISABLED
    assert vcpu_read(world, "VCPU_STATE").r8 == VcpuState.DISABLED
    ret = world.do(tdh_vp_wr, tdvpr_pfn=world.tdvprs[0], lp=world.lps[0], field_id=VP["RAX"].id, data=1)
    assert ret.status is Status.TDX_VCPU_STATE_INCORRECT


def test_a_debugger_writes_registers_and_a_host_does_not():
    """Under a mask, the other bits stay."""
    for attributes, status in ((DEBUG, Status.TDX_SUCCESS), (0, Status.TDX_METADATA_FIELD_NOT_WRITABLE)):
        world = World(attributes=attributes)
        world.vcpu().guest_rax = 0x1234
        ret = world.do(
            tdh_vp_wr,
            tdvpr_pfn=world.tdvprs[0],
            lp=world.lps[0],
            field_id=VP["RAX"].id,
            data=0xFF,
            mask=0xFF,
        )
        assert ret.status is status
        assert world.vcpu().guest_rax == (0x12FF if attributes else 0x1234)


@pytest.mark.parametrize("field", [*TD_FIELDS, *VP_FIELDS], ids=lambda field: field.name)
def test_every_field_can_be_read_by_a_debugger(field):
    """And fits into its element."""
    world = World(attributes=DEBUG)
    of_vcpu = field in VP_FIELDS
    call, operands = (
        (tdh_vp_rd, {"tdvpr_pfn": world.tdvprs[0], "lp": world.lps[0]})
        if of_vcpu
        else (tdh_mng_rd, {"td": world.td})
    )
    ret = world.do(call, field_id=field.id, **operands)

    assert ret.ok
    assert 0 <= ret.r8 <= field.element_mask
