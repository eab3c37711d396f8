"""`tdsim seamcall`, one line at a time: what a line may be, what it does, and that a refused one does nothing."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scenarios.errors import ScenarioError
from scenarios.seamcall.catalogue import GUEST, HOST, endings_of, operands_of, out_of_reach, shortest
from scenarios.seamcall.commands import COMMANDS
from scenarios.seamcall.language import Word, number, read_line
from scenarios.seamcall.observe import differences, observe
from scenarios.seamcall.request import Maker
from scenarios.seamcall.running import held
from scenarios.seamcall.session import Session
from scenarios.seamcall.show import lines_of
from tdx.module import PROFILES
from tdx.module.operands import decode, encode

PAGE = "0x40000000 2M"


def one(session, line):
    """The only report of a line."""
    (report,) = session.do(line)
    return report


def mistake(session, line):
    """What is wrong with a line, which must change nothing."""
    before = observe(session.world)
    with pytest.raises(ScenarioError) as caught:
        session.do(line)
    assert observe(session.world) == before
    return caught.value


@pytest.fixture
def session():
    """td0 with two vCPUs and a 2M page that the guest has accepted."""
    session = Session()
    session.do(f"build {PAGE}")
    return session


@pytest.fixture
def demoting(session):
    """The same, with that page blocked and tracked."""
    for line in (f"block {PAGE}", "track"):
        assert one(session, line).status == "TDX_SUCCESS"
    return session


# What a line is.


def test_a_line_is_taken_apart_with_columns():
    """Who, what, words and named values, each where it stands; a comment is none of them."""
    line = read_line("  vcpu0 Accept gpa=0x1000 2M  # so it is")

    assert (line.who, line.verb) == (Word("vcpu0", 3), Word("Accept", 9))
    assert line.words == (Word("2M", 27),)
    assert line.named == ((Word("gpa", 16), Word("0x1000", 20)),)
    assert read_line("  # nothing") is None


@settings(derandomize=True, max_examples=50)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40 - 1))
def test_a_number_is_read_as_it_was_written(large, small):
    """Hexadecimal, decimal, and sums."""
    assert number(Word(f"{large:#x}")) == large
    assert number(Word(f"{small}+4K")) == small + 4096


@pytest.mark.parametrize("text", ["0x", "2X", "1.5", "--1", "0x1+", "0x1" + "0" * 16, "1e3"])
def test_what_is_no_number_is_told_at_its_column(session, text):
    """Nothing is guessed."""
    assert mistake(session, f"block gpa={text}").column == 11


@pytest.mark.parametrize(
    ("line", "column", "told"),
    [
        ("demot 0x40000000", 1, "did you mean demote?"),
        ("demote 0x40000000 td=td7", 22, "did you mean td0?"),
        ("demote 0x40000000 pgae=auto", 19, "did you mean page?"),
        ("demote 0x40000000 level=2MB", 25, "no level '2MB'"),
        ("demote 0x40000000 level=8", 25, "a level has 3 bits"),
        ("demote 0x40000001", 8, "bits 2:0 of RCX are the level's"),
        ("demote", 1, "needs gpa"),
        ("block 1G 2M 0x0", 13, "has no place for 0x0"),
        ("demote 0x40000000 = 3", 19, "expected name=value"),
        ("demote gpa=1G gpa=2G", 15, "gpa is given twice"),
        ("remove 0x40000000", 1, "TDH.MEM.PAGE.REMOVE, TDH.MEM.SEPT.REMOVE"),
        ("enter", 1, "needs vcpu="),
        ("enter vcpu9", 7, "no vCPU 'vcpu9'"),
        ("accept 0x40000000", 1, "no vCPU is inside"),
        ("vcpu0 accept 0x40000000", 1, "enter it first: enter vcpu0"),
        ("vcpu0", 1, "what does vcpu0 do?"),
        ("lp9 track", 1, "no LP 'lp9'"),
        ("reclaim", 1, "needs page="),
        ("999", 1, "no modelled leaf has the number 999"),
        ("show entr", 6, "did you mean entry?"),
        ("step", 0, "nothing is in the middle"),
        ("exit", 1, "`quit` ends the session"),
        ("profile 1.5.02", 9, "did you mean"),
        ("build td0", 7, "td0 is there already"),
        ("build td1 attributes=DEBUGG", 22, "did you mean DEBUG?"),
        ("build 0x40001000 2M", 7, "0x40000000 is"),
        ("repeat 3", 1, "repeat how often, and what?"),
        ("repeat 2 blok 1G", 10, "did you mean block?"),
        ("interrupt maybe", 11, "expected on, off or once"),
        ("help TDX_OPERAND_BUZY", 6, "did you mean TDX_OPERAND_BUSY?"),
    ],
)
def test_what_cannot_be_understood_is_told_and_changes_nothing(session, line, column, told):
    """One message with its place and a remedy."""
    wrong = mistake(session, line)

    assert wrong.column == column
    assert told in str(wrong)


def test_commands_and_leaves_do_not_share_a_name():
    """A verb means one thing."""
    assert not {name.upper() for name in (*COMMANDS, "touch", "quit")} & set(endings_of((*HOST, *GUEST)))


@pytest.mark.parametrize("name", [*HOST, *GUEST])
def test_every_leaf_is_reached_by_name_number_and_ending(session, name):
    """`help` says of each what it is; its short name means it and nothing else."""
    leaf = {**HOST, **GUEST}[name]
    told = one(session, f"help {name}").text

    assert told[0].startswith(f"{name}, ")
    assert one(session, f"help {shortest(name, [*HOST, *GUEST])}").text == told
    for operand in operands_of(leaf):
        assert any(line.split()[:1] == [operand.name] for line in told), operand


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("help", "`help LEAF`"),
        ("help begin", "begin LINE"),
        ("help touch", "vcpu0 touch GPA"),
        ("help states", "PENDING_BLOCKED "),
        ("help blocked", "TDH.MEM.RANGE.UNBLOCK -> MAPPED"),
        ("help TDX_OPERAND_BUSY", "the same call may succeed later"),
        ("help TDX_PAGE_ALREADY_ACCEPTED", "a warning"),
        ("show entry 0x40000000", "MAPPED, page 0x80000000"),
        ("show entry 0x40000000 4K", "(the walk to 4K ends here)"),
        ("show entry 0x40000000 1G", "NL_MAPPED, table"),
        ("show tree", "      0x40000000 2M: MAPPED, page 0x80000000"),
        ("show pamt", "REG of td0"),
        ("show pamt 0x80000000", "2M   0x80000000   REG of td0, lock free"),
        ("show locks", "every lock is free"),
        ("show epoch", "TD_EPOCH 1"),
        ("show td", "RUNNABLE"),
        ("show vcpus", "vcpu1 of td0"),
        ("show steps", "read.module.state"),
        ("show calls", "every LP is idle"),
        ("wait 1s", "1 s pass"),
        ("profile", "the module is 1.5.01"),
        ("interrupt lp4 on", "on lp4, until `interrupt off`"),
        ("interrupt off", "no interrupt is pending on every LP"),
    ],
)
def test_a_question_is_answered(session, line, told):
    """With what is asked for, and without a change."""
    before = observe(session.world)
    text = "\n".join(one(session, line).text)

    assert re.search(re.escape(told).replace(r"read\.", r"read\s+"), text), text
    assert observe(session.world) == before


def test_who_is_inside_and_what_is_blocked_shows(session):
    """`show` of a world in which something goes on."""
    for line in (
        "enter vcpu0",
        f"block {PAGE}",
        "track",
        "begin sept.rd 0x40000000",
        "step until lock entry",
    ):
        session.do(line)

    epoch = "\n".join(one(session, "show epoch").text)
    assert "vcpu0 is inside since epoch 1" in epoch
    assert "not tracked, a vCPU that entered then is still inside" in epoch
    locks = "\n".join(one(session, "show locks").text)
    assert "S-EPT 2M 0x40000000: BLOCKED, page 0x80000000, TDEL   <- lp4 exclusive, TDH.MEM.SEPT.RD" in locks
    assert one(session, "show calls").text == [
        "lp0: inside vcpu0",
        "lp4: in the middle of TDH.MEM.SEPT.RD, after 10 accesses; next: TDHP S-EPT 2M 0x40000000",
    ]


# What a line does.


@pytest.mark.parametrize("name", list(HOST))
def test_registers_carry_what_was_said(session, name):
    """What the module decodes from the registers is what stands in the line; typed operands give the same words."""
    leaf = HOST[name]
    if out_of_reach(leaf):
        assert "which no line can express" in str(mistake(session, name))
        return
    values = {
        "gpa": "0x40000000",
        "gpa_of_page": "0x40000000",
        "level": "2M",
        "td": "td0",
        "vcpu": "vcpu0",
        "page": "0x80200000",
        "page?": "0x80200000",
        "flag": "on",
        "number": "1",
    }
    said = {
        operand.name: values[operand.kind]
        for operand in operands_of(leaf)
        if operand.register not in {"", "rax"} and operand.name != "list_info"
    }
    line = read_line(f"{name} " + " ".join(f"{key}={value}" for key, value in said.items()))
    registers = Maker(session.world, "td0", set()).request(leaf, line).registers

    for register, carries in leaf.inputs.items():
        if carries == "list_info":
            continue
        operands = decode(carries, getattr(registers, register))
        assert encode(carries, operands) == getattr(registers, register), (register, carries)
        assert -1 not in operands.values()


def test_a_page_is_split_and_merged(demoting):
    """The whole way, with what each call changed."""
    split = one(demoting, f"demote {PAGE}")
    assert split.status == "TDX_SUCCESS"
    assert split.entry.state == "NL_MAPPED"
    assert ("entry", 512) in {(change.what, change.alike) for change in split.changes}
    assert ("pamt", 512) in {(change.what, change.alike) for change in split.changes}

    for line in (f"block {PAGE}", "track"):
        one(demoting, line)
    merged = one(demoting, f"promote {PAGE}")
    assert merged.status == "TDX_SUCCESS"
    assert merged.entry.state == "MAPPED"
    assert dict(split.operands)["page"] == f"{merged.outputs['rcx']:#x}"


def test_a_refused_call_says_that_nothing_changed(session):
    """A look at the whole state, not a promise."""
    report = one(session, f"demote {PAGE}")

    assert report.status == "TDX_GPA_RANGE_NOT_BLOCKED|RCX"
    assert report.changes == []
    assert "  state   nothing changed" in lines_of(report)


def test_a_change_behind_a_refusal_is_seen(session, monkeypatch):
    """Planted: a call that is refused and counts a page all the same."""
    tdr = session.world.tdr("td0")
    refused = session.told

    def told(job, line, before, **more):
        tdr.chldcnt.v += 1
        return refused(job, line, before, **more)

    monkeypatch.setattr(session, "told", told)
    report = one(session, f"demote {PAGE}")

    assert [(change.what, change.subject) for change in report.changes] == [("td", "td0 chldcnt")]
    assert "  state   nothing changed" not in lines_of(report)


def test_what_an_interrupted_call_has_written_is_seen(demoting):
    """DEMOTE fills the new page before it looks for interrupts (reference 14, row 18); the page's next use ends that."""
    demoting.do("interrupt once")
    stopped = one(demoting, f"demote {PAGE}")

    assert stopped.status == "TDX_INTERRUPTED_RESTARTABLE"
    assert [(change.what, change.before) for change in stopped.changes] == [("memory", "-")]
    done = one(demoting, f"demote {PAGE}")
    assert done.status == "TDX_SUCCESS"
    assert [change.after for change in done.changes if change.what == "memory"] == ["-"]


