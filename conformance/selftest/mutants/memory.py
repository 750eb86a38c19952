"""Faults of memory: inputs changed, results and caches that outlive their call, strides ignored."""

from functools import partial
from typing import Any

import numpy as np

from backends.interface import Gradients
from conformance.selftest.mutants.around import COTANGENT, FORWARD, VJP, Around, Returns
from conformance.selftest.mutants.base import ADAPTER, ORTHOGONAL, PROJECTION, STATE_FILE, Mutant
from conformance.selftest.mutants.sharing import OneBuffer
from conformance.selftest.port import Array, NumpyPort


class ChangesLogits(NumpyPort):
    """Shifts the caller's logits in place."""

    def checked_logits(self, mix_logits: Array) -> Array:
        logits = super().checked_logits(mix_logits)
        if logits.size:
            logits -= logits.max()
        return logits


def written_over_x(y: Array, x: Array, *_: Any) -> Array:
    if x.flags.writeable:
        x[...] = y
    return y


def accumulated_in_the_cotangent(gradients: Gradients, *given: Any) -> Gradients:
    if given[COTANGENT].flags.writeable:
        given[COTANGENT][...] = gradients.x
    return gradients


class CacheByIdentity(NumpyPort):
    """M is kept for as long as the logits are the same array, though an optimizer changes them in place."""

    cached: tuple[Any, int, Array] | None = None

    def sinkhorn_projection(self, mix_logits: Array, iterations: int) -> Array:
        if self.cached is None or self.cached[0] is not mix_logits or self.cached[1] != iterations:
            self.cached = mix_logits, iterations, super().sinkhorn_projection(mix_logits, iterations)
        return self.cached[2].copy()


class KappaCachedByIdentity(NumpyPort):
    """The same with kappa, for as long as the basis lies where it lay."""

    cached: tuple[Array, Any] | None = None

    def squared_norm_bound(self, basis: Array) -> tuple[Any, Array]:
        if self.cached is None or not np.shares_memory(self.cached[0], basis):
            self.cached = basis, super().squared_norm_bound(basis)
        return self.cached[1]


class CacheByShape(NumpyPort):
    """What was compiled for a shape has its first K in it."""

    def __init__(self) -> None:
        super().__init__()
        self.compiled: dict[tuple[int, ...], int] = {}

    def sinkhorn(self, logits: Array, iterations: int) -> tuple[list[Array], Array]:
        return super().sinkhorn(logits, self.compiled.setdefault(logits.shape, iterations))


class GradientAtTheLastForward(Around):
    """The backward pass takes the logits of the last forward pass of these sizes, whatever it is given itself."""

    def call(self, function: str, *arguments: Any) -> Any:
        x, logits, *others = arguments
        if function in FORWARD:
            self.kept[logits.shape] = logits.copy()
        return super().call(function, x, self.kept.get(logits.shape, logits), *others)


class GradientsAccumulate(NumpyPort):
    """Gradients are added to those of the call before, if that had the same shapes: nobody sets them to zero."""

    held: Gradients | None = None

    def adapter_vjp(self, *inputs: Any) -> Gradients:
        gradients = super().adapter_vjp(*inputs)
        if self.held and [a.shape for a in self.held] == [a.shape for a in gradients]:
            parts = [old + new for old, new in zip(self.held[1:], gradients[1:], strict=True)]
            gradients = Gradients(gradients.x, *parts)
        self.held = gradients
        return gradients


class StaleWorkspace(NumpyPort):
    """One buffer for the largest batch so far; what a smaller one leaves in it of the one before is summed as well."""

    held: tuple[Array, ...] = ()

    def basis_terms(self, moved: Array, upstream: Array, moved_back: Array, tokens: Array) -> tuple[Array, Array]:
        arrays = moved, upstream, moved_back, tokens
        fits = [old.shape[1:] for old in self.held] == [new.shape[1:] for new in arrays]
        if not fits or len(self.held[0]) <= len(tokens):
            self.held = arrays
        else:
            self.held = tuple(np.concatenate([a, b[len(a) :]]) for a, b in zip(arrays, self.held, strict=True))
        return super().basis_terms(*self.held)


