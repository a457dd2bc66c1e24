"""Every requirement of pyproject.toml at its lowest version, a line each, for pip: `python packaging/lowest.py serve`.

Extras are named as arguments. A requirement without a lower bound is an error, for nobody knows what it runs with.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE: Final = Path(__file__).parents[1] / "pyproject.toml"
REQUIREMENT: Final = re.compile(r"(?P<name>[\w.-]+)(?P<bounds>[^;]*)(?P<marker>;.*)?", re.ASCII)
OWN: Final = re.compile(r"edge-vla\[(?P<extras>[\w,-]+)\]", re.ASCII)


def project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads(FILE.read_text(encoding="utf-8"))["project"]
    return table


def flat(required: Sequence[str], extras: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Requirements, with those of this project's own extras in their place."""
    for line in required:
        if own := OWN.fullmatch(line):
            for extra in own["extras"].split(","):
                yield from flat(extras[extra], extras)
        else:
            yield line


def lowest(line: str) -> str:
    """`name==lowest`, with its marker."""
    found = REQUIREMENT.fullmatch(line)
    bound = found and re.search(r"(?:>=|==)\s*([\d.]+)", found["bounds"])
    if not found or not bound:
        raise SystemExit(f"{line}: no lower bound")
    return f"{found['name']}=={bound[1].rstrip('.')}{found['marker'] or ''}"


def main(wanted: Sequence[str]) -> None:
    extras = project()["optional-dependencies"]
    unknown = set(wanted) - set(extras)
    if unknown:
        raise SystemExit(f"no extra {', '.join(sorted(unknown))}: choose of {', '.join(extras)}")
    required = [*project()["dependencies"], *(line for extra in wanted for line in extras[extra])]
    sys.stdout.writelines(f"{line}\n" for line in dict.fromkeys(map(lowest, flat(required, extras))))


if __name__ == "__main__":
    main(sys.argv[1:])
