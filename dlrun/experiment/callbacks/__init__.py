"""Callbacks of dlrun's own: they record, show and judge a training."""
