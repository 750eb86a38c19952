"""The reference: CRMA in NumPy and float64, written to be read. It is the truth that every backend is compared with."""

from reference.adapter import (
    AdapterConfig,
    AdapterGradients,
    AdapterParameters,
    adapter_forward,
    adapter_vjp,
)
from reference.certificates import adapter_spectrum, displacement
from reference.continual_metrics import ContinualMetrics, advantage, continual_metrics
from reference.displacement_budget import limit_displacement
from reference.initialization import init_parameters
from reference.sinkhorn_projection import sinkhorn_projection, sinkhorn_projection_vjp

SPEC_VERSION = "0.2"

__all__ = [
    "SPEC_VERSION",
    "AdapterConfig",
    "AdapterGradients",
    "AdapterParameters",
    "ContinualMetrics",
    "adapter_forward",
    "adapter_spectrum",
    "adapter_vjp",
    "advantage",
    "continual_metrics",
    "displacement",
    "init_parameters",
    "limit_displacement",
    "sinkhorn_projection",
    "sinkhorn_projection_vjp",
]
