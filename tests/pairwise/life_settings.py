"""Ends and edges of a TD's life: teardown with several pages at once, the module's own states, limits, and interrupted entries.

- `teardown`: a host flushes vCPUs, writes caches back (interrupted, resumed, resumed wrongly), frees the key; others reclaim pages.
- `dispatching`: calls by registers, known and unknown, while the module becomes NOT READY or SHUTDOWN; what the log of calls says the
  registers were is compared with what they were.
- `limits`: two vCPUs are initialised when the TD may have one more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from sim import EventLog, Kernel, Steps
from tdx.module import (
    LEAVES,
    Registers,
    SeptState,
    Status,
    TdxModule,
    dispatch,
)
from tdx.module.events import SeamcallEntered
from tdx.module.objects import NOT_ASSOCIATED, VcpuState
from tdx.module.operands import HKID_SHIFT
from tdx.module.profile import TDX_1_5_01, TDX_1_5_28, Profile
from tdx.module.seamcall import BY_NUMBER
from tests.pairwise.calls import text_of
from tests.pairwise.dpamt_settings import LENT
from tests.pairwise.explored import Exploration, Explored, Fill, Outcome
from tests.pairwise.guest_settings import FREE, MAPPED, TRACKED
from tests.pairwise.guests import Guests
from tests.pairwise.settings import no_interrupt
from tests.pairwise.states import TEARDOWN, Age, State
from tests.pairwise.world import HKID, TABLE
from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_4K, gpa_of

TORN_DOWN = TRACKED._replace(phase=TEARDOWN)
LARGE = State(PG_LEVEL_4K, TEARDOWN, SeptState.BLOCKED, Age.PREVIOUS)
RESUME = 1


class Host(Guests):
    """A scene whose threads make calls by registers, and remember what these returned."""

    def does(self, who: str, *calls: Registers) -> None:
        """A thread makes them, one after the other; an interrupt that ended one has then been handled."""
        self.acts(who, self._made(who, calls))

    def _made(self, who: str, calls: Sequence[Registers]) -> Steps[None]:
        lp = self.world.lps[who]
        for registers in calls:
            ret = yield from dispatch(self.module, registers, lp=lp, guest=self.world.leave)
            if ret.status is Status.TDX_INTERRUPTED_RESUMABLE:
                lp.interrupt_pending = no_interrupt
            self.says(who, text_of(ret))


def call(name: str, rcx: int = 0, **registers: int) -> Registers:
    """Registers of the leaf of that name."""
    return Registers(LEAVES[name].number, rcx, **registers)


def page_call(name: str, pfn: int, **registers: int) -> Registers:
    """The same, with a page's address in RCX."""
    return call(name, pfn << PAGE_SHIFT, **registers)


RECLAIM, RDMD, WBINVD = (f"TDH.PHYMEM.PAGE.{name}" for name in ("RECLAIM", "RDMD", "WBINVD"))


# Scenes.


def reclaiming(state: State, *threads: Callable[[Host], Sequence[Registers]]) -> Fill:
    """Hosts that make these calls on one TD."""

    def fill(kernel: Kernel) -> tuple[TdxModule, Outcome]:
        scene = Host(kernel, TDX_1_5_01, state)
        for who, calls in zip(scene.world.vcpus, threads, strict=False):
            scene.does(who, *calls(scene))
        return scene.fill

    return fill


def _mapped(name: str, *, offset: int = 0, **registers: int) -> Callable[[Host], Sequence[Registers]]:
    return lambda scene: [page_call(name, scene.world.mapped() + offset, **registers)]


def _tdr(name: str) -> Callable[[Host], Sequence[Registers]]:
    return lambda scene: [page_call(name, scene.world.td.tdr_pfn)]


def _on(name: str, pfn: int) -> Callable[[Host], Sequence[Registers]]:
    return lambda _scene: [page_call(name, pfn)]


