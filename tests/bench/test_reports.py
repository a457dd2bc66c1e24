"""Every renderer on full, bare and hostile results."""

from __future__ import annotations

import copy
import errno
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from edge_vla.bench import reports
from edge_vla.bench.reports import junit, markdown
from edge_vla.bench.reports.samples import distribution
from edge_vla.bench.reports.schema import schema, validate
from edge_vla.errors import ResourceError, UsageError
from edge_vla.files import sha256_of
from tests.bench.sample_result import Document, empty_result, minimal_result, sample_result

KINDS: list[Callable[[], Document]] = [sample_result, minimal_result, empty_result]
EVERY = pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
EVIL = '<script>alert("x")</script> | `a` [x](javascript:y) \x07 & "q" \'s\''


def test_the_schema_is_one() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema())
    assert schema()["properties"]["version"] == {"const": 2}


@EVERY
def test_writing(make: Callable[[], Document], tmp_path: Path) -> None:
    result = make()
    written = reports.write(result, tmp_path / "deep" / "out")
    assert sorted(path.name for path in (tmp_path / "deep" / "out").iterdir()) == sorted(path.name for path in written)
    assert reports.read(tmp_path / "deep" / "out") == result
    model = result["model"]["name"]
    for path in written:
        text = path.read_text(encoding="utf-8")
        assert model in text or text == "[]\n", path
    assert len(list(ElementTree.parse(written[3]).iter("testcase"))) == len(result["gates"])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda result: result.update(version=3),
        lambda result: result.pop("frames"),
        lambda result: result.update(surprise=1),
    ],
    ids=["version", "missing", "foreign"],
)
@pytest.mark.parametrize("library", [True, False], ids=["jsonschema", "without"])
def test_a_result_of_another_shape_is_refused_and_kept(
    spoil: Callable[[Document], None],
    library: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if library:
        pytest.importorskip("jsonschema")
    else:
        _without_jsonschema(monkeypatch)
    result = sample_result()
    spoil(result)
    with pytest.raises(reports.ResultError), caplog.at_level(logging.WARNING):
        reports.write(result, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["result-refused.json"]
    assert json.loads((tmp_path / "result-refused.json").read_text(encoding="utf-8")) == result
    assert ("top level only" in caplog.text) is not library


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (lambda result: result["candidates"][0].update(extra=1), r"\$.candidates\[0\]"),
        (lambda result: result["candidates"][0]["agreement"].update(frames="many"), "agreement.frames"),
        (lambda result: result["reference"].update(identity="short"), r"\$.reference.identity"),
        (lambda result: result["candidates"][1]["worst_frames"][0].update(image="http://x/y.png"), "image"),
        (lambda result: result["candidates"][1]["closed_loop"]["regimes"]["lock-step"].pop("reference"), "lock-step"),
    ],
)
def test_the_schema_is_closed(spoil: Callable[[Document], None], where: str) -> None:
    pytest.importorskip("jsonschema")
    result = sample_result()
    validate(result)
    spoil(result)
    with pytest.raises(reports.ResultError, match=where):
        validate(result)


def test_a_number_that_json_has_not_is_refused() -> None:
    with pytest.raises(reports.ResultError, match="not JSON"):
        reports.write(sample_result() | {"notes": [float("nan")]}, Path("nowhere"))


@pytest.mark.parametrize("name", [reports.RESULT, *reports.FILES])
def test_a_full_disk_names_the_file_and_keeps_the_measurements(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name == f".{name}.partial":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResourceError, match=name.replace(".", r"\.")):
        reports.write(sample_result(), tmp_path)
    assert (tmp_path / "result.json").exists() is (name != "result.json")
    assert not list(tmp_path.glob("*.partial"))


