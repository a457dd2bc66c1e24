"""What is written is read back, version 2 is read unchanged, and anything else is refused by name."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from docs.schema import SCHEMA, result_schema
from edge_vla.bench import result_file
from edge_vla.bench.result import ROUNDING_NOISE, Result
from edge_vla.bench.result_v2 import DROPPED, FLOORS, GATES
from edge_vla.errors import ResourceError, UsageError
from tests.bench.sample_result import empty_result, minimal_result, sample_result

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
OF_VERSION_2 = sorted(path for path in RESULTS.glob("*.json") if '"kind": "bench"' in path.read_text("utf-8")[:200])


@pytest.mark.parametrize("make", [sample_result, minimal_result, empty_result], ids=lambda make: make.__name__)
def test_what_is_written_is_read(make: Callable[[], Result], tmp_path: Path) -> None:
    result = make()
    path = result_file.write(result, tmp_path / "deep" / "out")
    assert result_file.read(path) == result
    assert result_file.read(path.parent) == result
    assert list(json.loads(path.read_text("utf-8")))[:2] == ["version", "kind"]


def test_the_published_schema_is_current() -> None:
    """`python -m docs.schema` writes it."""
    assert json.loads(SCHEMA.read_text("utf-8")) == result_schema()


@pytest.mark.parametrize("make", [sample_result, minimal_result, empty_result], ids=lambda make: make.__name__)
def test_the_schema_and_the_reader_agree(make: Callable[[], Result]) -> None:
    """The schema is msgspec's view of the types: what it decodes is what our reader reads."""
    assert msgspec.json.decode(result_file.dumps(make()), type=Result) == make()


def test_a_result_that_cannot_be_written_is_kept(tmp_path: Path) -> None:
    result = sample_result()
    result.candidates[0].units_off = math.nan
    with pytest.raises(result_file.ResultError, match="version 3"):
        result_file.write(result, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [result_file.REFUSED]
    assert math.isnan(json.loads((tmp_path / result_file.REFUSED).read_text("utf-8"))["candidates"][0]["units_off"])


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResourceError, match=r"result\.json"):
        result_file.write(sample_result(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match="cannot create"):
        result_file.write(sample_result(), tmp_path / "file")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda raw: raw.update(version=4), r"version 4, expected at most 3: pip install --upgrade"),
        (lambda raw: raw.update(version=1), r"Result\.version: .*1"),
        (lambda raw: raw.update(kind="commands"), r"kind 'commands', expected 'bench'"),
        (lambda raw: raw.pop("frames"), r"Result.*'frames'"),
        (lambda raw: raw["candidates"][0].update(extra=1), r"Result\.candidates\[0\]: unknown key 'extra'"),
        (lambda raw: raw["candidates"][0]["agreement"].update(frames="many"), r"candidates\[0\]\.agreement\.frames"),
        (lambda raw: raw["reference"]["performance"]["memory"].update(peak_bytes=1.5), r"memory\.peak_bytes"),
    ],
)
def test_another_shape_is_refused_by_name(spoil: Callable[[Any], None], expected: str) -> None:
    raw = json.loads(result_file.dumps(sample_result()))
    spoil(raw)
    with pytest.raises(UsageError, match=expected):
        result_file.loads(json.dumps(raw))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kind": "bench"}', '{"kind": "bench", "version": 2}'])
def test_what_is_no_result_names_the_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(UsageError, match=r"result\.json"):
        result_file.read(tmp_path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        result_file.read(tmp_path / "nowhere")


# What version 3 no longer records, and what it says in other words: every other leaf must arrive unchanged.
MOVED = ("ran",)  # is now `failed`: null
OF_RECORDED = ("within_2_by_dimension", "l1_by_dimension")
NOT_KEPT = (*DROPPED, *OF_RECORDED, *MOVED)
REWORDED: dict[object, object] = {2: 3}  # the version
REWORDED.update(FLOORS | GATES)


@pytest.mark.parametrize("path", OF_VERSION_2, ids=lambda path: path.stem)
def test_every_leaf_of_version_2_arrives(path: Path) -> None:
    """Counted by value: a converter that loses or changes a figure leaves fewer of it."""
    before = json.loads(path.read_text("utf-8"))
    if before["version"] != 2:
        pytest.skip("this result is of a later version")
    after = dataclasses.asdict(result_file.read(path))
    lost = _counted(before)
    for leaf, count in _counted(after).items():
        lost[leaf] = lost.get(leaf, 0) - count
    assert {leaf: count for leaf, count in lost.items() if count > 0} == {}


def test_version_2_by_hand() -> None:
    """Figures that changed their place."""
    path = RESULTS / "demo-world1.json"
    before, after = json.loads(path.read_text("utf-8")), result_file.read(path)
    row, found = before["candidates"][3], after.candidates[3]
    assert row["name"] == found.name == "int4"
    assert found.agreement is not None
    assert found.closed_loop is not None
    assert found.performance.memory is not None
    assert found.agreement.kl.overall.mean == row["agreement"]["kl"]["all"]["mean"]
    assert found.agreement.margins.deciles[9].low == row["agreement"]["margins"]["deciles"][9]["from"]
    assert found.agreement.gripper.shift_max_steps == row["agreement"]["gripper"]["shift_steps"]["max"]
    assert found.agreement.drift[0].window == 10
    assert found.units_off == row["agreement"]["units_off"]
    assert found.performance.memory.loaded_bytes == row["memory"]["steady_bytes"]
    assert found.artifact.calibration_leakage == row["artifact"]["calibration_frames_among_these"]
    assert found.closed_loop.environment == row["closed_loop"]["world"]
    regime = row["closed_loop"]["regimes"]["lock-step"]
    assert found.closed_loop.regimes[0].name == "lock-step"
    assert found.closed_loop.regimes[0].overall.discordance == regime["discordance"]
    assert after.reference.rates is not None
    assert after.reference.rates["all"].success == before["reference_measured"]["closed_loop_rates"]["all"]["success"]
    assert after.limits is not None
    assert after.limits.ceilings.read_bytes_per_s == before["limits"]["ceilings"]["copy_bytes_per_s"]
    assert next(iter(after.floors)) == ROUNDING_NOISE
    mixed = next(row for row in after.candidates if row.artifact.sensitivity is not None)
    evidence = next(row for row in before["candidates"] if row["name"] == mixed.name)["artifact"]["sensitivity"]
    assert mixed.artifact.sensitivity is not None
    assert mixed.artifact.sensitivity.linears[0].chosen.kl_cost in [
        choice["damage"] for choice in evidence["linears"][0]["choices"]
    ]


def _counted(value: Any) -> dict[object, int]:
    """How often each leaf occurs: numbers, strings, truths. Null, which is an absence, is not counted."""
    counts: dict[object, int] = {}
    for leaf in _leaves(value):
        key = (type(leaf) is bool, REWORDED.get(leaf, leaf))
        counts[key] = counts.get(key, 0) + 1
    return counts


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, part in value.items():
            if key not in NOT_KEPT:
                yield from _leaves(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    elif value is not None:
        yield value
