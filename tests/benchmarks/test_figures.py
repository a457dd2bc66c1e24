"""README and REPORT.md say what the committed results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import study
from benchmarks.commands import CommandCost, CommandsResult, EtaError
from benchmarks.figures import BEGIN, END, REPORT, fill, fill_first_run, readme, report
from edge_vla.bench import result_file
from edge_vla.errors import UsageError
from tests.bench.sample_result import empty_result, minimal_result, sample_result

RESULTS = study.ROOT / "benchmarks" / "results"


def test_the_readme_is_not_stale() -> None:
    text = (study.ROOT / "README.md").read_text(encoding="utf-8")
    filled = fill_first_run(fill(text, readme(RESULTS)), RESULTS)
    assert text == filled, "python -m benchmarks.figures README.md benchmarks/results"


def test_the_report_is_not_stale() -> None:
    assert (RESULTS.parent / REPORT).read_text(encoding="utf-8") == report(RESULTS)


def test_the_readme_stays_short() -> None:
    assert len(readme(RESULTS).splitlines()) <= 25


def test_filling() -> None:
    assert fill(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\n\nnew\n{END}\nb"
    with pytest.raises(UsageError, match="add both lines"):
        fill("no markers", "new")


def test_commands_show_their_eta_and_what_the_device_holds(tmp_path: Path) -> None:
    inspected = json.dumps({"facts": {"bytes on the device": 4_100_000_000}})
    cost = CommandCost(
        arguments=["export", "x"],
        runs=1,
        wall_s=100.0,
        fastest_wall_s=100.0,
        cpu_s=None,
        peak_bytes=2 << 30,
        last_line=inspected,
        eta_errors=[EtaError(5.0, 1.9), EtaError(50.0, 0.9)],
    )
    study.write_result(tmp_path / "one.json", CommandsResult([cost], {"made": 4_370_000_000}))
    text = report(tmp_path)
    assert "| edge-vla export x | 100 s | 2.00 GiB |" in text
    assert "| ETA error after the first tenth | at most 10% |  |" in text
    assert "| weights on the device |  | 4.10 GB |" in text
    assert "| size of made |  | 4.37 GB on disk |" in text


def test_a_bench_in_the_readme_is_a_row_a_system(tmp_path: Path) -> None:
    (tmp_path / "demo-world1.json").write_text(result_file.dumps(sample_result()), encoding="utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in readme(tmp_path).splitlines() if line.startswith("| ")]
    assert rows == ["no model: invented numbers", "bf16, not quantised", "noise floor", "int8", "int4", "bnb-nf4"]


def test_benches_with_little_in_them(tmp_path: Path) -> None:
    for name, result in {"a": minimal_result(), "b": empty_result()}.items():
        (tmp_path / f"{name}.json").write_text(result_file.dumps(result), encoding="utf-8")
    other = {"kind": "other", "command": "x", "commit": None, "device": "y", "cores": 1, "threads": 1, "python": "3"}
    (tmp_path / "c.json").write_text(json.dumps({**other, "torch": "2"}), encoding="utf-8")
    text = report(tmp_path)
    assert text.count("\n## Invented result") == 2
    assert "[c.json](results/c.json)" in text
