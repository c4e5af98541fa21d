"""What is looked at before the first step."""
