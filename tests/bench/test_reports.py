"""What a reader of the reports sees: verdicts first, the model named everywhere, nothing that is markup by accident."""

from __future__ import annotations

import copy
import dataclasses
import errno
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edge_vla.bench import reports
from edge_vla.bench.reports import agreement_tables, figures, performance_tables, tables, verdicts
from edge_vla.bench.reports.charts import Scale
from edge_vla.bench.reports.markdown import escaped
from edge_vla.bench.reports.text import part as share_of
from edge_vla.bench.result import BACK_TO_BACK, Model, Result, Stage
from edge_vla.errors import ResourceError, UsageError
from tests.bench import sample_parts as parts
from tests.bench.sample_result import empty_result, minimal_result, sample_result

EVERY = pytest.mark.parametrize("make", [sample_result, minimal_result, empty_result], ids=lambda make: make.__name__)
EVIL = '<script>alert("x")</script> | `a` [x](javascript:y) \x07 & "q" \'s\''


@EVERY
def test_writing(make: Callable[[], Result], tmp_path: Path) -> None:
    result = make()
    written = reports.write(result, tmp_path / "out")
    assert [path.name for path in written] == ["result.json", "report.md", "report.html"]
    assert sorted(written) == sorted((tmp_path / "out").iterdir())
    assert reports.read(tmp_path / "out") == result
    assert all(result.model.name in path.read_text("utf-8") for path in written)


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_a_full_disk_names_the_file_and_keeps_the_measurements(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name == f".{name}.partial":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResourceError, match=name):
        reports.write(sample_result(), tmp_path)
    assert reports.read(tmp_path) == sample_result()


def evil_result() -> Result:
    """Markup in every string that a user, a checkpoint or another program gives."""
    result = sample_result()
    for row in result.candidates:
        row.name += EVIL
        row.artifact = dataclasses.replace(row.artifact, name=EVIL, recipe={EVIL: EVIL})
        row.performance.kernels = {EVIL: EVIL}
        one = parts.latency(50.0, EVIL)
        row.performance.latency = {EVIL: dataclasses.replace(one, stages=[Stage(name=EVIL, p50_ms=1.0, share=None)])}
        row.closed_loop = parts.closed_loop(0.01, EVIL, EVIL)
        row.worst_frames = [parts.worst_frame(0, EVIL)]
        row.failed = EVIL
    result.floors = {EVIL: dataclasses.replace(parts.agreement(0.9), dims=[EVIL] * 7)}
    result.peers[1].name = result.peers[1].description = result.peers[1].failed = EVIL
    result.gates = [dataclasses.replace(gate, name=EVIL, why=EVIL) for gate in result.gates]
    result.model = Model(name="no model: invented numbers" + EVIL, scope=EVIL)
    assert result.provenance.device_state is not None
    state = dataclasses.replace(result.provenance.device_state, unpublishable_because=[EVIL])
    result.provenance = dataclasses.replace(
        result.provenance, command=EVIL, commit=EVIL, time=EVIL, device=EVIL, torch=EVIL, device_state=state
    )
    result.frames = dataclasses.replace(result.frames, name=EVIL, by_phase={EVIL: 1})
    result.limits = dataclasses.replace(parts.limits(EVIL))
    result.name, result.notes = EVIL, [EVIL]
    return result


