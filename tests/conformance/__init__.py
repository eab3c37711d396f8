"""The module against the published tables, row by row: `make conformance [TABLE=path.csv]`, `python -m tests.conformance`.

How a row is tried. `table` reads it; `rows` takes every level that it covers, every op_state that leaves its other checks benign, and every way
to have its conditions (`vocabulary`, with the keys in `keys_td`, `keys_entry`, `keys_l2` and `keys_list`), and for each of these makes a
`situation`, builds a fresh module in it (`world`), makes the call by registers (`calling`, from what `calls` knows of the call), and
compares (`judge`, `effects`). A row agrees if all of its tries do. Rows of the table of locks: `locks`, `lock_worlds`.

What is understood is the vocabulary, never a row: each key is one function, and a table that nobody here has seen is read with the same
functions. A key or value without a function, or a state that cannot be written down, makes a row *not expressible*, with the reason; it
never makes it agree. Expectations are the table's; what the reference says beside the tables (bits, state numbers, leaf numbers, op_states)
is written down here once more, so that the model is not compared with itself.

Rows of our own (`tables/more_transitions.csv`, with the keys in `keys_more*`) say what the published table has no row for: calls on a TD as a
whole, on vCPUs, streams and pages, whose notes name what they change (`standing`), and variants of the others.

Where the tables come from: `tables/SOURCE.md`. Where they are wrong: `errata`.
"""