class LastBitsByChance(NumpyPort):
    """The order of a sum over tokens, streams or ranks changes from call to call, as atomic additions have it."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)

    def adapter_vjp(self, *inputs: Any) -> Gradients:
        gradients = super().adapter_vjp(*inputs)
        noise = self.rng.integers(-4, 5, gradients.basis.shape) * np.finfo(self.parameter_dtype).eps
        return gradients._replace(basis=(gradients.basis * (1 + noise)).astype(self.parameter_dtype))


class ReadsMemoryInOrder(NumpyPort):
    """The numbers of an input are taken as they lie in memory, from the first one on, whatever its strides say."""

    def __init__(self, of_the_tokens: bool) -> None:
        super().__init__()
        self.of_the_tokens = of_the_tokens

    def checked_logits(self, mix_logits: Array) -> Array:
        return super().checked_logits(mix_logits if self.of_the_tokens else self._as_it_lies(mix_logits))

    def checked_inputs(self, x: Array, logits: Array, gate_logit: Array, basis: Array) -> tuple[Array, Array, Array]:
        return super().checked_inputs(self._as_it_lies(x) if self.of_the_tokens else x, logits, gate_logit, basis)

    def _as_it_lies(self, array: Array) -> Array:
        owner = array.base if isinstance(array.base, np.ndarray) and array.base.dtype == array.dtype else array
        return owner.ravel(order="K")[: array.size].reshape(array.shape)


_BOTH = (PROJECTION, ADAPTER, STATE_FILE)
_CHANGED = ("test_inputs_are_not_modified_and_the_same_inputs_give_the_same_bits",)
_AGAIN = ("test_calls_share_no_state",)
_STRIDES = ("test_arrays_are_read_however_they_lie_in_memory",)
_OWN = ("test_a_gradient_is_that_of_its_own_arguments",)
_IN_PLACE = ("test_an_array_changed_in_place_is_read_anew",)
MUTANTS = tuple(
    Mutant(name, factory, caught_by, passes)
    for name, factory, caught_by, passes in (
        ("changes_logits", ChangesLogits, _CHANGED, (PROJECTION, STATE_FILE)),
        ("changes_x", partial(Returns, FORWARD, written_over_x), _CHANGED, (PROJECTION, STATE_FILE)),
        ("changes_the_cotangent", partial(Returns, VJP, accumulated_in_the_cotangent), _CHANGED, _BOTH),
        ("cache_by_identity", CacheByIdentity, _IN_PLACE, _BOTH),
        ("kappa_cached_by_identity", KappaCachedByIdentity, _IN_PLACE, (PROJECTION, STATE_FILE)),
        ("cache_by_shape", CacheByShape, ("test_rows_then_columns_exactly_k_times",), (ORTHOGONAL, STATE_FILE)),
        ("gradient_at_the_last_forward", partial(GradientAtTheLastForward, FORWARD + VJP), _OWN, _BOTH),
        ("gradients_accumulate", GradientsAccumulate, (*_CHANGED, *_AGAIN), _BOTH),
        ("stale_workspace", StaleWorkspace, ("test_leading_axes_are_summed_for_the_parameters",), _BOTH),
        ("results_share_a_buffer", partial(OneBuffer, FORWARD), _AGAIN, (PROJECTION, STATE_FILE)),
        ("last_bits_by_chance", LastBitsByChance, _CHANGED, _BOTH),
        ("logits_read_in_memory_order", partial(ReadsMemoryInOrder, False), _STRIDES, (ADAPTER, STATE_FILE)),
        ("x_read_in_memory_order", partial(ReadsMemoryInOrder, True), _STRIDES, (PROJECTION, STATE_FILE)),
    )
)
