"""CRMA for JAX: the names of ``backends.jax``."""

from backends.jax import *
from backends.jax import __all__ as __all__
