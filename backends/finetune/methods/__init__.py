"""Continual-learning methods to compare with, each as published, in a module of its own that the engines call."""
