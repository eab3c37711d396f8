"""Campaigns: many executions of one world, cut into shares, done here or by worker processes, merged by share.

A `Case` is all that an execution depends on, as plain data: it goes to workers, into findings and onto other machines.
A share is a fixed number of executions with its own seed and its own strategy, so that what is found does not depend on
how many workers there were, which of them was faster, or which was killed. Exhaustive strategies have one share,
because their tree is one; that of `dpor` is cut into parts, which are shares.

    Case --shares--> run_share (here, or in worker via supervisor) --by index--> result.merge

`hunt` is the whole of it, `result` what it came to, `folder` its files. trio is used in `supervisor` only.
Left out: how a finding is shown (`scenarios.columns`) and made smaller (`scenarios.shrink`).
"""
