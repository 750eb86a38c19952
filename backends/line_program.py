"""A program that is written a line and answers a line, within a time, whatever else it does.

One thread serves its three pipes, so that neither side ever waits for one pipe while it fills another. Clauses: BACK-5.
"""

import os
import selectors
import signal
import subprocess
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

LONGEST_ANSWER = 2**28  # bytes; a program that never ends its line must not fill the memory
CHUNK, SAID = 2**16, 2**12  # bytes read or written at once; bytes of standard error that are kept
TAIL = 32  # chunks of standard error that are still read at the end: more than a pipe holds, and not without end
POLL = 0.5  # seconds after which a silent program is looked at
GRACE = 2.0  # seconds that a program has to exit at the end of its input


class BrokenProgramError(Exception):
    """Why the program cannot be asked again."""


class LineProgram:
    """One process, started with ``words``; it ends with this object, and at the latest with this interpreter.

    Raises: OSError if it cannot be started.
    """

    def __init__(self, words: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, start_new_session=True)
        self._stdin, self._stdout, self._stderr = _streams(self._process)
        for stream in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(stream.fileno(), False)
        self._answers, self._said = bytearray(), bytearray()
        self._finalizer = weakref.finalize(self, _let_go, self._process, os.getpid())

    def ask(self, request: bytes, seconds: float) -> bytes:
        """Write the request, read one line. Raises: BrokenProgramError."""
        unsent, deadline, searched = memoryview(request), time.monotonic() + seconds, 0
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdin, selectors.EVENT_WRITE)
            selector.register(self._stdout, selectors.EVENT_READ)
            selector.register(self._stderr, selectors.EVENT_READ)
            while (end := self._answers.find(b"\n", searched)) < 0 or unsent:
                if len(self._answers) > LONGEST_ANSWER:
                    raise BrokenProgramError(f"an answer of more than {LONGEST_ANSWER >> 20} MiB")
                searched = len(self._answers) if end < 0 else 0
                if deadline < time.monotonic():
                    raise BrokenProgramError(f"no answer within {seconds:g} s")
                ready = selector.select(min(POLL, deadline - time.monotonic()))
                if not ready and self._process.poll() is not None:  # what it started may hold its pipes open
                    raise BrokenProgramError(self._ending())
                for key, _ in ready:
                    if key.fileobj is self._stdin:
                        unsent = unsent[self._write(unsent) :]
                        if not unsent:
                            selector.unregister(self._stdin)
                    elif not self._read(key.fileobj):
                        selector.unregister(key.fileobj)
                        if key.fileobj is self._stdout:
                            raise BrokenProgramError(self._ending())
        line = bytes(self._answers[:end])
        del self._answers[: end + 1]
        return line

    def _write(self, unsent: memoryview) -> int:
        try:
            return os.write(self._stdin.fileno(), unsent[:CHUNK])
        except BlockingIOError:
            return 0
        except BrokenPipeError:  # it reads no more; what it printed last, or its end, says why
            return len(unsent)

    def _read(self, stream: Any) -> bool:
        """Take what there is; False at the end of the stream."""
        try:
            chunk = os.read(stream.fileno(), CHUNK)
        except BlockingIOError:
            return True
        kept = self._answers if stream is self._stdout else self._said
        kept += chunk
        if kept is self._said:
            del kept[:-SAID]
        return bool(chunk)

    def _ending(self) -> str:
        where = f" after {len(self._answers)} bytes of a line without end" if self._answers else ""
        try:
            status = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "a closed standard output"
        if status < 0:
            return f"an end by signal {-status} ({signal.strsignal(-status)}){where}"
        return f"an end with status {status}{where}"

    def last_words(self) -> str:
        """The line of its standard error that most likely says what is wrong."""
        if self._finalizer.alive:
            for _ in range(TAIL):
                self._read(self._stderr)
        lines = [line.strip() for line in self._said.decode(errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if "rror" in line or "panic" in line]  # others end in their version
        return (telling or lines or [""])[-1]

    def kill(self) -> None:
        if self._finalizer.detach():
            _let_go(self._process, os.getpid(), 0.0)


def _let_go(process: subprocess.Popen[bytes], owner: int, grace: float = GRACE) -> None:
    """End of its input; then, after ``grace`` seconds, the end of the process and of those it started."""
    if os.getpid() != owner:  # a fork of this program, at its own end
        return
    for stream in _streams(process):
        with suppress(OSError):
            stream.close()
    with suppress(subprocess.TimeoutExpired):
        if grace:
            process.wait(grace)
            return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # a process that the system holds on to
        process.wait(GRACE)


def _streams(process: subprocess.Popen[bytes]) -> tuple[Any, Any, Any]:
    return process.stdin, process.stdout, process.stderr
