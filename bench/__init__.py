"""Measurements: accuracy and speed of backends, protocols of fine-tuning runs and their results."""
