"""What a scenario file may say: one pydantic model a mapping, one description a key.

The models check each value by itself; `scenarios.checks` checks what two places say about each other, `scenarios.loading`
turns a complaint of either into file, line, column and the nearest valid name. A step is a mapping of one key, the verb,
to that verb's own model, so that a complaint speaks of the verb that was written and an editor completes its keys.

Guest and host verbs are two vocabularies: which one holds follows from the thread's name. In memory they live apart
(`Scenario.threads.guest`, `.host`), in the file they share the mapping `threads`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    WithJsonSchema,
    model_validator,
)

from scenarios.units import GIB, KIB, PAGE_BYTES, SIZE_HINT, TIME_HINT, parse_size, parse_time_ns
from scenarios.yaml_loader import Document, YamlPath

if TYPE_CHECKING:
    from scenarios.errors import ScenarioError

Design: TypeAlias = Literal["upstream"]
"""The published designs that the model can play so far."""
DESIGNS: Final = get_args(Design)

FindingKind: TypeAlias = Literal[
    "stale-tlb", "stale-spte", "uaf-table", "uaf-page", "uaf-object", "lost-bit", "overwrite", "wrong-level", "diverged",
    "kvm-bug", "td-dead", "content-lost", "refcount", "leak", "lock-rule", "cache-alias", "phase", "data-race", "deadlock",
    "livelock", "starvation", "unmet",
]  # fmt: skip
FINDING_KINDS: Final = get_args(FindingKind)

THREAD_NAME: Final = re.compile(r"(vcpu|host)(\*|[0-9]{1,4}|\[([0-9]{1,4})-([0-9]{1,4})\])", re.ASCII)

_SIZE_SCHEMA: Final = WithJsonSchema(
    {
        "anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": "^(0[xX][0-9a-fA-F_]+|[0-9.]+[KMGT]?)$"},
        ]
    }
)
_TIME_SCHEMA: Final = WithJsonSchema(
    {"anyOf": [{"type": "string", "pattern": "^[0-9._]+ ?(ns|us|ms|s)$"}, {"const": 0}]}
)

Size: TypeAlias = Annotated[int, BeforeValidator(parse_size), _SIZE_SCHEMA]
"""Bytes, written as `SIZE_HINT` says."""
Address: TypeAlias = Annotated[int, BeforeValidator(parse_size), _SIZE_SCHEMA]
TimeNs: TypeAlias = Annotated[int, BeforeValidator(parse_time_ns), _TIME_SCHEMA]
Int: TypeAlias = Annotated[int, Field(strict=True)]
Bool: TypeAlias = Annotated[bool, Field(strict=True)]
Text: TypeAlias = Annotated[str, Field(strict=True, max_length=2000)]
Name: TypeAlias = Annotated[str, Field(strict=True, min_length=1, max_length=120)]
Side: TypeAlias = Literal["private", "shared"]
Release: TypeAlias = Annotated[
    Literal["1.5.01", "1.5.28", "2.0", "nbr"],
    BeforeValidator(
        lambda value: str(value) if isinstance(value, float) else value
    ),  # YAML takes 2.0 for a number
]
PageSize: TypeAlias = Literal["4K", "2M", "1G"]


class Part(BaseModel):
    """A mapping of the file: unknown keys are errors, and what was read never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


def _one_key(schema: dict[str, Any]) -> None:
    """A step is exactly one verb."""
    schema["minProperties"] = schema["maxProperties"] = 1
    for key, verb in schema["properties"].items():
        options = [option for option in verb.pop("anyOf", []) if option != {"type": "null"}]
        verb.pop("default", None)
        if options:
            schema["properties"][key] = {**options[0], "description": verb.get("description", "")}


# --- machine, VM, memory -------------------------------------------------------------------------------------------


