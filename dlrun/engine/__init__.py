"""The loop: how a step is made and measured. Plain torch; config, terminal and files are unknown here."""
