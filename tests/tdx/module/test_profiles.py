"""Releases: every field of a profile is a difference that can be seen, and each release shows its own side of it."""

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import explore
from tdx.module import (
    PROFILES,
    SEPT_VE_DISABLE,
    Profile,
    SeptState,
    TdExit,
    TdxModule,
    VirtualizationException,
    private_ept_violation,
    profile_named,
    tdg_mem_page_accept,
    tdh_mem_page_aug,
    tdh_mem_page_demote,
    tdh_mem_page_promote,
    tdh_mem_page_relocate,
    tdh_mem_page_remove,
    tdh_mem_range_block,
    tdh_mem_range_unblock,
    tdh_mem_sept_rd,
    tdh_mem_sept_remove,
    tdh_mem_track,
    tdh_mng_create,
)
from tdx.module.guest_lock import guest_lock_entry, guest_unlock_entry
from tdx.module.invariants import INVARIANTS
from tdx.module.objects import Epoch
from tdx.module.operands import Td
from tdx.module.pamt import PamtEntry
from tdx.module.profile import TDX_1_0, TDX_1_5_01, TDX_2_0
from tdx.module.septe import TDEL, TDHP, make
from tdx.module.sharex import HP, SharexHp
from tdx.module.status import ModuleShutdown
from tdx.module.watch import watch
from tests.tdx.module.test_guest import septe_cell
from tests.tdx.module.worlds import DATA, GFN, TDMR, World, run
from vcpu.addresses import PG_LEVEL_2M, PG_LEVEL_4K, Gfn, Pfn, gpa_of

BIG = Gfn(GFN + 512)
GPA = gpa_of(GFN)


# The same calls under every release. Each function returns what can be seen, as text.


def step(world, access):
    """One access, alone."""

    def body():
        return (yield access)

    return run(world.kernel, body())


def accept_steps(world, n=0, gfn=GFN):
    return tdg_mem_page_accept(
        world.module,
        td=world.td,
        vcpu=world.vcpu(n),
        gpa=gpa_of(gfn),
        level=PG_LEVEL_4K,
        interrupt_pending=lambda: False,
    )


def accept(world, **options):
    """What the guest gets."""
    result = run(world.kernel, accept_steps(world, **options))
    return str(result.ret) if result.exit is None else "exit"


def big(profile, *, finalize=False, accepted=False, **options):
    """A TD with one 2M leaf at BIG, PENDING or MAPPED."""
    world = World(profile=profile, finalize=finalize, **options)
    world.aug(BIG, DATA, PG_LEVEL_2M)
    if accepted:
        page = world.module.sept_pages
        cell = next(page[pfn] for pfn in page if page[pfn].level == PG_LEVEL_2M).septe(BIG)
        cell.v = make(SeptState.MAPPED, DATA)
    return world


def block_and_track(world, gfn=BIG, level=PG_LEVEL_2M):
    assert world.on(tdh_mem_range_block, gfn, level).ok
    assert world.do(tdh_mem_track, td=world.td).ok


def demote(world):
    return world.on(tdh_mem_page_demote, BIG, PG_LEVEL_2M, pfn=world.page(), lp=world.lps[0])


def promote(world):
    return world.on(tdh_mem_page_promote, BIG, PG_LEVEL_2M, lp=world.lps[0])


def split(profile, **options):
    """A demoted 2M leaf that is ready to be merged again, whatever the release wants before."""
    world = big(profile, accepted=True, **options)
    block_and_track(world)
    assert demote(world).ok
    block_and_track(world)
    return world


def aug_beside_a_reader(profile):
    """Another host call has the tree shared."""
    world = World(profile=profile)
    step(world, world.module.tdcs(world.td).sept_tree_lock.try_shared())
    return str(world.on(tdh_mem_page_aug, pfn=Pfn(DATA)))


def accept_after_a_host_lost(profile):
    """BLOCK loses against a guest; then another guest tries."""
    world = World(profile=profile, vcpus=2)
    world.aug()
    septe = septe_cell(world, GFN)
    assert run(world.kernel, guest_lock_entry(world.module, septe)) is None
    assert str(world.on(tdh_mem_range_block)) == "TDX_OPERAND_BUSY|RCX"
    step(world, guest_unlock_entry(world.module, septe))
    return accept(world, n=1)


def block_of_nothing(profile):
    """An entry that is FREE."""
    return str(World(profile=profile).on(tdh_mem_range_block))


