"""How far each system is from the reference, as tables."""

from __future__ import annotations

from functools import partial
from typing import Final

from edge_vla.bench.reports import text
from edge_vla.bench.reports.systems import compared
from edge_vla.bench.reports.table import Columns, Row, Shade, Table, table
from edge_vla.bench.result import Agreement, Flips, Result


def agreement(result: Result) -> Table | None:
    """One row a measure, one column a system, floors first."""
    found = compared(result)
    phases = dict.fromkeys(name for _, figures in found for name in figures.by_phase)
    columns: Columns[Agreement] = {**MEASURES, **{f"same action, {name}": partial(_in_phase, name) for name in phases}}
    rows = [Row(system.label, figures) for system, figures in found]
    by_system = table("Agreement with the reference", "measure", rows, columns)
    return by_system and by_system.transposed()


def _in_phase(name: str, figures: Agreement) -> str:
    return text.interval(figures.by_phase[name].exact_action if name in figures.by_phase else None)


def flips_of(flips: Flips | None) -> str:
    return text.ABSENT if flips is None else text.of(flips.flips, flips.positions)


def _bins_apart(figures: Agreement) -> str:
    overall = figures.bins_apart.overall
    return ", ".join(map(text.number, (overall.mean, overall.p99, overall.max)))


def _gripper_shift(figures: Agreement) -> str:
    mean, most = figures.gripper.shift_mean_steps, figures.gripper.shift_max_steps
    return text.ABSENT if mean is None else f"{text.number(mean, 2)}, {text.number(most)}"


def _lowest_dimension(figures: Agreement) -> str:
    lowest = figures.teacher_forced_lowest_holm
    return f"{lowest.dimension}: {text.share(lowest.low)}"


def _drift(window: int, figures: Agreement) -> str:
    return text.number(next((drift.mean for drift in figures.drift if drift.window == window), None))


MEASURES: Final[Columns[Agreement]] = {
    "same token, given the reference's previous tokens": lambda a: text.interval(a.teacher_forced),
    "lowest dimension, Holm-corrected lower bound": _lowest_dimension,
    "same token, given its own previous tokens": lambda a: text.interval(a.free_running),
    "all tokens of the action the same": lambda a: text.interval(a.exact_tokens),
    "same action": lambda a: text.interval(a.exact_action),
    "bins apart: mean, p99, max": _bins_apart,
    "within 1 bin": lambda a: text.share(a.bins_apart.overall.within_1),
    "within 2 bins": lambda a: text.share(a.bins_apart.overall.within_2),
    "more than 8 bins apart": lambda a: text.share(a.bins_apart.overall.beyond_8),
    "high-margin flips": lambda a: flips_of(a.margins.high_margin),
    "near-tie flips": lambda a: flips_of(a.margins.near_tie),
    "gripper opens where the reference closes, or the reverse": lambda a: text.interval(a.gripper.flips),
    "gripper change shifted, steps: mean, max": _gripper_shift,
    "gripper changes compared": lambda a: text.number(a.gripper.transitions),
    "NRMSE of the action": lambda a: text.number(a.robot_units.nrmse),
    "KL divergence from the reference, nats": lambda a: text.plain_interval(a.kl.overall),
    "probability outside the action ids": lambda a: text.number(a.outside_mass.candidate_mean),
    "best id is no action token": lambda a: text.share(a.invalid.candidate),
    "same token as the recorded action": lambda a: text.interval(
        a.against_recorded.candidate if a.against_recorded else None
    ),
    "… minus the reference's": lambda a: text.points(
        a.against_recorded.equal_difference if a.against_recorded else None
    ),
    "drift over 10 steps, share of the range": partial(_drift, 10),
    "drift over 50 steps, share of the range": partial(_drift, 50),
    "design effect of frames within episodes": lambda a: text.number(a.teacher_forced.deff, 2),
}


def by_dimension(result: Result) -> Table | None:
    """Teacher-forced agreement of each dimension."""
    found = compared(result)
    dims = found[0][1].dims if found else []
    rows = [Row(system.label, figures.teacher_forced_by_dimension, system.role) for system, figures in found]
    columns = {name: (lambda shares, i=i: text.interval(shares[i])) for i, name in enumerate(dims)}
    return table("Same token by dimension, given the reference's previous tokens", "system", rows, columns)


def by_margin(result: Result) -> Table | None:
    """A map of flips by tenth of the reference's margins, one column a system. Bold: all margins are above noise."""
    found = [(system.label, figures.margins) for system, figures in compared(result)]
    if not found or not found[0][1].deciles:
        return None
    largest = max(flips.share or 0.0 for _, margins in found for flips in margins.deciles) or 1.0
    rows, shades = list[list[str]](), dict[tuple[int, int], Shade]()
    for i, span in enumerate(found[0][1].deciles):
        rows.append([f"{i + 1}: {text.number(span.low, 2)} to {text.number(span.high, 2)}"])
        for column, (_, margins) in enumerate(found, 1):
            flips, floor = margins.deciles[i], margins.floor
            above = floor is not None and flips.low is not None and flips.low > floor
            rows[i].append(flips_of(flips))
            shades[i, column] = Shade((flips.share or 0.0) / largest, above and flips.flips > 0)
    names = ["decile: margins, logits", *(name for name, _ in found)]
    return Table("Flips by the reference's margin", names, rows, shades=shades)
