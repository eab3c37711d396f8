"""What takes many calls and teaches little the second time: a TD, ready to run; S-EPT tables and pages below them.

The builder makes no short cuts: it says the lines that a user could say, and stops at the first call that is refused.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from scenarios.errors import ScenarioError
from scenarios.seamcall.report import Report
from tdx.module import TDCX_PAGES, OpState
from vcpu.addresses import LEVELS, PG_LEVEL_2M, PG_LEVEL_4K, PgLevel, gfn_of

if TYPE_CHECKING:
    from scenarios.seamcall.session import Session
    from tdx.module.objects import Tdr

MISSING_PAIR: Final = "TDX_MISSING_PAMT_PAGE_PAIR"
DONE: Final = {"TDX_SUCCESS", "TDEXIT_EXTERNAL_INTERRUPT"}
OUTCOMES: Final = {"mapped", "pending"}


class Stopped(Exception):
    """A line of the builder was refused, or could not be said. Args: its report."""

    def __init__(self, report: Report) -> None:
        super().__init__(report)
        self.report = report


class Builder:
    """Says lines, and remembers which calls they were."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.calls: Counter[str] = Counter()

    def say(self, line: str) -> None:
        """One line. With Dynamic PAMT a page that lacks its page pair is given one, as KVM does, and the line is said again.

        Raises: Stopped: it did not succeed.
        """
        report = self._say(line)
        if report.status.startswith(MISSING_PAIR):
            register = report.status.rpartition("|")[2].lower()
            first = report.registers[register] & -PG_LEVEL_2M.size
            self._succeed(
                self._say(f"phymem.pamt.add page={first:#x} level=2M pamt_page0=auto pamt_page1=auto")
            )
            report = self._say(line)
        self._succeed(report)

    def _say(self, line: str) -> Report:
        self._session.watching = False
        try:
            (report,) = self._session.do(line)
        except ScenarioError as exc:
            raise Stopped(Report(line, text=[f"{line}: {exc.message}"])) from None
        finally:
            self._session.watching = True
        return report

    def _succeed(self, report: Report) -> None:
        self.calls[report.call] += 1
        if report.status and report.status not in DONE:
            raise Stopped(report)

    def told(self) -> str:
        """The calls that were made."""
        made = ", ".join(f"{name} x{times}" if times > 1 else name for name, times in self.calls.items())
        total = self.calls.total()
        return f"{total} call{'s' if total != 1 else ''}: {made}"


def build_td(session: Session, name: str, vcpus: int, *, finalize: bool = True, more: str = "") -> Builder:
    """Build a TD with so many vCPUs. Args: more: operands of TDH.MNG.INIT."""
    world = session.world
    builder = Builder(session)
    builder.say(f"mng.create td={name}")
    builder.say(f"mng.key.config td={name}")
    for _ in range(TDCX_PAGES):
        builder.say(f"mng.addcx td={name}")
    builder.say(f"mng.init td={name} {more}")
    tdr = world.tdr(name)
    assert tdr is not None
    for _ in range(vcpus):
        vcpu = world.new_name("vcpu")
        builder.say(f"vp.create vcpu={vcpu} td={name}")
        for _ in range(tdr.tdcs.tdvps_pages - 1):
            builder.say(f"vp.addcx vcpu={vcpu}")
        builder.say(f"vp.init vcpu={vcpu}")
    if finalize and vcpus:
        builder.say(f"mr.finalize td={name}")
    return builder


def build_memory(session: Session, td: str, gpa: int, level: PgLevel, *, pages: int, mapped: bool) -> Builder:
    """Tables down to `level`, and so many pages from `gpa` on, pending or accepted.

    Raises: ScenarioError: nobody could accept them.
    """
    builder = Builder(session)
    tdr = session.world.tdr(td)
    assert tdr is not None
    initial = tdr.tdcs.op_state is OpState.INITIALIZED
    speaker = "" if initial or not mapped else _speaker(session, builder, tdr)
    for n in range(pages):
        at = gpa + n * level.size
        _tables(session, builder, td, tdr, at, level)
        leaf = "mem.page.add" if initial and mapped else "mem.page.aug"
        builder.say(f"{leaf} gpa={at:#x} level={level.short} td={td}")
        if speaker:
            builder.say(f"{speaker} tdg.mem.page.accept gpa={at:#x} level={level.short}")
    if speaker and builder.calls["TDH.VP.ENTER"]:
        builder.say(f"exit {speaker}")
    return builder


def _tables(session: Session, builder: Builder, td: str, tdr: Tdr, gpa: int, level: PgLevel) -> None:
    """Add what is missing above an entry of that level."""
    while True:
        found = session.world.entry_at(tdr, gfn_of(gpa), PG_LEVEL_4K)
        if found is None or found[0] <= level or found[1].state.name != "FREE":
            return
        size = LEVELS[found[0]].size
        builder.say(f"sept.add gpa={gpa & -size:#x} level={found[0].short} td={td}")


def _speaker(session: Session, builder: Builder, tdr: Tdr) -> str:
    """A vCPU of the TD that is inside; one is entered if none is."""
    mine = [name for name, vcpu in session.world.living_vcpus() if vcpu.tdr is tdr]
    for job in session.jobs.values():
        if job.guest is not None and job.at_rest and job.guest_name in mine:
            return job.guest_name
    outside = [name for name in mine if session.world.lp_of(name) not in session.jobs]
    if not outside:
        raise ScenarioError(
            "no vCPU is free to accept the pages", remedy="let one exit, or build pending ones"
        )
    builder.say(f"enter vcpu={outside[0]}")
    return outside[0]
