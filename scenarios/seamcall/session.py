"""A world and one line after the other: who acts, what is in the middle, and what became of it.

Every logical processor does one thing at a time: it is idle, in the middle of a SEAMCALL that was begun and not finished, or
inside a guest. A line that cannot be understood changes nothing: it is refused before the first access.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from scenarios.errors import ScenarioError, nearest
from scenarios.seamcall import words
from scenarios.seamcall.catalogue import GUEST, HOST, LeafLike, find_leaf, out_of_reach
from scenarios.seamcall.guest import ACCESSES, Instruction, td_call, touch
from scenarios.seamcall.job import Job
from scenarios.seamcall.language import Line, Word, number, read_line
from scenarios.seamcall.observe import State, differences, observe
from scenarios.seamcall.report import Entry, Report, Seen, Tried
from scenarios.seamcall.request import About, Maker, Request
from scenarios.seamcall.running import Performed, attempt_of
from scenarios.seamcall.world import HOST_LPS_FROM, LPS, World
from tdx.module import ExitReason, ExtendedType, SeamcallReturn, Status, TdExit
from tdx.module.dispatch import Registers
from tdx.module.septe import BY_PUBLIC
from vcpu.addresses import LEVELS, Pfn, gfn_of

DEFAULT_PROFILE: Final = "1.5.01"
DEFAULT_VCPUS: Final = 2
TOUCH: Final = "touch"
LEVEL_STATUSES: Final = {Status.TDX_PAGE_ALREADY_ACCEPTED, Status.TDX_PAGE_SIZE_MISMATCH}
"""To these a guest's call adds the level of the entry that it met."""
OUTPUTS: Final = ("rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13")


