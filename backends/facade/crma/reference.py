"""The reference in NumPy and float64: the names of ``reference``."""

from reference import *
from reference import __all__ as __all__
