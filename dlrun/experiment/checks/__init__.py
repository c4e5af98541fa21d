"""The special checks: learning rate, gradients, exact resume."""
