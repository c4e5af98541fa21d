"""State that a checkpoint does not carry and a resumed run would lack."""
