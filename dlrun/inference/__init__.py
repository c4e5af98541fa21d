"""What a trained model is used for: open it, evaluate it, predict, export, from the terminal and from Python."""
