"""`pct`, `pos`, `surw`, `portfolio`: each keeps what it promises.

All draws are seeded, so a test that passes once passes always. The margins are four standard deviations of what is counted:
a right strategy passes with nearly any seed.
"""

from __future__ import annotations

from collections import Counter
from math import comb, sqrt

import pytest

from sim import INFINITY, Kernel, explore
from sim.dependence import UPDATE, WRITE, conflict
from sim.strategies import pct, strategy
from sim.strategies.pos import Footprint, Pos, _Footprints
from sim.strategies.words import LEARNING, LEARNING_EVERY, Words, is_walk


def run(plan, world, executions, seed=0):
    """The kernels of so many executions of a strategy, each once it has ended."""
    for execution in range(executions):
        k = Kernel(seed, window_ns=INFINITY, max_steps=2000)
        assert plan.begin(k, execution)
        world(k)
        k.execute(plan.pick)
        plan.end(k)
        yield k


def drawn(plan, world, executions):
    """The same without the random walks of `pct` and `surw`."""
    return [k for i, k in enumerate(run(plan, world, executions)) if not is_walk(i)]


def expected(times, chance):
    """How often something of this chance happens, give or take."""
    return pytest.approx(times * chance, abs=4 * sqrt(times * chance * (1 - chance)))


def at_least(times, chance):
    """How often something of at least this chance happens, if not for bad luck."""
    return times * chance - 4 * sqrt(times * chance * (1 - chance))


def picks_of(kernels):
    """The schedules, by thread name."""
    return [tuple(thread.name for thread in k.picks) for k in kernels]


def ladder(k, steps, *, order, private=0):
    """Threads `a` (so many writes) and `b` (the rest of `order`) write one word; a bug if they do so in this order.

    Each makes `private` accesses to a word of its own before every one to the common word.
    """
    word, done = k.cell("word", 0), []

    def writer(name, times):
        own = k.cell(f"own {name}", 0)
        for _ in range(times):
            for _ in range(private):
                yield own.fetch_add(1)
            yield word.fetch_add(1)
            done.append(name)

    k.thread("a", writer("a", steps))
    k.thread("b", writer("b", len(order) - steps))
    k.at_end("another order", lambda: "".join(done) != order)


# pct


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_pct_1_finds_a_bug_of_depth_1_in_one_of_n_executions(threads):
    """Who must be first, is first: no change point is needed, and the bound 1/n is exact."""

    def world(k):
        word, done = k.cell("word", 0), []

        def writer(name):
            for _ in range(3):
                yield word.fetch_add(1)
                done.append(name)

        for i in range(threads):
            k.thread(f"t{i}", writer(i))
        k.at_end("the last thread is not first", lambda: done[0] != threads - 1)

    kernels = drawn(strategy("pct:1", 1), world, 1500)
    assert sum(bool(k.findings) for k in kernels) == expected(len(kernels), 1 / threads)


@pytest.mark.parametrize(
    ("depth", "order", "chance"),
    [
        # b waits until a has made some steps, and is through before a goes on: b is below a, a change point hits one of k.
        (2, "aaabaaa", 1 / 2 / 7),
        (2, "aaaabbaa", 1 / 2 / 8),
        # And b stops half-way: the next change point hits b, and its priority is the lower one.
        (3, "aabab", 1 / 2 / 5 / 4),
        (3, "aaabab", 1 / 2 / 6 / 5),
    ],
)
def test_pct_d_finds_a_bug_of_depth_d_as_often_as_it_says_and_pct_less_never(depth, order, chance):
    """The chance is that of the one choice of priorities and change points that does it; the bound is below it."""
    steps = order.count("a")
    plan = strategy(f"pct:{depth}", 1)

    def world(k):
        ladder(k, steps, order=order, private=2)

    kernels = drawn(plan, world, 2000)
    hits = sum(bool(k.findings) for k in kernels)
    (bound,) = plan.bounds()
    floor = 1 / (bound.threads * bound.steps ** (depth - 1))
    assert (bound.threads, bound.steps) == (2, len(order))
    assert hits == expected(len(kernels), chance)
    assert hits >= at_least(len(kernels), floor)
    assert floor <= chance
    assert not any(k.findings for k in drawn(strategy(f"pct:{depth - 1}", 1), world, 300))


def test_pct_counts_only_steps_on_words_that_threads_share():
    """Ten private steps before every shared one change nothing: k is what matters, and so the hits."""
    order = "aabaa"
    for private in (0, 10):
        plan = strategy("pct:2", 3)
        kernels = drawn(plan, lambda k, p=private: ladder(k, 4, order=order, private=p), 1000)
        assert plan.shared_max == len(order)
        assert sum(bool(k.findings) for k in kernels) == expected(len(kernels), 1 / 2 / len(order))


