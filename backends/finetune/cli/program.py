"""The command ``crma``. A user's mistake ends in one message and a non-zero exit code, never in a traceback."""

import os
import sys
from collections.abc import Sequence

from backends.files import printable
from backends.finetune.models.load_errors import LIMITS
from reference.errors import CRMAError, MissingPackageError

USAGE_ERROR, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    # The base model is a folder on this machine; the libraries underneath must not look for it anywhere else.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
    try:
        from backends.finetune.cli.commands import run

        return run(sys.argv[1:] if arguments is None else arguments)
    except CRMAError as error:
        return _refused(error)
    except ModuleNotFoundError as error:
        missing = MissingPackageError(
            "package",
            got=f"no package named {error.name}",
            allowed="an installation with the extra 'finetune'",
            remedy="pip install 'crma[finetune]'",
        )
        return _refused(missing)
    except (OSError, RuntimeError) as error:
        if any(limit in str(error) for limit in LIMITS):
            return _refused(
                f"this machine: got {error}; allowed: a few more threads and open files than there are now. Try: lower "
                "--threads or OMP_NUM_THREADS, end other programs, or raise the limits (ulimit -u for threads, ulimit "
                "-n for files, a container's limit of processes)"
            )
        if isinstance(error, RuntimeError):
            raise
        return _refused(f"{error}. Check the file, its permissions and the free disk space.")
    except KeyboardInterrupt:
        print(
            "crma: interrupted. Start the same command with the same --out or --into to go on from there.",
            file=sys.stderr,
        )
        return INTERRUPTED


def _refused(why: object) -> int:
    """One message: what it quotes from files or names steers no terminal, and begins no line of its own."""
    print("crma: " + printable(why, keep="\n").replace("\n", "\n  "), file=sys.stderr)
    return USAGE_ERROR


if __name__ == "__main__":
    sys.exit(main())