def second_ve(profile):
    """Two faults on a pending page; the guest has not fetched what the first was about."""
    world = World(profile=profile)
    world.aug()
    told = []
    for _ in range(2):
        fault = private_ept_violation(world.module, world.td, world.vcpu(), GPA, 1, None)
        told.append(run(world.kernel, fault))
    assert isinstance(told[0], VirtualizationException)
    if isinstance(told[1], TdExit):
        return "exit"
    return "#DF" if told[1].double_fault else "#VE"


def split_while_building(profile):
    return str(demote(big(profile)))


def split_without_block(profile):
    return str(demote(big(profile, finalize=True)))


def split_under_interrupts(profile):
    """Without and with an L2 VM; the range is blocked, for those that want that."""
    told = []
    for l2_vms in (0, 1):
        world = big(profile, l2_vms=l2_vms)
        block_and_track(world)
        world.lps[0].interrupt_pending = lambda: True
        told.append(str(demote(world)))
    return ", ".join(told)


def merge_pending(profile):
    """512 children that nobody has accepted."""
    world = big(profile)
    block_and_track(world)
    assert demote(world).ok
    block_and_track(world)
    return str(promote(world))


def merge_beside_a_reader(profile):
    world = split(profile)
    step(world, world.module.tdcs(world.td).sept_tree_lock.try_shared())
    return str(promote(world))


def merge_with_a_locked_child(profile):
    """A call that passed the parent before it was blocked still holds child 3."""
    world = split(profile)
    page = world.module.sept_pages[world.module.peek_septe(world.td, BIG, 2).pfn_at(0)]
    page.at(3).v |= TDEL
    return str(promote(world))


def merge_with_priority_on_a_child(profile):
    """Host priority that comes while PROMOTE holds the children: from a loser, as the children are looked at."""
    seen = set()

    def world_of(kernel):
        world = World(kernel, profile=profile, finalize=False, vcpus=0, promote_step_children=512)
        world.aug(BIG, DATA, PG_LEVEL_2M)
        if profile.resize_always_blocked:
            block_and_track(world)
        assert demote(world).ok
        if profile.resize_always_blocked:
            block_and_track(world)
        where = {"td": world.td, "gpa": gpa_of(BIG)}

        def promoter():
            ret = yield from tdh_mem_page_promote(world.module, **where, level=PG_LEVEL_2M, lp=world.lps[0])
            seen.add(str(ret))

        kernel.thread("promoter", promoter())
        kernel.thread("reader", tdh_mem_sept_rd(world.module, **where, level=PG_LEVEL_4K))

    explore(world_of, strategy="dpor")
    return "spurious" if "TDX_EPT_INVALID_PROMOTE_CONDITIONS|RCX" in seen else "never"


def accept_while_aug(profile):
    """AUG comes between ACCEPT's walk and its lock."""
    seen = set()

    def world_of(kernel):
        world = World(kernel, profile=profile)

        def guest():
            result = yield from accept_steps(world)
            seen.add(str(result.ret) if result.exit is None else "exit")

        kernel.thread("guest", guest())
        aug = tdh_mem_page_aug(world.module, td=world.td, gpa=GPA, level=PG_LEVEL_4K, pfn=Pfn(DATA))
        kernel.thread("host", aug)

    explore(world_of, strategy="dpor")
    return "spurious" if "TDX_PAGE_SIZE_MISMATCH|0" in seen else "never"


def accept_of_removed(profile):
    world = World(profile=profile)
    septe_cell(world, GFN).v = make(SeptState.REMOVED)
    return accept(world)


def priority_asked_for_during_accept(profile):
    """A host call loses against ACCEPT while it zeroes the page."""
    world = World(profile=profile)
    world.aug()
    septe = septe_cell(world, GFN)

    def a_host_loses(_pfn, _pages):
        septe.v |= TDHP

    world.module.on_page_zeroed = a_host_loses
    assert accept(world) == "TDX_SUCCESS"
    return "kept" if septe.v & TDHP else "lost"


def host_against_a_guest_that_keeps_off(profile):
    """Host priority stands on the entry: does the guest disturb a host call all the same?"""
    seen = set()

    def world_of(kernel):
        world = World(kernel, profile=profile)
        world.aug()
        septe_cell(world, GFN).v |= TDHP

        def host():
            ret = yield from tdh_mem_range_block(world.module, td=world.td, gpa=GPA, level=PG_LEVEL_4K)
            seen.add((str(ret), bool(world.in_time)))

        def guest():
            result = yield from accept_steps(world)
            world.in_time = result.ret is not None and result.ret.ok

        world.in_time = False
        kernel.thread("host", host())
        kernel.thread("guest", guest())

    explore(world_of, strategy="dpor")
    return "disturbs" if ("TDX_OPERAND_BUSY|RCX", False) in seen else "keeps off"


