"""The rules of the house that a machine can hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edge_vla
from edge_vla.cli import main

PACKAGE = Path(edge_vla.__file__).parent
ROOT = PACKAGE.parent
RUN = (
    "artifact",
    "checkpoint",
    "compat",
    "cores",
    "data",
    "device",
    "errors",
    "files",
    "inspection",
    "interop",
    "model",
    "openvla",
    "processor",
    "quant",
    "robot",
    "runtime",
    "spec",
    "threads",
    "version",
)
HEAVY = ("transformers", "peft", "timm", "torchvision", "onnx", "onnxscript", "onnx_ir", "scipy", "pandas")
RUN_MAY_IMPORT = {"torch", "numpy", "safetensors", "tokenizers", "PIL", "edge_vla"}
SERVE_MAY_IMPORT = {"h11", "msgpack", "prometheus_client", "starlette", "uvicorn", "websockets", "zmq"}
FLEET = {"ray_fleet.py"}  # the only file of the server that imports Ray; nothing imports it unless a fleet is asked for
LAZY = {
    "cv2",
    "onnxruntime",
    "rcl_interfaces",
    "rclpy",
    "roslibpy",
    "serial",
    "tensorrt",
    "tomli",
    "triton",
    "huggingface_hub",
    "pyarrow",
}


def sources(*rooms: str) -> list[Path]:
    found = [path for room in rooms for path in [*PACKAGE.glob(f"{room}.py"), *PACKAGE.glob(f"{room}/**/*.py")]]
    assert found or not rooms
    return sorted(found)


def imports(path: Path) -> set[str]:
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", sources(*RUN), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_run_side_imports_few_packages(path: Path) -> None:
    outside = {name.partition(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    assert outside <= RUN_MAY_IMPORT | LAZY, outside


@pytest.mark.parametrize("path", sources("serve"), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_server_imports_its_extra_only(path: Path) -> None:
    outside = {name.partition(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    assert outside <= RUN_MAY_IMPORT | SERVE_MAY_IMPORT | ({"ray"} if path.name in FLEET else set()), outside
    assert path.name in FLEET or "edge_vla.serve.ray_fleet" not in imports(path)


def test_importing_the_run_side_loads_no_build_tool() -> None:
    script = (
        f"import sys, edge_vla.runtime; print([name for name in {(*HEAVY, 'typer', 'rich')!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["export", "--help"], ["run", "--help"], ["--version"]])
def test_help_does_not_import_torch(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom edge_vla.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "False False"


def test_numbers_of_the_model_live_in_one_place() -> None:
    """7 stands for too many things to forbid; these do not."""
    numbers = re.compile(r"(?<![\w.])(4096|11008|29871|31744|32000|32064|31999|1152|4304)(?![\w.])")
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        if path.name == "spec.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) is int]
        wrong += [f"{path.relative_to(PACKAGE)}: {value}" for value in found if numbers.fullmatch(str(value))]
    assert not wrong


def test_only_the_command_line_prints() -> None:
    printing = []
    for path in PACKAGE.rglob("*.py"):
        calls = [
            node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
        ]
        printing += [path.parent.name for call in calls if isinstance(call, ast.Name) and call.id == "print"]
    assert set(printing) == {"commands"}


def test_files_stay_short_and_open_with_what_they_are() -> None:
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("test_*.py")]:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, path
        assert not text.strip() or ast.get_docstring(ast.parse(text)), path


def test_functions_fit_a_screen() -> None:
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path.relative_to(ROOT)}: {node.name}"


def test_untyped_results_stand_at_json_borders_only() -> None:
    untyped = re.compile(r"(dict|Mapping)\[str, Any\]")
    lines = [line for path in PACKAGE.rglob("*.py") for line in path.read_text(encoding="utf-8").splitlines()]
    assert sum(bool(untyped.search(line)) for line in lines) <= 20


def test_the_run_side_parses_on_python_3_10() -> None:
    for path in sources(*RUN, "serve"):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))


def test_no_code_in_the_data_directories() -> None:
    assert not [path for room in ("export", "calibration") for path in (ROOT / room).rglob("*.py")]


def test_torchvision_is_absent() -> None:
    assert subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, check=False).returncode


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["run"], 2), (["nonsense"], 2), (["verify", "nowhere"], 2), (["inspect", "nowhere"], 2)],
)
def test_exit_codes(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == code
    assert "Traceback" not in capsys.readouterr().err
