"""What libraries raise for a model folder that they cannot load, as one error that says what it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backends.files import printable
from backends.finetune.models.memory_errors import SIGNS
from reference.errors import CRMAError, ModelError, OutOfMemoryError

#: of the operating system, in the words of Python, PyTorch and Rust: the machine is at its limit, the folder is whole
LIMITS = ("can't start new thread", "Resource temporarily unavailable", "Too many open files", "ThreadPoolBuildError")
MEMORY = (*SIGNS, "Cannot allocate memory", "OutOfMemoryError")
LONGEST = 400  # characters of a library's text


@contextmanager
def load_errors(folder: Path) -> Iterator[None]:
    """Turn what libraries raise for a folder that they cannot load into ModelError, and a lack of memory into
    OutOfMemoryError. Errors of this project pass through.
    """
    try:
        yield
    except (CRMAError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # tokenizers raise bare Exceptions, and a panic in Rust is not even one of those
        raise _named(folder, error) from error


def _named(folder: Path, error: BaseException) -> CRMAError:
    words = printable(" ".join(str(error).split()))
    got = f"{type(error).__name__}: {words if len(words) <= LONGEST else words[:LONGEST] + ' ...'}"
    if isinstance(error, MemoryError) or any(sign in got for sign in MEMORY):
        return OutOfMemoryError(
            f"loading {folder}",
            got=got,
            allowed="a model that fits into the memory that is free",
            remedy="set precision=bfloat16 or quantization=4bit, take a smaller model, or a device with more memory",
        )
    if any(limit in got for limit in LIMITS):
        return ModelError(
            f"loading {folder}",
            got=got,
            allowed="a process that may start threads and open files; the model folder is not at fault",
            remedy="end other programs, or raise the limits (ulimit -u for threads, ulimit -n for files)",
        )
    if isinstance(error, ImportError):
        remedy = "install the package that is named, or save the model again in a form that needs none"
    else:
        remedy = "save or download the model again"
    return ModelError(
        str(folder),
        got=got,
        allowed="a causal LM as Hugging Face save_pretrained writes it, with its tokenizer",
        remedy=remedy,
    )