def unblock_too_early(profile):
    world = World(profile=profile)
    world.aug()
    assert world.on(tdh_mem_range_block).ok
    return str(world.on(tdh_mem_range_unblock))


def merge_while_another_wants_the_tree(profile):
    """A host call loses the tree to PROMOTE just before it looks for interrupts."""
    world = split(profile)
    tree = world.module.tdcs(world.td).sept_tree_lock

    def a_host_loses():
        tree.v = tree.try_exclusive().change(tree.v)
        return False

    world.lps[0].interrupt_pending = a_host_loses
    return str(promote(world))


def suspect(profile, pending, **options):
    """A vCPU under suspicion: its last faults were at GFN, which is now a pending page or still nothing."""
    world = World(profile=profile, **options)
    world.vcpu().last_epf_gpa_list.append(GPA)
    if pending:
        world.aug()
    return world


def enter_under_suspicion_beside_a_reader(profile):
    world = suspect(profile, pending=False)
    step(world, world.module.tdcs(world.td).sept_tree_lock.try_shared())
    ret = run(world.kernel, world.enter(world.leave))
    return "looks" if ret.ok else str(ret)


def enter_with_a_pending_suspect(profile):
    """The page has been added; the fault would bring a #VE."""
    world = suspect(profile, pending=True)
    ret = run(world.kernel, world.enter(world.leave))
    return "runs" if ret.exit.reason.name == "EXTERNAL_INTERRUPT" else "still faults"


def track_to_the_end(profile):
    world = World(profile=profile)
    world.module.tdcs(world.td).epoch.v = Epoch((1 << 63) - 2, 0, 0)
    try:
        return str(world.do(tdh_mem_track, td=world.td))
    except ModuleShutdown:
        return "shutdown"


def create_without_a_pair(profile):
    module = TdxModule(World().kernel, tdmr=[TDMR], profile=profile)
    return str(run(module.kernel, tdh_mng_create(module, td=Td(Pfn(DATA)), hkid=32)))


BUSY_TREE = "TDX_OPERAND_BUSY|SEPT_TREE"
OK = "TDX_SUCCESS"
INTERRUPTED = "TDX_INTERRUPTED_RESTARTABLE"

DIFFERENCES = {
    "relaxed_concurrency": (aug_beside_a_reader, {True: OK, False: BUSY_TREE}),
    "host_priority": (accept_after_a_host_lost, {True: "TDX_OPERAND_BUSY|RCX", False: OK}),
    "state_incorrect": (
        block_of_nothing,
        {True: "TDX_EPT_ENTRY_STATE_INCORRECT|RCX", False: "TDX_EPT_ENTRY_FREE|RCX"},
    ),
    "pending_ve_by_cpu": (second_ve, {False: "#DF", True: "exit"}),
    "resize_always_blocked": (split_while_building, {False: OK, True: "TDX_GPA_RANGE_NOT_BLOCKED|RCX"}),
    "resize_unblocked": (split_without_block, {False: "TDX_GPA_RANGE_NOT_BLOCKED|RCX", True: OK}),
    "demote_interrupts": (
        split_under_interrupts,
        {"always": f"{INTERRUPTED}, {INTERRUPTED}", "l2": f"{OK}, {INTERRUPTED}", "never": f"{OK}, {OK}"},
    ),
    "promote_pending": (merge_pending, {True: OK, False: "TDX_EPT_INVALID_PROMOTE_CONDITIONS|RCX"}),
    "promote_tree_exclusive": (merge_beside_a_reader, {False: OK, True: BUSY_TREE}),
    "promote_locks_children": (
        merge_with_a_locked_child,
        {True: "TDX_OPERAND_BUSY|RCX", False: "TDX_EPT_INVALID_PROMOTE_CONDITIONS|RCX"},
    ),
    "promote_ignores_tdhp": (merge_with_priority_on_a_child, {False: "spurious", True: "never"}),
    "accept_samples_leaf_before_lock": (accept_while_aug, {True: "spurious", False: "never"}),
    "accept_removed_is_free": (accept_of_removed, {False: "TDX_PAGE_SIZE_MISMATCH|0", True: "exit"}),
    "writes_drop_tdhp": (priority_asked_for_during_accept, {True: "lost", False: "kept"}),
    "guest_locks_before_host_priority": (
        host_against_a_guest_that_keeps_off,
        {True: "disturbs", False: "keeps off"},
    ),
    "unblock_names_tree": (
        unblock_too_early,
        {True: "TDX_TLB_TRACKING_NOT_DONE|SEPT_TREE", False: "TDX_TLB_TRACKING_NOT_DONE|RCX"},
    ),
    "tree_host_priority": (
        merge_while_another_wants_the_tree,
        {False: OK, True: "TDX_INTERRUPTED_BUSY"},
    ),
    "zero_step_tree_shared": (
        enter_under_suspicion_beside_a_reader,
        {False: BUSY_TREE, True: "looks"},
    ),
    "zero_step_pending_faults": (enter_with_a_pending_suspect, {True: "still faults", False: "runs"}),
    "epoch_overflow_is_fatal": (track_to_the_end, {False: OK, True: "shutdown"}),
    "dynamic_pamt": (create_without_a_pair, {False: OK, True: "TDX_MISSING_PAMT_PAGE_PAIR|RCX"}),
}
"""Field of a profile to what shows it: calls, and by the field's value what is seen."""


