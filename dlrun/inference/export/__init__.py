"""A trained model in formats that need no dlrun."""
