"""Predictions for what a user has at hand: tables, pictures, text, arrays."""