def test_pct_claims_what_its_executions_guarantee():
    """With n, k and the chance to have missed a bug; of 101 executions four were random walks, which do not count."""
    executions, order = 101, "aaabaaa"
    report = explore(lambda k: ladder(k, 6, order=order[::-1] + "b"), strategy="pct:2", executions=executions)
    clean = explore(lambda k: ladder(k, 6, order="x" * 7), strategy="pct:2", executions=executions)
    missed = (1 - 1 / (2 * 7)) ** (executions - 4)

    assert report.verdict == clean.verdict == "none found"
    assert (
        f"pct:2: a bug of depth 2 (n = 2 threads, k = 7 steps) was missed with probability at most {missed:.3g}; "
        f"each execution hits it with at least {1 / 14:.2g}"
    ) in clean.claim


def spinner(k, *, writes, locks=False):
    """One thread waits for a flag by looking at it, another sets it after some steps.

    The one that waits also counts, if it `writes`, or marks a word while it looks and takes the mark away, if it `locks`.
    """
    flag, tries, word = k.cell("flag", False), k.cell("tries", 0), k.cell("word", 0)

    def waits():
        while not (yield flag.read_once()):
            if writes:
                yield tries.fetch_add(1)
            if locks:
                yield tries.update(lambda word: word | 1, "mark")
                yield tries.update(lambda word: word & ~1, "unmark")

    def sets():
        for _ in range(10):
            yield word.fetch_add(1)
        yield flag.write_once(True)

    k.thread("waits", waits())
    k.thread("sets", sets())


@pytest.mark.parametrize("writes", [False, True])
def test_a_spinning_thread_does_not_keep_the_highest_priority(writes):
    """It falls when it changes nothing; if it does change something, the walk begins once the execution is too long."""
    plan = strategy("pct:1", 2)
    kernels = list(run(plan, lambda k: spinner(k, writes=writes), 300))

    assert not any(k.exhausted for k in kernels)
    assert max(k.steps for k in kernels) < 200
    spun = sum(thread.name == "waits" for k in kernels[1:] for thread in k.picks[1:3]) / 2
    assert spun > 100  # it did have the highest priority often
    assert sum(plan.covered.values()) < 200  # and the guarantee does not speak of those executions


@pytest.mark.parametrize("locks", [False, True])
def test_a_spinning_thread_falls_at_once_if_it_changes_nothing(locks):
    """Not after k steps, which may be many; a word that is again what it was has not changed."""
    plan = strategy("pct:1", 2)
    next(run(plan, lambda k: spinner(k, writes=False, locks=locks), 1))
    plan.shared_max = plan.words.steps_limit = 10**6
    kernels = []
    for execution in range(1, 32):
        k = Kernel(window_ns=INFINITY, max_steps=2000)
        plan.begin(k, execution)
        spinner(k, writes=False, locks=locks)
        k.execute(plan.pick)
        kernels.append(k)

    assert max(k.steps for k in kernels) <= 14 + (4 if locks else 2) * pct.SPIN_STEPS


def test_pct_does_not_take_a_long_walk_over_many_words_for_spinning():
    """Reading ever new words, or writing any, is getting on."""

    def world(k):
        cells = [k.cell(f"x{i}", 0) for i in range(60)]

        def reader():
            for cell in cells:
                yield cell.read_once()

        def writer():
            for _ in range(60):
                yield cells[0].fetch_add(1)

        k.thread("reader", reader())
        k.thread("writer", writer())

    plan = strategy("pct:1", 0)
    orders = {"".join(thread.name[0] for thread in k.picks) for k in drawn(plan, world, 50)}
    assert orders == {"r" * 61 + "w" * 61, "w" * 61 + "r" * 61}


# pos


def loses_again(plan, executions):
    """Of the executions in which a thread's write loses to the first of two writes, the part in which it loses to both."""

    def world(k):
        word, done = k.cell("word", 0), []
        k.done = done

        def writer(name, times):
            for _ in range(times):
                yield word.write_once(name)
                done.append(name)

        k.thread("twice", writer("t", 2))
        k.thread("once", writer("o", 1))

    # Only where both had started before anything was written: who has not started races with nobody.
    orders = Counter("".join(k.done) for k in run(plan, world, executions) if k.picks[0] is not k.picks[1])
    return orders["tto"], orders["tot"] + orders["tto"]