def last_page() -> Fill:
    """Nothing but the TDR is left; two hosts reclaim it."""

    def fill(kernel: Kernel) -> tuple[TdxModule, Outcome]:
        scene = Host(kernel, TDX_1_5_01, TORN_DOWN)
        tdr = scene.world.td.tdr_pfn
        for page in scene.module.pamt.assigned():
            if page.pfn != tdr:
                assert kernel.prepare(dispatch(scene.module, page_call(RECLAIM, page.pfn))).ok
        for who in "ab":
            scene.does(who, page_call(RECLAIM, tdr), page_call(RDMD, tdr))
        return scene.fill

    return fill


def teardown(*, interrupted: bool, resumes: Sequence[int], beside: str) -> Fill:
    """One host takes the key away, with these commands for CACHE.WB; another makes a call on the mapped page all the time."""

    def fill(kernel: Kernel) -> tuple[TdxModule, Outcome]:
        scene = Host(kernel, TDX_1_5_01, MAPPED)
        world = scene.world
        for who in ("b", "guest"):
            world.vcpus[who].assoc_lpid.v = NOT_ASSOCIATED
        world.tdcs.num_assoc_vcpus.v = 1
        world.lps["a"].interrupt_pending = lambda: interrupted
        tdr = world.td.tdr_pfn
        scene.does(
            "a",
            page_call("TDH.MNG.VPFLUSHDONE", tdr),
            page_call("TDH.VP.FLUSH", world.vcpus["a"].pfn),
            page_call("TDH.MNG.VPFLUSHDONE", tdr),
            *(call("TDH.PHYMEM.CACHE.WB", command) for command in resumes),
            page_call("TDH.MNG.KEY.FREEID", tdr),
            page_call(RECLAIM, world.mapped()),
        )
        scene.does("b", page_call(beside, world.mapped()))
        return scene.fill

    return fill


def caches(first: Sequence[int], second: Sequence[int]) -> Fill:
    """Two hosts write back the caches of one package, one of them interrupted; a start forgets what the other was to resume."""

    def fill(kernel: Kernel) -> tuple[TdxModule, Outcome]:
        scene = Host(kernel, TDX_1_5_01, FREE)
        world = scene.world
        for vcpu in world.vcpus.values():
            vcpu.assoc_lpid.v = NOT_ASSOCIATED
        world.tdcs.num_assoc_vcpus.v = 0
        world.lps["a"].interrupt_pending = lambda: True
        flushed = dispatch(scene.module, page_call("TDH.MNG.VPFLUSHDONE", world.td.tdr_pfn))
        assert kernel.prepare(flushed).ok
        for who, commands in (("a", first), ("b", second)):
            scene.does(who, *(call("TDH.PHYMEM.CACHE.WB", command) for command in commands))
        return scene.fill

    return fill


def limits(left: int) -> Fill:
    """Two vCPUs are initialised at once; the TD may have so many more."""

    def fill(kernel: Kernel) -> tuple[TdxModule, Outcome]:
        scene = Host(kernel, TDX_1_5_01, FREE._replace(phase="INITIALIZED"))
        tdcs = scene.world.tdcs
        tdcs.num_vcpus.v = tdcs.num_assoc_vcpus.v = 1
        tdcs.max_vcpus = 1 + left
        for who in "ab":
            vcpu = scene.vcpu(who)
            vcpu.state.v = VcpuState.UNINITIALIZED
            vcpu.assoc_lpid.v = NOT_ASSOCIATED
            scene.does(who, page_call("TDH.VP.INIT", vcpu.pfn), page_call("TDH.VP.INIT", vcpu.pfn))
        kernel.at_end(
            "as many are counted as were initialised",
            lambda: tdcs.num_vcpus.peek() == 1 + min(left, 2) == tdcs.num_assoc_vcpus.peek(),
        )
        return scene.fill

    return fill


def written_back() -> Fill:
    """A DEMOTE that was interrupted has written its new page; one host writes that back, another gives it to the TD."""

    def fill(kernel: Kernel) -> tuple[TdxModule, Outcome]:
        scene = Host(kernel, TDX_1_5_01, LARGE._replace(phase="INITIALIZED"))
        world = scene.world
        world.lps["a"].interrupt_pending = lambda: True
        gpa, tdr, spare = gpa_of(world.gfn), world.td.tdr_pfn << PAGE_SHIFT, world.spare << PAGE_SHIFT
        scene.does(
            "a",
            call("TDH.MEM.PAGE.DEMOTE", gpa | 1, rdx=tdr, r8=spare),
            call(WBINVD, spare | HKID << HKID_SHIFT),
        )
        scene.does("b", call("TDH.VP.CREATE", spare, rdx=tdr))
        return scene.fill

    return fill


