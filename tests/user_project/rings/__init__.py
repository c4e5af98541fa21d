"""Data, a loss, a metric, a callback and a logger for dlrun."""
