"""A child process that answers each line with one of JSON: another library, in a Python of its own that has it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import IO, Any, Final

from benchmarks import study
from edge_vla.errors import BackendError

PATIENCE: Final = 30  # seconds that it may take to end


class Child:
    """`python -m module ASKED`, running. `about` is its first answer; what it answers is its module's matter."""

    def __init__(self, python: str, module: str, asked: Mapping[str, object], needs: str) -> None:
        """BackendError where the child stops; `needs` names the packages."""
        self._module, self._needs = module, needs
        self._errors: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, "-m", module, json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=study.child_environment(),
        )
        self.about = self._reply()

    def request(self, question: object) -> Any:
        assert self._process.stdin, "a pipe was asked for"
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._reply()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.communicate(timeout=PATIENCE)
        self._errors.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _reply(self) -> Any:
        assert self._process.stdout, "a pipe was asked for"
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        message = (self._errors.read().strip() or "no message").splitlines()[-1]
        hint = f"; that Python needs {self._needs}" if "ModuleNotFoundError" in message else ""
        raise BackendError(f"{self._module} stopped with exit code {code}: {message}{hint}")


def asked() -> Any:
    """In the child: what it was started with."""
    return json.loads(sys.argv[1])


def replier() -> Callable[[object], None]:
    """In the child: answers have standard output to themselves from here on, whatever a library prints."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)  # line by line
    os.dup2(2, 1)
    return lambda answer: print(json.dumps(answer), file=replies)


def questions() -> Iterator[Any]:
    """In the child: until the parent closes."""
    while line := sys.stdin.readline():
        yield json.loads(line)
