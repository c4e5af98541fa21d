"""What knows nothing of experiments: errors, files, locks, signals, text, units."""
