"""A case: scenario, patches and search options as plain data, enough to make the same executions on another machine."""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scenarios.build import build
from scenarios.errors import ScenarioError
from scenarios.loading import scenario_of
from scenarios.run import model_digest, prepare
from scenarios.schema import Scenario
from scenarios.yaml_loader import Document
from sim import INFINITY, BadPatch, Kernel, Steps, Thread, explore, record, strategies
from sim.explore import Recording
from sim.patches import applied, read

MAX_STEPS = 100_000
"""An execution of a hunt that takes more steps is cut, and the hunt inconclusive."""

FORMAT = 1
"""Version of the JSON of a case."""


@dataclass(frozen=True, slots=True)
class PatchSource:
    """A patch file: the folder it was in (its name only), its own name, its text."""

    folder: str
    name: str
    source: str


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that an execution depends on, besides the model itself and the schedule.

    `data` is the scenario with all overrides applied and without its patches, which are in `patches`. `window_ns` None is
    infinity. `timed` says whether accesses cost time: they need not where every order is allowed.
    """

    name: str
    data: dict[str, Any]
    patches: tuple[PatchSource, ...] = ()
    strategy: str = "random"
    seed: int = 0
    window_ns: int | None = None
    timed: bool = False
    memory_model: str = "sc"
    max_steps: int = MAX_STEPS

    def as_json(self) -> dict[str, Any]:
        """Plain data, in a fixed order of keys."""
        return {
            "format": FORMAT,
            "scenario": self.data,
            "name": self.name,
            "patches": [{"folder": p.folder, "name": p.name, "source": p.source} for p in self.patches],
            "strategy": self.strategy,
            "seed": self.seed,
            "window_ns": self.window_ns,
            "timed": self.timed,
            "memory_model": self.memory_model,
            "max_steps": self.max_steps,
        }

    @classmethod
    def from_json(cls, told: dict[str, Any], file: str) -> Case:
        """The case that `as_json` wrote; `file` is where it came from.

        Raises: ScenarioError: it is not one.
        """
        try:
            if told["format"] != FORMAT:
                raise ScenarioError(
                    f"written by another version of tdsim (format {told['format']!r}, here {FORMAT})", file
                )
            case = cls(
                name=_is(told["name"], str),
                data=_is(told["scenario"], dict),
                patches=tuple(
                    PatchSource(_is(p["folder"], str), _is(p["name"], str), _is(p["source"], str))
                    for p in told["patches"]
                ),
                strategy=_is(told["strategy"], str),
                seed=_is(told["seed"], int),
                window_ns=None if told["window_ns"] is None else _is(told["window_ns"], int),
                timed=_is(told["timed"], bool),
                memory_model=_is(told["memory_model"], str),
                max_steps=_is(told["max_steps"], int),
            )
        except (KeyError, TypeError) as exc:
            raise ScenarioError(f"no finding of tdsim: {exc} is missing or of another kind", file) from None
        for patch in case.patches:
            if any(Path(part).name != part or not part for part in (patch.folder, patch.name)):
                raise ScenarioError("no finding of tdsim: a patch's name leads elsewhere", file)
        return case

    def with_patches(self, patches: tuple[PatchSource, ...]) -> Case:
        """The same with other patches."""
        return replace(self, patches=patches)

    def scenario(self, file: str = "") -> Scenario:
        """The scenario, checked again.

        Raises: ScenarioError: this version of tdsim knows some of it no more.
        """
        return scenario_of(
            Document(file or f"{self.name}.yaml", deepcopy(self.data)), Path(f"{self.name}.yaml"), self.name
        )

    @contextmanager
    def opened(self) -> Iterator[Opened]:
        """The world of this case, with its patches applied for the time of the block.

        Raises: ScenarioError: a scenario or patch that cannot be used, also where a patch fails while it runs.
        """
        scenario = self.scenario()
        with ExitStack() as stack:
            files: list[str] = []
            if self.patches:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tdsim-patches-")))
                for i, patch in enumerate(self.patches):
                    # The last two parts of the path are what findings show: they stay.
                    path = folder / str(i) / patch.folder / patch.name
                    path.parent.mkdir(parents=True)
                    path.write_text(patch.source, encoding="utf-8")
                    files.append(str(path))
            try:
                replacements = [replacement for file in files for replacement in read(Path(file))]
                stack.enter_context(applied(replacements))
            except BadPatch as exc:
                text = str(exc)
                for file, patch in zip(files, self.patches, strict=True):
                    text = text.replace(file, patch.name)
                raise ScenarioError(text) from exc
            opened = Opened(self, scenario, model_digest(replacements), tuple(files))
            try:
                yield opened
            except Exception as exc:
                mistake = opened.patch_error(exc)
                if mistake is None:
                    raise
                raise mistake from exc


@dataclass(frozen=True, slots=True)
class Opened:
    """A case whose patches are applied."""

    case: Case
    scenario: Scenario
    digest: str
    files: tuple[str, ...] = ()

    def patch_error(self, exc: BaseException) -> ScenarioError | None:
        """The exception as a mistake of the user, if it was raised in one of the patches."""
        for frame in reversed(traceback.extract_tb(exc.__traceback__)):
            if frame.filename in self.files:
                message = f"{frame.name}: {type(exc).__name__}: {exc}"
                return ScenarioError(message, Path(frame.filename).name, frame.lineno or 0, 1)
        return None

    def world(self, kernel: Kernel) -> None:
        """Fill a kernel."""
        if self.case.timed:
            self.timed_world(kernel)
        else:
            build(kernel, self.scenario)

    def timed_world(self, kernel: Kernel) -> None:
        """Fill a kernel with a world in which accesses cost time."""
        prepare(kernel, self.scenario)
        kernel.histograms = None

    @property
    def window_ns(self) -> int:
        """The window, as `sim` wants it."""
        return INFINITY if self.case.window_ns is None else self.case.window_ns

    def record(
        self,
        schedule: str,
        *,
        seed: int,
        world: Callable[[Kernel], None] | None = None,
        before: Callable[[Kernel, Thread], None] | None = None,
    ) -> Recording:
        """One execution by a schedule. `world` stands in for this one's own (to watch it, say).

        Raises: BadSchedule: the schedule cannot be read.
        """
        return record(
            world or self.world,
            schedule,
            seed=seed,
            window_ns=self.window_ns,
            max_steps=self.case.max_steps,
            before=before,
        )


def patch_sources(files: Sequence[Path]) -> tuple[PatchSource, ...]:
    """The texts of patch files.

    Raises: ScenarioError: one cannot be read.
    """
    sources = []
    for file in files:
        try:
            sources.append(
                PatchSource(file.resolve().parent.name or "root", file.name, file.read_text(encoding="utf-8"))
            )
        except (OSError, UnicodeDecodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
            raise ScenarioError(f"cannot be read: {why}", str(file)) from exc
    return tuple(sources)


def case_of(scenario: Scenario, patches: Sequence[Path], *, strategy: str, window_ns: int | None) -> Case:
    """The case of a loaded scenario and patch files, its own `patches` first."""
    document = scenario._document
    assert document is not None, "a scenario comes from a file"
    data = {key: value for key, value in deepcopy(document.data).items() if key not in ("patches", "sweep")}
    return Case(
        name=scenario.name,
        data=data,
        patches=patch_sources([*scenario.patch_files, *patches]),
        strategy=strategy,
        seed=scenario.seed,
        window_ns=window_ns,
        timed=window_ns is not None or strategy == "fifo",
        memory_model=scenario.memory_model,
    )


def check_strategy(strategy: str, memory_model: str = "sc", window_ns: int | None = None) -> str:
    """Why `strategy` cannot be used; empty if it can. Asks `explore` itself, on a world of one step."""
    if strategy.startswith("replay:"):
        try:
            strategies.strategy(strategy, 0)
        except ValueError as exc:
            return str(exc)
        strategy = "fifo"

    def world(kernel: Kernel) -> None:
        def steps() -> Steps[None]:
            yield kernel.cell("x", 0).read_once()

        kernel.thread("a", steps())

    window = INFINITY if window_ns is None else window_ns
    try:
        explore(world, strategy=strategy, executions=1, memory_model=memory_model, window_ns=window)
    except ValueError as exc:
        return str(exc)
    return ""


def _is(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{str(value)[:40]!r} as {kind.__name__}")
    return value


def repository_root() -> str:
    """Where the packages are: a worker must find the same."""
    return str(Path(sys.modules["scenarios"].__file__ or "").resolve().parent.parent)
