"""NAIVE: one LoRA goes on training through all tasks. Source: paper section 6.1."""

from backends.finetune.methods.method import Condition, Mark

CONDITIONS = (Condition("naive", "NAIVE", Mark("#D55E00", "-.", "o"), trains="shared"),)
