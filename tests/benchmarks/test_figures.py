"""The README and REPORT.md say what the committed results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.figures import BEGIN, END, REPORT, figures, fill, report
from edge_vla.bench.reports import validate
from edge_vla.errors import UsageError
from tests.bench.sample_result import empty_result, minimal_result, sample_result

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def test_the_readme_is_not_stale() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == fill(readme, figures(RESULTS))


def test_the_report_is_not_stale() -> None:
    assert (RESULTS.parent / REPORT).read_text(encoding="utf-8") == report(RESULTS)


def test_every_result_says_how_it_was_measured() -> None:
    found = sorted(RESULTS.glob("*.json"))
    assert found
    for path in found:
        result = json.loads(path.read_text(encoding="utf-8"))
        said = result.get("environment", result)
        assert {"command", "commit", "device"} <= set(said), path.name
        if result.get("kind") == "bench":
            validate(result)


def test_filling() -> None:
    assert fill(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\n\nnew\n{END}\nb"
    with pytest.raises(UsageError, match="no "):
        fill("no markers", "new")


def test_commands_say_what_they_foretold_and_what_the_device_holds(tmp_path: Path) -> None:
    command = {
        "arguments": ["export", "x"],
        "seconds": 100.0,
        "peak_bytes": 2 << 30,
        "foretold": [{"at_s": 5.0, "over_actual": 1.9}, {"at_s": 50.0, "over_actual": 0.9}],
        "last_line": json.dumps({"facts": {"bytes on the device": 4_100_000_000}}),
    }
    about = {"command": "x", "commit": "y", "device": "z", "cores": 2, "load_average": 0.0}
    result = {"kind": "commands", "environment": about, "commands": [command], "disk_bytes": {"made": 4_370_000_000}}
    (tmp_path / "one.json").write_text(json.dumps(result), encoding="utf-8")
    text = figures(tmp_path)
    assert "| `edge-vla export x` | 100 s | 2.00 GiB |" in text
    assert "| the time it foretold after its first tenth | within 10% | |" in text
    assert "| its weights on the device | | 4.10 GB |" in text
    assert "| size of `made` | | 4.37 GB on disk |" in text


def test_a_bench_in_the_readme_is_a_row_a_side(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(sample_result()), encoding="utf-8")
    lines = figures(tmp_path).splitlines()
    assert lines[0].startswith("**no model: invented numbers.** 2 of 4 gates passed")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    assert rows == ["side", "reference", "floor: rounding shaken", "16 bits", "int8", "int4", "hf-bf16"]
    assert max(map(len, lines)) < 220


def test_benches_with_little_in_them(tmp_path: Path) -> None:
    for name, result in {"a": minimal_result(), "b": empty_result(), "c": {"what": "other"}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")
    assert figures(tmp_path).count("no model: invented numbers") == 2
    text = report(tmp_path)
    assert text.count("\n## Invented result") == 2
    assert "[c.json](results/c.json)" in text
