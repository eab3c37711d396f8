"""Scripts: YAML files with lines to say and what is expected of them.

    seamcall: demote-promote            # the file's name too
    about: Split a page that the guest uses, and merge it again.
    module: 1.5.01                      # a release; optional
    vcpus: 2                            # of td0; `none` begins without a TD
    steps:
      - say: What the reader should know now.
      - block 0x40000000 2M
      - {do: demote 0x40000000 2M, expect: TDX_SUCCESS, entry: NL_MAPPED}

`expect` is a status, with `|OPERAND` where that matters, or what became of a guest's instruction; `entry` the state of the S-EPT
entry that the call is about, when it is over. A mistake in the file is told with its place before anything runs; names that only
running makes known (a TD, a vCPU) are told when it comes to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from scenarios.errors import ScenarioError, ScenarioErrors, nearest, shown
from scenarios.seamcall.catalogue import GUEST, HOST, find_leaf, operand_named
from scenarios.seamcall.commands import COMMANDS, VCPUS_MAX
from scenarios.seamcall.language import read_line
from scenarios.seamcall.report import Report
from scenarios.seamcall.session import DEFAULT_PROFILE, DEFAULT_VCPUS, TOUCH, Session
from scenarios.seamcall.world import PAGES_OF_DYNAMIC_PAMT
from scenarios.yaml_loader import Document, Mark, YamlPath, read_yaml
from tdx.module import PROFILES, ExitReason
from tdx.module.septe import SeptState
from tdx.module.status import Status

LIBRARY: Final = Path(__file__).parent / "library"
KEYS: Final = ("seamcall", "about", "module", "vcpus", "steps")
STEP_KEYS: Final = ("do", "say", "expect", "entry")
OUTCOMES: Final = (
    *Status.__members__,
    *(f"TDEXIT_{reason.name}" for reason in ExitReason),
    "GUEST_RESUME_SAME_RIP",
    "MODULE_SHUTDOWN",
    "#VE",
    "#DF",
    "OK",
)
"""What may be expected of a line."""


class Step(NamedTuple):
    """One step: a text for the reader, or a line with what is expected of it ("" for nothing)."""

    line: str
    mark: Mark
    say: str = ""
    expect: str = ""
    entry: str = ""


@dataclass(frozen=True)
class Script:
    """A checked script."""

    name: str
    about: str
    module: str
    vcpus: int | None
    steps: tuple[Step, ...]


class Told(NamedTuple):
    """What is to be told of a step: reports, and each expectation with whether it was met."""

    step: Step
    reports: list[Report]
    expectations: list[tuple[str, bool]]


def script_names() -> list[str]:
    """Names of the library's scripts."""
    return sorted(file.stem for file in LIBRARY.glob("*.yaml"))


def script_entries() -> list[dict[str, str]]:
    """Name and subject of each script of the library."""
    entries = []
    for name in script_names():
        data = read_yaml(LIBRARY / f"{name}.yaml").data
        entries.append(
            {"script": name, "about": str(data.get("about", "")) if isinstance(data, dict) else ""}
        )
    return entries


def find_script(name: str) -> Path:
    """The file that SCRIPT on the command line means: a path, or a name of the library.

    Raises: ScenarioError with the nearest name.
    """
    try:
        if Path(name).is_file():
            return Path(name)
        if (LIBRARY / f"{name}.yaml").is_file():
            return LIBRARY / f"{name}.yaml"
    except (OSError, ValueError):
        pass
    remedy = nearest(Path(name).stem, script_names())
    raise ScenarioError("no such file, and no such script in the library", ascii(name)[1:-1], remedy=remedy)


def load_script(file: Path) -> Script:
    """Read and check a script. Raises: ScenarioErrors: every mistake that shows without running it."""
    document = read_yaml(file)
    if not isinstance(document.data, dict):
        raise document.error((), "expected a mapping with the keys seamcall, about, steps")
    return _Checker(document, file).script()