class Session:
    """One module, and everything that was done to it.

    Args: profile: the release, see `World`. vcpus: of td0, which is built and finalized before the first line; None: no TD.
    Raises: ValueError: no such release.
    """

    def __init__(self, profile: str = DEFAULT_PROFILE, *, vcpus: int | None = DEFAULT_VCPUS) -> None:
        self.restart(profile, vcpus=vcpus)

    def restart(self, profile: str, *, vcpus: int | None) -> None:
        """Throw everything away, and begin with a module of that release."""
        self.world = World(profile)
        self.profile = profile
        self.vcpus = vcpus
        self.jobs: dict[int, Job] = {}
        self.once: set[int] = set()
        """LPs whose interrupts go away, all of them, when the next call on one of them returns."""
        self.recent: int | None = None
        """The LP of the job that was begun or moved last."""
        self.watching = True
        """Whether the state is compared before and after each line; the builder does without."""
        self.last: Sequence[Performed] = ()
        """The accesses of the last call."""
        if vcpus is not None:
            from scenarios.seamcall.build import build_td  # the builder speaks in lines, which come back here

            build_td(self, "td0", vcpus)

    def greeting(self) -> str:
        """What there is at the start."""
        if self.vcpus is None:
            return "no TD yet"
        vcpus = ", ".join(self.world.vcpu_pages) or "no vCPU"
        return f"td0 is ready to run ({vcpus}), its S-EPT is empty"

    # One line.

    def do(self, text: str, *, column: int = 1) -> list[Report]:
        """Do what a line says. Returns: what is to be told; nothing for an empty line.

        Raises: ScenarioError: the line cannot be understood, with the column; nothing has changed then.
        """
        from scenarios.seamcall.commands import COMMANDS  # commands call back into the session

        line = read_line(text, column=column)
        if line is None:
            return []
        command = COMMANDS.get(line.verb.text.lower())
        if command is not None:
            return command.run(self, line)
        return [self.call(line)]

    def call(self, line: Line, *, run: bool = True) -> Report:
        """Make a call or an instruction. Args: run: to its end; otherwise it is begun only."""
        before = observe(self.world) if self.watching else {}
        job = self._begin(line)
        self.recent = job.lpid
        if run:
            job.run()
        return self.told(job, line.text, before)

    # Who, and what.

    @property
    def td(self) -> str:
        """The TD meant where none is named: the first."""
        return next(iter(self.world.td_pages), "")

    def _begin(self, line: Line) -> Job:
        """Understand the line, and begin what it says; nothing has been performed yet."""
        verb = line.verb.text.lower()
        if line.who is not None and line.who.text.startswith("vcpu"):
            return self._instruct(self.inside(line.who), line)
        if verb == TOUCH:
            return self._instruct(self._only_inside(line), line)
        leaf = find_leaf(line.verb, {**GUEST, **HOST}, self.verbs())
        if leaf.name in GUEST:
            return self._instruct(self._only_inside(line), line)
        return self._host(leaf, line)

    def verbs(self) -> list[str]:
        """Everything but leaves that a line may begin with."""
        from scenarios.seamcall.commands import COMMANDS

        return [TOUCH, *COMMANDS]

    def _host(self, leaf: LeafLike, line: Line) -> Job:
        missing = out_of_reach(leaf)
        if missing:
            raise line.verb.wrong(
                f"{leaf.name} takes {missing}, which no line can express", "call it from Python: tdx.module"
            )
        taken = {pfn for job in self.jobs.values() for pfn in job.pages}
        request = Maker(self.world, self.td, taken).request(leaf, line)
        lpid = self._lp(line, request)
        for name, pfn in request.names.items():
            (self.world.td_pages if name.startswith("td") else self.world.vcpu_pages)[name] = Pfn(pfn)
        job = Job(self.world, lpid, request, self._entry(request.about))
        self.jobs[lpid] = job
        return job

    def _instruct(self, job: Job, line: Line) -> Job:
        """Give a vCPU that is at rest its next instruction."""
        assert job.guest is not None
        told = line.text.partition(line.verb.text)[2]
        if line.verb.text.lower() == TOUCH:
            request, instruction = self._touch(job, line)
        else:
            leaf = find_leaf(line.verb, GUEST, self.verbs())
            request = Maker(self.world, self.td, set()).request(leaf, line, inside=job.guest.td.name)
            instruction = td_call(request.registers, f"{leaf.name}{told}")
        job.instruct(request, instruction, self._entry(request.about))
        return job

    def _touch(self, job: Job, line: Line) -> tuple[Request, Instruction]:
        """A memory access: `touch gpa=0x40000000 write`."""
        assert job.guest is not None
        kind, place = "read", line.named_value("gpa")
        for word in line.words:
            if word.text.lower() in ACCESSES:
                kind = word.text.lower()
            elif place is None:
                place = word
            else:
                raise word.unknown("kind of access", ACCESSES)
        for name, _ in line.named:
            if name.text != "gpa":
                raise name.unknown("operand of touch:", ["gpa"])
        if place is None:
            raise line.verb.wrong("touch needs an address", "for example touch 0x40000000 write")
        gpa = number(place)
        if gpa >= job.guest.vcpu.tdcs.private_end:
            raise place.wrong(
                f"{gpa:#x} is shared memory, which the module does not see", "name a private address"
            )
        told = [("gpa", f"{gpa:#x}"), ("access", kind)]
        request = Request(None, Registers(0), {}, told, About(job.guest.td.name, gpa & ~0xFFF, 1))
        return request, touch(gpa, kind, f"touch {gpa:#x} {kind}")

    def inside(self, word: Word) -> Job:
        """The job of a vCPU that is inside and at rest. Raises: ScenarioError: it is not."""
        name = word.text.lower()
        if name not in self.world.vcpu_pages:
            raise word.unknown("vCPU", self.world.vcpu_pages)
        for job in self.jobs.values():
            if job.guest is not None and self.world.vcpu_name(job.guest.vcpu.pfn) == name:
                if not job.at_rest:
                    raise word.wrong(f"{name} is in the middle of {job.what}", f"finish {name}")
                return job
        raise word.wrong(f"{name} is not inside", f"enter it first: enter {name}")

    def _only_inside(self, line: Line) -> Job:
        """The only vCPU that is inside: who speaks when a guest's call names nobody."""
        guests = [job for job in self.jobs.values() if job.guest is not None]
        if len(guests) == 1 and guests[0].at_rest:
            return guests[0]
        raise line.verb.wrong(
            f"{line.verb.text} is what a guest does, and {'several vCPUs are' if guests else 'no vCPU is'} inside",
            f"name one: {guests[0].guest_name} {line.verb.text}"
            if guests
            else "enter one first: enter vcpu0",
        )

    def _lp(self, line: Line, request: Request) -> int:
        """Where the host calls: the LP that is named, that of the vCPU, or an idle one."""
        if line.who is not None:
            lpid = int(line.who.text.removeprefix("lp")[:6])
            if lpid >= LPS:
                raise line.who.unknown("LP", [f"lp{n}" for n in range(LPS)])
            if lpid in self.jobs:
                raise line.who.wrong(f"lp{lpid} is {self.jobs[lpid].what}", "name another LP, or none")
            return lpid
        if request.vcpu:
            own = self.world.lp_of(request.vcpu)
            if own not in self.jobs:
                return own
        idle = [lpid for lpid in range(LPS) if lpid not in self.jobs]
        if not idle:
            remedy = "finish a call, or let a vCPU exit"
            raise line.verb.wrong("every LP is in the middle of something", remedy)
        return min(idle, key=lambda lpid: (lpid < HOST_LPS_FROM, lpid))

    def moved(self, word: Word | None, what: str) -> Job:
        """The job that `step` or `finish` means: that of an LP or vCPU, else the one begun or moved last."""
        busy = {lpid: job for lpid, job in self.jobs.items() if not job.at_rest}
        if word is None:
            if self.recent in busy:
                return busy[self.recent]
            if len(busy) == 1:
                return next(iter(busy.values()))
            raise ScenarioError(
                f"{what} what?" if busy else "nothing is in the middle",
                remedy=nearest("", [f"lp{n}" for n in busy])
                if busy
                else "begin a call first: begin block ...",
            )
        for lpid, job in busy.items():
            if word.text.lower() in {f"lp{lpid}", job.who}:
                return job
        raise word.wrong(
            f"{word.text} is in the middle of nothing", nearest("", [job.who for job in busy.values()])
        )

    # What became of it.

    def told(self, job: Job, line: str, before: State, *, shown: Sequence[Performed] = ()) -> Report:
        """The report of a job after it was begun or moved. Args: before: the state before this line. shown: accesses to list."""
        performed = job.own_accesses
        self.last = performed
        report = Report(line, job.who, job.name, list(job.current.told), job.registers)
        report.accesses = len(performed)
        report.seen = [self.seen(job.first_shown(len(shown)) + n, access) for n, access in enumerate(shown)]
        report.locks = [
            Tried(words.cell_name(self.world, tried.cell), tried.mode, tried.won)
            for tried in map(attempt_of, performed)
            if tried is not None
        ]
        about = job.current.about
        if about is not None:
            report.entry = Entry(
                f"{about.gpa:#x} {_level(about.level)}", job.entry_before, self._entry(about)
            )
        self._ended(job, report)
        report.watched = self.watching
        if self.watching and not report.seen:
            report.changes = differences(before, observe(self.world))
        return report

    def _ended(self, job: Job, report: Report) -> None:
        """Status and outputs, if the instruction or the call has ended; a job that has is dropped."""
        result: SeamcallReturn | None = None
        if job.broken:
            report.status = "MODULE_SHUTDOWN"
            report.notes.append(job.broken)
        elif job.instruction is not None and (outcome := job.ended_instruction()) is not None:
            result = outcome.result
            report.status = outcome.status or (status_text(result) if result is not None else "")
            report.notes += outcome.notes
        elif job.instruction is None and job.running.returned:
            result = job.running.result
            report.status = status_text(result)
        elif job.entered:
            report.notes.append(f"{job.guest_name} is inside: it waits for its next instruction")
            report.notes += job.first_instruction()
        elif not report.seen:
            report.notes.append(f"next: {self.pending(job)}")
        if result is not None:
            report.rax = result.rax
            report.outputs = {name: getattr(result, name) for name in OUTPUTS if getattr(result, name)}
        if job.running.returned or job.broken:
            report.notes += self._left(job)
            self._drop(job)

    def _left(self, job: Job) -> list[str]:
        """What is to be said of TDH.VP.ENTER when it returns."""
        result = job.running.result
        if result is None or result.exit is None:
            return []
        told = [exit_text(result.exit)]
        if job.guest is not None:
            told.append(f"TDH.VP.ENTER on lp{job.lpid} returns {status_text(result)}")
        return told

    def _drop(self, job: Job) -> None:
        del self.jobs[job.lpid]
        if job.lpid in self.once:
            for lpid in self.once:
                self.world.interrupts[lpid] = False
            self.once.clear()
        self.world.forget_dead({pfn for other in self.jobs.values() for pfn in other.pages})

    def _entry(self, about: About | None) -> str:
        """The entry that a call is about, or where the walk to it ends."""
        if about is None or about.td not in self.world.td_pages:
            return "-"
        tdr = self.world.tdr(about.td)
        found = self.world.entry_at(tdr, gfn_of(about.gpa), about.level) if tdr is not None else None
        if found is None:
            return "-"
        level, entry = found
        text = words.entry(entry, level)
        return text if level == about.level else f"{text} (the walk ends at {level.short})"

    def seen(self, n: int, done: Performed) -> Seen:
        """An access, in words."""
        world, cell = self.world, done.cell
        word = words.cell_name(world, cell) if cell is not None else ""
        after = words.value(cell, done.after)
        before = words.value(cell, done.before) if cell is not None else ""
        return Seen(n, done.verb, word, before, after)

    def pending(self, job: Job) -> str:
        """The access that a job makes next."""
        access = job.running.pending
        assert access is not None
        done = Performed(access, None, None)
        return (
            f"{done.verb} {words.cell_name(self.world, done.cell) if done.cell is not None else ''}".strip()
        )


def _level(level: int) -> str:
    return LEVELS[level].short if 0 < level < len(LEVELS) else f"level {level - 1}"


def status_text(result: SeamcallReturn) -> str:
    """The status by name, with what is added to it: the operand, the exit reason, or the level that was met."""
    if result.exit is not None and result.operand is not None:
        return f"{result.status.name}|{result.exit.reason.name}"
    if result.status in LEVEL_STATUSES and result.operand is not None:
        return f"{result.status.name}|{_level(result.operand + 1)}"
    return str(result)


def exit_text(left: TdExit) -> str:
    """A TD exit in words: why, where, and what the extended qualification adds."""
    text = f"the guest left: {left.reason.name}"
    if left.reason is ExitReason.EPT_VIOLATION:
        text += f" at {left.gpa:#x}"
    if left.extended_type:
        text += f", {ExtendedType(left.extended_type).name}"
    if left.extended_type in (ExtendedType.ACCEPT, ExtendedType.ATTR_WR):
        asked, reached, public = (
            left.extended >> shift & mask for shift, mask in ((32, 7), (35, 7), (38, 0xFF))
        )
        text += f" at level {_level(asked + 1)}, met {BY_PUBLIC[public].name} at level {_level(reached + 1)}"
    return text
