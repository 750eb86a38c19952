"""The functions of CRMA as Pallas kernels for a GPU, and the choice between them and plain JAX.

Nothing of Pallas is imported before ``kernels="pallas"`` is asked for.
"""

from typing import Literal, get_args

from reference.errors import ConfigError

Kernels = Literal["auto", "jax", "pallas"]


def wants_pallas(kernels: str) -> bool:
    """Whether a choice means the kernels: only "pallas" does.

    "auto" is plain JAX on every device, since no GPU has measured the kernels yet. No choice falls back to another.

    Raises: ConfigError for anything but "auto", "jax" and "pallas". Clause: ERR-3.
    """
    if kernels not in get_args(Kernels):
        raise ConfigError(
            "kernels",
            got=repr(kernels),
            allowed=", ".join(map(repr, get_args(Kernels))),
            remedy="use 'auto', which is plain JAX",
        )
    return kernels == "pallas"
