"""`show`: what is there now, read without an access."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from scenarios.seamcall import words
from scenarios.seamcall.language import Line, Word, number
from scenarios.seamcall.observe import lock_words, runs
from scenarios.seamcall.request import LEVEL_NAMES
from scenarios.seamcall.running import held as held_by
from tdx.module.objects import Tdr
from tdx.module.sept_states import NEXT_STATE
from tdx.module.septe import Septe, SeptState
from vcpu.addresses import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, PgLevel, gfn_of, gpa_of

if TYPE_CHECKING:
    from scenarios.seamcall.session import Session
    from tdx.module.pamt import PamtEntry

STEPS_HEAD: Final = 40
"""Accesses of a long call that are listed at its start, and at its end."""


def _td(session: Session, line: Line) -> tuple[str, Tdr]:
    """The TD that the line names, else the first."""
    word = next((word for word in line.words if word.text.lower().startswith("td")), None)
    word = word or line.named_value("td") or Word(session.td or "td0", line.verb.column)
    tdr = session.world.tdr(word.text) if word.text in session.world.td_pages else None
    if tdr is None:
        raise word.unknown("TD", session.world.td_pages)
    return word.text, tdr


def entry(session: Session, line: Line) -> list[str]:
    """One entry, bit by bit, and what may be done to it."""
    name, tdr = _td(session, line)
    places = [word for word in line.words if not word.text.lower().startswith("td")]
    place = line.named_value("gpa") or (places.pop(0) if places else None)
    if place is None:
        raise line.verb.wrong("show entry of which address?", "for example: show entry 0x40000000 2M")
    size = line.named_value("level") or (places.pop(0) if places else None)
    if size is not None and size.text.upper() not in LEVEL_NAMES:
        raise size.unknown("level", LEVEL_NAMES)
    gpa = number(place)
    level = LEVEL_NAMES[size.text.upper()] if size is not None else PG_LEVEL_4K
    found = session.world.entry_at(tdr, gfn_of(gpa), level)
    if found is None:
        return [f"{name} has no S-EPT yet: TDH.MNG.INIT makes its root"]
    reached, word = found
    state = word.state
    lines = [f"{name}'s entry of {gpa & -reached.size:#x}, {reached.short}: {words.entry(word, reached)}"]
    if reached != level and size is not None:
        lines[0] += f"   (the walk to {level.short} ends here)"
    tracking = (
        "must be tracked before it is taken away" if state.is_tlb_tracking_required else "needs no tracking"
    )
    held = " (a call holds it)" if word.is_locked else ""
    wanted = " (guests keep off until a host call takes it)" if word.has_host_priority else ""
    lines += [
        f"word       {int(word):#018x}",
        f"hardware   {_rwx(word)}, {'a leaf' if word.is_leaf else 'no leaf'}: {_meaning(word)}",
        f"state      {state.name}, number {state.public:#x} in RDX of a call; {tracking}",
        f"lock       TDEL {int(word.is_locked)}{held}, TDHP {int(word.has_host_priority)}{wanted}",
    ]
    page = _named_page(session, word, reached)
    if page:
        lines.append(f"names      {page}")
    changes = [(leaf, after[state]) for leaf, after in NEXT_STATE.items() if state in after]
    leading = [f"{leaf} -> {after.name}" for leaf, after in changes if after is not state]
    staying = [leaf for leaf, after in changes if after is state]
    lines += words.wrapped(f"{'leads to':<11}", leading)
    lines += words.wrapped(f"{'allows':<11}", staying)
    return lines


def _rwx(word: Septe) -> str:
    return "".join(letter if word.rwx >> bit & 1 else "-" for bit, letter in enumerate("RWX"))


def _meaning(word: Septe) -> str:
    state = word.state
    if state.is_guest_accessible_leaf:
        return "the guest may use it" if state.is_guest_fully_accessible_leaf else "the guest may read it"
    if state is SeptState.NL_MAPPED:
        return "the walk goes on in the table below"
    return (
        "#VE, or an exit, until the guest accepts it"
        if state.is_guest_acceptable
        else "the guest's access is an EPT violation"
    )


def _named_page(session: Session, word: Septe, level: PgLevel) -> str:
    state = word.state
    if not (state.is_leaf or state in (SeptState.NL_MAPPED, SeptState.NL_BLOCKED)):
        return ""
    page = session.world.module.pamt.entry(word.pfn_at(level), level if state.is_leaf else PG_LEVEL_4K)
    return f"page {words.address(page.pfn)}: {words.page_use(session.world, page)}"


def tree(session: Session, line: Line) -> list[str]:
    """The whole S-EPT of a TD, neighbours that are alike in one line."""
    name, tdr = _td(session, line)
    if not tdr.tdcs.has_root:
        return [f"{name} has no S-EPT yet: TDH.MNG.INIT makes its root"]
    root = tdr.tdcs.root
    lines = [f"{name}: root {words.address(root.pfn)}, a table of {root.level.short} entries"]
    for run in runs(session.world.module.entries(tdr.tdcs), _continues):
        gfn, level, word = run[0]
        place = f"{'  ' * (root.level - level + 1)}{gpa_of(gfn):#x} {level.short}"
        if len(run) == 1:
            lines.append(f"{place}: {words.entry(word, level)}")
        else:
            text = words.entry(word, level, place=False)
            lines.append(f"{place} x{len(run)}: {text}, pages from {words.address(word.pfn_at(level))}")
    return lines if len(lines) > 1 else [*lines, "  every entry is FREE"]


def _continues(last: tuple[int, PgLevel, Septe], row: tuple[int, PgLevel, Septe]) -> bool:
    """Whether a row is the neighbouring leaf, in the same state, of the neighbouring page."""
    gfn, level, word = last
    at, size, other = row
    if size != level or at != gfn + level.pages or not (word.is_leaf and other.is_leaf):
        return False
    adjacent = other.pfn_at(level) == word.pfn_at(level) + level.pages
    return adjacent and words.entry(other, level, place=False) == words.entry(word, level, place=False)


def pamt(session: Session, line: Line) -> list[str]:
    """Who owns which page; with an address, the three entries that cover one page."""
    world = session.world
    table = world.module.pamt
    if line.words:
        pfn = gfn_of(number(line.words[0]))
        entries = [table.entry(pfn, level) for level in (PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K)]
        return [
            f"{page.level.short:<4} {words.address(page.pfn):<12} {words.page_use(world, page)}, "
            f"lock {words.value(page.lock, page.lock.peek())}"
            for page in entries
        ]

    def continues(last: PamtEntry, page: PamtEntry) -> bool:
        adjacent = page.level == last.level and page.pfn == last.pfn + last.level.pages
        return adjacent and words.page_use(world, page) == words.page_use(world, last)

    lines = []
    for run in runs(table.assigned(), continues):
        first = run[0]
        times = f" x{len(run)}" if len(run) > 1 else ""
        lines.append(
            f"{first.level.short:<4} {words.address(first.pfn):<12}{times:<6} {words.page_use(world, first)}"
        )
    return lines or ["no page is in use: all are NDA"]


def locks(session: Session, _: Line) -> list[str]:
    """Every lock that is not free, and who holds it."""
    world = session.world
    holders: dict[str, list[str]] = {}
    for job in session.jobs.values():
        for name, mode in held_by(job.running.performed).items():
            holders.setdefault(name, []).append(f"lp{job.lpid} {mode}, {job.request_name}")
    lines = [
        f"{words.cell_name(world, cell)}: {words.value(cell, cell.peek())}{_by(holders.get(cell.name))}"
        for cell in lock_words(world)
    ]
    for _name, tdr in world.living_tds():
        for gfn, level, word in world.module.entries(tdr.tdcs):
            if word.is_locked or word.has_host_priority:
                name = f"sept[{gfn:#x},{level.short}]"
                lines.append(
                    f"S-EPT {level.short} {gpa_of(gfn):#x}: {words.entry(word, level)}{_by(holders.get(name))}"
                )
    return lines or ["every lock is free"]


def _by(holders: list[str] | None) -> str:
    return f"   <- {'; '.join(holders)}" if holders else ""


def epoch(session: Session, line: Line) -> list[str]:
    """TLB tracking: the epoch, who is inside since when, and which blocked pages are tracked."""
    name, tdr = _td(session, line)
    unit = tdr.tdcs.epoch.peek()
    lines = [
        f"{name}: TD_EPOCH {unit.epoch}; vCPUs inside: {unit.refcount(unit.epoch)} of this epoch, {unit.refcount(unit.epoch + 1)} of the one before"
    ]
    for vcpu_name, vcpu in session.world.living_vcpus():
        if vcpu.tdr is tdr and vcpu.inside:
            lines.append(f"  {vcpu_name} is inside since epoch {vcpu.vcpu_epoch}")
    for gfn, level, word in session.world.module.entries(tdr.tdcs):
        if word.state.is_blocked:
            page = session.world.module.pamt.entry(word.pfn_at(level), level if word.is_leaf else PG_LEVEL_4K)
            bepoch = page.bepoch.peek()
            tracked = unit.is_tlb_tracked(bepoch)
            lines.append(
                f"  {gpa_of(gfn):#x} {level.short} is {word.state.name} since epoch {bepoch}: {'tracked' if tracked else _what_lacks(unit.epoch, bepoch)}"
            )
    return lines


def _what_lacks(now: int, bepoch: int) -> str:
    return (
        "not tracked, TDH.MEM.TRACK first"
        if bepoch >= now
        else "not tracked, a vCPU that entered then is still inside"
    )


def td(session: Session, line: Line) -> list[str]:
    """What the module keeps of a TD."""
    name, tdr = _td(session, line)
    return [f"{name}: TDR {words.address(tdr.pfn)}, hkid {tdr.hkid}"] + [
        f"  {what:<12} {value}" for what, value in words.td_facts(tdr).items()
    ]


def vcpus(session: Session, _: Line) -> list[str]:
    """Every vCPU, and what its LP has cached."""
    lines = []
    for name, vcpu in session.world.living_vcpus():
        facts = words.vcpu_facts(vcpu)
        lines.append(f"{name} of {session.world.td_name(vcpu.tdr.pfn)}: TDVPR {words.address(vcpu.pfn)}")
        lines += [f"  {what:<27} {value}" for what, value in facts.items()]
    for lpid, tlb in enumerate(session.world.tlbs):
        for space, known in tlb.entries():
            lines.append(
                f"lp{lpid} caches {space} {gpa_of(known.gfn):#x} {known.level.short} -> page {words.address(known.pfn)}"
            )
    return lines or ["no vCPU yet"]


def steps(session: Session, line: Line) -> list[str]:
    """The accesses of the last call, one a line."""
    seen = [session.seen(n, done) for n, done in enumerate(session.last, 1)]
    if not seen:
        return ["no call yet"]
    everything = any(word.text.lower() == "all" for word in line.words)
    return list(_shortened(words.aligned(seen), everything=everything))


def _shortened(lines: list[str], *, everything: bool) -> Iterator[str]:
    left_out = len(lines) - 2 * STEPS_HEAD
    if everything or left_out <= 0:
        yield from lines
        return
    yield from lines[:STEPS_HEAD]
    yield f"  ... {left_out} accesses more; `show steps all` lists them"
    yield from lines[-STEPS_HEAD:]


def calls(session: Session, _: Line) -> list[str]:
    """What every LP is doing."""
    lines = []
    for lpid, job in sorted(session.jobs.items()):
        if job.at_rest:
            lines.append(f"lp{lpid}: inside {job.guest_name}")
        else:
            lines.append(
                f"lp{lpid}: in the middle of {job.name}, after {len(job.own_accesses)} accesses; next: {session.pending(job)}"
            )
    return lines or ["every LP is idle"]


QUESTIONS: Final[dict[str, Callable[[Session, Line], list[str]]]] = {
    "entry": entry,
    "tree": tree,
    "pamt": pamt,
    "locks": locks,
    "epoch": epoch,
    "td": td,
    "vcpus": vcpus,
    "steps": steps,
    "calls": calls,
}
"""What can be shown."""
