"""The pieces that such a script is put together from."""
