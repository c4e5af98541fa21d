"""Comparison of the runs of a sweep: ranking, statistics, tables, verdicts, plots."""