def test_pos_draws_anew_what_has_just_lost_a_race():
    """Having lost, it loses the next one as often as not; without the redraw, clearly more often."""

    class WithoutRedraw(_Footprints):
        def __missing__(self, touches):
            return Footprint(0, 0)

    basic = Pos(1)
    basic._footprints = WithoutRedraw()
    again, lost = loses_again(Pos(1), 4000)
    again_basic, lost_basic = loses_again(basic, 4000)

    assert again == expected(lost, 1 / 2)
    assert again_basic > lost_basic / 2 + 4 * sqrt(lost_basic) / 2


def test_pos_finds_the_order_that_needs_a_short_thread_to_wait_for_a_long_one():
    """A walk needs 15 coins to fall alike; to pos the steps that race with nothing are free."""

    def world(k):
        word = k.cell("word", 0)

        def long():
            for i in range(15):
                yield k.cell(f"own {i}", 0).write_once(1)
            yield word.write_once(1)

        def short():
            yield word.write_once(2)

        k.thread("long", long())
        k.thread("short", short())
        k.at_end("the long one is last", lambda: word.peek() == 1)

    by_pos = explore(world, strategy="pos", executions=2000).failed
    by_walk = explore(world, strategy="random", executions=2000).failed
    assert by_pos >= at_least(2000, 1 / 17)  # the lowest of 17 priorities, at least
    assert by_walk < by_pos / 20


def test_footprints_say_what_dependence_says():
    """For all pairs of touches, everything and nothing among them."""
    prints = _Footprints()
    modes = [0, UPDATE, WRITE]
    single = [((key, mode),) for key in ("x", "y", "*") for mode in modes if key != "*" or mode == WRITE]
    double = [(("x", one), ("y", other)) for one in modes for other in modes]

    for one in [(), *single, *double]:
        for other in [(), *single, *double]:
            assert bool(prints[one].does & prints[other].minds) == conflict(one, other), (one, other)


# surw


def focus_world(first, second):
    """Two threads with so many writes of one word, and as many steps elsewhere as it takes to mislead a walk."""

    def world(k):
        word, done = k.cell("word", 0), []
        k.done = done

        def writer(name, times, before):
            own = k.cell(f"own {name}", 0)
            for _ in range(times):
                for _ in range(before):
                    yield own.fetch_add(1)
                yield word.fetch_add(1)
                done.append(name)

        k.thread("a", writer("a", first, 4))
        k.thread("b", writer("b", second, 0))

    return world


def chi_square(orders, classes):
    """Pearson's statistic against equal chances."""
    fair = orders.total() / classes
    return sum((times - fair) ** 2 / fair for times in orders.values()) + (classes - len(orders)) * fair


def test_surw_makes_all_orders_of_the_focus_equally_likely():
    """Of 2 and 3 accesses, 10 orders: chi-square with 9 degrees of freedom is below 27.9 in 999 of 1000 cases."""
    classes = comb(5, 2)
    orders, walked = (
        Counter("".join(k.done) for k in drawn(strategy(name, 1), focus_world(2, 3), 1500))
        for name in ("surw:word", "random")
    )

    assert len(orders) == classes
    assert chi_square(orders, classes) < 27.9
    assert chi_square(walked, classes) > 10 * 27.9


def test_surw_finds_the_word_that_is_shared_by_itself():
    """Words of one thread, and words that are only read, are no focus."""

    def world(k):
        focus_world(2, 2)(k)
        constant = k.cell("constant", 0)

        def reader():
            yield constant.read_once()

        k.thread("c", reader())
        k.thread("d", reader())

    plan = strategy("surw", 1)
    assert [plan.focus for _ in run(plan, world, 20)] == ["", *["word"] * 19]


def test_surw_takes_every_shared_word_in_turn():
    """Drawn anew for every execution."""

    def world(k):
        words = [k.cell(name, 0) for name in "xyz"]

        def writer():
            for word in words:
                yield word.fetch_add(1)

        k.thread("a", writer())
        k.thread("b", writer())

    plan = strategy("surw", 0)
    foci = Counter(plan.focus for _ in run(plan, world, 301))
    assert sorted(foci) == ["", "x", "y", "z"]
    assert all(foci[word] == expected(300, 1 / 3) for word in "xyz")


@pytest.mark.parametrize("focus", ["word", "flag"])
def test_surw_does_not_wait_for_ever_for_a_thread_that_polls(focus):
    """Whoever is intended may poll for what the thread that waits for it is about to do."""

    def world(k):
        word, flag = k.cell("word", 0), k.cell("flag", False)

        def polls():
            while not (yield flag.read_once()):
                pass
            yield word.fetch_add(1)

        def works():
            yield word.fetch_add(1)
            yield flag.write_once(True)

        k.thread("polls", polls())
        k.thread("works", works())

    kernels = list(run(strategy(f"surw:{focus}", 0), world, 300))
    assert not any(k.exhausted for k in kernels)
    assert max(k.steps for k in kernels) < 100


