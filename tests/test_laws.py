"""The laws of the house: who may import whom. `docs/graph.py` reads the imports, lazy ones too."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from docs import graph

RUN = ("compat", "device", "openvla", "robot", "runtime", "serve")  # what a robot runs
BUILD_OR_EVIDENCE = {"export", "calibration", "bench", "demo", "cli"}
CLIENT_MAY_IMPORT = {"numpy", "msgpack", "websockets"}
ROBOT_MAY_IMPORT = {"numpy", "tomli"}  # tomli is Python 3.11's tomllib, for 3.10
ADAPTERS_MAY_IMPORT = {  # each behind a face, imported when it is chosen
    "edge_vla.robot.cameras": {"PIL", "cv2"},
    "edge_vla.robot.links": {"serial"},
    "edge_vla.robot.ros2": {"PIL", "rcl_interfaces", "rclpy"},
    "edge_vla.robot.rosbridge": {"roslibpy"},
}
ROBOT_MAY_REACH = {"robot", "errors", "typed_json"}  # neither the policy, nor the server, nor torch

MODULES = graph.module_graph()
PACKAGES = graph.package_graph(MODULES)


def test_no_module_imports_itself_through_others() -> None:
    assert graph.cycles(MODULES) == []


def test_no_package_imports_itself_through_others() -> None:
    assert graph.cycles(PACKAGES) == []


@pytest.mark.parametrize("package", RUN)
def test_the_run_side_reaches_neither_build_nor_evidence(package: str) -> None:
    assert not graph.reachable(PACKAGES, package) & BUILD_OR_EVIDENCE


def test_evidence_knows_no_demo() -> None:
    assert "demo" not in graph.reachable(PACKAGES, "bench")


def test_the_wheel_imports_nothing_of_the_checkout() -> None:
    """Neither by import nor as `python -m benchmarks.x`."""
    for name, path in graph.modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        modules |= {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
        outside = {module.partition(".")[0] for module in modules} & {"benchmarks", "tests", "docs", "export"}
        assert not outside, f"{name} imports {outside}"
        called = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        assert not [text for text in called if text.startswith("benchmarks.")], name


def test_a_client_needs_no_policy() -> None:
    clients = {name: path for name, path in graph.modules().items() if name.startswith("edge_vla.serve.client")}
    for name, path in clients.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        modules |= {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
        roots = {m.partition(".")[0] for m in modules if not m.startswith("edge_vla.serve.client")}
        assert roots <= CLIENT_MAY_IMPORT | set(sys.stdlib_module_names), name


def test_a_limiter_needs_neither_policy_nor_server() -> None:
    assert graph.reachable(PACKAGES, "robot") <= ROBOT_MAY_REACH
    for name, path in graph.modules().items():
        if name.startswith("edge_vla.robot"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            modules |= {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
            roots = {m.partition(".")[0] for m in modules} - {"edge_vla"}
            chosen = [more for package, more in ADAPTERS_MAY_IMPORT.items() if name.startswith(package)]
            assert roots <= ROBOT_MAY_IMPORT.union(*chosen) | set(sys.stdlib_module_names), name


def test_importing_a_limiter_loads_no_torch() -> None:
    script = "import sys, edge_vla.robot; print(sorted({'torch', 'PIL', 'websockets'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_architecture_page_shows_the_graph_of_today() -> None:
    page = graph.ROOT / "docs" / "architecture.md"
    text = page.read_text(encoding="utf-8")
    assert text == graph.rewrite(text, PACKAGES), "make it anew: python docs/graph.py docs/architecture.md"


def made(root: Path, **files: str) -> graph.Graph:
    """The graph of a package of these modules."""
    (root / "p").mkdir()
    for name, text in {"__init__": "", **files}.items():
        (root / "p" / f"{name}.py").write_text(text)
    return graph.module_graph(root, "p")


def test_a_lazy_import_closes_a_cycle_too(tmp_path: Path) -> None:
    found = made(tmp_path, a="def f():\n    from p import b", b="import p.c", c="from p.a import f", d="import p.a")
    assert graph.cycles(found) == [{"p.a", "p.b", "p.c"}]
    assert graph.reachable(found, "p.d") == {"p.a", "p.b", "p.c", "p.d"}


def test_floors_stand_above_what_they_import(tmp_path: Path) -> None:
    found = made(tmp_path, low="", mid="import p.low", top="import p.mid, p.low")
    found.pop("p")
    assert graph.floors(found) == [["p.top"], ["p.mid"], ["p.low"]]
    assert graph.direct(found)["p.top"] == {"p.mid"}