class Machine(Part):
    """The host."""

    pcpus: Int | None = Field(
        None, ge=1, le=4096, description="Logical CPUs of the host; default: one per vCPU and host thread."
    )
    clock_ghz: float = Field(
        2.7, ge=0.5, le=10, allow_inf_nan=False, description="Core clock; core-bound costs scale with it."
    )
    host_memory: Size = Field(
        256 * GIB, description=f"Memory that slots and page tables come from; {SIZE_HINT}."
    )
    noisy: Bool = Field(
        False, description="Host interrupts arrive at random times, as on a machine that is not idle."
    )


class Td(Part):
    """The virtual machine."""

    vcpus: Int = Field(..., ge=1, le=1024, description="Number of vCPUs; their threads are vcpu0, vcpu1, ...")
    kind: Literal["tdx", "snp", "plain"] = Field(
        "tdx", description="TD, SNP-like VM (private memory, no mirror) or plain VM."
    )
    shared_bit: Literal[47, 51] = Field(
        47, description="Guest physical address bit that selects the shared alias."
    )
    max_vcpus: Int | None = Field(
        None, ge=1, le=1024, description="vCPUs the TD is created for; default: vcpus."
    )
    pending_ve_disable: Bool = Field(
        True, description="SEPT_VE_DISABLE: touching a PENDING page exits instead of a #VE."
    )
    zero_step: Bool = Field(True, description="The module's zero-step mitigation is on.")
    module: Release = Field(
        "1.5.01",
        description="Release of the TDX module: tdx/module/profile.py says what differs. Linux cannot use 1.0.",
    )
    initial_memory: Size = Field(
        0, description=f"Memory added and measured at build, from the first private slot; {SIZE_HINT}."
    )
    build: Literal["auto", "manual"] = Field(
        "auto",
        description="auto: built and finalized before the threads start; manual: host threads do it by steps.",
    )


class Slot(Part):
    """One memslot, present when the threads start."""

    slot: Int = Field(..., ge=0, le=32763, description="The slot's id.")
    base: Address = Field(..., description=f"First guest physical address, shared bit clear; {SIZE_HINT}.")
    size: Size = Field(..., gt=0, description=f"Length; {SIZE_HINT}.")
    backing: PageSize = Field("4K", description="Host folio size of guest_memfd and of the shared side.")
    initially: Side = Field(
        "private", description="Memory attribute at the start; a plain VM's slots are shared."
    )
    flags: tuple[Literal["readonly", "dirty_log"], ...] = Field(
        (), description="KVM_MEM_READONLY, KVM_MEM_LOG_DIRTY_PAGES."
    )

    @property
    def end(self) -> int:
        """The first address after the slot."""
        return self.base + self.size


# --- verbs ---------------------------------------------------------------------------------------------------------


class Nothing(Part):
    """A verb without arguments: `halt: {}`."""


class Range(Part):
    """Guest physical memory `[at, at + size)`, shared bit clear."""

    at: Address = Field(..., description=f"First guest physical address, shared bit clear; {SIZE_HINT}.")
    size: Size = Field(4 * KIB, gt=0, description=f"Length; {SIZE_HINT}.")

    @property
    def end(self) -> int:
        """The first address after the range."""
        return self.at + self.size


class Touch(Range):
    """Guest accesses, one 4K page after the other."""

    access: Literal["read", "write", "execute"] = Field("write", description="What each access does.")
    stride: Size = Field(4 * KIB, gt=0, description=f"Distance of two accesses; {SIZE_HINT}.")
    alias: Side = Field(
        "private", description="Which alias of the address the guest uses: shared bit clear or set."
    )
    pick: Literal["sequential", "random"] = Field(
        "sequential", description="Pages in order, or random pages of the range."
    )
    count: Int | None = Field(
        None, ge=1, le=10**9, description="Number of accesses; default: one a page of the range."
    )
    share: Bool = Field(
        False, description="Divide the range evenly among the vCPUs of the group, in order of number."
    )


