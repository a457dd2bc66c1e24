"""The import graph of the wheel, read from the code: `python docs/graph.py docs/architecture.md` writes it there.

Imports inside functions and under `TYPE_CHECKING` count as much as those at the top: a lazy import is an import.
Knows Python files and import statements. Knows nothing of what the packages do.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGE: Final = "edge_vla"
BEGIN: Final = "<!-- graph: python docs/graph.py docs/architecture.md -->"
END: Final = "<!-- end of graph -->"

Graph = dict[str, set[str]]


def modules(root: Path = ROOT, package: str = PACKAGE) -> dict[str, Path]:
    """Dotted names of a package's modules, each with its file."""
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: Iterable[str]) -> set[str]:
    """Which of the `known` modules a file imports, each `from package import module` as the module itself."""
    known, names = set(known), set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in known else node.module for name in inside}
    return names & known


def module_graph(root: Path = ROOT, package: str = PACKAGE) -> Graph:
    """Every module, and the modules that it imports."""
    files = modules(root, package)
    return {name: imported(path, files) - {name} for name, path in files.items()}


def top_level(module: str) -> str:
    """The first name below the package: `edge_vla.runtime.gpu.engine` -> `runtime`; the package itself stays whole."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else module


def package_graph(graph: Mapping[str, Iterable[str]]) -> Graph:
    """The same between top-level packages and files."""
    found: Graph = {}
    for module, targets in graph.items():
        found.setdefault(top_level(module), set()).update(top_level(target) for target in targets)
    return {name: targets - {name} for name, targets in found.items()}


def reachable(graph: Mapping[str, Iterable[str]], start: str) -> set[str]:
    """All that `start` imports, directly or through others, itself included."""
    found, waiting = set[str](), [start]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph.get(name, ())
    return found


def cycles(graph: Mapping[str, Iterable[str]]) -> list[set[str]]:
    """Sets of names that import each other, directly or through others."""
    reach = {name: reachable(graph, name) for name in graph}
    rings = ({other for other in reach[name] if name in reach.get(other, ())} for name in graph)
    return [set(ring) for ring in sorted({frozenset(ring) for ring in rings if len(ring) > 1}, key=sorted)]


def floors(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Names by height: each stands above all that it imports. The graph must have no cycle."""
    height: dict[str, int] = {}

    def climb(name: str) -> int:
        if name not in height:
            height[name] = 1 + max((climb(target) for target in graph[name]), default=-1)
        return height[name]

    top = max(map(climb, graph))
    return [sorted(name for name in graph if height[name] == floor) for floor in range(top, -1, -1)]


def direct(graph: Graph) -> Graph:
    """Without arrows that a longer way implies."""
    return {
        name: {t for t in targets if not any(t in reachable(graph, o) for o in targets if o != t)}
        for name, targets in graph.items()
    }


def mermaid(graph: Graph) -> str:
    """The graph in Mermaid, top floor first; implied arrows are left out."""
    arrows = direct(graph)
    lines = ["```mermaid", "flowchart TD"]
    for number, names in enumerate(floors(graph)):
        lines += [f"  subgraph F{number}[ ]", *(f"    {name}" for name in names), "  end"]
    lines += [f"  {name} --> {target}" for name in sorted(arrows) for target in sorted(arrows[name])]
    return "\n".join([*lines, "```"])


def page(graph: Graph) -> str:
    """What stands between the markers of the architecture page."""
    table = ["| floor | packages and files |", "|---:|---|"]
    stories = floors(graph)
    table += [
        f"| {len(stories) - i} | {' · '.join(f'`{name}`' for name in names)} |" for i, names in enumerate(stories)
    ]
    return "\n".join([BEGIN, "", mermaid(graph), "", *table, "", END])


def rewrite(text: str, graph: Graph) -> str:
    """A page with the part between its markers made anew. Raises ValueError for a page without markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return before + page(graph) + after


def main(words: list[str]) -> None:
    target = Path(words[0])
    target.write_text(rewrite(target.read_text(encoding="utf-8"), package_graph(module_graph())), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
