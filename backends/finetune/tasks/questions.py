"""A panel of multiple-choice questions, for the inference toggle: the same adapters with and without CRMA.

Source: paper section 6.1.4 and Table 8 for the toggle. The paper's 100 questions, and how their answers were graded,
are not public: the questions and the rule of :func:`grade` are ours. ``panels`` counts the answers.

A count of right answers says little by itself: choosing the option with the largest share of words from the prompt gets
about 60 of 100 questions of the five domains right, since a definition repeats words of what it defines. What counts is
the difference between the two ways to answer the same questions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from backends.finetune.tasks.domains.deduplication import stable_hash
from backends.finetune.tasks.task import Example, Task
from reference.errors import ConfigError, NonFiniteError, ShapeError, TaskDataError

#: the wrong options are drawn from this many times their number: the responses nearest in length to the right one
NEAREST = 4


@dataclass(frozen=True)
class Question:
    """``options[answer]`` is the right one; each option is the whole text that would follow ``prompt``."""

    task: str
    prompt: str
    options: tuple[str, ...]
    answer: int

    @property
    def examples(self) -> tuple[Example, ...]:
        """The options as what an engine takes the loss of, in their order."""
        return tuple(Example(self.prompt, option) for option in self.options)


def draw_panel(tasks: Sequence[Task], per_task: int, options: int = 4, seed: int = 0) -> list[Question]:
    """Draw ``per_task`` questions from each task's holdout examples, task by task.

    The prompt is a holdout example's; the options are its response and ``options - 1`` others of the same task's
    holdout, all different, drawn from the ``NEAREST * (options - 1)`` that come nearest to it in length. No option is
    the response to another example with the same prompt, since it might be right as well. ``seed`` draws the
    questions, the options and their order; a panel with more questions per task starts, in each task, with the same.

    Raises:
        TaskDataError: a task has too few holdout examples, or too few different responses.
        ConfigError: ``per_task`` below 1, or ``options`` below 2.

    Clauses: ERR-1, ERR-2.
    """
    for field, value, least in (("per_task", per_task, 1), ("options", options, 2)):
        if value < least:
            raise ConfigError(field, got=value, allowed=f"{least} or more", remedy="raise it")
    return [question for task in tasks for question in _questions(task, per_task, options, seed)]


def grade(losses: Sequence[float]) -> int | None:
    """The option that a model chooses: that of the lowest loss.

    Where two or more share the lowest loss, none is chosen, and the question counts as answered wrongly: a model that
    cannot tell the options apart must get nothing for it.

    Args:
        losses: per option, the mean negative log-likelihood per token of the option (and of the end of the text, if
            the model was trained on it) given the prompt. Per token, so that a short option is not chosen for being
            short.

    Raises: ShapeError for no losses, NonFiniteError for NaN or infinity.
    """
    if not len(losses):
        raise ShapeError("losses", got="none", allowed="one per option", remedy="pass each option's loss")
    if not all(map(math.isfinite, losses)):
        raise NonFiniteError(
            "losses", got=str(list(losses)), allowed="finite numbers", remedy="look for the step at which it diverged"
        )
    lowest = min(losses)
    chosen = [index for index, loss in enumerate(losses) if loss == lowest]
    return chosen[0] if len(chosen) == 1 else None


def _questions(task: Task, per_task: int, options: int, seed: int) -> list[Question]:
    if len(task.holdout) < per_task:
        raise TaskDataError(
            f"holdout examples of {task.name}",
            got=len(task.holdout),
            allowed=f"at least {per_task}, one per question of the panel",
            remedy="hold out more examples, or ask fewer questions per task",
        )
    asked = sorted(task.holdout, key=lambda example: stable_hash("asked", seed, example.prompt, example.response))
    return [_question(task, example, options, seed) for example in asked[:per_task]]


def _question(task: Task, example: Example, options: int, seed: int) -> Question:
    also_right = {_words(other.response) for other in task.holdout if _words(other.prompt) == _words(example.prompt)}
    others = {_words(other.response): other.response for other in task.holdout}
    wrong = [response for words, response in others.items() if words not in also_right]
    if len(wrong) < options - 1:
        raise TaskDataError(
            f"holdout examples of {task.name}",
            got=f"{len(wrong)} responses that differ from the right one",
            allowed=f"at least {options - 1} wrong options per question",
            remedy="hold out more examples, or offer fewer options",
        )
    key = (seed, example.prompt, example.response)
    near = sorted(wrong, key=lambda text: (abs(len(text) - len(example.response)), stable_hash("near", *key, text)))
    drawn = sorted(near[: NEAREST * (options - 1)], key=lambda text: stable_hash("wrong", *key, text))
    offered = sorted([example.response, *drawn[: options - 1]], key=lambda text: stable_hash("order", *key, text))
    return Question(task.name, example.prompt, tuple(offered), offered.index(example.response))


def _words(text: str) -> str:
    return " ".join(text.split())
