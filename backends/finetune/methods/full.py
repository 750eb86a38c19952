"""All parameters of the base model, trained in sequence. Source: ours, as a baseline."""

from backends.finetune.methods.method import Condition, Mark, Method
from backends.finetune.methods.section import Factor, Positive, Rate, Section


class FullSection(Section):
    """Training of all parameters of the base model. ``later_rate_factor`` scales the learning rate after the first
    task."""

    learning_rate: Rate = 5e-5
    later_rate_factor: Factor = 1.0
    clip: Positive = 1.0


class FullTraining(Method):
    section = FullSection


CONDITIONS = (Condition("full", "Full", Mark("#555555", (0, (1, 2)), "*"), trains="full", method=FullTraining),)
