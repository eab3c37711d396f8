"""Side by side with SPIN and Harmony: the same protocols, the same rows, whole processes.

The models (`*.pml`, `*.hny`) and the scripts that run and time them are here with their own README; `tests.bench.protocols` has
the same worlds written on `sim`; `python -m tests.bench.peers` runs all of them and prints one table.
"""
