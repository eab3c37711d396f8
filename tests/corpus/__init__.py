"""The corpus: real races of the kernel, planted into the model, and how soon each strategy finds them.

`catalogue` says what there is: a plant (a patch file under tests/plants), the smallest scenario that can show it, the oracles
that ought to fire; entries whose part the model lacks, with the part; negative controls, which look racy and are right.
`search` runs one of them under one strategy, `scoreboard` makes tables of the results. `python -m tests.corpus` does it all.

Source: the entries R01 to R97 and N1 to N10 are those of the project's reference on races; each plant names its own.
"""
