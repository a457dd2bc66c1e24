"""One word, one thing: the words that docs/glossary.md has another word for are used nowhere.

Private words are forbidden in prose and code alike. Plain English words that once named a thing of ours ("side",
"few") stay free in prose and are forbidden as names.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge_vla.cli import app

ROOT = Path(__file__).resolve().parents[1]
CODE = [path for room in ("edge_vla", "benchmarks", "docs") for path in sorted((ROOT / room).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
C = [path for kind in ("*.c", "*.h") for path in sorted((ROOT / "edge_vla").rglob(kind))]
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "export").glob("*"),
    *(ROOT / "calibration").glob("*.md"),
    ROOT / "benchmarks" / "README.md",
    ROOT / "benchmarks" / "REPORT.md",
    *(ROOT / "edge_vla").rglob("*.j2"),
]
# They hold the old words to read or rename them.
OLD_WORDS = {
    "CHANGELOG.md",
    "options.py",
    "result_v2.py",
    "results_v1.py",
    "test_result_file.py",
    "test_result_files.py",
    "REPORT.md",  # quotes the commands and notes of old results
    "test_options.py",
    "test_words.py",
}

EVERYWHERE = {
    r"clear leads?": "high-margin",
    r"shakes?|shaken|shaking": "rounding noise",
    r"rides?|riding": "draft in prefill",
    r"blackboard|desks?": "scratch, workspace",
    r"contestants?": "system under test",
    r"waterfalls?": "stage profile",
    r"foretold|foretells?": "ETA",
    r"judged?|judges|judging": "evaluate, measure, check",
    r"steady(?!_TIME)": "batch-invariant",  # STEADY_TIME is what ROS calls its monotonic clock
}
AS_NAMES = {  # a whole name, or a word of one
    "lead": "margin",
    "leads": "margins",
    "room": "buffers, workspace",
    "desk": "scratch",
    "trial": "KernelCheck, ClosedLoopPlan",
    "station": "WorkerProcess",
    "proposal": "draft strategy",
    "told": "on_progress",
    "foretold": "ETA",
    "damage": "kl_cost",
}
AS_WHOLE_NAMES = {  # the whole name alone: `image_side` is a length, `outer` was a number of features
    "few": "gemv",
    "many": "gemm",
    "wide": "gemm, float32",
    "ways": "GpuConfig",
    "meet": "barrier",
    "side": "system",
    "sides": "systems",
    "answers": "predictions",
    "seen": "calibration leakage",
    "tell": "on_progress",
    "inner": "in_features",
    "outer": "out_features",
    "strict": "bitwise_exact",
}


def names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that a file defines: functions, classes, parameters, variables, fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr, node.lineno


def parts(name: str) -> set[str]:
    """`WorkerProcess` and `worker_process` -> worker, process."""
    return set(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_"))


def wrong_names(defined: Iterator[tuple[str, int]]) -> list[str]:
    found = []
    for name, line in defined:
        plain = name.strip("_").lower()
        instead = [AS_NAMES[word] for word in sorted(parts(name) & AS_NAMES.keys())]
        instead += [AS_WHOLE_NAMES[plain]] if plain in AS_WHOLE_NAMES else []
        found += [f"{line}: {name}, write {word}" for word in instead]
    return found


def private_words(text: str) -> list[str]:
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        for pattern, instead in EVERYWHERE.items():
            if hit := re.search(rf"(?<![a-z])(?:{pattern})(?![a-z])", line, re.I):
                found.append(f"{number}: {hit[0]!r}, write {instead}: {line.strip()[:80]}")
    return found


@pytest.mark.parametrize("path", [*CODE, *TESTS, *C, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_words(path: Path) -> None:
    if path.name not in OLD_WORDS:
        assert private_words(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_says_what_another_word_says_better(path: Path) -> None:
    if path.name not in OLD_WORDS:
        assert wrong_names(names(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize("path", C, ids=lambda path: path.name)
def test_no_name_in_c_does(path: Path) -> None:
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.S)
    assert wrong_names((name, 0) for name in sorted(set(re.findall(r"[A-Za-z_]\w+", code)))) == []


@pytest.mark.parametrize(
    "command",
    [command.callback.__name__.replace("_", "-") for command in app.registered_commands if command.callback],
)
def test_no_help_text_does(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert private_words(shown.output) == []
    assert not re.search(r"--(table|waterfall)\b", shown.output)


def test_the_lists_find_what_they_are_for() -> None:
    assert private_words("0 clear leads, its rounding shaken") != []
    assert private_words("leading, a shield, damaged, a judgement call") == []
    code = "def f(side):\n    lead_ms = IMAGE_SIDE = side\nclass WarmTrial: ..."
    wrong = "".join(wrong_names(names(ast.parse(code))))
    assert all(name in wrong for name in ("side", "lead_ms", "WarmTrial"))
    assert "IMAGE_SIDE" not in wrong
