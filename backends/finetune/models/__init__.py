"""Base models: finding, reading and checking them, and the paper's with random weights."""