def test_contents_of_memory_are_part_of_the_state():
    """What MEM.WR writes into a debug TD is a change like any other."""
    session = Session(vcpus=None)
    for line in ("build td0 attributes=DEBUG", "build 0x40000000 4K"):
        session.do(line)
    written = one(session, "mem.wr 0x40000008 data=0x1234")

    assert written.status == "TDX_SUCCESS"
    assert [(change.what, change.after) for change in written.changes] == [("memory", "0x1234")]
    assert one(session, "mem.rd 0x40000008").outputs["r8"] == 0x1234


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("block 0x40001000 2M", "TDX_OPERAND_INVALID|RCX"),
        ("block 0x40000000 level=7", "TDX_OPERAND_INVALID|RCX"),
        ("block rcx=0x40000801", "TDX_OPERAND_INVALID|RCX"),
        ("block 0x40000000 2M td=0x1000800", "TDX_OPERAND_INVALID|RDX"),
        ("aug 0x40200000 2M page=0x1", "TDX_OPERAND_INVALID|R8"),
        ("track rax=0xffff", "TDX_OPERAND_INVALID|RAX"),
        ("enter vcpu=td0", "TDX_PAGE_METADATA_INCORRECT|RCX"),
    ],
)
def test_what_a_register_can_hold_gets_the_modules_own_status(session, line, status):
    """Nonsense is the module's to judge, and changes nothing."""
    if line == "enter vcpu=td0":
        line = f"enter vcpu={session.world.td_pages['td0'] << 12:#x}"
    report = one(session, line)

    assert report.status == status
    assert report.changes == []


