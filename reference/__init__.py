"""The reference: CRMA in NumPy and float64, written to be read. It is the truth that every backend is compared with."""

from reference.adapter import (
    AdapterConfig,
    AdapterGradients,
    AdapterParameters,
    adapter_forward,
    adapter_vjp,
)
from reference.bootstrap import Interval, paired_bootstrap
from reference.certificates import adapter_spectrum, displacement
from reference.continual_metrics import (
    ContinualMetrics,
    advantage,
    continual_metrics,
    exact_match_transfer,
    forward_transfer,
)
from reference.data_displacement import StreamMoment, data_displacement, limit_data_displacement, stream_moment
from reference.displacement_budget import limit_displacement
from reference.initialization import init_parameters
from reference.paired_tests import PairedTTest, mcnemar_exact, paired_t_test, sign_flip_test, wilson_interval
from reference.ratchet import broken_promises, ratchet_moves
from reference.seed_summary import SeedSummary, seed_summary
from reference.sinkhorn_projection import sinkhorn_projection, sinkhorn_projection_vjp

SPEC_VERSION = "0.3"

__all__ = [
    "SPEC_VERSION",
    "AdapterConfig",
    "AdapterGradients",
    "AdapterParameters",
    "ContinualMetrics",
    "Interval",
    "PairedTTest",
    "SeedSummary",
    "StreamMoment",
    "adapter_forward",
    "adapter_spectrum",
    "adapter_vjp",
    "advantage",
    "broken_promises",
    "continual_metrics",
    "data_displacement",
    "displacement",
    "exact_match_transfer",
    "forward_transfer",
    "init_parameters",
    "limit_data_displacement",
    "limit_displacement",
    "mcnemar_exact",
    "paired_bootstrap",
    "paired_t_test",
    "ratchet_moves",
    "seed_summary",
    "sign_flip_test",
    "sinkhorn_projection",
    "sinkhorn_projection_vjp",
    "stream_moment",
    "wilson_interval",
]
