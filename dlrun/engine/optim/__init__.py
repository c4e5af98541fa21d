"""Optimizers, schedules and averages of weights beside those of torch."""