def test_every_field_has_calls_that_show_it():
    """And its values cannot be mistaken for each other."""
    assert {field.name for field in fields(Profile)} == {"name", *DIFFERENCES}
    for name, (_calls, seen) in DIFFERENCES.items():
        assert len(set(seen.values())) == len(seen) > 1, name


HIDDEN = {
    ("1.0", "writes_drop_tdhp"): "its entries have no host priority",
    ("1.0", "promote_ignores_tdhp"): "the same, and with the tree exclusive nobody would set it",
    ("1.0", "guest_locks_before_host_priority"): "the same, and BLOCK may lose to any guest",
    ("1.0", "accept_removed_is_free"): "ACCEPT asks the locked entry, and REMOVED is no leaf",
}
"""Where another difference of that release leaves nothing to see of this one."""


@pytest.mark.parametrize(
    ("release", "field"),
    [
        (release, field)
        for release in sorted(PROFILES)
        for field in DIFFERENCES
        if (release, field) not in HIDDEN
    ],
)
def test_a_release_shows_its_side_of_a_difference(release, field):
    """The same calls under every release; what they show is the profile's."""
    calls, seen = DIFFERENCES[field]
    profile = PROFILES[release]

    assert calls(profile) == seen[getattr(profile, field)]


@pytest.mark.parametrize("field", DIFFERENCES)
def test_one_field_alone_makes_the_difference(field):
    """1.5.01 with nothing but this field changed shows the other side."""
    calls, seen = DIFFERENCES[field]
    for value, expected in seen.items():
        assert calls(replace(TDX_1_5_01, **{field: value})) == expected


def test_profiles_are_found_by_name():
    """And a name that is none is an error that lists those there are."""
    assert [profile_named(name) for name in PROFILES] == list(PROFILES.values())
    with pytest.raises(ValueError, match=r"'1\.5'.*1\.5\.28"):
        profile_named("1.5")
    assert profile_named("2.0").with_dynamic_pamt().name == "2.0+dpamt"


def test_features0_tells_the_differences_that_have_a_bit():
    """What a host reads: relaxed concurrency and its entries, host priority, pending violations, Dynamic PAMT, demote."""
    bits = {4, 9, 10, 16}
    expected = {"1.0": set(), "1.5.01": bits, "1.5.28": bits | {51}, "2.0": bits | {51}, "nbr": bits | {51}}

    for name, profile in PROFILES.items():
        assert {bit for bit in range(64) if profile.features0 >> bit & 1} == expected[name]
        assert profile.with_dynamic_pamt().features0 == profile.features0 | 1 << 36


# The four errors of 1.0.