def test_hostile_words(tmp_path: Path) -> None:
    result = evil_result()
    reports.write(result, tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    cards = [reports.model_card(result, row.name) for row in result.candidates]
    for text in (reports.markdown(result), *cards, reports.compare(result, copy.deepcopy(result)).markdown()):
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


def test_failures_come_first_and_every_table_names_the_model() -> None:
    result = sample_result()
    text = reports.markdown(result)
    assert text.index("int4: high-margin flips") < text.index("int4: non-inferior") < text.index("16 bits: tokens")
    assert "2 of 4 gates passed, 1 undecided; failed: int4: high-margin flips." in text
    assert text.count(result.model.name) > len(table_widths(text)) > 10
    page = reports.html(result)
    assert page.index(result.model.scope) < page.index("<table")
    captions = page.count("<caption>") + page.count("<figcaption>")
    assert captions > 20
    assert page.count(f'<span class="model">{result.model.name}') == captions


def test_every_figure_says_how_to_read_it() -> None:
    page = reports.html(sample_result())
    root = ElementTree.fromstring(page[page.index("<body>") : page.index("</html>")].replace("tabindex", "data-t"))
    drawn = [figure for figure in root.iter("figure") if figure.get("class") != "card"]
    assert len(drawn) == 10
    for figure in drawn:
        caption = figure.find("figcaption")
        assert caption is not None
        assert caption.text is not None
        assert caption.text.strip().endswith(".")
        assert figure.find(".//svg") is None or figure.find("details//table") is not None, (
            "what is drawn is also a table"
        )
        assert figure.find(".//table") is not None


def test_what_the_summary_says() -> None:
    found = tables.summary(sample_result())
    assert found is not None
    rows = {row[0]: dict(zip(found.columns, row, strict=True)) for row in found.rows}
    assert list(rows) == ["reference", "floor: rounding noise", "floor: float32", "16 bits", "int8", "int4", "hf-bf16"]
    assert rows["int4"]["same token"] == "72.7% [70.7, 74.7]"
    assert rows["int4"]["high-margin flips"] == "4 of 606"
    assert rows["int4"]["rate"] == "20.8 Hz"
    assert rows["reference"]["same token"] == "–"
    turned = found.transposed()
    assert turned.columns[1:] == tuple(rows)
    assert turned.rows[0] == ("same token", *(row["same token"] for row in rows.values()))


def test_a_column_that_nobody_measured_is_left_out() -> None:
    found = tables.summary(minimal_result())
    assert found is not None
    assert found.columns == ["system", "same token", "same action", "high-margin flips", "on disk"]
    assert performance_tables.latency(minimal_result()) is None
    assert tables.gates(empty_result()) is None
    assert agreement_tables.agreement(empty_result()) is None


def test_a_refused_percentile_says_why() -> None:
    found = performance_tables.latency(sample_result())
    assert found is not None
    assert found.rows[0][found.columns.index("p99.9")] == "n/a (n=700 < 6636)"
    assert "3 of 700" in found.rows[1]


def test_flips_above_the_rounding_noise_are_bold() -> None:
    _, figure = figures.agreement(sample_result())
    shades = figure.table.shades
    bold = {figure.table.rows[row][column] for (row, column), shade in shades.items() if shade.strong}
    assert "3 of 237" in bold
    assert not any(cell.startswith("0 of") for cell in bold)
    assert not any(shade.strong for (row, _), shade in shades.items() if row < 4), "these margins are below the noise"
    assert max(shade.depth for shade in shades.values()) == 1
    assert "rounding noise, 1.3" in figure.reading
    page = reports.html(sample_result())
    assert page.count('class="heat strong"') >= sum(shade.strong for shade in shades.values()) > 0


@EVERY
def test_the_page_is_well_formed(make: Callable[[], Result]) -> None:
    """As XML; identifiers are unique, drawings have a title and a description."""
    page = reports.html(make())
    body = page[page.index("<body>") : page.index("</html>")].replace("tabindex", "data-t")
    root = ElementTree.fromstring(body)
    names = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(names) == len(set(names))
    for drawing in root.findall(".//figure/svg"):
        assert drawing.get("role") == "img"
        children = list(drawing)
        assert [child.tag for child in children[:2]] == ["title", "desc"]
        assert drawing.get("aria-labelledby") == f"{children[0].get('id')} {children[1].get('id')}"
    assert all(image.get("alt") for image in root.iter("img"))
    assert all(anchor.get("href", "")[1:] in names for anchor in root.iter("a"))


def test_the_page_asks_for_nothing() -> None:
    page = reports.html(sample_result())
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page
    assert "default-src 'none'" in page


def test_an_image_that_is_no_image_is_not_shown() -> None:
    result = sample_result()
    frames = result.candidates[2].worst_frames
    assert reports.html(result).count("<img") == len(frames) == 2
    result.candidates[2].worst_frames = [dataclasses.replace(frames[0], image="https://elsewhere/x.png")]
    assert "elsewhere" not in reports.html(result)


def test_comparing() -> None:
    a, b = sample_result(), sample_result()
    changed = b.candidates[2]
    assert changed.agreement is not None
    changed.agreement = dataclasses.replace(changed.agreement, exact_action=parts.interval(0.3))
    changed.performance.latency[BACK_TO_BACK] = parts.latency(60.0)
    found = reports.compare(a, b)
    assert found.table is not None
    marked = {row[0]: mark for row, mark in zip(found.table.rows, found.table.marks, strict=True) if mark}
    assert marked == {"int4: same action": "pass", "int4: back to back, p50": "fail"}
    assert "×1.250" in found.markdown()


def test_what_is_left_out_of_a_comparison_is_said() -> None:
    a, b = sample_result(), sample_result()
    b.frames = dataclasses.replace(b.frames, sha256="0" * 64)
    b.provenance = dataclasses.replace(b.provenance, device="Another")
    b.candidates.pop()
    found = reports.compare(a, b)
    assert "agreement is left out" in " ".join(found.warnings)
    assert "two machines" in " ".join(found.warnings)
    assert "Only in A: int4." in found.warnings
    assert found.table is not None
    assert not [row for row in found.table.rows if "same action" in row[0]]


def test_two_models_do_not_compare() -> None:
    other = sample_result()
    other.model = Model(name="other", scope="x")
    with pytest.raises(UsageError, match="compare two of the same model"):
        reports.compare(sample_result(), other)


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
    assert "int8" not in card.partition("## How to reproduce")[0]
    result.reference.name = "openvla/openvla-7b@main"
    assert 'base_model: "openvla/openvla-7b"\nbase_model_relation: quantized' in reports.model_card(result, "int8")
    with pytest.raises(UsageError, match="int4"):
        reports.model_card(result, "int3")


def test_a_card_without_anything_optional() -> None:
    card = reports.model_card(minimal_result(), "int4")
    assert "Closed-loop success was not measured" in card
    assert "synthetic" in card


def test_a_system_that_failed_is_named() -> None:
    result = minimal_result()
    result.candidates[0].failed, result.candidates[0].agreement = "out of memory", None
    result.reference.failed = "killed"
    for text in (reports.markdown(result), reports.html(result)):
        assert "int4 failed: out of memory" in text
        assert "reference failed: killed" in text


def test_escaping() -> None:
    assert escaped("a|b\n<c> *d*") == "a\\|b &lt;c&gt; \\*d\\*"


@pytest.mark.parametrize("log", [False, True])
def test_a_scale_runs_from_0_to_100_percent_with_round_ticks(log: bool) -> None:
    scale = Scale(0.3, 170, log)
    assert (scale(0.3), scale(170)) == pytest.approx((0, 100))
    assert scale(1e9) == 100
    ticks = scale.ticks()
    assert ticks == sorted(ticks)
    assert 3 <= len(ticks) <= 8
    assert all(0 <= scale(tick) <= 100 for tick in ticks)
    assert {f"{tick:e}"[0] for tick in ticks if tick} <= set("123456789")


def test_segments_of_a_bar_follow_one_another() -> None:
    page = reports.html(sample_result())
    root = ElementTree.fromstring(page[page.index("<body>") : page.index("</html>")].replace("tabindex", "data-t"))
    bars: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for number, drawing in enumerate(root.findall(".//figure/svg")):
        for part in drawing.iter("rect"):
            at, width = (float(part.get(name, "").removesuffix("%")) for name in ("x", "width"))
            bars.setdefault((number, part.get("y", "")), []).append((at, at + width))
    assert len(bars) == 5 + 2 + 5  # stages by system, measured and limit, memory by system
    for bar in bars.values():
        assert bar[0][0] == 0
        assert all(end == pytest.approx(start) for (_, end), (start, _) in pairwise(bar))
        assert bar[-1][1] <= 100 + 1e-6


def test_the_first_screen() -> None:
    """The headline, the picture, then every gate of every candidate with its direction and bound; then the rest."""
    result = sample_result()
    page = reports.html(result)
    body = page[page.index("<body>") :]
    title = verdicts.headline(result)
    places = [body.index(mark) for mark in (f"<h1>{title}</h1>", result.model.scope, "<svg", 'class="matrix"', "<nav")]
    assert places == sorted(places)
    grid = body[body.index('class="matrix"') : body.index("<nav")]
    assert [name for name in dict.fromkeys(gate.name for gate in result.gates) if name not in grid] == []
    assert grid.count("✕") == sum(gate.passed is False for gate in result.gates)
    assert "≤" in grid or "≥" in grid


@pytest.mark.parametrize(("share", "shown"), [(0.62, "62.0%"), (1.04, "104.0%"), (1.06, "withheld"), (None, "–")])
def test_more_than_the_whole_is_withheld(share: float | None, shown: str) -> None:
    assert share_of(share).startswith(shown)


def test_conditions_hold_no_empty_row_and_no_dictionary() -> None:
    rows = tables.conditions(sample_result()).rows
    assert all(value != "–" and "{" not in value and "None" not in value for _, value in rows)
    assert any(name == "declared for 4 bits" and "25.0%" in value for name, value in rows)


def test_a_headline_for_every_end() -> None:
    result = sample_result()
    gates = result.gates
    for passed, start in ((True, "Passed: "), (False, "Failed: "), (None, "Undecided: ")):
        result.gates = [dataclasses.replace(gate, passed=passed) for gate in gates]
        assert verdicts.headline(result).startswith(start)
    result.gates = [dataclasses.replace(gate, passed=True if i else None) for i, gate in enumerate(gates)]
    assert verdicts.headline(result).endswith("; 1 needs more.")
    result.gates = []
    assert "no gates" in verdicts.headline(result)
