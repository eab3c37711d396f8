"""Stateful search: every reachable state of a world once, instead of every interleaving.

`laboratory` runs threads one step at a time, by hand; `position` says exactly where a generator stands; `automata` puts that
together into tables, learned as the search meets them, in which a thread is a small number and a step a look-up; `reduction`
says which threads a state need not be left by; `search` goes through the states; `judge` asks properties about them;
`witness` turns what was found into an execution.

A state is exact: the values of all words and the positions of all threads, no hash. What does not fit into tables (RCU, clocks,
random numbers, threads made on the fly, Python objects that threads share and change) is refused with one sentence, by `Misfit`.
"""

from sim.states.laboratory import Misfit

__all__ = ["Misfit"]