def test_a_new_page_is_the_first_free_one_and_nobody_gets_it_twice(demoting):
    """A call in the middle keeps the page that its registers name."""
    first = dict(one(demoting, f"begin demote {PAGE}").operands)["page"]
    second = dict(one(demoting, f"begin demote {PAGE}").operands)["page"]

    assert first != second


@pytest.mark.parametrize("profile", [*PROFILES, "1.5.01+dpamt"])
def test_every_release_builds_a_td_that_can_split_a_page(profile):
    """Blocked and tracked as 1.5.01 wants it, which no release minds."""
    session = Session(profile)
    for line in (f"build {PAGE}", f"block {PAGE}", "track"):
        session.do(line)

    assert one(session, f"demote {PAGE}").status == "TDX_SUCCESS"


# The guest.


def test_a_translation_outlives_the_entry_until_the_next_entry(session):
    """The TLB serves a blocked page; TRACK alone changes nothing, the entry after it does."""
    session.do("enter vcpu0")
    assert one(session, "vcpu0 touch 0x40000123 write").status == "OK"
    for line in (f"block {PAGE}", "track"):
        session.do(line)
    assert "served by the TLB" in one(session, "vcpu0 touch 0x40000123 write").notes[0]
    assert one(session, f"page.remove {PAGE}").status == "TDX_TLB_TRACKING_NOT_DONE|RCX"

    session.do("exit vcpu0")
    entered = one(session, "enter vcpu0")
    assert [change.after for change in entered.changes if change.what == "tlb"] == ["-"]
    assert one(session, "vcpu0 touch 0x40000123 write").status == "TDEXIT_EPT_VIOLATION"