class Accept(Range):
    """TDG.MEM.PAGE.ACCEPT over a range."""

    order: Literal["linux", "2M", "4K", "firmware"] = Field(
        "linux",
        description="linux: 2M where aligned, 4K on a size mismatch; 2M or 4K only; firmware: 4K, ascending.",
    )
    policy: Literal["eager", "lazy", "touch_first"] = Field(
        "eager",
        description="eager: accept all; lazy: accept each block just before touching it; touch_first: after its #VE.",
    )
    share: Bool = Field(
        False, description="Divide the range evenly among the vCPUs of the group, in order of number."
    )


class MapGpa(Range):
    """TDG.VP.VMCALL<MapGPA>: the guest asks the host to convert a range."""

    to: Side = Field(..., description="What the range shall be.")


class Duration(Part):
    """A time, as `for: 10us` or `for_ns: 10000`."""

    for_: TimeNs | None = Field(None, alias="for", description=f"How long; {TIME_HINT}.")
    for_ns: Int | None = Field(None, ge=0, le=10**15, description="How long, in nanoseconds.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Duration:
        if (self.for_ is None) == (self.for_ns is None):
            raise ValueError("expected exactly one of 'for' and 'for_ns'")
        return self

    @property
    def ns(self) -> int:
        """The time in nanoseconds."""
        return self.for_ if self.for_ is not None else self.for_ns or 0


class Prefault(Range):
    """KVM_PRE_FAULT_MEMORY on one vCPU."""

    vcpu: Int = Field(..., ge=0, description="The vCPU whose file descriptor is used.")


class SetAttributes(Range):
    """KVM_SET_MEMORY_ATTRIBUTES."""

    to: Side = Field(..., description="The new attribute of the range.")


class SlotDelete(Part):
    """KVM_SET_USER_MEMORY_REGION2 with size 0."""

    slot: Int = Field(..., ge=0, le=32763, description="The slot's id.")


class SlotCreate(Part):
    """KVM_SET_USER_MEMORY_REGION2 with a new slot."""

    slot: Int = Field(..., ge=0, le=32763, description="The slot's id.")
    base: Address = Field(..., description=f"First guest physical address, shared bit clear; {SIZE_HINT}.")
    size: Size = Field(..., gt=0, description=f"Length; {SIZE_HINT}.")
    backing: PageSize = Field("4K", description="Host folio size of guest_memfd and of the shared side.")

    @property
    def end(self) -> int:
        """The first address after the slot."""
        return self.base + self.size


class SlotMove(Part):
    """KVM_SET_USER_MEMORY_REGION2 with another base."""

    slot: Int = Field(..., ge=0, le=32763, description="The slot's id.")
    to: Address = Field(..., description=f"The new base; {SIZE_HINT}.")


class GuestRepeat(Part):
    """Guest steps, over and over."""

    times: Int = Field(..., ge=1, le=10**9, description="How often.")
    do: tuple[GuestStep, ...] = Field(..., min_length=1, description="The steps.")


class HostRepeat(Part):
    """Host steps, over and over."""

    times: Int = Field(..., ge=1, le=10**9, description="How often.")
    do: tuple[HostStep, ...] = Field(..., min_length=1, description="The steps.")


class Step(Part):
    """A mapping of one key, the verb, to its arguments."""

    model_config = ConfigDict(json_schema_extra=_one_key)

    @model_validator(mode="after")
    def _exactly_one_verb(self) -> Step:
        if len(self.model_fields_set) != 1 or self.args is None:
            raise ValueError("expected a mapping of exactly one verb")
        return self

    @property
    def verb(self) -> str:
        """The verb's name."""
        return next(iter(self.model_fields_set))

    @property
    def args(self) -> Any:
        """The verb's model."""
        return getattr(self, self.verb)


class GuestStep(Step):
    """One step of a guest program."""

    touch: Touch | None = Field(None, description="Access memory.")
    accept: Accept | None = Field(None, description="Accept private pages.")
    map_gpa: MapGpa | None = Field(
        None, description="Ask for a conversion, in chunks, retried as Linux does."
    )
    compute: Duration | None = Field(None, description="Run guest code that leaves memory alone.")
    halt: Nothing | None = Field(None, description="HLT until an interrupt.")
    wait: Duration | None = Field(
        None, description="Stay outside the guest; as the first step: the start time."
    )
    repeat: GuestRepeat | None = Field(None, description="Repeat steps.")


class HostStep(Step):
    """One step of a host thread."""

    set_memory_attributes: SetAttributes | None = Field(
        None, description="Convert a range (KVM_SET_MEMORY_ATTRIBUTES)."
    )
    punch_hole: Range | None = Field(None, description="Free a range of guest_memfd (fallocate PUNCH_HOLE).")
    memslot_delete: SlotDelete | None = Field(None, description="Delete a memslot.")
    memslot_create: SlotCreate | None = Field(None, description="Create a memslot.")
    memslot_move: SlotMove | None = Field(None, description="Move a memslot to another base.")
    notifier_invalidate: Range | None = Field(
        None, description="MMU notifier start and end over the slot's host range."
    )
    prefault: Prefault | None = Field(None, description="Map a range before the guest touches it.")
    zap_all_fast: Nothing | None = Field(None, description="Invalidate all roots (kvm_mmu_zap_all_fast).")
    td_teardown: Nothing | None = Field(None, description="Destroy the VM.")
    init_mem_region: Range | None = Field(
        None, description="KVM_TDX_INIT_MEM_REGION: add and measure initial memory."
    )
    finalize: Nothing | None = Field(None, description="KVM_TDX_FINALIZE_VM.")
    wait: Duration | None = Field(None, description="Sleep; as the first step: the start time.")
    repeat: HostRepeat | None = Field(None, description="Repeat steps.")


def _threads_schema(schema: dict[str, Any]) -> None:
    """Show one mapping whose key decides the vocabulary, as the file has it."""
    properties = schema.pop("properties")
    schema.pop("required", None)
    schema["patternProperties"] = {
        r"^vcpu(\*|[0-9]{1,4}|\[[0-9]{1,4}-[0-9]{1,4}\])$": properties["guest"]["additionalProperties"],
        r"^host(\*|[0-9]{1,4}|\[[0-9]{1,4}-[0-9]{1,4}\])$": properties["host"]["additionalProperties"],
    }
    schema["additionalProperties"] = False


class Threads(Part):
    """Programs by thread or group: `vcpu0`, `vcpu*` (all vCPUs), `vcpu[0-3]`, `host0`, `host*` (one a pCPU)."""

    model_config = ConfigDict(json_schema_extra=_threads_schema)

    guest: dict[str, tuple[GuestStep, ...]] = Field(default_factory=dict, description="Programs of vCPUs.")
    host: dict[str, tuple[HostStep, ...]] = Field(
        default_factory=dict, description="Programs of host threads."
    )

    @model_validator(mode="before")
    @classmethod
    def _by_vocabulary(cls, value: Any) -> Any:
        """Split by name; names that are neither are reported by `scenarios.checks`, with their place."""
        if not isinstance(value, dict):
            raise ValueError("expected a mapping of thread names to lists of steps")  # noqa: TRY004 - pydantic's protocol
        sides: dict[str, dict[str, Any]] = {"guest": {}, "host": {}}
        for name, steps in value.items():
            if THREAD_NAME.fullmatch(name):
                sides["guest" if name.startswith("vcpu") else "host"][name] = steps
        return sides


# --- costs, faults, expectations, search ---------------------------------------------------------------------------


def _scalar_as(key: str | tuple[str, ...]) -> Callable[[Any], Any]:
    """Read a plain value as the mapping that has it under `key`."""
    keys = (key,) if isinstance(key, str) else key

    def widen(value: Any) -> Any:
        return value if isinstance(value, dict) else dict.fromkeys(keys, value)

    return widen


def _or_scalar(scalar: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Allow the plain value in the JSON Schema, too."""

    def extend(schema: dict[str, Any]) -> None:
        mapping = dict(schema)
        schema.clear()
        schema.update({"description": mapping.get("description", ""), "anyOf": [scalar, mapping]})

    return extend


class Cost(Part):
    """A latency: a plain time, or a shifted lognormal of this mean, lower bound and sigma."""

    model_config = ConfigDict(
        json_schema_extra=_or_scalar({"type": "string", "pattern": "^[0-9._]+ ?(ns|us|ms|s)$"})
    )

    mean: TimeNs = Field(..., description=f"Mean; {TIME_HINT}.")
    floor: TimeNs | None = Field(
        None, description=f"No draw is below this; default: the cost class's; {TIME_HINT}."
    )
    shape: float | None = Field(
        None, ge=0, le=5, allow_inf_nan=False, description="Sigma of the lognormal; 0: always the mean."
    )

    _from_scalar = model_validator(mode="before")(_scalar_as("mean"))

    @model_validator(mode="after")
    def _floor_below_mean(self) -> Cost:
        if self.floor is not None and self.floor > self.mean:
            raise ValueError("expected floor to be at most mean")
        return self


class Injection(Part):
    """One kind of bad luck."""

    fault: Literal["seamcall_busy", "alloc_fail", "interrupt"] = Field(..., description="What happens.")
    leaf: Annotated[str, Field(strict=True, pattern=r"^TD[HG]\.[A-Z0-9]+(\.[A-Z0-9]+)*$")] | None = Field(
        None, description="Only in this leaf, for example TDH.MEM.PAGE.AUG; default: any."
    )
    thread: Name | None = Field(None, description="Only in this thread; default: any.")
    nth: Int = Field(1, ge=1, le=10**9, description="At the n-th opportunity, counted from 1.")
    times: Int = Field(1, ge=1, le=10**9, description="At that many opportunities in a row.")


class CountBounds(Part):
    """Bounds of a counter; a plain number is both bounds."""

    model_config = ConfigDict(json_schema_extra=_or_scalar({"type": "integer", "minimum": 0}))

    min: Int | None = Field(None, ge=0, description="At least this.")
    max: Int | None = Field(None, ge=0, description="At most this.")

    _from_scalar = model_validator(mode="before")(_scalar_as(("min", "max")))

    @model_validator(mode="after")
    def _ordered(self) -> CountBounds:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("expected min to be at most max")
        return self


class TimeBounds(Part):
    """Bounds of a latency figure."""

    min: TimeNs | None = Field(None, description=f"At least this; {TIME_HINT}.")
    max: TimeNs | None = Field(None, description=f"At most this; {TIME_HINT}.")

    @model_validator(mode="after")
    def _ordered(self) -> TimeBounds:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("expected min to be at most max")
        return self


class LatencyBounds(Part):
    """Bounds of one latency's figures."""

    count: CountBounds | None = Field(None, description="Number of samples.")
    min: TimeBounds | None = Field(None, description="Smallest sample.")
    p50: TimeBounds | None = Field(None, description="Median.")
    p90: TimeBounds | None = Field(None, description="90th percentile.")
    p99: TimeBounds | None = Field(None, description="99th percentile.")
    p999: TimeBounds | None = Field(None, description="99.9th percentile.")
    max: TimeBounds | None = Field(None, description="Largest sample.")
    mean: TimeBounds | None = Field(None, description="Mean.")


def _word_or_list(value: Any) -> str:
    return "kinds" if isinstance(value, list | tuple) else "word"


class Expect(Part):
    """What must be true of the result."""

    findings: Annotated[
        Annotated[Literal["none", "any"], Tag("word")] | Annotated[tuple[FindingKind, ...], Tag("kinds")],
        Discriminator(_word_or_list),
    ] = Field(
        "none",
        description="none, any (not judged), or the kinds of findings that must appear, and no others.",
    )
    sometimes: tuple[Name, ...] = Field((), description="Properties that must hold at some moment.")
    always: tuple[Name, ...] = Field((), description="Properties that must hold at every moment.")
    counters: dict[Name, CountBounds] = Field(default_factory=dict, description="Counters and their bounds.")
    latency: dict[Name, LatencyBounds] = Field(
        default_factory=dict, description="Latencies and the bounds of their figures."
    )


_STRATEGY: Final = r"^(fifo|random|pos|surw|states|portfolio|pct(:[0-9]{1,2}(,[0-9]{1,2})*)?|dfs(:[0-9]{1,3})?|dpor(:values)?|replay:.*)$"
STRATEGIES: Final = (
    "fifo",
    "random",
    "pct:3",
    "pos",
    "surw",
    "dfs",
    "dpor",
    "dpor:values",
    "states",
    "portfolio",
    "replay:",
)


def _window(value: Any) -> int | None:
    if value == "infinity":
        return None
    return parse_time_ns(value)


class Hunt(Part):
    """How to search for interleavings."""

    strategy: Annotated[str, Field(strict=True, pattern=_STRATEGY)] = Field(
        "portfolio",
        description="fifo, random, pct:d, pos, surw, dfs[:b], dpor[:values], states, portfolio, replay:SCHEDULE.",
    )
    executions: Int = Field(1000, ge=1, le=10**9, description="At most this many executions.")
    time_limit_s: float | None = Field(
        None, gt=0, le=10**7, allow_inf_nan=False, description="At most this long, in seconds."
    )
    window: Annotated[
        int | None,
        BeforeValidator(_window),
        WithJsonSchema(
            {"anyOf": [{"const": "infinity"}, {"type": "string", "pattern": "^[0-9._]+ ?(ns|us|ms|s)$"}]}
        ),
    ] = Field(
        None,
        description="How far from the timing order an execution may stray; infinity: every interleaving.",
    )


# --- the file ------------------------------------------------------------------------------------------------------


class Scenario(Part):
    """One question about one machine."""

    version: Literal[1] = Field(1, description="Version of this format.")
    scenario: Annotated[str, Field(strict=True, min_length=1, max_length=400)] = Field(
        ..., description="The name; the file's name without .yaml."
    )
    question: Text = Field(..., min_length=1, description="What the scenario asks, in one sentence.")
    design: Design = Field("upstream", description="The published design that the MMU follows.")
    seed: Int = Field(0, ge=0, lt=2**64, description="Seed of every random stream.")
    machine: Machine = Field(default_factory=lambda: Machine.model_validate({}), description="The host.")
    td: Td = Field(..., description="The virtual machine.")
    memory: tuple[Slot, ...] = Field((), description="Memslots that exist when the threads start.")
    threads: Threads = Field(..., description="What each vCPU and each host thread does.")
    costs: dict[Name, Cost] = Field(default_factory=dict, description="Overrides of the cost table.")
    jitter: Bool = Field(
        True, description="Draw latencies from their distributions; false: always the means."
    )
    memory_model: Literal["sc", "tso"] = Field(
        "sc", description="Sequential consistency, or store buffers as on x86."
    )
    inject: tuple[Injection, ...] = Field((), description="Faults to inject.")
    expect: Expect = Field(
        default_factory=lambda: Expect.model_validate({}), description="What must be true of the result."
    )
    hunt: Hunt = Field(default_factory=lambda: Hunt.model_validate({}), description="How to search.")
    patches: tuple[Name, ...] = Field(
        (), description="Python files, relative to this one, that replace functions of the model."
    )
    sweep: dict[Name, tuple[Any, ...]] = Field(
        default_factory=dict,
        description="Parameter grid: key path to list of values; each combination is a scenario.",
    )

    _document: Document | None = PrivateAttr(None)
    _file: Path | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _plain_memory_is_shared(cls, value: Any) -> Any:
        """A plain VM knows no private memory, so that its slots need not say so."""
        if (
            not isinstance(value, dict)
            or not isinstance(value.get("td"), dict)
            or value["td"].get("kind") != "plain"
        ):
            return value
        slots = value.get("memory")
        if not isinstance(slots, list):
            return value
        return {
            **value,
            "memory": [{"initially": "shared", **s} if isinstance(s, dict) else s for s in slots],
        }

    @property
    def name(self) -> str:
        """The scenario's name."""
        return self.scenario

    @property
    def has_private_memory(self) -> bool:
        """TDX and SNP have; a plain VM has not."""
        return self.td.kind != "plain"

    @property
    def pcpus(self) -> int:
        """Logical CPUs: as the machine says, else one for each vCPU and each host thread."""
        if self.machine.pcpus is not None:
            return self.machine.pcpus
        hosts = {index for name in self.threads.host for index in selected(name, 0)}
        return self.td.vcpus + len(hosts)

    @property
    def file(self) -> Path | None:
        """The file it was loaded from."""
        return self._file

    @property
    def patch_files(self) -> tuple[Path, ...]:
        """`patches`, found relative to the scenario's file."""
        folder = self._file.parent if self._file else Path()
        return tuple(folder / patch for patch in self.patches)

    def programs(self) -> dict[str, Program]:
        """What each single thread does, groups resolved: `vcpu0`... first, then `host0`..., in order of number.

        An exact name wins over a range, a range over `*`; a vCPU that nothing names has an empty program.
        """
        vcpus = _resolve("vcpu", self.threads.guest, self.td.vcpus, range(self.td.vcpus))
        return vcpus | _resolve("host", self.threads.host, self.pcpus, ())

    def error(
        self, path: YamlPath, message: str, *, key: bool = False, got: bool = False, remedy: str = ""
    ) -> ScenarioError:
        """A mistake at `path` of the file, for the composition root to raise (an unknown cost name, say)."""
        from scenarios.errors import ScenarioError
        from scenarios.yaml_loader import path_text

        if self._document is None:
            return ScenarioError(message, self.scenario, 0, 0, path_text(path), remedy)
        return self._document.error(path, message, key=key, got=got, remedy=remedy)


class Program(Part):
    """The steps of one thread, and its part in the group that it was written for."""

    thread: str = Field(..., description="The thread's own name, such as vcpu3.")
    index: int = Field(..., description="Its number.")
    selector: str = Field("", description="The key of `threads` that it came from; empty: none.")
    rank: int = Field(0, description="Its place in the group, from 0.")
    group: int = Field(1, description="Size of the group.")
    steps: tuple[GuestStep | HostStep, ...] = Field((), description="What it does.")

    def part_of(self, step: Range) -> tuple[int, int]:
        """The `[start, end)` of a step's range that is this thread's: all of it, or its share in whole 4K pages."""
        if not getattr(step, "share", False):
            return step.at, step.end
        pages = step.size // PAGE_BYTES["4K"]
        first, last = pages * self.rank // self.group, pages * (self.rank + 1) // self.group
        return step.at + first * PAGE_BYTES["4K"], step.at + last * PAGE_BYTES["4K"]


def selected(selector: str, count: int) -> range:
    """The numbers that a thread name or group stands for; `*` stands for the first `count`."""
    match = THREAD_NAME.fullmatch(selector)
    assert match is not None, selector
    if match[2] == "*":
        return range(count)
    if match[3] is not None:
        return range(int(match[3]), int(match[4]) + 1)
    return range(int(match[2]), int(match[2]) + 1)


def _rank(selector: str) -> int:
    """Less is more particular: a name, a range, everything."""
    return 2 if selector.endswith("*") else 1 if selector.endswith("]") else 0


def _resolve(
    side: str, programs: dict[str, Any], count: int, always: range | tuple[()]
) -> dict[str, Program]:
    owner: dict[int, str] = {}
    for selector in sorted(programs, key=_rank):
        for index in selected(selector, count):
            owner.setdefault(index, selector)
    resolved: dict[str, Program] = {}
    for index in sorted({*owner, *always}):
        selector = owner.get(index, "")
        members = sorted(i for i, other in owner.items() if other == selector) if selector else [index]
        resolved[f"{side}{index}"] = Program(
            thread=f"{side}{index}",
            index=index,
            selector=selector,
            rank=members.index(index),
            group=len(members),
            steps=programs.get(selector, ()),
        )
    return resolved