def test_surw_never_starves_who_has_more_to_do_than_was_expected():
    """The first executions are short; in later ones `a` makes ten times the accesses, and soon `b` may come late as well."""
    lengths = iter([1] * 20 + [10] * 300)

    def world(k):
        focus_world(next(lengths), 1)(k)

    plan = strategy("surw:word", 0)
    kernels = list(run(plan, world, 320))
    places = Counter(k.done.index("b") for k in kernels[20:])

    assert all(len(k.done) == 11 for k in kernels[20:])
    assert places[0] > 0
    assert max(places) > 7


def test_surw_draws_again_when_the_intended_thread_is_blocked():
    """Whoever is intended may stand in line for the lock that others hold while they wait for the focus."""

    def world(k):
        lock, word = k.mutex("lock"), k.cell("word", 0)

        def worker():
            for _ in range(3):
                yield lock.lock()
                yield word.fetch_add(1)
                yield lock.unlock()

        for name in "abc":
            k.thread(name, worker())

    plan = strategy("surw:word", 0)
    stuck = 0

    def watched(k, candidates):
        nonlocal stuck
        intended = plan._intended
        stuck += intended is not None and intended.blocked_on is not None and len(candidates) == 1
        return plan.pick(k, candidates)

    orders = set()
    for execution in range(200):
        k = Kernel(window_ns=INFINITY)
        plan.begin(k, execution)
        world(k)
        k.execute(watched)
        plan.end(k)
        assert not k.findings
        orders.add(
            tuple(
                t.name for t, access in zip(k.picks, k.accesses, strict=True) if str(access.target) == "word"
            )
        )
    assert stuck > 100
    assert len(orders) > 20


def test_surw_says_when_its_focus_was_never_met():
    """With the words there are."""
    report = explore(focus_world(1, 1), strategy="surw:wrod", executions=5)

    assert report.claim.endswith("surw: no access met 'wrod', so this was a random walk; threads share word")


# what they learn


def test_words_are_shared_if_two_threads_touch_and_one_changes_them():
    """Cells, locks and RCU domains alike; and who resumes does not touch the lock again."""

    def world(k):
        lock, x, constant = k.mutex("lock"), k.cell("x", 0), k.cell("constant", 0)
        rcu = k.srcu("srcu")

        def worker(name):
            yield lock.lock()
            yield x.fetch_add(1)
            yield lock.unlock()
            yield rcu.read_lock()
            yield constant.read_once()
            yield rcu.read_unlock()
            yield k.cell(f"own {name}", 0).write_once(1)

        k.thread("a", worker("a"))
        k.thread("b", worker("b"))

    words = Words()
    for execution, k in enumerate(run(strategy("random", 0), world, 4)):
        words.learn(k, execution)

    assert words.shared == {"lock", "x", "srcu"}
    assert words.counts["lock"] == {"a": 8, "b": 8}
    assert words.executions == 4


def test_words_are_learnt_at_first_from_all_and_then_from_some():
    """Every eighth, say: learning has its price."""
    words = Words()
    k = Kernel()
    for execution in range(LEARNING + 2 * LEARNING_EVERY):
        words.learn(k, execution)

    assert words.executions == LEARNING + 2


# portfolio


def test_the_portfolio_makes_the_executions_that_its_members_would_make_alone():
    """In turn, each with its own count of executions."""
    world = focus_world(3, 4)
    together = picks_of(run(strategy("portfolio", 7), world, 24))

    for i, member in enumerate(("random", "pos", "surw", "pct:2", "pct:3", "pct:5")):
        assert together[i::6] == picks_of(run(strategy(member, 7), world, 4)), member


def test_the_portfolio_tells_which_member_hit():
    """By name; the hits add up to the executions that failed."""
    report = explore(lambda k: ladder(k, 6, order="aaabaaa"), strategy="portfolio", executions=600)

    assert sum(report.hits.values()) == report.failed > 0
    assert set(report.hits) <= {"random", "pos", "surw", "pct:2", "pct:3", "pct:5"}
    assert report.hits["pct:2"] == expected(100, 1 / 14)


def test_the_portfolio_claims_for_its_members():
    """The guarantees of the three pct, each from its own executions."""
    report = explore(lambda k: ladder(k, 6, order="x" * 7), strategy="portfolio", executions=60)

    assert [bound.depth for bound in report.bounds] == [2, 3, 5]
    assert all(f"pct:{depth}: a bug of depth {depth}" in report.claim for depth in (2, 3, 5))
    assert "surw: uniform over the orders" in report.claim
