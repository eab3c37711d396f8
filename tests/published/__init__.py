"""Published figures against the model's. Run with `-s` or `-rP` to read the tables."""
