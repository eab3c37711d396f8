"""vCPUs that run small programs, entered by registers, and what was seen of them.

A program touches a page as the CPU does (walk, keep the translation, use it), takes #VE or leaves, accepts, fetches VE_INFO, calls the
host. A translation that is used must be to a page of the TD (invariant 1 of `tdx.module.invariants`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sim import Broken, Kernel, Steps
from tdx.module import (
    Access,
    Registers,
    Status,
    TdExit,
    TdxModule,
    dispatch,
    hardware_walk,
    interrupt_exit,
    private_ept_violation,
    tdcall,
    tdg_mem_page_accept,
    tdg_vp_veinfo_get,
    tdg_vp_vmcall,
)
from tdx.module.exits import TdcallResult
from tdx.module.invariants import cached_pages_are_owned
from tdx.module.objects import Tdvps
from tdx.module.operands import Td
from tdx.module.profile import Profile
from tdx.module.septe import RWX
from tdx.module.tdcall import TDCALLS
from tests.pairwise.calls import text_of
from tests.pairwise.explored import Outcome
from tests.pairwise.quirks import Scene
from tests.pairwise.states import State
from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_2M, Pfn, PgLevel, gpa_of

RIP = 0x1000
"""Where guests stand that do not move."""
VP_ENTER = 0
VMCALL = TDCALLS["TDG.VP.VMCALL"].number
VEINFO_GET = TDCALLS["TDG.VP.VEINFO.GET"].number
ACCEPT = TDCALLS["TDG.MEM.PAGE.ACCEPT"].number


class Guests(Scene):
    """A scene whose vCPUs run programs, and what was seen."""

    def __init__(self, kernel: Kernel, profile: Profile, state: State) -> None:
        super().__init__(kernel, profile, state)
        self.module = self.world.module
        self._pages = self.module.chldcnt(self.world.td)
        self.cached: dict[str, list[tuple[Td, int, PgLevel]]] = {who: [] for who in self.world.vcpus}
        self._owned = {who: cached_pages_are_owned(self.module, self._cache_of(who)) for who in self.cached}
        for who, lp in self.world.lps.items():
            lp.flush_tlb = self._flusher(who)

    def _cache_of(self, who: str) -> Callable[[], list[tuple[Td, int, PgLevel]]]:
        return lambda: self.cached[who]

    def _flusher(self, who: str) -> Callable[[Pfn], None]:
        return lambda _td: self.cached[who].clear()

    def vcpu(self, who: str) -> Tdvps:
        """The vCPU that runs on the LP of that name."""
        return self.module.vcpu(self.world.vcpus[who].pfn)

    def says(self, who: str, what: str) -> None:
        """The next thing that happens to this vCPU."""
        self.returned.setdefault(who, []).append(what)

    def runs(self, who: str, *programs: Guest, flags: Sequence[int] = ()) -> None:
        """A thread enters the vCPU once for each program, with these flags in RCX."""
        self.kernel.thread(who, self._entries(who, programs, flags))

    def calls(self, who: str, *keys: str) -> None:
        """A thread of the host makes these calls."""
        self.thread(who, *keys)

    def acts(self, who: str, steps: Steps[None]) -> None:
        """A thread does this."""
        self.kernel.thread(who, steps)

    def _entries(self, who: str, programs: Sequence[Guest], flags: Sequence[int]) -> Steps[None]:
        for number, program in enumerate(programs):
            self.says(who, (yield from self.enter(who, program, flags[number] if flags else 0)))

    def enter(self, who: str, program: Guest, flags: int = 0) -> Steps[str]:
        """TDH.VP.ENTER by registers; what it returned."""
        registers = Registers(VP_ENTER, self.vcpu(who).pfn << PAGE_SHIFT | flags)
        left = yield from dispatch(
            self.module, registers, lp=self.world.lps[who], guest=lambda: program(self, who)
        )
        if left.exit is None:
            return text_of(left)
        return f"{Status(left.status).name.removeprefix('TDX_')}:{left.exit.reason.name}"

    @property
    def fill(self) -> tuple[TdxModule, Outcome]:
        """For `Exploration`: an outcome is what each said, in order."""

        def outcome() -> str | None:
            if not all(thread.done for thread in self.kernel.threads):
                return None
            said = [f"{who}: {', '.join(words)}" for who, words in sorted(self.returned.items())]
            return "; ".join((*said, self.left()))

        return self.module, outcome

    def left(self) -> str:
        """What the place maps in the end, and by how many pages the TD has grown."""
        module, td = self.module, self.world.td
        if self.world.is_torn_down:
            return "torn down"
        grown = module.chldcnt(td) - self._pages
        return f"{self._mapped()}, {grown:+} pages" if grown else self._mapped()

    def _mapped(self) -> str:
        module, td = self.module, self.world.td
        for _, level, state, pfn in module.leaves(td):
            kind, owner = module.pamt_type(pfn), module.pamt_owner(pfn)
            return f"{level.short} {state.name} {kind.name}" + ("" if owner == td.tdr_pfn else " of nobody")
        entry = module.peek_septe(td, self.world.gfn, self.world.level)
        return "no table" if entry is None else entry.state.name

    # What a guest does.

    def touch(
        self, who: str, access: Access = Access.READ, rip: int | None = None
    ) -> Steps[TdExit | str | None]:
        """The CPU walks and uses what it has found. Returns: None; else the exit, or which exception came."""
        world = self.world
        found = yield from hardware_walk(self.module, world.td, world.gfn)
        if found is not None and found[0] & RWX == RWX:
            entry, level = found
            self.cached[who].append((world.td, entry.pfn_at(level), level))
            yield self.module.state.read_once()
            self._use(who)
            return None
        gpa = gpa_of(world.gfn)
        came = yield from private_ept_violation(self.module, world.td, self.vcpu(who), gpa, access, rip)
        if isinstance(came, TdExit):
            return came
        return "#DF" if came.double_fault else "#VE"

    def _use(self, who: str) -> None:
        owned = self._owned[who]()
        if isinstance(owned, Broken):
            self.kernel.find("stale-tlb", "a guest uses a page that is not its TD's", **owned.details)

    def tdcall(self, who: str, leaf: int, rip: int | None = None, **registers: int) -> Steps[TdcallResult]:
        """A TDCALL by registers."""
        return (yield from tdcall(self.module, self.vcpu(who), Registers(leaf, **registers), rip=rip))

    def accept(self, who: str) -> Steps[TdcallResult]:
        """TDG.MEM.PAGE.ACCEPT of the page."""
        return (yield from self.tdcall(who, ACCEPT, rcx=gpa_of(self.world.gfn)))

    def leaves(self) -> Steps[TdExit]:
        """An interrupt for the host."""
        yield self.module.state.read_once()
        return TdExit.external_interrupt()


Guest = Callable[[Guests, str], Steps[TdExit]]


# Programs.


def reader(scene: Guests, who: str) -> Steps[TdExit]:
    """Touch the page; at a #VE fetch its information, accept, and touch again."""
    for _ in range(2):
        came = yield from scene.touch(who)
        if isinstance(came, TdExit):
            return came
        if came is None:
            scene.says(who, "read")
            return (yield from scene.leaves())
        scene.says(who, came)
        info = yield from scene.tdcall(who, VEINFO_GET)
        scene.says(who, text_of(info))
        accepted = yield from scene.accept(who)
        scene.says(who, f"accept {text_of(accepted)}")
        if accepted.exit is not None:
            return accepted.exit
    return (yield from scene.leaves())


