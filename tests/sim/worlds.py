"""Ten-line worlds that several tests share."""

from __future__ import annotations


def lost_update(k):
    """Two increments without a lock."""
    x = k.cell("x", 0)

    def increment():
        value = yield x.read_once()
        yield x.write_once(value + 1)

    k.thread("a", increment())
    k.thread("b", increment())
    k.at_end("both increments count", lambda: x.peek() == 2)


def bustle(k):
    """Right, and with a bit of everything: locks, time, RCU, signals, random numbers, SimPy."""
    lock, signal = k.rwlock("lock"), k.signal("signal")
    cells = [k.cell(f"x{i}", 0) for i in range(3)]
    lock.line_ns = 4

    def worker(index):
        stream = k.stream(f"worker {index}")
        for _ in range(4):
            k.spend(stream.below(20))
            yield lock.read_lock()
            yield cells[index].fetch_add(1)
            yield lock.read_unlock()
            if stream.below(3) == 0:
                yield lock.write_lock()
                value = yield cells[0].read()
                yield cells[0].write(value + 1)
                yield lock.write_unlock()
                k.rcu().call("note", lambda: k.count("callbacks"))
            yield signal.raise_()
        yield k.timeout(5)
        k.count("ended")

    def listener():
        while True:
            yield signal.wait(50)
            yield k.rcu().read_lock()
            yield cells[1].load_acquire()
            yield k.rcu().read_unlock()
            if (yield cells[2].read_once()) >= 4:
                return

    for index in range(3):
        k.thread(f"worker{index}", worker(index))
    k.thread("listener", listener())
    k.at_end("all workers ended", lambda: k.counters["ended"] == 3)
