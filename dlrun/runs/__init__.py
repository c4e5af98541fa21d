"""What a run leaves on disk, and how it is read and shown again. No model is asked here."""
