"""What contractions between the streams buy: CRMA whose streams are turned as they are mixed, beside CRMA and FROZEN.

    python -m bench.oriented_mixing --seeds 0 1 --out bench/results/oriented_mixing.json

The adapter mixes ``zhat_i = sum_j M_ij R_ij z_j`` with orthogonal ``R_ij`` (r x r), where CRMA has ``R_ij = I``. The
spectral norm of a block matrix is at most that of the matrix of its blocks' norms, so ``||[M_ij R_ij]|| <= ||M|| = 1``,
and the adapter amplifies as little as CRMA (Theorem 2). ``R_ij`` is the Cayley transform of a matrix that starts at 0.

An experiment, and no part of CRMA: there is no budget, no state file and no resuming. It runs the protocol `forgetting`
with fewer held-out texts, at seeds that are not reported. Source: ours.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import reference
from backends.finetune import finetune
from backends.finetune.engines.torch import engine
from backends.finetune.runs.results import RunResults
from backends.finetune.runs.run_folder import PhaseFiles
from backends.torch import CRMAAdapter
from backends.torch.functions import functions
from backends.torch.prepared import Prepared
from backends.torch.residual_mixing import adapter_strength
from bench import program
from bench.machine import machine_kind, versions

SETTINGS = ("holdout=96", "panel=0", "decision=0", "canaries=0")
UNBOUNDED = "modular@none"
SCALE = 0.1  # of what is trained to the argument of Cayley's transform: a tenth of the mixing logits' rate


class OrientedAdapter(CRMAAdapter):
    """``turns`` (n, n, r, r): what R is made from, zeros at the start."""

    turns: nn.Parameter

    def orientations(self) -> Tensor:
        """``R = (I - K)(I + K)^-1`` with ``K = SCALE (turns - turns^T) / 2``, orthogonal: (n, n, r, r)."""
        skew = SCALE * (self.turns - self.turns.mT) / 2
        identity = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
        return torch.linalg.solve(identity + skew, identity - skew, left=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        if self.bypassed(remembered=True):
            return x
        with torch.autocast(x.device.type, enabled=False):
            mixing = functions(self.kernels, x.device.type).sinkhorn_projection(self.mix_logits, self.config.iterations)
            streams = torch.einsum("...d,nrd->...nr", x.float(), self.basis)
            mixed = torch.einsum("ij,ijrs,...js->...ir", mixing, self.orientations(), streams)
            change = torch.einsum("...nr,nrd->...d", mixed - streams, self.basis)
            return x + (adapter_strength(self.gate_logit, self.basis) * change).to(x.dtype)

    def prepare(self, prepared: Prepared) -> None:
        return None  # what is prepared is of CRMA's formula


def orient(adapter: CRMAAdapter) -> None:
    """Make an adapter of CRMA one of these; its values stay, and so does what it computes."""
    n, r, _ = adapter.basis.shape
    adapter.register_parameter("turns", nn.Parameter(torch.zeros(n, n, r, r, device=adapter.basis.device)))
    adapter.__class__ = OrientedAdapter


class OrientedEngine(engine.TorchEngine):
    """The engine, with ``turns`` in the group of the mixing logits."""

    turned = 0.0

    def _attach(self, base: Any) -> Any:
        backbone = super()._attach(base)
        for adapter in backbone.adapters:
            assert isinstance(adapter, CRMAAdapter)
            orient(adapter)
        return backbone

    def _groups(self) -> dict[str, list[nn.Parameter]]:
        groups = super()._groups()
        if "mixing" in groups and self.backbone is not None:
            groups["mixing"] = groups["mixing"] + [adapter.turns for adapter in self._oriented()]
        return groups

    def _oriented(self) -> list[OrientedAdapter]:
        assert self.backbone is not None
        return [adapter for adapter in self.backbone.adapters if isinstance(adapter, OrientedAdapter)]

    @torch.no_grad()
    def save_phase(self, phase: int, files: PhaseFiles) -> None:
        super().save_phase(phase, files)
        identity = torch.eye(self.protocol.crma.rank)
        moved = [torch.linalg.matrix_norm(a.orientations().cpu() - identity, ord=2).max() for a in self._oriented()]
        OrientedEngine.turned = float(torch.stack(moved).max())


def trained(conditions: Sequence[str], seed: int, options: argparse.Namespace) -> RunResults:
    """The results of `forgetting` at one seed, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        return finetune(
            options.protocol,
            model=options.model,
            out=folder,
            seeds=[seed],
            conditions=conditions,
            settings=options.settings,
            threads=options.threads,
            quiet=True,
        )


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Drift, final holdout loss and advantage over FROZEN of each, seed by seed; stored as each seed ends."""
    figures: dict[str, Any] = {
        "machine": machine_kind("cpu", threads=options.threads),
        "versions": versions("torch", "transformers", "peft"),
        "settings": [options.protocol, *options.settings],
        "rows": [],
    }
    for seed in options.seeds:
        plain = trained(["frozen", UNBOUNDED], seed, options)
        with patch.object(engine, "TorchEngine", OrientedEngine):
            oriented = trained([UNBOUNDED], seed, options)
        found = {"frozen": plain.metrics("frozen", seed), UNBOUNDED: plain.metrics(UNBOUNDED, seed)}
        found["oriented"] = oriented.metrics(UNBOUNDED, seed)
        frozen = found["frozen"]
        for name, metrics in found.items():
            assert metrics is not None
            assert frozen is not None
            row = {"condition": name, "seed": seed, "drift": metrics.drift, "final_holdout": metrics.final_holdout}
            row["advantage"] = reference.advantage(frozen.final_holdout, metrics.final_holdout)
            figures["rows"].append(row)
        figures["rows"][-1]["turned"] = OrientedEngine.turned  # the largest ||R_ij - I||_2 after the last task
        if options.out:
            program.store(options.out, figures)
        print(*figures["rows"][-3:], sep="\n", file=sys.stderr, flush=True)
    return figures


def main(arguments: list[str] | None = None) -> int:
    """Run them. Raises: SystemExit for a wrong option."""
    parser = program.parser("oriented_mixing", __doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--protocol", default="forgetting")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--settings", nargs="*", default=SETTINGS, metavar="FIELD=VALUE", help="of the protocol")
    options = parser.parse_args(arguments)
    return program.measure("oriented_mixing", options, lambda: measured(options))


if __name__ == "__main__":
    raise SystemExit(main())