def test_the_same_instruction_again_is_at_the_same_rip(session):
    """Zero-step: seven faults of one instruction arm the list; another one in between begins anew."""
    for n in range(6):
        session.do("enter vcpu0")
        session.do(f"vcpu0 touch {0x7000_0000 if n != 3 else 0x7000_1000:#x}")
    assert session.world.vcpu("vcpu0").possibly_epf_stepping == 2

    session.do("repeat 5 enter vcpu0; vcpu0 touch 0x70000000")
    assert session.world.vcpu("vcpu0").last_epf_gpa_list == [0x7000_0000]
    assert one(session, "enter vcpu0").status == "TDX_SUCCESS|EPT_VIOLATION"


def test_a_pending_page_is_a_ve_where_the_td_wants_it():
    """SEPT_VE_DISABLE clear: the vCPU stays inside, and a second #VE before the first was fetched is a #DF."""
    session = Session(vcpus=None)
    for line in ("build td0 attributes=0", "build 0x40000000 4K pending", "enter vcpu0"):
        session.do(line)

    assert one(session, "touch 0x40000000").status == "#VE"
    assert one(session, "touch 0x40000000").status == "#DF"


def test_an_interrupt_stops_accept_and_takes_the_vcpu_out(session):
    """How far it came stays in the entry; `once` is over then."""
    for line in ("build 0x40200000 2M pending", "enter vcpu0", "interrupt once"):
        session.do(line)
    stopped = one(session, "accept 0x40200000 2M")

    assert stopped.status == "GUEST_RESUME_SAME_RIP"
    assert "32 of 512 accepted" in stopped.entry.after
    assert not session.jobs
    assert not any(session.world.interrupts)


# Two at a time.


def test_the_locks_that_are_shown_are_the_words_that_are_not_free(demoting):
    """After every access of a DEMOTE, what its accesses add up to is what the lock words say."""
    demoting.do(f"begin demote {PAGE}")
    (job,) = demoting.jobs.values()
    most = 0
    while not job.over:
        job.step()
        holding = held(job.running.performed)
        taken = {cell.name for cell in _every_lock(demoting)}
        assert set(holding) == taken
        most = max(most, len(taken))

    assert most >= 7


