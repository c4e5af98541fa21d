"""What a sweep shows: ranking, statistics, tables, verdicts, plots."""
