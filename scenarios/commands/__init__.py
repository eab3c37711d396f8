"""One module a subcommand; each is imported when it is used, and only then."""