class CallLog:
    """Stands for a kernel's event log: keeps what each SEAMCALL was entered with."""

    def __init__(self) -> None:
        self.entered: list[tuple[str, int, int, int]] = []

    def write(self, _now_ns: int, _step: int, _thread: str, event: Any) -> None:
        """Keep one event."""
        if isinstance(event, SeamcallEntered):
            self.entered.append((event.fn, event.rcx, event.rdx, event.r8))


def dispatching(state: str, profile: Profile) -> Fill:
    """Calls by registers, while the module's state changes; the log must say of each call what stood in its registers."""

    def fill(kernel: Kernel) -> tuple[TdxModule, Outcome]:
        scene = Host(kernel, profile, TRACKED)
        log = CallLog()
        kernel.events = cast("EventLog", log)
        calls = _ordinary(scene)
        scene.does("a", *calls)
        scene.acts("b", _becomes(scene, state))
        carried = [_carried(registers) for registers in calls if registers.rax in BY_NUMBER]
        kernel.at_end(
            "the log says what stood in the registers", lambda: log.entered == carried[: len(log.entered)]
        )
        return scene.fill

    return fill


def _carried(registers: Registers) -> tuple[str, int, int, int]:
    """As the log should have it: a register that carries nothing is 0."""
    leaf = BY_NUMBER[registers.rax]
    rcx, rdx, r8 = (getattr(registers, name) if name in leaf.inputs else 0 for name in ("rcx", "rdx", "r8"))
    return leaf.name, rcx, rdx, r8


def _becomes(scene: Host, state: str) -> Steps[None]:
    yield scene.module.state.write_once(state)


def _ordinary(scene: Host) -> list[Registers]:
    """A call for each kind of word that a register may carry, and some that are none."""
    world = scene.world
    gpa, tdr = gpa_of(world.gfn), world.td.tdr_pfn << PAGE_SHIFT
    vcpu, mapped, spare = world.vcpus["a"].pfn, world.mapped(), world.spare
    return [
        call("TDH.MEM.SEPT.RD", gpa, rdx=tdr),
        call("TDH.MEM.SEPT.RD", gpa_of(world.gfn & -512) | 1, rdx=tdr),
        call("TDH.MEM.PAGE.RELOCATE", gpa, rdx=tdr, r8=spare << PAGE_SHIFT),
        call("TDH.MEM.SEPT.ADD", gpa_of(world.gfn & -512) | 1, rdx=tdr | 1, r8=0x9100 << PAGE_SHIFT),
        page_call("TDH.VP.ENTER", vcpu),
        call(RDMD, mapped << PAGE_SHIFT),
        call(WBINVD, mapped << PAGE_SHIFT | 3 << HKID_SHIFT),
        call("TDH.MNG.RD", tdr, rdx=0),
        call(
            "TDH.PHYMEM.PAMT.ADD", 0x9000 << PAGE_SHIFT | 1, rdx=LENT << PAGE_SHIFT, r8=LENT + 1 << PAGE_SHIFT
        ),
        call("TDH.PHYMEM.PAMT.REMOVE", 0x9000 << PAGE_SHIFT | 1),
        Registers(0x3FFF),
        Registers(LEAVES["TDH.MEM.SEPT.RD"].number | 1 << 16, gpa, tdr),
        Registers(LEAVES["TDH.MEM.SEPT.RD"].number | 1 << 40, gpa, tdr),
    ]


def injected(status: Status) -> Fill:
    """A host that tries again after a status that was injected, against one that takes the page away."""

    def fill(kernel: Kernel) -> tuple[TdxModule, Outcome]:
        scene = Host(kernel, TDX_1_5_01, TRACKED)
        left = [status]

        def inject(_leaf: str, thread: str) -> Status | None:
            return left.pop() if left and thread == "a" else None

        scene.module.inject = inject
        remove = call(
            "TDH.MEM.PAGE.REMOVE", gpa_of(scene.world.gfn), rdx=scene.world.td.tdr_pfn << PAGE_SHIFT
        )
        scene.does("a", remove, remove)
        scene.does("b", remove)
        return scene.fill

    return fill


