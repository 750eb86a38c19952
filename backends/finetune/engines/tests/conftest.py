"""Which tests of the contract are slow: a command of two processes takes ten to twenty seconds."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        starts_one = "[torchrun" in item.name and "run" in getattr(item, "fixturenames", ())
        if item.path.name == "test_contract.py" and starts_one:
            item.add_marker(pytest.mark.slow)
