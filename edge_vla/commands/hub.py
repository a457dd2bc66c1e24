"""`edge-vla pull` and `edge-vla push`: artifacts as repositories of the Hugging Face Hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_vla.errors import ArtifactError, UsageError
from edge_vla.terminal import err, interruptible, out

if TYPE_CHECKING:
    from edge_vla.hub import Repository

Id = Annotated[str, typer.Argument(metavar="ORG/NAME[@REVISION]", help="A repository of the Hub.")]


def pull(
    repository: Id,
    out_dir: Annotated[Path, typer.Option("--out", help="Directory to make; must not exist.")],
) -> None:
    """Fetch an artifact from the Hub and check every hash. The same command goes on after an interruption.

    For a private repository: `hf auth login` first, or HF_TOKEN in the environment.
    """
    from edge_vla.artifact import MANIFEST, Artifact
    from edge_vla.hub import fetch, names

    found, partial = named(repository), out_dir.with_name(f"{out_dir.name}.partial")
    if out_dir.exists():
        raise UsageError(f"--out {out_dir} exists already: `edge-vla verify {out_dir}`, or choose another name")
    if (files := names(found)) and MANIFEST not in files:
        raise ArtifactError(f"{found} is not an artifact: it has no {MANIFEST}; edge-vla export {found} makes one")
    with interruptible(lambda: f"{partial} keeps what was fetched; the same command goes on from there"):
        err.print(f"fetching {found}")
        fetch(found, None, partial)
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # the Hub's own notes
        artifact = Artifact(partial)
        artifact.verify()
    partial.rename(out_dir)
    out.print(f"ok {artifact.identity}")


def push(
    artifact: Annotated[Path, typer.Argument(help="An artifact directory.")],
    repository: Id,
    private: Annotated[bool, typer.Option("--private", help="If the repository is made: only for its owners.")] = False,
) -> None:
    """Check an artifact and send it to the Hub, with its model card if a bench wrote one; prints the commit's address.

    Log in with `hf auth login` first, or set HF_TOKEN.
    """
    from edge_vla.artifact import EVIDENCE, MANIFEST, Artifact
    from edge_vla.hub import send

    found, opened = named(repository), Artifact(artifact)
    opened.verify()
    card = artifact / EVIDENCE / "README.md"
    files = {name: artifact / name for name in [MANIFEST, *opened.manifest.files]}
    files |= {"README.md": card} if card.is_file() else {}
    err.print(f"sending {len(files)} files to {found}")
    out.print(send(files, found, private=private, message=f"edge-vla artifact {opened.identity[:12]}"))


def named(repository: str) -> Repository:
    """UsageError for what is no name of a repository."""
    from edge_vla.hub import Repository

    found = Repository.parse(repository)
    if found is None:
        raise UsageError(f"{repository}: expected ORG/NAME or ORG/NAME@REVISION")
    return found
