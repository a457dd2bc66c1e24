"""Brings pages that lie outside `docs/` into the site, and makes links work in both places.

A page is written for whoever reads it in the repository. In the site, a link to another page leads to that page, and a
link to any other file of the repository becomes its name. Links to nothing stop the build (mkdocs, strict).
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[1]
OUTSIDE: Final = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "export/FORMAT.md": "FORMAT.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/REPORT.md": "REPORT.md",
    "benchmarks/LOG.md": "LOG.md",
    "calibration/README.md": "calibration.md",
}
LINK: Final = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
IMAGE: Final = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    here = next((source for source, name in OUTSIDE.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")

    def target(link: str) -> str:
        """A link's path from the root of the repository."""
        return os.path.normpath(PurePosixPath(here).parent / link)

    def rewritten(match: re.Match[str]) -> str:
        text, link, anchor = match[1], match[2], match[3] or ""
        if ":" in link:
            return match[0]
        path = target(link)
        if path in OUTSIDE:
            return f"[{text}]({OUTSIDE[path]}{anchor})"
        if path.startswith("docs/"):
            return f"[{text}]({path.removeprefix('docs/')}{anchor})"
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"{here} links to {link}: there is no {path}")
        return text

    text = LINK.sub(rewritten, markdown)
    return IMAGE.sub(lambda match: f"![{match[1]}]({target(match[2]).removeprefix('docs/')})", text)