class _Checker:
    """Makes a script of a document, and collects its mistakes."""

    def __init__(self, document: Document, file: Path) -> None:
        self._document = document
        self._file = file
        self._data: dict[str, Any] = document.data
        self._text = file.read_text(encoding="utf-8-sig").splitlines()
        self._wrong: list[ScenarioError] = []

    def script(self) -> Script:
        """The script. Raises: ScenarioErrors."""
        self._known_keys((), self._data, KEYS)
        name = self._of_type("seamcall", str, "the file's name", self._file.stem)
        if name != self._file.stem:
            self._mistake(
                ("seamcall",), f"the file is called {self._file.name}", remedy=f"write {self._file.stem}"
            )
        about = self._of_type("about", str, "text", "")
        releases = [*PROFILES, *(f"{known}{PAGES_OF_DYNAMIC_PAMT}" for known in PROFILES)]
        module = str(self._data.get("module", DEFAULT_PROFILE))
        if module not in releases:
            self._mistake(("module",), f"no module release {shown(module)}", remedy=nearest(module, releases))
        script = Script(name, about, module, self._vcpus(), tuple(self._steps()))
        if self._wrong:
            raise ScenarioErrors(self._wrong)
        return script

    def _vcpus(self) -> int | None:
        vcpus = self._data.get("vcpus", DEFAULT_VCPUS)
        if vcpus == "none":
            return None
        if isinstance(vcpus, bool) or not isinstance(vcpus, int) or not 0 <= vcpus <= VCPUS_MAX:
            self._mistake(("vcpus",), f"expected 0 to {VCPUS_MAX}, or none", got=True)
            return None
        return vcpus

    def _steps(self) -> Iterator[Step]:
        steps = self._data.get("steps")
        if not isinstance(steps, list) or not steps:
            self._mistake(("steps",), "expected a list of steps", remedy="for example: - block 0x40000000 2M")
            return
        for n, step in enumerate(steps):
            path: YamlPath = ("steps", n)
            if isinstance(step, str):
                yield self._line(path, step, {})
            elif isinstance(step, dict) and "do" in step and isinstance(step["do"], str):
                yield self._line((*path, "do"), step["do"], step)
            elif isinstance(step, dict) and isinstance(step.get("say"), str):
                self._known_keys(path, step, ("say",))
                yield Step("", self._document.mark(path), say=step["say"])
            else:
                self._mistake(path, "expected a line, or a mapping with do or say", got=True)

    def _line(self, path: YamlPath, line: str, step: dict[str, Any]) -> Step:
        if step:
            self._known_keys(path[:-1], step, [key for key in STEP_KEYS if key != "say"])
        mark = self._place(path)
        expect, entry = str(step.get("expect") or ""), str(step.get("entry") or "")
        for key, value, known in (
            ("expect", expect.partition("|")[0], OUTCOMES),
            ("entry", entry, (*SeptState.__members__, "-")),
        ):
            if value and value not in known:
                self._mistake(
                    (*path[:-1], key), f"nothing is called {shown(value)}", remedy=nearest(value, known)
                )
        try:
            check_line(line)
        except ScenarioError as exc:
            self._wrong.append(located(exc, mark))
        return Step(line, mark, expect=expect, entry=entry)

    def _place(self, path: YamlPath) -> Mark:
        """Where the text of a value begins: behind its quotation mark, if it has one."""
        mark = self._document.mark(path)
        source = self._text[mark.line - 1] if 0 < mark.line <= len(self._text) else ""
        quoted = source[mark.column - 1 : mark.column] in {'"', "'"}
        return mark._replace(column=mark.column + quoted)

    def _known_keys(self, path: YamlPath, data: dict[str, Any], known: Any) -> None:
        for key in data:
            if key not in known:
                self._mistake((*path, key), "unknown key", key=True, remedy=nearest(key, known))

    def _of_type(self, key: str, wanted: type, what: str, default: str) -> str:
        value = self._data.get(key)
        if not isinstance(value, wanted):
            self._mistake((key,), f"expected {what}", got=key in self._data, remedy=f"write {key}: ...")
            return default
        return str(value)

    def _mistake(
        self, path: YamlPath, message: str, *, key: bool = False, got: bool = False, remedy: str = ""
    ) -> None:
        self._wrong.append(self._document.error(path, message, key=key, got=got, remedy=remedy))


def check_line(text: str) -> None:
    """Refuse a line that nobody could say, whatever there is: no such verb, no such operand.

    Raises: ScenarioError: with the column.
    """
    line = read_line(text)
    if line is None:
        raise ScenarioError("an empty line", "", 0, 1)
    verb = line.verb.text.lower()
    if verb in COMMANDS or verb == TOUCH:
        return
    guest = line.who is not None and line.who.text.startswith("vcpu")
    leaf = find_leaf(line.verb, GUEST if guest else {**GUEST, **HOST}, [TOUCH, *COMMANDS])
    for name, _ in line.named:
        operand_named(leaf, name)


def located(exc: ScenarioError, mark: Mark) -> ScenarioError:
    """A mistake in a line, placed in the file that the line is from."""
    column = mark.column + max(exc.column, 1) - 1
    return ScenarioError(exc.message, mark.file, mark.line, column, exc.path, exc.remedy)


def run_script(script: Script) -> Iterator[Told]:
    """Do the steps, one by one. Raises: ScenarioError: a name that nobody has by then, with its place in the file."""
    session = Session(script.module, vcpus=script.vcpus)
    for step in script.steps:
        if step.say:
            yield Told(step, [], [])
            continue
        try:
            reports = session.do(step.line)
        except ScenarioError as exc:
            raise located(exc, step.mark) from None
        yield Told(step, reports, list(_judged(step, reports)))


def _judged(step: Step, reports: list[Report]) -> Iterator[tuple[str, bool]]:
    """What was expected of the step's last call, and whether it came so."""
    last = next((report for report in reversed(reports) if report.call), None)
    if step.expect:
        status = last.status if last is not None else ""
        met = status == step.expect or status.partition("|")[0] == step.expect
        yield f"expect {step.expect}" + ("" if met else f", got {status or 'no status'}"), met
    if step.entry:
        state = last.entry.state if last is not None and last.entry is not None else ""
        met = state == step.entry
        yield f"entry {step.entry}" + ("" if met else f", got {state or 'no entry'}"), met
