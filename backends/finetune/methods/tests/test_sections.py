"""What every method says of itself, and the numbers that its section of a protocol refuses."""

import pytest
from pydantic import ValidationError

from backends.finetune.methods.conditions import KNOWN, METHODS, SECTIONS
from backends.finetune.methods.section import MemorySection


def test_every_method_is_whole():
    """Names, labels and marks are told apart, and a method with a memory has the numbers of one."""
    conditions = [condition for file in METHODS for condition in file.CONDITIONS]
    assert len({c.name for c in conditions}) == len({c.label for c in conditions}) == len({c.mark for c in conditions})
    assert set(KNOWN) == {condition.name for condition in conditions}
    assert all(issubclass(SECTIONS[c.name], MemorySection) for c in conditions if c.method.memory != "none")


@pytest.mark.parametrize(
    ("condition", "field", "value"),
    [
        ("replay", "memory_per_task", 0),
        ("a-gem", "batch_size", 0),
        ("ewc", "strength", -1.0),
        ("ewc", "strength", float("inf")),
        ("ewc", "examples", 0),
        ("lwf", "temperature", 0.0),
    ],
)
def test_what_a_method_cannot_compute_with_is_refused(condition, field, value):
    with pytest.raises(ValidationError, match=field):
        SECTIONS[condition](**{field: value})
