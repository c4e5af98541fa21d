"""Errors, files, locks, signals, text: what knows nothing of experiments."""