def careless(scene: Guests, who: str) -> Steps[TdExit]:
    """Touch the page twice and never fetch what the #VE was about: a #DF is its end."""
    for _ in range(2):
        came = yield from scene.touch(who)
        if isinstance(came, TdExit):
            return came
        scene.says(who, came or "read")
        if came == "#DF":
            return TdExit.triple_fault()
    return (yield from scene.leaves())


def accepter(scene: Guests, who: str) -> Steps[TdExit]:
    """Accept the page; once more if that does not succeed."""
    for _ in range(2):
        accepted = yield from scene.accept(who)
        scene.says(who, f"accept {text_of(accepted)}")
        if accepted.exit is not None:
            return accepted.exit
        if accepted.ok:
            break
    return (yield from scene.leaves())


def large_accepter(scene: Guests, who: str) -> Steps[TdExit]:
    """Accept a 2M page; leave at the first interrupt, and go on where that was when entered again."""
    waits = not scene.returned.get(who)
    accepted = yield from tdg_mem_page_accept(
        scene.module,
        td=scene.world.td,
        vcpu=scene.vcpu(who),
        gpa=gpa_of(scene.world.gfn),
        level=PG_LEVEL_2M,
        interrupt_pending=lambda: waits,
    )
    scene.says(who, f"accept {text_of(accepted)}")
    if accepted.exit is not None:
        return accepted.exit
    return (yield from scene.leaves())


def stuck(scene: Guests, who: str) -> Steps[TdExit]:
    """Touch the page at one place again and again; say what the entry brought."""
    vcpu = scene.vcpu(who)
    if vcpu.injected is not None:
        scene.says(who, "told by #VE")
        vcpu.injected = None
        info = tdg_vp_veinfo_get(scene.module, vcpu=vcpu)
        scene.says(who, text_of(info))
    came = yield from scene.touch(who, rip=RIP)
    if isinstance(came, TdExit):
        return came
    scene.says(who, came or "read")
    return (yield from scene.leaves())


def idle(scene: Guests, _who: str) -> Steps[TdExit]:
    """Leave at once."""
    return (yield from scene.leaves())


def killer(scene: Guests, who: str) -> Steps[TdExit]:
    """Be interrupted where it was entered, on an LP whose APIC cannot take the interrupt back: the TD is fatal."""
    yield scene.module.state.read_once()
    vcpu = scene.vcpu(who)
    lp = replace(scene.world.lps[who], apic_enabled=False)
    left = interrupt_exit(scene.module, vcpu, lp, TdExit.external_interrupt(vcpu.entry_rip))
    assert left is not None
    return left


def triple_faulter(scene: Guests, _who: str) -> Steps[TdExit]:
    """End the vCPU, not the TD."""
    yield scene.module.state.read_once()
    return TdExit.triple_fault()


def by_registers(leaf: int, **registers: int) -> Guest:
    """Make this TDCALL, then touch the page."""

    def program(scene: Guests, who: str) -> Steps[TdExit]:
        result = yield from scene.tdcall(who, leaf, **registers)
        if result.exit is not None:
            return result.exit
        scene.says(who, text_of(result))
        came = yield from scene.touch(who)
        return came if isinstance(came, TdExit) else (yield from scene.leaves())

    return program


def hypercall(mask: int) -> Guest:
    """TDG.VP.VMCALL by the plain function."""

    def program(scene: Guests, who: str) -> Steps[TdExit]:
        yield scene.module.state.read_once()
        left = tdg_vp_vmcall(scene.module, vcpu=scene.vcpu(who), args=(1, 2), mask=mask)
        if isinstance(left, TdExit):
            return left
        scene.says(who, text_of(left))
        return (yield from scene.leaves())

    return program


def tells_rax(scene: Guests, who: str) -> Steps[TdExit]:
    """Say what is in RAX, and leave."""
    scene.says(who, f"RAX {scene.vcpu(who).guest_rax:#x}")
    return (yield from scene.leaves())
