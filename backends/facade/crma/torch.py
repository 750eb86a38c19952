"""CRMA for PyTorch: the names of ``backends.torch``."""

from backends.torch import *
from backends.torch import __all__ as __all__
