"""What frameworks raise where the memory does not suffice, as an error that says what to do. Clauses: ERR-1, ERR-2."""

from collections.abc import Iterator
from contextlib import contextmanager

from reference.errors import OutOfMemoryError

#: of JAX on every device, of PyTorch on a GPU, and of PyTorch on a CPU
SIGNS = ("RESOURCE_EXHAUSTED", "out of memory", "can't allocate memory")
#: how settings are changed on which a run or a lesson has begun
ANEW = "begin anew, in a new --out, or with `crma learn --discard`"


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Turn a lack of memory within the block into OutOfMemoryError; other errors pass through."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in SIGNS):
            raise
        raise OutOfMemoryError(
            what,
            got=(str(error).splitlines() or [type(error).__name__])[0][:200],
            allowed="a step that fits into the memory that is free",
            remedy='lower batch_size or max_tokens, or take precision = "bfloat16", with --set; '
            f"{ANEW}. On JAX, --mesh spreads the weights over devices, in the same --out",
        ) from error
