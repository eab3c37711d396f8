"""The leaves of the module, one file each, named like the leaf.

Every leaf has one shape: locks and checks in Intel's order, the remark that all checks have passed, then the changes.
What a leaf returns besides its status, and which states it may act on, is in its docstring and in `sept_states`.
"""
