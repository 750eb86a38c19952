"""CRMABackbone: the adapters of all layers of one model, projected in one call per forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from backends.certificate import Certificate
from backends.torch import certificates
from backends.torch.adapter import CRMAAdapter, assign
from backends.torch.bypass import Block
from backends.torch.certificates import AdapterState
from backends.torch.checks import require_finite
from backends.torch.data_displacement import MomentGatherer, StreamMoments, data_displacement, limit_data_displacement
from backends.torch.preparation import is_sharded, prepare_adapters, promise_of, stacked
from backends.torch.state import load_state, save_state
from reference.adapter import AdapterConfig
from reference.errors import BackendError, ModelError, StateFileError

_ENTERING = Lock()  # two threads may enter blocks at once


class CRMABackbone(nn.Module):
    """The stack of adapters that all tasks of a model share. ``attach_crma`` builds it.

    ``backbone.parameters()`` are all its trainables; ``parameter_groups()`` names them for an optimizer with a learning
    rate and a clipping norm for each group, since their gradients differ by orders of magnitude.

    Every method first makes sure that the adapters which compute in the model are the ones held here. Raises:
    ModelError where they are not: PEFT's ``modules_to_save`` trains copies, for instance, and layers that were added,
    removed or replaced after attaching are not those of the backbone.
    """

    def __init__(
        self,
        adapters: Sequence[CRMAAdapter],
        *,
        names: Sequence[str] | None = None,
        base_model: str = "",
        base_model_sha256: str = "",
        identity: Callable[[], tuple[str, str]] | None = None,
        computing: Callable[[], list[Any]] | None = None,
        detach: Callable[[], None] | None = None,
        reshard: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(adapters)
        self.names = tuple(names) if names is not None else tuple(str(index) for index in range(len(adapters)))
        self._identity = identity or partial(_stated, base_model, base_model_sha256)
        self._computing, self._detach, self._reshard = computing, detach, reshard

    def __getstate__(self) -> dict[str, Any]:
        # A copy has adapters of its own, which are in no model.
        identity = partial(_stated, *self._identity())
        return {**self.__dict__, "_identity": identity, "_computing": None, "_detach": None, "_reshard": None}

    @property
    def base_model(self) -> str:
        """The model in words, as it is now."""
        return self._identity()[0]

    @property
    def base_model_sha256(self) -> str:
        """The checksum of the model's configuration, as it is now. Clause: STATE-2."""
        return self._identity()[1]

    @property
    def config(self) -> AdapterConfig:
        """Sizes of one layer; all layers have the same."""
        return self._layers()[0].config

    def _layers(self) -> list[CRMAAdapter]:
        layers = [adapter for adapter in self.adapters if isinstance(adapter, CRMAAdapter)]
        if self._computing is not None:
            refuse_other_adapters(self._computing(), layers, self.names)
        for layer in layers:
            layer.refuse_changed_parameters()
        return layers

    def requires_grad_(self, requires_grad: bool = True) -> CRMABackbone:
        """Train the adapters, or freeze them on purpose. Raises: ModelError where the model computes with others."""
        for adapter in self._layers():
            adapter.requires_grad_(requires_grad)
        return self

    @contextmanager
    def prepare(self) -> Iterator[None]:
        """A block in which no parameter changes: M and alpha are made once for its forward passes without gradients.

        ``with backbone.prepare(): model.generate(...)`` saves that work for each token. A model put together by hand,
        without ``attach_crma``, needs it around every forward pass, and there it serves one with gradients, too.

        Raises: BackendError at its end where a parameter has changed all the same. Parameters that FSDP shards, or that
        are offloaded, are prepared in each pass as ever.
        """
        layers = self._layers()
        prepare_adapters(layers)
        promises = [(adapter, adapter.promise, promise_of(adapter)) for adapter in layers]
        try:
            for adapter, _, promise in promises:
                adapter.promise = promise
            yield
            for adapter, _, promise in promises:
                if promise is not None:
                    promise.require_kept(adapter._parameters)
        finally:
            for adapter, before, _ in promises:
                adapter.promise = before
                adapter.release()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Bypass every adapter inside the block: the inference toggle. Source: paper section 6.1.4.

        It holds for the thread, or asyncio task, that enters it: enter it in each thread that is to answer without
        CRMA. The threads of DataParallel follow the one that calls the model. Blocks may overlap and end in any order.
        Only the forward pass matters to gradient checkpointing: what ran without CRMA is recomputed without, what ran
        with CRMA is recomputed with it, wherever ``backward()`` is called. A model that torch.compile has compiled is
        compiled again for use inside a block, there with a break of the graph at each adapter.
        """
        block, layers = Block(), self._layers()
        with _ENTERING:
            for adapter in layers:
                adapter.blocks |= {block}
        try:
            yield
        finally:
            with _ENTERING:
                for adapter in layers:
                    adapter.blocks -= {block}
            block.leave()

    def detach_from_model(self) -> None:
        """Take the adapters out of the model; it is then what it was before ``attach_crma``."""
        if self._detach is not None:
            self._detach()
            self._detach = self._computing = None

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """``{"basis": [...], "mixing": [...], "gate": [...]}``, one parameter per layer in each."""
        layers = self._layers()
        return {
            "basis": [adapter.basis for adapter in layers],
            "mixing": [adapter.mix_logits for adapter in layers],
            "gate": [adapter.gate_logit for adapter in layers],
        }

    def state(self) -> AdapterState:
        """A copy of all parameters, stacked over layers, on the first layer's device. Clause: STATE-1."""
        self._gather_none()
        with torch.no_grad():
            return AdapterState(*(tensor.clone() for tensor in stacked(self._layers())))

    def finite_state(self) -> AdapterState:
        """:meth:`state`. Raises: NonFiniteError, naming the parameter, for NaN or infinity."""
        state = self.state()
        require_finite_state(state)
        return state

    def load_state(self, state: AdapterState) -> None:
        """Set all parameters.

        Raises: StateFileError if the shapes are another model's, NonFiniteError; then nothing is changed.
        """
        self._gather_none()
        for field, new, old in zip(AdapterState._fields, state, stacked(self._layers()), strict=True):
            if new.shape != old.shape:
                raise StateFileError(
                    field,
                    got=tuple(new.shape),
                    allowed=f"{tuple(old.shape)}, as this model has it",
                    remedy="load the state onto the model it was trained on, with the same streams and rank",
                )
        require_finite_state(state)
        with torch.no_grad():
            for index, adapter in enumerate(self._layers()):
                assign(adapter.mix_logits, state.mix_logits[index])
                assign(adapter.gate_logit, state.gate_logits[index : index + 1])
                assign(adapter.basis, state.bases[index])

    def save(self, path: Path | str) -> None:
        """Write the state file, atomically.

        Raises: NonFiniteError for NaN or infinity, so that they never replace a good file. Clauses: STATE-1..STATE-3.
        """
        save_state(path, self.finite_state(), self.config, self.base_model, self.base_model_sha256)

    def load(self, path: Path | str) -> None:
        """Read a state file into the adapters. Raises: StateFileError; then nothing is changed. Clauses: STATE-4."""
        self.load_state(self.read(path))

    def read(self, path: Path | str) -> AdapterState:
        """The state of a file of this model and this configuration. Raises: StateFileError. Clauses: STATE-4."""
        content = load_state(path)
        checks = [("adapter configuration", content.config, self.config)]
        for field in ("base_model", "base_model_sha256"):
            got, own = getattr(content, field), getattr(self, field)
            if got and own:  # older files have no checksum
                checks.append((field, got, own))
        for field, got, own in checks:
            if got != own:
                raise StateFileError(
                    str(path),
                    got=f"{field} {got}",
                    allowed=f"{own}, as this model has it",
                    remedy="load the state onto the model it was trained on, with adapters of its configuration",
                )
        return content.state

    def certificate(self, anchor: AdapterState | None = None) -> Certificate:
        """Bounds measured on the present parameters, per layer; ``print`` shows them with the worst layer first.

        With ``anchor``, also ``||G_now - G_anchor||_2``. Raises: NonFiniteError; DegenerateBasisError for A = 0, or so
        small or large that float32 cannot hold ``||A||^2``; ShapeError for an anchor of another size.
        Clauses: CERT-1, CERT-2.
        """
        state = self.finite_state()
        measured = certificates.certificate(state, self.config.iterations)
        moved = None if anchor is None else self.displacement(anchor)
        return measured._replace(displacement=moved, names=self.names)

    def displacement(self, anchor: AdapterState) -> Tensor:
        """``||G_now - G_anchor||_2`` per layer, shape (L,), float64.

        Raises: as :meth:`certificate`. Clause: CERT-2.
        """
        return certificates.displacement(anchor, self.state(), self.config.iterations)

    def limit_displacement(self, anchor: AdapterState, delta: float) -> Tensor:
        """Pull each layer back along the segment to ``anchor`` until it is within ``delta`` of it.

        Call it after an optimizer step. A layer that is inside already keeps its bits.

        Returns:
            The fraction of the way from the anchor that was kept, shape (L,); 1 where nothing changed.

        Raises: ConfigError for a delta that is no number > 0; for the anchor ShapeError, NonFiniteError and
        DegenerateBasisError (A = 0). Clauses: BUDGET-1..BUDGET-3.
        """
        now = self.state()
        segment = certificates.Segment(anchor, now, self.config.iterations)
        if certificates.surely_within(segment, now, delta):  # one wait for the device
            return torch.ones(len(now.bases), dtype=torch.float64, device=now.bases.device)
        require_finite_state(now)
        fraction = certificates.limit_displacement(anchor, now, delta, self.config.iterations, segment)
        if bool((fraction < 1).any()):
            self.load_state(certificates.interpolate(anchor, now, fraction))
        return fraction

    @contextmanager
    def gather_moments(self, counted: Tensor) -> Iterator[MomentGatherer]:
        """Take the moment of what reaches each layer in the forward passes inside the block, with the bases as they are
        now: ``with torch.no_grad(), backbone.gather_moments(counted) as gathered: ...``, then ``gathered.moments()``.

        Args:
            counted: which tokens count, (batch, tokens), True or not 0; neither padding nor the first of a text should.

        Raises: ShapeError in a forward pass over other tokens. Clause: DATA-1.
        """
        gatherer = MomentGatherer(self.finite_state().bases, counted)
        hooks = [
            adapter.register_forward_pre_hook(partial(gatherer.add, index))
            for index, adapter in enumerate(self._layers())
        ]
        try:
            yield gatherer
        finally:
            for hook in hooks:
                hook.remove()

    def data_displacement(self, anchor: AdapterState, moments: StreamMoments) -> Tensor:
        """Root mean square of ``||G x - G_anchor x|| / ||x||`` over the tokens of ``moments``: (L,), float64.

        Raises: ConfigError for a basis other than the anchor's, or what is no moment; for the anchor as
        :meth:`limit_displacement`. Clauses: DATA-2, DATA-4, DATA-5.
        """
        return data_displacement(anchor, self.finite_state(), moments, self.config.iterations)

    def limit_data_displacement(self, anchor: AdapterState, moments: StreamMoments, epsilon: float) -> Tensor:
        """:meth:`limit_displacement` by the data displacement: what the tokens of ``moments`` see, at most ``epsilon``.

        The basis must be the anchor's, and stays as it is.

        Raises: ConfigError for an epsilon that is no number > 0, and as :meth:`data_displacement`.
        Clauses: DATA-3..DATA-5.
        """
        now = self.finite_state()
        fraction = limit_data_displacement(anchor, now, moments, epsilon, self.config.iterations)
        if bool((fraction < 1).any()):  # with the basis of now: -0.0 + 0.0 would be another zero
            self.load_state(certificates.interpolate(anchor, now, fraction)._replace(bases=now.bases))
        return fraction

    def _gather_none(self) -> None:
        """Let FSDP drop the gathered copies of the parameters: what is written into these is lost.

        Raises: BackendError where it keeps them, and for parameters on the meta device, where everything is lost.
        """
        layers = self._layers()
        if any(adapter.basis.is_meta for adapter in layers):
            raise BackendError(
                "parameters of the adapters",
                got="tensors without values, on the meta device",
                allowed="parameters in memory",
                remedy="offload the model before attach_crma, which leaves the adapters in memory; to a model that was "
                "built on the meta device call to_empty first",
            )
        managed = [adapter for adapter in layers if adapter._is_fsdp_managed_module]
        if managed and self._reshard is not None:
            self._reshard()
        if not all(is_sharded(adapter.basis) for adapter in managed):
            raise BackendError(
                "parameters of the adapters",
                got="copies that FSDP gathered for a forward pass",
                allowed="sharded parameters",
                remedy="call reshard() on the modules that fully_shard was called on, the outermost included",
            )


