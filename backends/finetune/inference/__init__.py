"""Inference with what a run has trained: a registry of task adapters on one base model, and a router to them."""