def _every_lock(session):
    from scenarios.seamcall.observe import lock_words
    from sim import Cell

    yield from lock_words(session.world)
    for gfn, level, word in session.world.module.entries(session.world.tdr("td0").tdcs):
        if word.is_locked:
            yield Cell(f"sept[{gfn:#x},{level.short}]", word)


def test_a_call_in_the_middle_makes_others_busy_and_gives_host_priority(session):
    """The entry is held: a host call loses and leaves TDHP, and then the guest loses until a host call comes."""
    for line in (
        "build 0x40200000 4K pending",
        "enter vcpu0",
        "begin sept.rd 0x40200000 4K",
        "step until tdhp",
    ):
        session.do(line)
    lost = one(session, "page.remove 0x40200000 4K")
    assert lost.status == "TDX_OPERAND_BUSY|RCX"
    assert lost.entry.after.endswith("TDEL, TDHP")
    assert [lock.won for lock in lost.locks][-1] is False

    assert one(session, "finish").status == "TDX_SUCCESS"
    assert one(session, "accept 0x40200000 4K").status == "TDX_OPERAND_BUSY|RCX"
    session.do("wait 1s")
    assert "TDX_HOST_PRIORITY_BUSY_TIMEOUT" in "".join(one(session, "accept 0x40200000 4K").notes)
    session.do("sept.rd 0x40200000 4K")
    session.do("enter vcpu0")
    assert one(session, "accept 0x40200000 4K").status == "TDX_SUCCESS"


def test_stepping_makes_the_accesses_that_running_makes(demoting):
    """One by one, or in one go: the same call."""
    other = Session()
    for line in (f"build {PAGE}", f"block {PAGE}", "track"):
        other.do(line)
    whole = one(other, f"demote {PAGE}")
    demoting.do(f"begin demote {PAGE}")
    steps = [one(demoting, "step 1") for _ in range(whole.accesses)]

    assert [report.status for report in steps[:-1]] == [""] * (whole.accesses - 1)
    assert steps[-1].status == whole.status
    assert steps[-1].accesses == whole.accesses
    assert [report.seen[0].number for report in steps] == list(range(1, whole.accesses + 1))
    assert differences(observe(other.world), observe(demoting.world)) == []


def test_who_is_in_the_middle_can_do_nothing_else(session):
    """An LP, and a vCPU, does one thing at a time."""
    session.do("enter vcpu0")
    session.do("begin vcpu0 accept 0x40000000 2M")

    assert "lp0 is TDG.MEM.PAGE.ACCEPT" in str(mistake(session, "lp0 track"))
    assert "vcpu0 is in the middle of" in str(mistake(session, "vcpu0 touch 0x40000000"))
    assert one(session, "enter vcpu0").status == "TDX_VCPU_STATE_INCORRECT"


# Whatever is typed.

SAID = st.lists(
    st.one_of(
        st.sampled_from(
            [*HOST, *GUEST, *(name for name in COMMANDS if name not in {"build", "repeat"}), "touch"]
        ),
        st.sampled_from(
            ["begin", "vcpu0", "vcpu1", "lp4", "td0", "auto", "none", "on", "until", "mapped", "all"]
        ),
        st.sampled_from(
            ["0x40000000", "0x40000800", "2M", "4K", "1G", "7", "0xffffffffffffffff", "0x1000000"]
        ),
        st.sampled_from(
            ["gpa=0x40000000", "level=2M", "page=auto", "td=td1", "rcx=0x1001000", "rdx=0", "r8=-", "=", "#"]
        ),
        st.text("abcdefghijklmnopqrstuvwxyz.=0123456789é'\\", max_size=8),
    ),
    min_size=1,
    max_size=5,
)


@settings(derandomize=True, max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(SAID, min_size=1, max_size=8))
def test_a_line_is_done_or_told_as_a_mistake(lines):
    """Never anything else, and a mistake changes nothing."""
    session = Session()
    for words in lines:
        before = observe(session.world)
        try:
            for report in session.do(" ".join(words)):
                lines_of(report)
                report.as_json()
        except ScenarioError:
            assert observe(session.world) == before
