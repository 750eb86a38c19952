"""CRMAAdapter: one layer, or a stack of layers, as a pytree of its parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from backends.jax.dtypes import floats
from backends.jax.kernels import Kernels
from backends.jax.residual_mixing import residual_mixing
from backends.jax.sinkhorn_projection import sinkhorn_projection
from backends.jax.strength import adapter_strength
from reference.adapter import AdapterConfig, AdapterParameters
from reference.dtypes import refused_dtype
from reference.errors import ShapeError
from reference.initialization import GATE_LOGIT, init_parameters


def adapter_forward(
    x: Array, mix_logits: Array, gate_logit: Array, basis: Array, iterations: int = 20, kernels: Kernels = "auto"
) -> Array:
    """``y = x + alpha sum_i A_i^T (sum_j M_ij z_j - z_i)`` with ``||y|| <= ||x||``.

    Args:
        x: (..., d), floats of 16 bits or more. mix_logits: S (n, n). gate_logit: gamma, one value. basis: A (n, r, d).
        iterations: K. kernels: as in :func:`backends.jax.sinkhorn_projection`.

    Returns:
        y, shape and dtype of x. Parameters that are not finite, and A = 0, give NaN.

    Raises: DtypeError, ShapeError, ConfigError, DeviceUnavailableError. Clauses: MIX-1..MIX-11, GRAD-4..GRAD-8.
    """
    mixing = sinkhorn_projection(mix_logits, iterations, kernels)
    return residual_mixing(x, mixing, adapter_strength(gate_logit, basis), basis, kernels)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PreparedAdapter:
    """M, alpha and A of one layer, or of a stack: the projection is done, what is left is two thin products a token.

    mixing (..., n, n), strength (...), basis (..., n, r, d). Clauses: MIX-2.
    """

    mixing: Array
    strength: Array
    basis: Array
    kernels: Kernels = field(default="auto", metadata={"static": True})

    def __call__(self, x: Array) -> Array:
        return residual_mixing(x, self.mixing, self.strength, self.basis, self.kernels)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CRMAAdapter:
    """The parameters of one layer, mix_logits (n, n), gate_logit (), basis (n, r, d), and K, which is no leaf.

    Nor is ``kernels``, "auto", "jax" or "pallas" as in :func:`backends.jax.sinkhorn_projection`; another choice is
    made with ``dataclasses.replace(adapter, kernels="pallas")``.

    A stack of L layers is the same class with a first axis of length L in every leaf: ``jax.lax.scan`` and
    ``jax.vmap`` take it apart. ``prepared()`` projects all layers at once, which is cheaper than to call ``sinkhorn``
    once per step of a scan:

    >>> import jax, jax.numpy as jnp
    >>> from backends.jax import CRMAAdapter
    >>> stack = CRMAAdapter.init(AdapterConfig(hidden_size=64), seed=0, layers=3)
    >>> x = jnp.ones((2, 10, 64))
    >>> y, _ = jax.lax.scan(lambda x, layer: (layer(x), None), x, stack.prepared())
    >>> y.shape
    (2, 10, 64)

    Clauses: MIX-1..MIX-11, INIT-1..INIT-4. Source: ours; paper sections 3.1-3.4.
    """

    mix_logits: Array
    gate_logit: Array
    basis: Array
    iterations: int = field(default=20, metadata={"static": True})
    kernels: Kernels = field(default="auto", metadata={"static": True})

    @classmethod
    def init(
        cls,
        config: AdapterConfig,
        seed: int = 0,
        layers: int | None = None,
        *,
        writers: Any = None,
        skip_directions: int = 0,
        gate_logit: float = GATE_LOGIT,
    ) -> CRMAAdapter:
        """Start values in float32, of one layer or of a stack of ``layers``; layer l of a stack draws from (seed, l).

        ``writers`` (layers, d, m): for a stack, the matrix of each block that writes last into the residual stream; the
        basis is then of its principal directions. A stack has the values that ``attach_crma`` gives in PyTorch.
        """
        draw = partial(init_parameters, config, skip_directions=skip_directions, gate_logit=gate_logit)
        if layers is None:
            return cls.from_parameters(draw(seed), config.iterations)
        each = [
            draw(np.random.default_rng([seed, layer]), writer=None if writers is None else writers[layer])
            for layer in range(layers)
        ]
        return cls.from_parameters(AdapterParameters(*map(np.stack, zip(*each, strict=True))), config.iterations)

    @classmethod
    def from_parameters(cls, parameters: AdapterParameters, iterations: int = 20) -> CRMAAdapter:
        """From arrays of any kind, such as those of :func:`reference.init_parameters`. Raises: DtypeError."""
        named = floats(**dict(zip(AdapterParameters._fields, parameters, strict=True)))
        mix_logits, gate_logit, basis = (jnp.array(value, jnp.float32) for value in named)
        return cls(mix_logits, gate_logit, basis, iterations)

    def prepared(self) -> PreparedAdapter:
        """M and alpha of all layers, in one projection."""
        mixing = sinkhorn_projection(self.mix_logits, self.iterations, self.kernels)
        return PreparedAdapter(mixing, adapter_strength(self.gate_logit, self.basis), self.basis, self.kernels)

    def __call__(self, x: Array) -> Array:
        """(..., d) -> (..., d), for one layer. Raises: DtypeError; ShapeError, for a stack too."""
        if isinstance(x, CRMAAdapter):  # optax calls a tree of labels that can be called
            raise refused_dtype("x", "CRMAAdapter", remedy="give optax a function of labels: lambda _: labels")
        if jnp.ndim(self.basis) != 3:
            raise ShapeError(
                "basis",
                got=jnp.shape(self.basis),
                allowed="(n, r, d), one layer",
                remedy="take a stack apart with jax.lax.scan or jax.vmap",
            )
        return self.prepared()(x)
