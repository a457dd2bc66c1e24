"""A result as one page: self-contained, offline, without scripts.

The page's own content security policy forbids every request, so it shows exactly what the file holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, TypeVar

import jinja2

from edge_vla.bench.reports import agreement_tables, figures, performance_tables, sensitivity, tables, text
from edge_vla.bench.reports.figures import Figure
from edge_vla.bench.reports.markdown import unpublishable_reasons
from edge_vla.bench.reports.systems import failures
from edge_vla.bench.reports.table import Row, Table, table
from edge_vla.bench.result import Result, WorstFrame

T = TypeVar("T")

IMAGE: Final = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*")
NO_BREAK: Final = "\u00a0"


@dataclass(frozen=True)
class Card:
    """A frame where the actions differ most, with both of them."""

    title: str
    instruction: str
    image: str | None
    table: Table | None


@dataclass(frozen=True)
class Section:
    name: str
    title: str
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    cards: Sequence[Card] = ()
    says: str = ""


def html(result: Result) -> str:
    sections = [one for one in _sections(result) if one.figures or one.tables or one.cards]
    return _template().render(
        result=result,
        model=result.model.name,
        verdict=tables.verdict(result).removesuffix("."),
        gates=tables.gates_by(result, False, None),
        passed=tables.gates_by(result, True),
        gate_name=tables.gate_name,
        marks=tables.MARKS,
        verdicts=tables.VERDICTS,
        number=text.number,
        failures=failures(result),
        unpublishable=unpublishable_reasons(result),
        summary=tables.summary(result),
        sections=sections,
        conditions=tables.conditions(result),
    )


def _sections(result: Result) -> list[Section]:
    return [
        Section(
            "agreement",
            "Is it the same policy?",
            _present(figures.by_dimension(result), figures.by_margin(result)),
            _present(agreement_tables.agreement(result)),
            says="A floor is the reference against itself after a change that should not matter, such as another order "
            "of summation. Compare each candidate with its floor, not with 100 %.",
        ),
        Section(
            "closed-loop",
            "Does it still do the task?",
            _present(figures.success(result), figures.differences(result)),
        ),
        Section("worst", "Where does it differ most?", cards=list(_cards(result))),
        Section(
            "bits",
            "Why does each layer have its bits?",
            list(sensitivity.figures(result)),
            _present(*(sensitivity.allocations(name, report) for name, report in sensitivity.reports(result))),
        ),
        Section(
            "speed",
            "How fast is it?",
            [*_present(figures.latency(result), figures.stages(result)), *figures.stage_profiles(result)],
        ),
        Section("memory", "How large is it?", _present(figures.memory(result))),
        Section("peers", "Beside other engines", tables=_present(tables.peers(result), tables.against_peers(result))),
        Section(
            "limits",
            "How far is it from the machine's limit?",
            tables=_present(performance_tables.limits(result.limits)),
            says=performance_tables.ceilings(result.limits),
        ),
    ]


def _present(*found: T | None) -> list[T]:
    return [one for one in found if one is not None]


def _cards(result: Result) -> Iterable[Card]:
    for row in result.candidates:
        dims = row.agreement.dims if row.agreement else []
        for frame in row.worst_frames:
            where = ", ".join([f"episode {frame.episode}"] * bool(frame.episode) + [f"step {frame.step}"])
            image = frame.image if frame.image and IMAGE.fullmatch(frame.image) else None
            title = f"{row.name}, frame {frame.frame} ({where})"
            yield Card(title, frame.instruction, image, _both_actions(title, dims, frame))


def _both_actions(title: str, dims: Sequence[str], frame: WorstFrame) -> Table | None:
    columns = {
        "reference": lambda i: text.number(frame.reference_action[i]),
        "candidate": lambda i: text.number(frame.action[i]),
        "bins apart": lambda i: text.number(frame.bins_apart[i]),
    }
    names = dims or [str(i) for i in range(len(frame.action))]
    return table(title, "dimension", [Row(name, i) for i, name in enumerate(names)], columns)


def _tight(cell: str) -> str:
    """A figure may break before its interval, nowhere else."""
    return cell.replace(" ", NO_BREAK).replace(NO_BREAK + "[", " [")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tight"] = _tight
    return environment.get_template("page.html.j2")
