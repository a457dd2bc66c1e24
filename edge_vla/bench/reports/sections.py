"""The chapters of a report in their order, each the answer to one question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_vla.bench.reports import agreement_tables, figures, performance_tables, sensitivity, tables
from edge_vla.bench.reports.figures import Figure
from edge_vla.bench.reports.table import Table
from edge_vla.bench.result import Result


@dataclass(frozen=True)
class Section:
    """`name` is its anchor, `says` what a reader should know first. Tables that were not measured are left out."""

    name: str
    title: str
    figures: Sequence[Figure] = ()
    found: Sequence[Table | None] = ()
    says: str = ""
    worst_frames: bool = False

    @property
    def tables(self) -> list[Table]:
        return [table for table in self.found if table is not None]

    @property
    def all_tables(self) -> list[Table]:
        return [*self.tables, *(figure.table for figure in self.figures)]


def sections(result: Result) -> list[Section]:
    """Those in which something was measured."""
    found = [
        Section(
            "agreement",
            "Is it the same policy?",
            list(figures.agreement(result)),
            [agreement_tables.agreement(result)],
            "A floor is the reference against itself after a change that should not matter, such as another order of "
            "summation. Compare each candidate with its floor, not with 100 %.",
        ),
        Section("closed-loop", "Does it still do the task?", list(figures.closed_loop(result))),
        Section(
            "worst",
            "Where does it differ most?",
            says="The camera image, and both actions in robot units.",
            worst_frames=any(row.worst_frames for row in result.candidates),
        ),
        Section(
            "bits",
            "Why does each layer have its bits?",
            list(sensitivity.figures(result)),
            [sensitivity.allocations(name, report) for name, report in sensitivity.reports(result)],
        ),
        Section("speed", "How fast is it?", list(figures.speed(result))),
        Section("memory", "How large is it?", list(figures.memory(result))),
        Section(
            "power",
            "What does it draw?",
            found=[performance_tables.energy(result), performance_tables.throttling(result)],
            says="Of the queries timed back to back. A sensor counts all that it covers, other systems' loaded weights "
            "too; sensors are not added, for one may contain another.",
        ),
        Section("peers", "Beside other engines", found=[tables.peers(result), tables.against_peers(result)]),
        Section(
            "limits",
            "How far is it from the machine's limit?",
            found=[performance_tables.limits(result.limits)],
            says=performance_tables.ceilings(result.limits),
        ),
    ]
    return [one for one in found if one.all_tables or one.worst_frames]
