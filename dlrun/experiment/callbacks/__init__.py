"""What watches a training and records it."""
