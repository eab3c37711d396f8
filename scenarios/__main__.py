"""`python -m scenarios` is `tdsim`."""

from scenarios.cli import main

if __name__ == "__main__":
    main()
