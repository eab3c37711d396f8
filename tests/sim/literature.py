"""The programs on which partial-order reductions are compared, with their published numbers of Mazurkiewicz traces."""

from __future__ import annotations


def readers(n):
    """One writer and n readers of one word. Published: 2^n (POPL 2014)."""

    def world(k):
        x = k.cell("x", 0)

        def writer():
            yield x.write_once(1)

        def reader(i):
            local = k.cell(f"local{i}", 0)
            yield local.read_once()
            yield x.read_once()

        k.thread("w", writer())
        for i in range(n):
            k.thread(f"r{i}", reader(i))

    return world


def lastzero(n):
    """n threads a[j] = a[j-1] + 1, and one that looks for the last zero. Published: 5: 64, 10: 3328 (POPL 2014)."""

    def world(k):
        a = [k.cell(f"a{j}", 0) for j in range(n + 1)]

        def searcher():
            i = n
            while (yield a[i].read_once()) != 0:
                i -= 1

        def adder(j):
            value = yield a[j - 1].read_once()
            yield a[j].write_once(value + 1)

        k.thread("t0", searcher())
        for j in range(1, n + 1):
            k.thread(f"t{j}", adder(j))

    return world


def indexer(n):
    """n threads put 4 messages each into a hash table of 128. Published: 12: 8, 15: 4096 (Flanagan, Godefroid 2005)."""

    def world(k):
        table = [k.cell(f"table{h}", 0) for h in range(128)]

        def inserter(tid):
            for m in range(1, 5):
                w = m * 11 + tid
                h = (w * 7) % 128
                while (yield table[h].cmpxchg(0, w)) != 0:
                    h = (h + 1) % 128

        for tid in range(n):
            k.thread(f"t{tid}", inserter(tid))

    return world


def filesystem(n):
    """n threads allocate blocks for inodes under locks. Published: 14: 2, 16: 8, 19: 64 (Flanagan, Godefroid 2005)."""
    inodes, blocks = 32, 26

    def world(k):
        locki = [k.mutex(f"locki{i}") for i in range(inodes)]
        lockb = [k.mutex(f"lockb{b}") for b in range(blocks)]
        inode = [k.cell(f"inode{i}", 0) for i in range(inodes)]
        busy = [k.cell(f"busy{b}", False) for b in range(blocks)]

        def allocator(tid):
            i = tid % inodes
            yield locki[i].lock()
            if (yield inode[i].read_once()) == 0:
                b = (i * 2) % blocks
                while True:
                    yield lockb[b].lock()
                    if not (yield busy[b].read_once()):
                        yield busy[b].write_once(True)
                        yield inode[i].write_once(b + 1)
                        yield lockb[b].unlock()
                        break
                    yield lockb[b].unlock()
                    b = (b + 1) % blocks
            yield locki[i].unlock()

        for tid in range(n):
            k.thread(f"t{tid}", allocator(tid))

    return world


PUBLISHED = [
    *((readers, n, 2**n) for n in range(2, 9)),
    (lastzero, 5, 64),
    (indexer, 11, 1),
    (indexer, 12, 8),
    (indexer, 13, 64),
    (indexer, 14, 512),
    (filesystem, 13, 1),
    (filesystem, 14, 2),
    (filesystem, 16, 8),
    (filesystem, 19, 64),
]

PUBLISHED_LONG = [
    (readers, 13, 8192),
    (lastzero, 10, 3328),
    (indexer, 15, 4096),
]
