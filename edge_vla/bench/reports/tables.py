"""Verdicts, the summary, closed loop, peers, and how it was measured, as tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from edge_vla.bench.gates import non_inferior
from edge_vla.bench.provenance import Provenance
from edge_vla.bench.reports import text, verdicts
from edge_vla.bench.reports.agreement_tables import flips_of
from edge_vla.bench.reports.systems import REFERENCE, SystemResult, systems
from edge_vla.bench.reports.table import Columns, Mark, Row, Table, table
from edge_vla.bench.result import (
    AgainstPeer,
    Bounds,
    DeclaredGates,
    Gate,
    PairedOutcome,
    Peer,
    Rate,
    Regime,
    Result,
    SpeedRatio,
)
from edge_vla.device.sensors import DeviceState
from edge_vla.openvla.evaluation import described

VERDICTS: Final = {False: "failed", None: "undecided", True: "passed"}
MARKS: Final[dict[bool | None, Mark]] = {False: "fail", None: "open", True: "pass"}
NON_INFERIOR: Final = {True: "non-inferior", None: "undecided", False: "inferior"}


def unpublishable(result: Result) -> list[str]:
    """Why these figures must not be quoted; nothing if they may be."""
    state = result.provenance.device_state
    if state is None or state.publishable:
        return []
    return state.unpublishable_because or ["no reason was recorded"]


def gates_by(result: Result, *passed: bool | None) -> list[Gate]:
    """The gates with these verdicts, in the verdicts' order."""
    return [gate for verdict in passed for gate in result.gates if gate.passed is verdict]


def gate_name(gate: Gate) -> str:
    return f"{gate.system}: {gate.name}"


def verdict(result: Result) -> str:
    """All gates in one sentence."""
    gates = result.gates
    if not gates:
        return "No gates were evaluated."
    failed = [gate_name(gate) for gate in gates if gate.passed is False]
    undecided = sum(gate.passed is None for gate in gates)
    sentence = f"{text.of(len(gates) - len(failed) - undecided, len(gates))} gates passed"
    sentence += f", {undecided} undecided" if undecided else ""
    return sentence + (f"; failed: {', '.join(failed)}." if failed else ".")


def gates(result: Result, *passed: bool | None) -> Table | None:
    """The gates with these verdicts; without any, all gates: failed first, then undecided."""
    columns: Columns[Gate] = {
        "verdict": lambda gate: VERDICTS[gate.passed],
        "value": verdicts.value,
        "bound": verdicts.bound,
        "to decide": lambda gate: verdicts.to_decide(gate, result),
        "why": lambda gate: gate.why,
    }
    rows = [Row(gate_name(gate), gate, MARKS[gate.passed]) for gate in gates_by(result, *(passed or VERDICTS))]
    return table("Gates", "gate", rows, columns, prose=["verdict", "to decide", "why"])


def summary(result: Result) -> Table | None:
    """One row a system: agreement, speed, size, success."""
    columns: Columns[SystemResult] = {
        "same token": lambda one: text.interval(one.agreement.teacher_forced if one.agreement else None),
        "same action": lambda one: text.interval(one.agreement.exact_action if one.agreement else None),
        "high-margin flips": lambda one: flips_of(one.agreement.margins.high_margin if one.agreement else None),
        "rate": lambda one: text.hertz(one.latency.hz if one.latency else None),
        "p50": lambda one: text.milliseconds(one.latency.p50_ms if one.latency else None),
        "peak memory": lambda one: text.size(one.peak_bytes),
        "on disk": lambda one: text.size(one.disk_bytes),
        "success": lambda one: success(one.rates["all"]) if one.rates else text.ABSENT,
    }
    return table("Summary", "system", [Row(one.label, one, one.role) for one in systems(result)], columns)


def success(rate: Rate) -> str:
    low, high = (text.share(bound, 0) for bound in (rate.low, rate.high))
    return f"{text.of(rate.success, rate.episodes)} [{low.removesuffix('%')}, {high}]"


def regimes(result: Result) -> list[tuple[SystemResult, float, Regime]]:
    """Each candidate's regimes, with the margin that was declared for them."""
    loops = [(one, one.closed_loop) for one in systems(result) if one.closed_loop]
    return [(one, loop.margin, regime) for one, loop in loops for regime in loop.regimes]


def closed_loop(result: Result) -> Table | None:
    """One row a regime and kind of task, for the reference and for each candidate."""
    rates = {}
    for system, _, regime in regimes(result):
        for name, by_kind in ((REFERENCE, regime.reference), (system.name, regime.candidate)):
            rates.update({f"{name}, {regime.name}, {kind}": rate for kind, rate in by_kind.items()})
    columns: Columns[Rate] = {
        "success": lambda rate: text.of(rate.success, rate.episodes),
        "Wilson 95 %": lambda rate: f"{text.share(rate.low)} to {text.share(rate.high)}",
        "wrong object": lambda rate: text.number(rate.wrong_object),
        "mean steps": lambda rate: text.number(rate.steps_mean),
    }
    return table("Closed-loop success", "system, regime, task", [Row(*row) for row in rates.items()], columns)


