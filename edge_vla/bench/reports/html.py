"""A result as one page: self-contained, offline, without scripts.

The page forbids itself every request (its content security policy), so what it shows is what the file holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import jinja2

from edge_vla.bench.reports import charts, more_tables, plots, sensitivity, tables, text
from edge_vla.bench.reports.plots import Figure
from edge_vla.bench.reports.systems import Result, dims, failures, sides
from edge_vla.bench.reports.tables import VERDICTS, Table

IMAGE: Final = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*")
REFERENCE_SLOT: Final = 0
NARROW: Final = "\u00a0"


@dataclass(frozen=True)
class Section:
    name: str
    title: str
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    cards: Sequence[Mapping[str, Any]] = ()
    says: str = ""

    @property
    def empty(self) -> bool:
        return not (self.figures or self.tables or self.cards)


def html(result: Result, beside: Path | None = None) -> str:
    """`beside` is where raw latency samples may lie."""
    environment = result["environment"]
    return _template().render(
        result=result,
        model=result["model"],
        environment=environment,
        gates=_verdicts(result),
        failed=[gate for gate in result["gates"] if gate["passed"] is False],
        passed=sum(gate["passed"] is True for gate in result["gates"]),
        failures=failures(result),
        unpublishable=[] if environment.get("publishable", True) else environment.get("unpublishable_because") or ["–"],
        summary=tables.summary(result),
        overview=_present(plots.pareto(result), plots.by_dimension(result)),
        sections=[section for section in _sections(result, beside) if not section.empty],
        conditions=more_tables.conditions(result),
    )


def _sections(result: Result, beside: Path | None) -> list[Section]:
    return [
        Section(
            "agreement",
            "Is it the same policy?",
            _present(plots.flips(result), plots.apart(result)),
            _present(
                tables.agreement(result),
                tables.by_dimension(result, "free_running_by_dimension"),
                tables.phases(result),
                tables.recorded(result),
                tables.robot_units(result),
            ),
            says="A floor is the reference against itself after a change that should not matter. A candidate is only "
            "worse than rounding where it falls below its floors.",
        ),
        Section(
            "closed-loop",
            "Does it still do the task?",
            _present(plots.rates(result), plots.differences(result)),
        ),
        Section("worst", "Where is it furthest off?", cards=_cards(result), tables=_present(more_tables.worst(result))),
        Section("layers", "Where does quantising hurt?", [*plots.layers(result), *sensitivity.figures(result)]),
        Section(
            "speed",
            "How fast?",
            [*_present(plots.stages(result), plots.ecdf(result, beside)), *plots.waterfalls(result)],
            _present(tables.latency(result), tables.start(result), more_tables.operators(result)),
        ),
        Section("memory", "How large?", tables=_present(tables.memory(result))),
        Section(
            "peers", "Beside others", tables=_present(more_tables.peers(result), more_tables.against_peers(result))
        ),
        Section(
            "limits",
            "How far from the machine's limit?",
            tables=_present(more_tables.limits(result)),
            says=more_tables.ceilings(result),
        ),
    ]


def _present(*found: Any) -> list[Any]:
    return [one for one in found if one is not None]


def _cards(result: Result) -> list[Mapping[str, Any]]:
    """The frames with both actions drawn: the first two dimensions as arrows, all as pairs of bars."""
    slots = {side.name: side.slot for side in sides(result)}
    cards: list[Mapping[str, Any]] = []
    for candidate in result["candidates"]:
        for frame in candidate["worst_frames"]:
            ours, theirs = frame["action"], frame["reference_action"]
            slot = slots[candidate["name"]] or REFERENCE_SLOT
            names = (dims(result) or [str(i) for i in range(len(ours))])[: len(ours)]
            title = f"{candidate['name']}, frame {frame['frame']}"
            told = [f"{text.number(apart)} bins" for apart in frame["bins_apart"]]
            image = frame.get("image") or ""
            vectors = [(theirs[0], theirs[1], REFERENCE_SLOT), (ours[0], ours[1], slot)] if len(ours) > 1 else []
            cards.append(
                {
                    "title": title,
                    "instruction": frame.get("instruction") or "",
                    "where": _where(frame),
                    "picture": charts.arrows(
                        f"{title}: both actions",
                        f"{names[:2]}: reference {theirs[:2]}, candidate {ours[:2]}",
                        image if IMAGE.fullmatch(image) else None,
                        vectors,
                    ),
                    "bars": charts.pairs(
                        f"{title}: actions by dimension",
                        "; ".join(told),
                        names,
                        theirs,
                        ours,
                        told,
                        (REFERENCE_SLOT, slot),
                    ),
                    "slot": slot,
                    "side": candidate["name"],
                }
            )
    return cards


def _where(frame: Result) -> str:
    return f"episode {text.value_of(frame.get('episode'))}, step {text.value_of(frame.get('step'))}"


def _verdicts(result: Result) -> list[Mapping[str, str]]:
    """The gates for the checklist, failed ones first."""
    return [
        {
            "kind": {False: "fail", None: "open", True: "pass"}[gate["passed"]],
            "name": tables.gate_name(gate),
            "figure": f"{VERDICTS[gate['passed']]}: {text.value_of(gate['value'])}, "
            f"bound {text.value_of(gate['bound'])}",
            "why": gate["why"],
        }
        for gate in tables.ranked_gates(result)
    ]


def _tight(cell: str) -> str:
    """A figure may break before its interval, nowhere else."""
    return cell.replace(" ", NARROW).replace(NARROW + "[", " [")


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
