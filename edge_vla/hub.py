"""The Hugging Face Hub: names of repositories, what is in one, fetching and sending, and its errors in one line each.

Imports huggingface_hub when it is asked for. Knows nothing of checkpoints and artifacts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from edge_vla.errors import BackendError, CheckpointError, UsageError
from edge_vla.suggestions import SURE, near_path, no_such

# As the Hub has it: each part begins with a letter, a digit or an underscore, so that ./x, ../x and ~/x are paths.
HUB_ID: Final = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w.][\w./-]*))?")
ASK_S: Final = 10.0


@dataclass(frozen=True)
class Repository:
    """`org/name`, at a branch, tag or commit; without one at the main branch."""

    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"

    @staticmethod
    def parse(text: str) -> Repository | None:
        """Of `org/name` or `org/name@revision`; None for anything else."""
        found = HUB_ID.fullmatch(text)
        return None if found is None else Repository(found["id"], found["revision"])


def repository_or_refusal(source: str, otherwise: str = "") -> Repository:
    """The repository that a source names which is no directory here.

    UsageError for a misspelt path, with what it may have meant. `otherwise` says what else a source may be. A near
    name on this disk goes before the Hub's only where all but a letter or two agree.
    """
    path, repository = Path(source), Repository.parse(source)
    if source.startswith("~") and path.expanduser().is_dir():
        raise UsageError(f"{source}: no such directory; did you mean {path.expanduser()}?")
    if path.is_file():
        raise UsageError(f"{source} is a file: give the directory that it lies in, {path.parent}")
    if repository is None:
        if near_path(path) or path.is_absolute() or source.startswith("."):
            raise UsageError(no_such(path))
        raise UsageError(f"{source}: no such directory, and not a Hub id (org/name){otherwise}")
    near = near_path(path, SURE)
    if near is not None and near.is_dir():
        raise UsageError(f"{source}: no such directory; did you mean {near}? The Hub's repository is {source}@main")
    return repository


def names(repository: Repository) -> tuple[str, ...]:
    """Every file of a repository; none where the Hub can't be asked and only a copy in the cache may be left."""
    hub = _package(repository)
    try:
        found = hub.HfApi().model_info(repository.id, revision=repository.revision, timeout=ASK_S)
    except Exception:  # noqa: BLE001 - its HTTP library raises what it likes, offline above all; the download tells
        return ()
    return tuple(file.rfilename for file in found.siblings or ())


def fetch(repository: Repository, patterns: Sequence[str] | None = None, directory: Path | None = None) -> Path:
    """The files that match, in the Hub's cache or in `directory`. CheckpointError with the Hub's reason.

    What is in the cache already is not fetched again, and is used where the Hub can't be reached.
    """
    hub = _package(repository)
    with _errors(repository):
        found = hub.snapshot_download(
            repository.id, revision=repository.revision, allow_patterns=patterns, local_dir=directory
        )
    return Path(found)


def send(files: Mapping[str, Path], repository: Repository, *, private: bool, message: str) -> str:
    """Upload files by their names there as one commit, into a repository that is made if need be; its address."""
    hub = _package(repository)
    with _errors(repository, "sent"):
        api = hub.HfApi()
        api.create_repo(repository.id, private=private, exist_ok=True)
        if repository.revision is not None:
            api.create_branch(repository.id, branch=repository.revision, exist_ok=True)
        operations = [hub.CommitOperationAdd(name, path) for name, path in files.items()]
        commit = api.create_commit(
            repository.id, operations, revision=repository.revision, commit_message=message, num_threads=2
        )
    return str(commit.commit_url)


def _package(repository: Repository) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise BackendError(f"{repository} is on the Hub; to reach it: pip install 'edge-vla[hub]'") from error
    hub: ModuleType = huggingface_hub
    logging.getLogger(hub.__name__).setLevel(logging.ERROR)  # what it would say of retries, the error says
    return hub


@contextmanager
def _errors(repository: Repository, done: str = "fetched") -> Iterator[None]:
    """The Hub's own errors, and whatever its HTTP library raises, as one line with what to do."""
    try:
        yield
    except Exception as error:
        here = f"{repository} is no local directory and" if done == "fetched" else f"{repository}"
        raise CheckpointError(f"{here} could not be {done}: {_reason(error, repository)}") from error


def _reason(error: BaseException, repository: Repository) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    chain, cause = [error], error.__cause__
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__
    status = next(filter(None, (getattr(getattr(one, "response", None), "status_code", None) for one in chain)), None)
    page = f"https://huggingface.co/{repository.id}"
    for one in chain:
        if isinstance(one, GatedRepoError):
            return f"it is gated (403): accept its terms at {page}, then `hf auth login`"
        if isinstance(one, RevisionNotFoundError):
            return f"it has no revision {repository.revision}: see {page}/commits"
        if isinstance(one, RepositoryNotFoundError) and status != 403:
            return f"the Hub has no such repository, or a private one ({status}): check the name, or `hf auth login`"
    if status == 401:
        return "the Hub does not accept the token (401): `hf auth login`"
    if status == 403:
        return f"the token has no right to it (403): `hf auth login` with one that has, or ask the owner of {page}"
    if status == 429 or (status is not None and status >= 500):
        return f"the Hub answered {status}: try again in a minute"
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"the Hub is not reached ({said}): check the network, or copy the directory from where it is"
