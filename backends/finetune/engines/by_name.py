"""From the name of a backend to the engine that trains with it."""

from backends.finetune.engines.engine import Engine, EngineFactory
from backends.finetune.engines.world import SINGLE, World, world_size
from backends.finetune.models.marker import random_size
from backends.finetune.protocols.supported import check_backend, check_supported
from backends.finetune.tasks.job import Job
from reference.errors import BackendError, MissingPackageError


def engine_factory(backend: str, mesh: str | None = None, *, shard: bool = False) -> tuple[EngineFactory, World]:
    """The engine of a backend, and the processes that it runs in.

    ``mesh``, for JAX only, spreads it over several devices ("4x2"); ``shard``, for PyTorch under torchrun, spreads the
    base model over the processes.

    Raises: BackendError for a backend that cannot train, or not in these processes; as
    :func:`backends.finetune.engines.jax.placement.placement`.
    """
    check_backend(backend)
    if backend.startswith("jax-"):
        if shard:
            raise BackendError("--shard", got=f"with {backend}", allowed="torch-cpu, torch-cuda", remedy="use --mesh")
        if (size := world_size()) > 1:
            raise BackendError(
                "torchrun",
                got=f"{size} processes with {backend}",
                allowed="one process, which spreads its work over devices by --mesh",
                remedy="start it without torchrun, with --mesh",
            )
        try:
            from backends.finetune.engines.jax.engine import JaxEngine
            from backends.finetune.engines.jax.placement import keep_what_is_compiled, placement
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                f"backend {backend}",
                got=f"no package named {error.name}",
                allowed="an installation with the extras 'finetune' and 'jax'",
                remedy="pip install 'crma[finetune,jax]'",
            ) from error
        keep_what_is_compiled()
        place = placement(backend, mesh)

        def make_jax(job: Job) -> Engine:
            _check(job, backend, shard=False)
            return JaxEngine(job, place)

        return make_jax, SINGLE
    if mesh is not None:
        raise BackendError(
            "--mesh",
            got=f"{mesh!r} with {backend}",
            allowed="jax-cpu or jax-cuda",
            remedy="leave it out, or add --backend jax-cuda",
        )
    from backends.finetune.engines.torch.engine import TorchEngine
    from backends.finetune.engines.torch.world import torch_world

    device = backend.removeprefix("torch-")
    world = torch_world(device)
    if shard and world.size == 1:
        raise BackendError(
            "--shard",
            got="a single process",
            allowed="several processes, over which the base model is spread",
            remedy="start it with torchrun --nproc-per-node N -m backends.finetune.cli finetune ...",
        )

    def make(job: Job) -> Engine:
        _check(job, backend, shard=shard)
        engine = TorchEngine(job, device, world=world, shard=shard)
        world.barrier()  # all have read what the run folder holds, before any of them writes to it again
        return engine

    return make, world


def _check(job: Job, backend: str, *, shard: bool) -> None:
    random = random_size(job.model)
    check_supported(job.protocol, [job.condition], backend, shard=shard, random_weights=random)