def non_inferiority(result: Result) -> Table | None:
    found = regimes(result)
    rows = [
        Row(f"{system.name}, {regime.name}", regime.overall, MARKS[non_inferior(regime.overall, margin)])
        for system, margin, regime in found
    ]
    margin = found[0][1] if found else 0.0
    columns: Columns[PairedOutcome] = {
        "difference": lambda one: text.points(one.difference),
        "verdict": lambda one: NON_INFERIOR[non_inferior(one, margin)],
        "both succeed": lambda one: f"{one.pairs.both}",
        "only reference": lambda one: f"{one.pairs.only_reference}",
        "only candidate": lambda one: f"{one.pairs.only_candidate}",
        "neither": lambda one: f"{one.pairs.neither}",
        "McNemar p": lambda one: text.number(one.mcnemar_p, 2),
        "discordant": lambda one: text.share(one.discordance),
        "episodes for power 0.8": lambda one: f"{one.episodes_needed:,}",
    }
    title = f"Candidate minus reference on the same episodes, 90 % intervals, margin −{100 * margin:g} pp"
    return table(title, "system, regime", rows, columns, prose=["verdict"])


def peers(result: Result) -> Table | None:
    """Each peer's speed beside ours; one that failed says why in its own words."""
    rows = [Row(peer.name, peer, "open" if peer.failed else "") for peer in result.peers]
    if result.reference.performance.ratio_to:
        own = Peer(name=REFERENCE, description="edge-vla's own bf16", performance=result.reference.performance)
        rows.insert(0, Row(own.name, own))
    columns: Columns[Peer] = {
        "description": lambda peer: peer.description,
        "its p50 ÷ ours, interleaved": lambda peer: ratios(peer.performance.ratio_to),
        "failed": lambda peer: f"“{peer.failed}”" if peer.failed else "",
    }
    return table("Peers (agreement, speed and memory are in the summary)", "peer", rows, columns, prose=columns)


def ratios(ratio_to: dict[str, SpeedRatio]) -> str:
    """`int4: 2.73 [2.65, 2.80]`; an interval that holds 1 shows no difference."""
    found = []
    for name, one in ratio_to.items():
        spread = ""
        if one.low is not None and one.high is not None:
            spread = f" [{one.low:.2f}, {one.high:.2f}]" + (" no difference" if one.low <= 1 <= one.high else "")
        found.append(f"{name}: {one.ratio:.2f}{spread}")
    return "; ".join(found) or text.ABSENT


def against_peers(result: Result) -> Table | None:
    """Each candidate minus each peer on the same frames."""
    rows = [Row(f"{row.name} − {peer}", one) for row in result.candidates for peer, one in row.against_peers.items()]
    columns: Columns[AgainstPeer] = {
        "same token": lambda one: text.points(one.teacher_forced_difference),
        "same action": lambda one: text.points(one.exact_action_difference),
        "KL from the reference, nats": lambda one: text.plain_interval(one.kl_difference),
    }
    title = "Candidate minus peer, frame by frame: higher agreement and lower KL are closer to the reference"
    return table(title, "candidate − peer", rows, columns)


def conditions(result: Result) -> Table:
    """Everything needed to measure it again."""
    frames, reference, provenance = result.frames, result.reference, result.provenance
    phases = ", ".join(f"{name} {count}" for name, count in frames.by_phase.items())
    facts = {
        "model": result.model.name,
        "reference": " + ".join([reference.name, *reference.adapters]) + f", {reference.dtype}",
        "reference's identity": reference.identity,
        "frames": f"{frames.name}, {frames.source}: {text.count(frames.count, 'frame')} of "
        f"{text.count(frames.episodes, 'episode')}" + (f" ({phases})" if phases else ""),
        "frames' sha256": frames.sha256,
    }
    if frames.preprocess != "none":
        facts["images"] = described(frames.preprocess)
    for row in result.candidates:
        facts[f"{row.name}: artifact"] = f"{row.artifact.name}, {row.artifact.identity}"
        facts[f"{row.name}: recipe"] = text.value_of(
            {key: value for key, value in row.artifact.recipe.items() if value is not None}
        )
    for one in systems(result):
        if one.performance.kernels:
            facts[f"{one.name}: kernels"] = text.value_of(one.performance.kernels)
    facts |= _fields(provenance, "", without=["device_state"])
    if provenance.device_state is not None:
        facts |= _fields(provenance.device_state, "", without=["publishable", "unpublishable_because"])
    facts |= _fields(result.gates_declared, "declared: ", without=["by_bits"])
    facts |= {f"declared for {bits} bits": _declared(bounds) for bits, bounds in result.gates_declared.by_bits.items()}
    rows = [list(fact) for fact in facts.items() if fact[1] != text.ABSENT]
    return Table("How it was measured", ["what", "value"], rows, prose=["value"])


def _fields(one: Provenance | DeviceState | DeclaredGates, prefix: str, without: Sequence[str] = ()) -> dict[str, str]:
    names = [field.name for field in dataclasses.fields(one) if field.name not in without]
    return {prefix + name.replace("_", " "): text.value_of(getattr(one, name)) for name in names}


def _declared(bounds: Bounds) -> str:
    return (
        f"at most: tokens {text.share(bounds.tokens_below_floor)} and free-running tokens "
        f"{text.share(bounds.actions_below_floor)} below the noise floor, gripper flips "
        f"{text.share(bounds.gripper_flips_above_floor)} above it; high-margin flips "
        f"{text.share(bounds.high_margin_flips)}"
    )
