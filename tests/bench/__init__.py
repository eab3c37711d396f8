"""The speed table of DESIGN.md section 10: `make bench` prints it, nothing asserts it."""