@pytest.mark.parametrize(
    ("call", "gfn", "level", "expected"),
    [
        (tdh_mem_page_aug, GFN, PG_LEVEL_4K, "TDX_EPT_ENTRY_NOT_FREE|RCX"),
        (tdh_mem_page_aug, GFN, PG_LEVEL_2M, "TDX_EPT_ENTRY_NOT_FREE|RCX"),
        (tdh_mem_page_remove, GFN + 1, PG_LEVEL_4K, "TDX_EPT_ENTRY_FREE|RCX"),
        (tdh_mem_page_remove, GFN, PG_LEVEL_2M, "TDX_EPT_ENTRY_NOT_LEAF|RCX"),
        (tdh_mem_sept_remove, BIG, PG_LEVEL_2M, "TDX_EPT_ENTRY_LEAF|RCX"),
        (tdh_mem_page_promote, BIG, PG_LEVEL_2M, "TDX_EPT_ENTRY_LEAF|RCX"),
        (tdh_mem_page_demote, GFN, PG_LEVEL_2M, "TDX_EPT_ENTRY_NOT_LEAF|RCX"),
        (tdh_mem_range_unblock, GFN, PG_LEVEL_4K, "TDX_EPT_ENTRY_STATE_INCORRECT|RCX"),
    ],
)
def test_1_0_says_what_is_wrong_with_a_state(call, gfn, level, expected):
    """Free or not, leaf or not; 1.5 has one word for all."""
    for profile in (TDX_1_0, TDX_1_5_01):
        world = World(profile=profile)
        world.aug()
        world.aug(BIG, DATA + 512, PG_LEVEL_2M)
        pages = {"pfn": Pfn(DATA + 1024)} if call in (tdh_mem_page_aug, tdh_mem_page_demote) else {}
        if call in (tdh_mem_page_demote, tdh_mem_page_promote):
            pages["lp"] = world.lps[0]
        ret = str(world.on(call, gfn, level, **pages))
        assert ret == (expected if profile is TDX_1_0 else "TDX_EPT_ENTRY_STATE_INCORRECT|RCX")


def test_1_0_has_no_lock_in_its_entries_when_a_call_is_done():
    """And none that a host leaves: not even while BLOCK and ACCEPT are at it."""
    locked = []

    def world_of(kernel):
        world = World(kernel, profile=TDX_1_0)
        world.aug()
        watch(kernel, world.module)
        cell = septe_cell(world, GFN)
        results = {}

        def guest():
            result = yield from accept_steps(world)
            results["guest"] = "exit" if result.exit is not None else str(result.ret)

        def host():
            ret = yield from tdh_mem_range_block(world.module, td=world.td, gpa=GPA, level=PG_LEVEL_4K)
            results["host"] = str(ret)

        kernel.thread("guest", guest())
        kernel.thread("host", host())
        kernel.always("no host lock", lambda: not cell.v & (TDEL | TDHP))
        kernel.at_end("unlocked", lambda: cell.v & 1 << 8 == 0)
        kernel.at_end("seen", lambda: locked.append((results["guest"], results["host"])) is None)

    report = explore(world_of, strategy="dpor")

    assert report.findings == []
    assert report.exhausted
    assert set(locked) == {
        (OK, OK),
        ("exit", OK),
        (OK, "TDX_OPERAND_BUSY|RCX"),
        ("TDX_OPERAND_BUSY|RCX", OK),
    }


def test_a_pending_page_is_an_exit_when_ve_is_disabled_in_every_release():
    """SEPT_VE_DISABLE: the CPU of 1.0 does not convert, either; and the fault counts for the zero-step defence."""
    for profile in PROFILES.values():
        world = World(profile=profile, attributes=SEPT_VE_DISABLE)
        world.aug()
        told = run(world.kernel, private_ept_violation(world.module, world.td, world.vcpu(), GPA, 1, 7))
        assert isinstance(told, TdExit)
        assert world.vcpu().possibly_epf_stepping == 1


def test_the_tree_lock_of_2_0_remembers_who_lost():
    """Host priority stays after the holder has left, and goes with the next that gets it."""
    world = World(profile=TDX_2_0)
    tree = world.module.tdcs(world.td).sept_tree_lock
    assert isinstance(tree, SharexHp)

    step(world, tree.try_exclusive())
    assert str(world.on(tdh_mem_page_aug, pfn=Pfn(DATA))) == BUSY_TREE
    step(world, tree.release_exclusive())
    assert tree.v == HP
    assert world.on(tdh_mem_page_aug, pfn=Pfn(DATA)).ok
    assert tree.v == 0


# Sequences and races under every release.

