"""Operands that make no sense: Python's errors for who writes Python, the module's status for who writes registers."""

import inspect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tdx.module as api
from tdx.module import LEAVES, Operand, Registers, Status, Td, dispatch, profile_named
from tdx.module.operands import decode, encode
from tests.tdx.module.worlds import DATA, GFN, World
from vcpu.addresses import LEVELS, PG_LEVEL_2M, PG_LEVEL_4K, Gpa, Pfn, PgLevel, gpa_of

AUG = LEAVES["TDH.MEM.PAGE.AUG"].number
WORDS = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 2**52 - 1).map(lambda word: word & ~0xFFF))


@pytest.mark.parametrize(
    ("wrong", "error", "told"),
    [
        ({"level": 7}, ValueError, "7 is no level; there are PG_LEVEL_4K, PG_LEVEL_2M"),
        ({"level": 2}, ValueError, "2 is no level"),
        ({"gpa": Gpa(gpa_of(GFN) + 0x800)}, ValueError, "0x10000800 is not aligned to PG_LEVEL_4K"),
        ({"gpa": gpa_of(GFN + 1), "level": PG_LEVEL_2M}, ValueError, "not aligned to PG_LEVEL_2M"),
        ({"gpa": Gpa(-4096)}, ValueError, "-0x1000 is no guest physical address"),
        ({"gpa": Gpa(1 << 52)}, ValueError, "is no guest physical address of 52 bits"),
        ({"pfn": Pfn(-1)}, ValueError, "pfn -0x1 is no page frame number"),
        ({"pfn": Pfn(1 << 40)}, ValueError, "is no page frame number"),
        ({"td": "td0"}, TypeError, "td is 'td0', not a Td"),
        ({"size": 4096}, TypeError, "no operand 'size'; there are gpa, level, pfn, td"),
    ],
)
def test_a_typed_call_that_makes_no_sense_is_python_s_error(wrong, error, told):
    """Told before the first step, naming leaf and value; nothing of the module has changed."""
    world = World()
    right = {"td": world.td, "gpa": gpa_of(GFN), "level": PG_LEVEL_4K, "pfn": Pfn(DATA)}
    before = world.state()

    with pytest.raises(error, match=told):
        world.do(api.tdh_mem_page_aug, **{**right, **wrong})

    assert world.state() is before
    assert world.module.pamt.entry(DATA, PG_LEVEL_4K).kind.name == "PT_NDA"
    assert not world.module.in_flight


def test_operands_that_are_missing_and_the_guest_s_are_told_too():
    """By name."""
    world = World()

    with pytest.raises(TypeError, match=r"TDH.MEM.TRACK: operand 'td' is missing"):
        api.tdh_mem_track(world.module)
    with pytest.raises(
        ValueError, match=r"TDG.MEM.PAGE.ACCEPT: gpa 0x10001000 is not aligned to PG_LEVEL_2M"
    ):
        api.tdg_mem_page_accept(
            world.module,
            td=world.td,
            vcpu=world.vcpu(),
            gpa=gpa_of(GFN + 1),
            level=PG_LEVEL_2M,
            interrupt_pending=lambda: False,
        )


def test_a_release_that_is_none_is_told_with_those_there_are():
    """By name."""
    with pytest.raises(ValueError, match=r"no module release '1\.6'; there are 1\.0, 1\.5\.01"):
        profile_named("1.6")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    number=st.one_of(st.sampled_from(sorted(leaf.number for leaf in LEAVES.values())), st.integers(0, 200)),
    version=st.integers(0, 3),
    words=st.tuples(*[WORDS] * 8),
)
def test_any_register_words_get_the_module_s_answer(number, version, words):
    """No word in any register is a Python error, and a refusal leaves no lock and no entry behind."""
    world = World()
    if number in (0, LEAVES["TDH.VP.FLUSH"].number):
        return  # want a guest, or an LP
    registers = Registers(number | version << 16, *words)
    wanting = LEAVES_BY_NUMBER.get(number)
    if wanting is not None and not _has_all(wanting):
        return

    ret = world.do(lambda module: dispatch(module, registers, lp=world.lps[0]))

    assert isinstance(ret.status, Status)
    assert not world.module.in_flight
    if wanting is None:
        assert (ret.status, ret.operand) == (Status.TDX_OPERAND_INVALID, Operand.RAX)


LEAVES_BY_NUMBER = {leaf.number: leaf for leaf in LEAVES.values()}


def _has_all(leaf):
    """Whether registers and an LP are all that the call needs."""
    needed = {
        name
        for name, parameter in inspect.signature(leaf.call).parameters.items()
        if parameter.default is inspect.Parameter.empty and parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    return not needed - {"lp"}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    gfn=st.integers(0, 2**35 - 1),
    level=st.sampled_from(LEVELS[1:]),
    pfn=st.integers(0, 2**40 - 1),
    flag=st.booleans(),
)
def test_registers_carry_what_was_said(gfn, level, pfn, flag):
    """Encoding and decoding are inverse where an operand makes sense."""
    gpa = gpa_of(gfn & -level.pages)
    said = {"gpa": gpa, "level": level}
    assert decode("page_info", encode("page_info", said)) == said
    td = {"td": Td(Pfn(pfn)), "flag": flag}
    assert decode("td+flag", encode("td+flag", td)) == td
    for carries in ("pfn", "source_pfn", "tdvpr_pfn"):
        assert decode(carries, encode(carries, {carries: Pfn(pfn)})) == {carries: pfn}
    assert not isinstance(decode("page_info", 6)["level"], PgLevel)