def _stated(base_model: str, base_model_sha256: str) -> tuple[str, str]:
    """The identity of a model that is not at hand any more."""
    return base_model, base_model_sha256


def refuse_other_adapters(computing: Sequence[Any], own: Sequence[CRMAAdapter], names: Sequence[str]) -> None:
    """Raises: ModelError where ``computing``, what stands behind the blocks of a model, is not ``own``."""
    other = next((i for i, (one, two) in enumerate(zip(computing, own, strict=False)) if one is not two), None)
    if other is not None:
        got = f"a {type(computing[other]).__name__} that attach_crma did not put there, as {names[other]}.crma"
    elif len(computing) != len(own):
        got = f"{len(computing)} of {len(own)} blocks with an adapter"
    else:
        return
    raise ModelError(
        "crma",
        got=got,
        allowed="the blocks and adapters as attach_crma left them",
        remedy="leave CRMA out of PEFT's modules_to_save, target_modules and target_parameters, since it trains as it "
        "is; to add or remove layers call detach_from_model() first and attach_crma afterwards",
    )


def require_finite_state(state: AdapterState) -> None:
    """Raises: NonFiniteError, naming the parameter, for NaN or infinity."""
    for field, tensor in zip(AdapterState._fields, state, strict=True):
        require_finite(field, tensor)