def test_a_place_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match="cannot make"):
        reports.write(sample_result(), tmp_path / "file")


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", '{"kind": "commands"}'])
def test_reading_what_is_no_result(text: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(UsageError, match=r"result\.json"):
        reports.read(tmp_path)
    with pytest.raises(UsageError):
        reports.read(tmp_path / "nowhere")


def evil_result() -> Document:
    """Every string that is no enumeration, hash or image carries markup; every free key too."""
    result = sample_result()
    for candidate in result["candidates"]:
        candidate["name"] += EVIL
        candidate["artifact"]["name"] += EVIL
        candidate["artifact"]["recipe"][EVIL] = EVIL
        candidate["artifact"]["layer_errors"] = {EVIL: {EVIL: 0.1}}
        candidate["kernels"] = {EVIL: EVIL}
        candidate["latency"] = {EVIL: candidate["latency"]["back to back"] | {"mode": EVIL}}
        candidate["closed_loop"] |= {"world": EVIL, "regimes": {EVIL: candidate["closed_loop"]["regimes"]["lock-step"]}}
        for frame in candidate["worst_frames"]:
            frame |= {"instruction": EVIL, "episode": EVIL}
    for place in (result["model"], result["peers"][0], result["peers"][1], result["gates"][0], result["gates"][2]):
        for key, value in place.items():
            place[key] = value + EVIL if isinstance(value, str) else value
    for key in ("command", "commit", "time", "device", "torch"):
        result["environment"][key] += EVIL
    result["environment"]["unpublishable_because"] = [EVIL]
    result["floors"] = {EVIL: result["floors"]["float32"] | {"dims": [EVIL] * 7}}
    result["frames"] |= {"name": EVIL, "by_phase": {EVIL: 1}}
    result["gates_declared"][EVIL] = EVIL
    result["limits"]["stages"][0]["name"] = EVIL
    return result | {"name": EVIL, "notes": [EVIL]}


def test_hostile_words(tmp_path: Path) -> None:
    result = evil_result()
    reports.write(result, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    suite = ElementTree.parse(tmp_path / "junit.xml")
    assert suite.find(".//failure") is not None
    cards = [reports.model_card(result, candidate["name"]) for candidate in result["candidates"]]
    for text in (markdown(result), *cards, reports.compare(result, copy.deepcopy(result)).markdown()):
        prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
        assert "<script" not in prose
        assert "](javascript" not in prose
        assert all(len(widths) == 1 for widths in table_widths(text))


def table_widths(text: str) -> list[set[int]]:
    """For each table of a Markdown text, the numbers of bars in its rows."""
    found: list[set[int]] = []
    before = ""
    for line in text.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append(set())
            found[-1].add(line.replace("\\\\", "").replace("\\|", "").count("|"))
        before = line
    return found


def test_the_worst_comes_first_and_every_table_names_the_model(tmp_path: Path) -> None:
    result = sample_result()
    text = markdown(result)
    assert text.index("int4: high-margin flips") < text.index("int4: non-inferior") < text.index("16 bits: same action")
    model = result["model"]["name"]
    assert text.count(model) > len(table_widths(text))
    page = reports.html(result)
    assert page.index(result["model"]["speaks_for"]) < page.index("<table")
    captions = page.count("<caption>") + page.count("<figcaption>")
    assert captions > 20
    assert page.count(f'<span class="model">{model}') == captions


@EVERY
def test_the_page_is_well_formed(make: Callable[[], Document]) -> None:
    """As XML, but for the void elements of HTML; identifiers are unique."""
    page = reports.html(make())
    body = page[page.index("<body>") : page.index("</html>")].replace("tabindex", "data-t")
    root = ElementTree.fromstring(body)
    names = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(names) == len(set(names))
    for drawing in root.iter("svg"):
        children = list(drawing)
        assert [child.tag for child in children[:2]] == ["title", "desc"]
        assert drawing.get("aria-labelledby") == f"{children[0].get('id')} {children[1].get('id')}"
    assert all(anchor.get("href", "")[1:] in names for anchor in root.iter("a"))


def test_the_page_asks_for_nothing() -> None:
    page = reports.html(sample_result())
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page
    assert "default-src 'none'" in page


def test_an_image_that_is_no_image_is_not_drawn() -> None:
    result = sample_result()
    for candidate in result["candidates"]:
        for frame in candidate["worst_frames"]:
            frame["image"] = "https://elsewhere/x.png"
    assert "elsewhere" not in reports.html(result)


def test_raw_samples(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = np.random.default_rng(0).lognormal(np.log(50), 0.1, 700)
    began = np.arange(700) * 10**9
    ended = began + (samples * 1e6).astype(np.int64)
    samples = (ended - began) / 1e6
    np.savez(tmp_path / "latency.npz", scheduled_ns=began, finished_ns=ended)
    latency: dict[str, Any] = {"p50_ms": float(np.median(samples)), "max_ms": 90.0, "samples": "latency.npz"}
    latency["samples_sha256"] = sha256_of(tmp_path / "latency.npz")
    points, raw = distribution(latency, tmp_path)
    assert raw
    assert points[-1] == pytest.approx((samples.max(), 1.0))
    assert len(points) <= 160
    percentiles = [(latency["p50_ms"], 0.5), (90.0, 1.0)]
    assert distribution(latency, None) == (percentiles, False)
    assert distribution(latency | {"samples": "../latency.npz"}, tmp_path / "deep") == (percentiles, False)
    assert distribution(latency | {"samples_sha256": "0" * 64}, tmp_path) == (percentiles, False)
    assert "not the file" in caplog.text
    far = {"p50_ms": 500.0, "samples": "latency.npz", "samples_sha256": None}
    assert distribution(far, tmp_path) == ([(500.0, 0.5)], False)
    (tmp_path / "latency.npz").write_bytes(b"PK nonsense")
    assert distribution(latency | {"samples_sha256": None}, tmp_path) == (percentiles, False)


@pytest.mark.parametrize("name", ["benchmark-smaller-is-better.json", "benchmark-bigger-is-better.json"])
def test_benchmark_lists(name: str, tmp_path: Path) -> None:
    reports.write(sample_result(), tmp_path)
    entries = json.loads((tmp_path / name).read_text(encoding="utf-8"))
    assert len({entry["name"] for entry in entries}) == len(entries) > 8
    for entry in entries:
        assert set(entry) <= {"name", "unit", "value", "range", "extra"}
        assert isinstance(entry["value"], float)
        assert entry["name"].startswith("no model: invented numbers / ")


def test_junit() -> None:
    suite = ElementTree.fromstring(junit(sample_result()))[0]
    assert {key: suite.get(key) for key in ("tests", "failures", "skipped")} == {
        "tests": "4",
        "failures": "1",
        "skipped": "1",
    }
    failed = [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None]
    assert failed == ["int4: high-margin flips"]


def test_comparing() -> None:
    a, b = sample_result(), sample_result()
    b["candidates"][2]["agreement"]["exact_action"] = {"mean": 0.3, "low": 0.25, "high": 0.35}
    b["candidates"][2]["latency"]["back to back"] |= {"p50_ms": 60.0, "p50_interval": [59.0, 61.0]}
    found = reports.compare(a, b)
    assert found.table is not None
    marked = {row[0]: found.table.mark(i) for i, row in enumerate(found.table.rows) if found.table.mark(i)}
    assert marked == {"int4: same action": "pass", "int4: back to back, p50": "fail"}
    assert "×1.250" in found.markdown()

    b["frames"]["sha256"] = "0" * 64
    b["environment"]["device"] = "Another"
    b["candidates"].pop()
    other = reports.compare(a, b)
    assert "agreement is left out" in " ".join(other.warnings)
    assert "two machines" in " ".join(other.warnings)
    assert "Only in A: int4." in other.warnings
    assert other.table is not None
    assert not [row for row in other.table.rows if "same action" in row[0]]


@pytest.mark.parametrize("change", [{"version": 1}, {"model": {"name": "other", "speaks_for": "x"}}])
def test_what_does_not_compare(change: Document) -> None:
    with pytest.raises(UsageError, match="do not compare"):
        reports.compare(sample_result(), sample_result() | change)


def test_model_card() -> None:
    result = sample_result()
    card = reports.model_card(result, "int4")
    front = card.split("---\n")[1]
    assert "library_name: edge-vla" in front
    assert "- int4" in front
    assert "base_model_relation" not in [line.partition(":")[0] for line in front.splitlines()]
    for title in ("What it is", "How it was made", "Measured", "Limits", "How to reproduce"):
        assert f"## {title}" in card
    assert "hf-bf16" not in card
    result["reference"]["name"] = "openvla/openvla-7b@main"
    assert 'base_model: "openvla/openvla-7b"\nbase_model_relation: quantized' in reports.model_card(result, "int8")
    with pytest.raises(UsageError, match="int4"):
        reports.model_card(result, "int3")


def test_a_card_without_anything_optional() -> None:
    card = reports.model_card(minimal_result(), "int4")
    assert "No closed-loop success was measured" in card
    assert "synthetic" in card


def _without_jsonschema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)


def test_a_side_that_broke_and_matrices_without_an_error(tmp_path: Path) -> None:
    result = sample_result() | {"reference_measured": {}}
    broken = result["candidates"][2]
    broken |= {"failed": "out of memory", "agreement": None, "latency": None, "memory": None, "closed_loop": None}
    broken |= {"worst_frames": []}
    broken["artifact"]["layer_errors"] = {"0": {"q_proj": None}}
    result["candidates"][1]["artifact"]["layer_errors"]["0"] = {"self_attn.q_proj": None}
    reports.write(result, tmp_path)
    assert "out of memory" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "out of memory" in (tmp_path / "report.html").read_text(encoding="utf-8")
