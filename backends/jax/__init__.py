"""CRMA for JAX.

>>> import jax.numpy as jnp
>>> from backends.jax import CRMAAdapter
>>> from reference import AdapterConfig
>>> adapter = CRMAAdapter.init(AdapterConfig(hidden_size=64))
>>> adapter(jnp.zeros((2, 10, 64))).shape
(2, 10, 64)
"""

from backends.jax.adapter import CRMAAdapter, PreparedAdapter, adapter_forward
from backends.jax.residual_mixing import residual_mixing
from backends.jax.sinkhorn_projection import sinkhorn_projection
from backends.jax.strength import adapter_strength

__all__ = [
    "CRMAAdapter",
    "PreparedAdapter",
    "adapter_forward",
    "adapter_strength",
    "residual_mixing",
    "sinkhorn_projection",
]