def explorations() -> Iterator[Exploration]:
    """All of them."""
    table = _on(RECLAIM, TABLE)
    pairs: tuple[
        tuple[str, State, Callable[[Host], Sequence[Registers]], Callable[[Host], Sequence[Registers]]], ...
    ] = (
        ("two pages", TORN_DOWN, _mapped(RECLAIM), table),
        ("one page twice", TORN_DOWN, _mapped(RECLAIM), _mapped(RECLAIM)),
        ("a page and the TDR", TORN_DOWN, _mapped(RECLAIM), _tdr(RECLAIM)),
        ("the TDR while pages are left, and its metadata", TORN_DOWN, _tdr(RECLAIM), _tdr(RDMD)),
        ("2M page and a 4K page inside", LARGE, _mapped(RECLAIM), _mapped(RECLAIM, offset=1)),
        ("a page and its metadata", TORN_DOWN, _mapped(RECLAIM), _mapped(RDMD)),
        ("a page and its write-back", TORN_DOWN, _mapped(RECLAIM), _mapped(WBINVD)),
        ("a page of a living TD, removed meanwhile", TRACKED, _mapped(RECLAIM), _removal),
        ("the TDR of a living TD", TRACKED, _tdr(RECLAIM), _mapped(RDMD)),
        ("a page that is nobody's", TORN_DOWN, _on(RECLAIM, 0x9000), _on(RDMD, 0x9000)),
        (
            "metadata of a wrong level",
            TORN_DOWN,
            lambda _scene: [call(RDMD, 0x9000 << PAGE_SHIFT | 1)],
            _mapped(RECLAIM),
        ),
    )
    for name, state, one, other in pairs:
        yield Exploration(f"RECLAIM: {name}", reclaiming(state, one, other))
    yield Exploration(
        "RECLAIM: two pages and the TDR", reclaiming(TORN_DOWN, _mapped(RECLAIM), table, _tdr(RECLAIM))
    )
    yield Exploration("RECLAIM: the TDR, when all else is gone", last_page())
    for beside in (RECLAIM, RDMD, WBINVD):
        name = beside.removeprefix("TDH.PHYMEM.PAGE.")
        yield Exploration(f"teardown beside {name}", teardown(interrupted=False, resumes=(0,), beside=beside))
        yield Exploration(
            f"teardown beside {name}, CACHE.WB interrupted and resumed",
            teardown(interrupted=True, resumes=(0, RESUME), beside=beside),
        )
    yield Exploration(
        "teardown, CACHE.WB left at the interrupt", teardown(interrupted=True, resumes=(0,), beside=RDMD)
    )
    yield Exploration(
        "teardown, CACHE.WB resumed, not begun, and command 2",
        teardown(interrupted=False, resumes=(RESUME, 2), beside=RDMD),
    )
    yield Exploration("two CACHE.WB", caches((0, RESUME), (0,)))
    yield Exploration("CACHE.WB begun by one, resumed by both", caches((0, RESUME), (RESUME, RESUME)))
    yield Exploration("an interrupted DEMOTE's page is written back", written_back())
    for left in (0, 1, 2):
        yield Exploration(f"two VP.INIT, room for {left}", limits(left))
    for becomes in ("READY", "SHUTDOWN", "INITIALIZING"):
        yield Exploration(f"calls by registers, module becomes {becomes}", dispatching(becomes, TDX_1_5_28))
    for status in (Status.TDX_OPERAND_BUSY, Status.TDX_SYS_NOT_READY):
        yield Exploration(f"{status.name} injected", injected(status))


def _removal(scene: Host) -> Sequence[Registers]:
    world = scene.world
    return [call("TDH.MEM.PAGE.REMOVE", gpa_of(world.gfn), rdx=world.td.tdr_pfn << PAGE_SHIFT)]


def explored() -> list[Explored]:
    """All of it."""
    return [exploration.run() for exploration in explorations()]
