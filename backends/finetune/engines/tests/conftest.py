"""Which tests of the contract are slow: a command of two processes takes ten to twenty seconds."""

import pytest

QUICK = "test_interrupted_in_a_step_and_resumed_gives_the_same_bits[torchrun-modular-20]"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        is_command = "[torchrun" in item.name and "run" in getattr(item, "fixturenames", ())
        if item.path.name == "test_contract.py" and is_command and item.name != QUICK:
            item.add_marker(pytest.mark.slow)
