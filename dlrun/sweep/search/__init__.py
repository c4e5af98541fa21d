"""A sweep whose points are proposed one after the other, by what the earlier ones gave: Optuna, asked and told."""
