"""From `--data` to usable rows: finds, reads, checks, splits and caches the data."""
