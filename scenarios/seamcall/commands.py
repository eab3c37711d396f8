"""The verbs that are no leaf: what each one says to a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from scenarios.seamcall.build import OUTCOMES, Builder, Stopped, build_memory, build_td
from scenarios.seamcall.catalogue import operand_named
from scenarios.seamcall.explain import explain
from scenarios.seamcall.guest import interrupted
from scenarios.seamcall.language import ACTOR, Line, Word, count, looks_like_number, number
from scenarios.seamcall.observe import observe
from scenarios.seamcall.questions import QUESTIONS
from scenarios.seamcall.report import Report
from scenarios.seamcall.request import LEVEL_NAMES, Request, plain_value
from scenarios.seamcall.running import Performed
from scenarios.seamcall.world import LPS, PAGES_OF_DYNAMIC_PAMT
from scenarios.units import format_time, parse_time_ns
from tdx.module import LEAVES, PROFILES
from tdx.module.dispatch import Registers
from vcpu.addresses import PG_LEVEL_4K

if TYPE_CHECKING:
    from scenarios.seamcall.session import Session

STEPS_MAX: Final = 10_000
"""Accesses that one `step` may make."""
REPEATS_MAX: Final = 100
VCPUS_MAX: Final = 4
PAGES_MAX: Final = 512
INIT: Final = "TDH.MNG.INIT"
"""Whose operands `build tdN` takes, too."""


class Command(NamedTuple):
    """A verb: what it does with a line, how it is written, and what it is for."""

    run: Callable[[Session, Line], list[Report]]
    usage: str
    about: str


def _begin(session: Session, line: Line) -> list[Report]:
    return [
        session.call(_without_verb(line, "begin what?", "for example: begin block 0x40000000"), run=False)
    ]


def _without_verb(line: Line, question: str, remedy: str) -> Line:
    """The line that stands behind a verb: `begin vcpu0 accept ...`."""
    if not line.words:
        raise line.verb.wrong(question, remedy)
    first, *rest = line.words
    if ACTOR.fullmatch(first.text.lower()) and rest and line.who is None:
        return line._replace(who=Word(first.text.lower(), first.column), verb=rest[0], words=tuple(rest[1:]))
    return line._replace(verb=first, words=tuple(rest))


def _step(session: Session, line: Line) -> list[Report]:
    """`step`, `step 3`, `step lp4 until TDEL`: so many accesses, or up to the one that is told so."""
    who, rest = _who(line)
    job = session.moved(who, "step")
    until, most = "", 1
    if rest and rest[0].text.lower() == "until":
        until = " ".join(word.text for word in rest[1:]).lower()
        if not until:
            raise rest[0].wrong(
                "until what?", "words of the access, as they are printed: step until lock entry"
            )
        most = STEPS_MAX
    elif rest:
        most = count(rest[0], STEPS_MAX)
    before = observe(session.world)
    performed: list[Performed] = []
    session.recent = job.lpid
    while len(performed) < most and not job.over:
        done = job.step()
        if done is None:
            break
        performed.append(done)
        if until and until in _told(session, done).lower():
            break
    shown = [done for done in performed if done in job.own_accesses]
    return [session.told(job, line.text, before, shown=shown)]


def _told(session: Session, done: Performed) -> str:
    seen = session.seen(0, done)
    return f"{seen.verb} {seen.word} {seen.before} -> {seen.after}"


def _finish(session: Session, line: Line) -> list[Report]:
    who, rest = _who(line)
    if rest:
        raise rest[0].wrong("finish takes an LP or a vCPU", "to make some accesses only: step 3")
    job = session.moved(who, "finish")
    before = observe(session.world)
    job.run()
    return [session.told(job, line.text, before)]


def _who(line: Line) -> tuple[Word | None, list[Word]]:
    """The actor that a line names, in front of the verb or behind it, and the other words."""
    if line.who is not None:
        return line.who, list(line.words)
    who = next((word for word in line.words if ACTOR.fullmatch(word.text.lower())), None)
    return who, [word for word in line.words if word is not who]


def _exit(session: Session, line: Line) -> list[Report]:
    """An interrupt for the host takes a vCPU out: what a kick does."""
    who, rest = _who(line)
    if who is None or rest or not who.text.lower().startswith("vcpu"):
        inside = [job.guest_name for job in session.jobs.values() if job.guest is not None]
        raise line.verb.wrong(
            "which vCPU exits?", f"for example: exit {inside[0]}" if inside else "`quit` ends the session"
        )
    job = session.inside(who)
    before = observe(session.world)
    job.instruct(Request(None, Registers(0), {}, [], verb="exit"), interrupted, "-")
    job.run()
    return [session.told(job, line.text, before)]


def _interrupt(session: Session, line: Line) -> list[Report]:
    """`interrupt on|off|once [WHO]`: whether an interrupt waits when a call looks for one."""
    who, words = _who(line)
    if len(words) != 1 or words[0].text.lower() not in {"on", "off", "once"}:
        remedy = "for example: interrupt once, interrupt lp4 on"
        raise (words or [line.verb])[-1].wrong(
            "expected on, off or once, and perhaps an LP or a vCPU", remedy
        )
    mode = words[0].text.lower()
    lps = range(LPS) if who is None else [_lp_of(session, who)]
    for lpid in lps:
        session.world.interrupts[lpid] = mode != "off"
    session.once = session.once.union(lps) if mode == "once" else session.once.difference(lps)
    where = "every LP" if who is None else f"lp{lps[0]}"
    told = {
        "on": f"an interrupt is pending on {where}, until `interrupt off`",
        "once": f"an interrupt is pending on {where}, until the next call there has returned",
        "off": f"no interrupt is pending on {where}",
    }
    return [Report(line.text, text=[told[mode]])]


def _lp_of(session: Session, who: Word) -> int:
    name = who.text.lower()
    if name in session.world.vcpu_pages:
        return session.world.lp_of(name)
    if not name.startswith("lp") or not name[2:].isdecimal() or int(name[2:8]) >= LPS:
        raise who.unknown("LP or vCPU", [*(f"lp{n}" for n in range(LPS)), *session.world.vcpu_pages])
    return int(name[2:])


def _wait(session: Session, line: Line) -> list[Report]:
    if len(line.words) != 1:
        raise line.verb.wrong("wait how long?", "for example: wait 1s")
    try:
        ns = parse_time_ns(line.words[0].text)
    except ValueError as exc:
        raise line.words[0].wrong(str(exc)) from None
    kernel = session.world.kernel
    kernel.run(until=kernel.now_ns + ns)
    return [Report(line.text, text=[f"{format_time(ns)} pass; the clock shows {format_time(kernel.now_ns)}"])]


def _profile(session: Session, line: Line) -> list[Report]:
    names = [*PROFILES, *(f"{name}{PAGES_OF_DYNAMIC_PAMT}" for name in PROFILES)]
    if not line.words:
        return [Report(line.text, text=[f"the module is {session.profile}; there are {', '.join(names)}"])]
    name = line.words[0]
    if name.text not in names:
        raise name.unknown("module release", names)
    session.restart(name.text, vcpus=session.vcpus)
    return [Report(line.text, text=[f"a new module, {name.text}: {session.greeting()}"])]


def _repeat(session: Session, line: Line) -> list[Report]:
    """`repeat 6 enter vcpu0; touch 0x40000000`: the same lines again and again, told in short but for the first and last time."""
    if len(line.words) < 2:
        raise line.verb.wrong(
            "repeat how often, and what?", "for example: repeat 6 enter vcpu0; touch 0x40000000"
        )
    times = count(line.words[0], REPEATS_MAX)
    behind = line.words[1]
    start = behind.column - line.column
    reports: list[Report] = []
    for n in range(times):
        at = start
        for part in line.text[start:].split(";"):
            done = session.do(part, column=line.column + at)
            at += len(part) + 1
            for report in done:
                report.brief = 0 < n < times - 1
            reports += done
    return reports


def _build(session: Session, line: Line) -> list[Report]:
    """`build td1 vcpus=2`, or `build 0x40000000 2M pages=4 pending`."""
    named = {name.text: value for name, value in line.named}
    numbers = [word for word in line.words if looks_like_number(word.text)]
    other = [word for word in line.words if not looks_like_number(word.text)]
    try:
        if numbers or "gpa" in named:
            builder = _build_memory(session, line, named, numbers, other)
        else:
            builder = _build_td(session, line, named, other)
    except Stopped as stopped:
        return [
            Report(line.text, text=["the builder was refused; what it had done before stays:"]),
            stopped.report,
        ]
    return [Report(line.text, text=[builder.told()])]


def _build_td(session: Session, line: Line, named: dict[str, Word], other: list[Word]) -> Builder:
    known = session.world.td_pages
    new = Word(session.world.new_name("td"), line.verb.column)
    name = other.pop(0) if other else named.pop("td", new)
    text = name.text.lower()
    if text in known:
        raise name.wrong(f"{text} is there already", f"build {session.world.new_name('td')}")
    if not text.startswith("td") or not text[2:].isdecimal():
        raise name.wrong(
            f"a TD is called td0, td1, ... (got {name.text})",
            "or name an address and a size: build 0x40000000 2M",
        )
    vcpus = count(named.pop("vcpus"), VCPUS_MAX) if "vcpus" in named else 1
    initialized = bool(other) and other.pop(0).text.lower() == "initialized"
    for name, value in line.named:
        if name.text in named:
            operand_named(LEAVES[INIT], name)
            plain_value(name.text, value)
    more = " ".join(f"{known}={value.text}" for known, value in named.items())
    return build_td(session, text, vcpus, finalize=not initialized, more=more)


def _build_memory(
    session: Session, line: Line, named: dict[str, Word], numbers: list[Word], other: list[Word]
) -> Builder:
    place = named.pop("gpa") if "gpa" in named else numbers.pop(0)
    size = named.pop("level", numbers.pop(0) if numbers else Word(PG_LEVEL_4K.short))
    level = LEVEL_NAMES.get(size.text.upper())
    if level is None:
        raise size.unknown("level", LEVEL_NAMES)
    pages = count(named.pop("pages"), PAGES_MAX) if "pages" in named else 1
    td = named.pop("td", Word(session.td or "td0"))
    if td.text not in session.world.td_pages:
        raise td.unknown("TD", session.world.td_pages)
    for name in named:
        raise Word(name, line.verb.column).unknown("operand of build:", ["gpa", "level", "pages", "td"])
    for word in other:
        if word.text.lower() not in OUTCOMES:
            raise word.unknown("outcome", sorted(OUTCOMES))
    mapped = not any(word.text.lower() == "pending" for word in other)
    gpa = number(place)
    if gpa % level.size:
        raise place.wrong(f"{gpa:#x} is not aligned to {level.short}", f"{gpa & -level.size:#x} is")
    return build_memory(session, td.text, gpa, level, pages=pages, mapped=mapped)


def _show(session: Session, line: Line) -> list[Report]:
    what = line.words[0] if line.words else None
    if what is None:
        raise line.verb.wrong("show what?", f"one of {', '.join(QUESTIONS)}")
    question = QUESTIONS.get(what.text.lower())
    if question is None:
        raise what.unknown("such thing to show:", QUESTIONS)
    return [Report(line.text, text=question(session, line._replace(words=line.words[1:])))]


def _help(_: Session, line: Line) -> list[Report]:
    usages = {name: (command.usage, command.about) for name, command in COMMANDS.items()}
    return [Report(line.text, text=explain(line.words, usages))]


COMMANDS: Final[dict[str, Command]] = {
    "help": Command(
        _help,
        "help [LEAF|STATE|STATUS|COMMAND]",
        "what it does, takes, locks; without a word: everything there is",
    ),
    "show": Command(_show, f"show {'|'.join(QUESTIONS)}", "what is there now"),
    "begin": Command(
        _begin, "begin LINE", "begin a call, or a guest's instruction, and stop before its first access"
    ),
    "step": Command(
        _step, "step [WHO] [N|until TEXT]", "make the next access, or some, of a call that was begun"
    ),
    "finish": Command(_finish, "finish [WHO]", "make all accesses that are left"),
    "exit": Command(_exit, "exit vcpu0", "an interrupt takes a vCPU out of the guest, as a kick does"),
    "interrupt": Command(
        _interrupt, "interrupt on|off|once [WHO]", "whether an interrupt is pending when a call looks for one"
    ),
    "build": Command(
        _build,
        "build tdN [vcpus=N] | build GPA LEVEL [pages=N] [mapped|pending]",
        "a TD that is ready to run, or memory with the tables above it",
    ),
    "repeat": Command(_repeat, "repeat N LINE; LINE", "the same again"),
    "wait": Command(_wait, "wait 1s", "let time pass: host priority has a timeout"),
    "profile": Command(_profile, "profile [NAME]", "another release of the module, and a new world"),
}
"""Every verb but `touch` and the leaves."""
