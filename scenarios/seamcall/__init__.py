"""`tdsim seamcall`: the TDX module by hand, one call after the other, to see what an S-EPT entry goes through.

What it is. A module with a TD, logical processors and free pages, all with names (`world`); one line of text is one call of the
host, one instruction of a guest, or a question (`language`, `session`). A call is made register by register, through
`tdx.module.dispatch`, so that nonsense gets the module's own status; only what no register can hold (a name that nobody has, a
number that is none) is refused here, before anything happens. A call may be stopped between two of its accesses, and another
one made meanwhile (`running`): that is how BUSY and host priority are seen. What is printed is in `show`; it compares the whole
observable state before and after (`observe`), so "nothing changed" is looked at, not believed.

Which leaves there are, and what they take, comes from the module's own tables (`catalogue`): no leaf is known here by name
except for the defaults of its operands.

Lines come from a terminal (`repl`) or from a YAML file (`script`; the textbook is `library/`).

What it is not. Nothing here has a price in time, nobody is scheduled, no search is made: for those, `tdsim run` and `tdsim hunt`.
"""