CALLS = {
    "aug": lambda world, where, n: tdh_mem_page_aug(
        world.module, **where, pfn=Pfn(DATA + 512 * (n % 3) + n % 2 * (where["level"] == PG_LEVEL_4K))
    ),
    "block": lambda world, where, _n: tdh_mem_range_block(world.module, **where),
    "unblock": lambda world, where, _n: tdh_mem_range_unblock(world.module, **where),
    "remove": lambda world, where, _n: tdh_mem_page_remove(world.module, **where),
    "relocate": lambda world, where, n: tdh_mem_page_relocate(
        world.module, **where, pfn=Pfn(DATA + 2000 + n)
    ),
    "demote": lambda world, where, n: tdh_mem_page_demote(
        world.module, **where, pfn=Pfn(DATA + 2100 + n), lp=world.lps[0], pamt_pfn0=Pfn(0), pamt_pfn1=Pfn(0)
    ),
    "promote": lambda world, where, _n: tdh_mem_page_promote(world.module, **where, lp=world.lps[0]),
    "sept_remove": lambda world, where, _n: tdh_mem_sept_remove(world.module, **where),
    "track": lambda world, where, _n: tdh_mem_track(world.module, td=where["td"]),
    "accept": lambda world, where, _n: tdg_mem_page_accept(
        world.module, vcpu=world.vcpu(), interrupt_pending=lambda: False, **where
    ),
}
PLACES = [(GFN, PG_LEVEL_4K), (GFN, PG_LEVEL_2M), (BIG, PG_LEVEL_2M), (BIG, PG_LEVEL_2M), (BIG, PG_LEVEL_4K)]
EPISODES = [
    *((name,) for name in CALLS),
    ("aug", "accept"),
    ("block", "track", "unblock"),
    ("block", "track", "remove"),
    ("block", "track", "relocate"),
    ("block", "track", "demote"),
    ("block", "track", "promote"),
    ("block", "track", "sept_remove"),
    ("block", "track", "demote", "block", "track", "promote"),
]
"""What a host does in one go; each call of it may be refused all the same."""
SEQUENCES = st.lists(
    st.tuples(st.sampled_from(EPISODES), st.sampled_from(PLACES), st.integers(0, 5)), min_size=20, max_size=40
)


def live(profile, episodes, *, finalize):
    """Make the calls one after the other, whatever they return; after each episode the module's own rules hold."""
    world = big(profile, finalize=finalize, accepted=True, promote_step_children=512)
    world.aug(pfn=DATA + 1024)
    rules = {text: invariant(world.module) for text, invariant in INVARIANTS.items()}
    for names, (gfn, level), n in episodes:
        where = {"td": world.td, "gpa": gpa_of(gfn), "level": level}
        for name in names:
            run(world.kernel, CALLS[name](world, where, n))
        for text, holds in rules.items():
            assert holds() is True, (text, names, gfn, level)


@pytest.mark.parametrize("release", sorted(PROFILES))
@settings(derandomize=True, deadline=None, max_examples=12)
@given(episodes=SEQUENCES, finalize=st.booleans())
def test_any_sequence_keeps_the_invariants_of_every_release(release, episodes, finalize):
    """Legal or not, refused or not."""
    live(PROFILES[release], episodes, finalize=finalize)


@pytest.mark.parametrize("release", sorted(PROFILES))
def test_an_error_planted_in_the_module_is_noticed_in_every_release(release, monkeypatch):
    """A page that goes, and stays in the PAMT."""
    monkeypatch.setattr(PamtEntry, "free", lambda _entry: None)
    with pytest.raises(AssertionError, match="the pages it owns"):
        live(PROFILES[release], [(("block", "track", "remove"), (BIG, PG_LEVEL_2M), 0)], finalize=True)


@pytest.mark.parametrize("release", sorted(PROFILES))
def test_a_race_keeps_the_invariants_of_every_release(release):
    """A guest that accepts, a host that adds and one that blocks, tracks and removes: the watch finds nothing."""

    def world_of(kernel):
        world = World(kernel, profile=PROFILES[release])
        watch(kernel, world.module)
        where = {"td": world.td, "gpa": GPA, "level": PG_LEVEL_4K}

        def guest():
            yield from accept_steps(world)
            return (yield from world.leave())

        def vcpu():
            for _ in range(2):
                yield from world.enter(guest)

        def host(*names):
            for name in names:
                yield from CALLS[name](world, where, 0)

        kernel.thread("vcpu", vcpu())
        kernel.thread("adder", host("aug", "aug"))
        kernel.thread("remover", host("block", "track", "remove", "remove"))
        for text, invariant in INVARIANTS.items():
            kernel.at_end(text, invariant(world.module))

    report = explore(world_of, executions=120, seed=11)

    assert report.findings == []
    assert report.complete == 120
