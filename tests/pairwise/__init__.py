"""Pairs of leaves on one place: every interleaving, in every reachable state.

- `states`: what can be the case around one S-EPT entry and its parent.
- `world`: a module in such a state, built directly.
- `calls`: the leaves that are paired, one line each.
- `reach`: which states there are, by closing the initial ones under all calls.
- `search`: one pair in one state, exhausted by `sim.explore` with `dpor`.
- `matrix`: what reference 4.4 and the table of locks say of a pair.
- `quirks`: the rows of reference 14, each in a world of its own.
- `settings`: pairs where something else is the case too: L2 VMs (`settings_l2`), interrupts (`settings_interrupts`); `settings_page`.
- `explored`: worlds that are no pairs; `dpamt_settings`, `guest_settings` (with the programs of `guests`) and `life_settings` have them,
  `scenes` runs all of them.
- `page`: docs/seamcall-pairs.md.

`python -m tests.pairwise [--jobs N] [--only LEAF | --settings-only] [--write docs/seamcall-pairs.md]`.
"""
