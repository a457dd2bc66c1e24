"""How fast and how large each side is, all in one run: loaded together where they fit, asked in turns A B B A.

A shared machine drifts; sides that take turns drift together, so their ratio holds where their times do not. Sides that
do not fit together meet the candidates in pairs. Knows processes and clocks; knows nothing of what was answered.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.artifact import MANIFEST, Artifact
from edge_vla.bench import latency, memory
from edge_vla.bench.latency import Record
from edge_vla.bench.memory import Poller
from edge_vla.bench.systems import Contestant, Station
from edge_vla.checkpoint import key_table
from edge_vla.errors import EdgeVLAError, ResourceError, UsageError
from edge_vla.files import write_whole
from edge_vla.spec import PolicySpec

Tell = Callable[[str], None]

BACK_TO_BACK: Final = "back to back"
ROUNDS: Final = 4  # there and back: eight blocks a side
WARM_UP_S: Final = 30.0
REPEATS: Final = 20  # queries on one frame, twice, to see whether anything is remembered
PACED_S: Final = 20.0
PROCESS_BYTES: Final = 600_000_000  # what a process holds beside its weights


@dataclass
class Measured:
    """One side's raw times."""

    loaded: Mapping[str, Any]
    warm_up: Mapping[str, Any] = field(default_factory=dict)
    runs: list[list[Record]] = field(default_factory=list)
    paced: dict[float, list[list[Record]]] = field(default_factory=dict)
    repeated: list[Record] = field(default_factory=list)
    varied: list[Record] = field(default_factory=list)  # beside the repeated ones, in turns
    tokens: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    harness_s: float = 0.0  # between queries
    memory: Mapping[str, Any] = field(default_factory=dict)

    def times(self) -> list[list[float]]:
        return [[record.latency_ms for record in run] for run in self.runs]

    def latencies(self) -> list[float]:
        """Every back-to-back latency, milliseconds, in the order asked."""
        return [record.latency_ms for run in self.runs for record in run]

    def against(self, judged: NDArray[np.int64]) -> dict[str, int]:
        """How many timed queries gave other tokens than when agreement was measured (frames, dims)."""
        different = sum(tuple(judged[index]) != tokens for index, tokens in self.tokens)
        return {"queries": len(self.tokens), "different": different}

    def harness_share(self) -> float:
        """What the harness does between queries, over what queries take."""
        asked = sum(record.latency_ms for run in [*self.runs, self.repeated, self.varied] for record in run) / 1e3
        return self.harness_s / asked


def groups(sides: Mapping[str, Contestant], candidates: Sequence[str], spec: PolicySpec) -> list[list[str]]:
    """Who is loaded together: all, or where memory does not hold all, each candidate with each of the others."""
    need = {name: _bytes(side, spec) for name, side in sides.items()}
    free = _available()
    if sum(need.values()) < free:
        return [list(sides)]
    others = [name for name in sides if name not in candidates]
    pairs = [[candidate, other] for candidate in candidates for other in others] or [[name] for name in candidates]
    fitting = [pair for pair in pairs if sum(need[name] for name in pair) < free]
    if not fitting:
        least = min(sum(need[name] for name in pair) for pair in pairs)
        raise ResourceError(
            f"timing two sides needs {least / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: leave out a side, or time the "
            "artifact alone with --no-time-reference"
        )
    return fitting


def together(sides: Mapping[str, Contestant], spec: PolicySpec) -> int:
    """How many sides may be loaded at a time, one a core at most."""
    largest = sorted((_bytes(side, spec) for side in sides.values()), reverse=True)
    cores, free = os.cpu_count() or 1, _available()
    return next((count for count in range(min(cores, len(largest)), 1, -1) if sum(largest[:count]) < free), 1)


def measure(
    sides: Mapping[str, Contestant],
    frames: Path,
    limit: int | None,
    profile: str,
    paces_hz: Sequence[float],
    tell: Tell,
) -> dict[str, Measured | str]:
    """Every side of one group: what it measured, or why it could not."""
    found: dict[str, Measured | str] = {}
    with ExitStack() as stack:
        stations: dict[str, Station] = {}
        pollers: dict[str, Poller] = {}
        for name, contestant in sides.items():
            tell(f"{name}: loading")
            try:
                station = stack.enter_context(Station(contestant))
                with suppress(UsageError):  # it has died already: `load` will say of what
                    pollers[name] = stack.enter_context(Poller(station.pid))
                found[name] = Measured(station.load(frames, limit))
            except EdgeVLAError as error:
                found[name] = str(error)
                tell(f"{name}: {error}")
                continue
            pollers[name].mark("loaded")
            stations[name] = station
        for name, station in stations.items():
            try:
                _warm(name, station, found, tell)
            except EdgeVLAError as error:
                found[name] = str(error)
        alive = {name: station for name, station in stations.items() if isinstance(found[name], Measured)}
        _take_turns(alive, found, latency.PROFILES[profile], tell)
        for name, station in alive.items():
            _alone(name, station, found, paces_hz, tell)
            pollers[name].mark("steady")
        for name, station in alive.items():
            side = found[name]
            if isinstance(side, Measured):
                side.memory = memory.summary(pollers[name].stop(), side.loaded["weights"], station.cuda())
    return found


def _warm(name: str, station: Station, found: dict[str, Measured | str], tell: Tell) -> None:
    side = found[name]
    assert isinstance(side, Measured)
    tell(f"{name}: warming up")
    # One slow action is all the warm-up a slow policy needs.
    most = min(WARM_UP_S, max(1.0, 40 * side.loaded["first_ms"] / 1e3))
    side.warm_up = station.warm_up(most)


def _take_turns(
    stations: Mapping[str, Station], found: dict[str, Measured | str], profile: latency.Profile, tell: Tell
) -> None:
    order = latency.blocks(list(stations), ROUNDS)
    turns = 2 * ROUNDS
    for turn, name in enumerate(order):
        side = found[name]
        if not isinstance(side, Measured):
            continue
        queries = max(1, -(-profile.count(side.warm_up["p50_ms"]) // turns))
        tell(f"timing {turn + 1} of {len(order)}: {name}, {queries} actions")
        done = len(side.runs) * queries
        try:
            side.runs.append(_timed(stations[name], side, list(range(done, done + queries)), None))
        except EdgeVLAError as error:
            found[name] = str(error)


def _alone(
    name: str, station: Station, found: dict[str, Measured | str], paces_hz: Sequence[float], tell: Tell
) -> None:
    """One frame again and again, then a robot's pace; a side that breaks keeps what it has."""
    side = found[name]
    if not isinstance(side, Measured):
        return
    action_s = side.warm_up["p50_ms"] / 1e3
    try:
        if action_s * REPEATS < PACED_S:
            for kept, indices in zip(
                (side.repeated, side.varied, side.varied, side.repeated),
                ([0] * REPEATS, range(REPEATS), range(REPEATS, 2 * REPEATS), [0] * REPEATS),
                strict=True,
            ):
                kept += _timed(station, side, list(indices), None)
        for hz in paces_hz:
            tell(f"{name}: paced at {hz:g} Hz")
            queries = max(4, round(PACED_S * hz)) if action_s < 4 / hz else 4
            side.paced[hz] = [_timed(station, side, list(range(queries)), 1 / hz)]
    except EdgeVLAError as error:
        tell(f"{name}: {error}")


def _timed(station: Station, side: Measured, indices: list[int], period_s: float | None) -> list[Record]:
    answer = station.time(indices, period_s)
    records = [Record.from_json(raw) for raw in answer["records"]]
    if period_s is None:
        side.harness_s += answer["wall_s"] - sum(record.latency_ms for record in records) / 1e3
    side.tokens += [(index, tuple(tokens)) for index, tokens in answer["tokens"]]
    return records


def summaries(side: Measured, name: str, out: Path) -> dict[str, Any]:
    """LATENCY by mode; the raw samples go to files beside the result."""
    repeat = latency.repeat_ratio(side.repeated, side.varied) if side.varied else None
    cold = {"ready_s": side.loaded["ready_s"], "first_ms": side.loaded["first_ms"]}
    made = {
        BACK_TO_BACK: latency.summary(side.runs, BACK_TO_BACK, warm_up=side.warm_up, cold=cold, repeat_ratio=repeat)
    }
    raw = {BACK_TO_BACK: side.runs}
    for hz, runs in side.paced.items():
        mode = f"paced {hz:g} Hz"
        made[mode], raw[mode] = latency.summary(runs, mode, period_s=1 / hz), runs
    for mode, runs in raw.items():
        file = f"latency-{name}-{mode}.npz".replace(" ", "-").replace("/", "-")
        content = _npz(latency.samples(runs))
        write_whole(out / file, content)
        made[mode] |= {"samples": file, "samples_sha256": hashlib.sha256(content).hexdigest()}
    return made


def record(row: dict[str, Any], side: Measured | str, name: str, out: Path) -> None:
    """Enter one side in its row of the result; one that was measured with an earlier partner keeps that."""
    peer = "why_not" in row
    if isinstance(side, str):
        row.update({"ran": False, "why_not": side} if peer else {"failed": side})
    elif row.get("latency") is None:
        by_mode = summaries(side, name, out)
        row["latency"] = by_mode[BACK_TO_BACK] if peer else by_mode
        row["memory"] = dict(side.memory)
        row["kernels"] = dict(side.loaded["kernels"])
        if peer:
            row["versions"] = dict(side.loaded["versions"])
        row["harness_share"] = round(side.harness_share(), 5)


def warnings(row: Mapping[str, Any]) -> list[str]:
    """What a reader of this row's times should know."""
    by_mode = row.get("latency") or {}
    return [f"{mode}: {words}" for mode, one in by_mode.items() for words in latency.warnings(one)]


def ratios(result: dict[str, Any], found: Mapping[str, Measured | str]) -> None:
    """How much faster each candidate is than each of the others that it took turns with."""
    measured = {name: side for name, side in found.items() if isinstance(side, Measured) and side.runs}
    rows = {row["name"]: row for row in result["peers"]} | {"reference": result["reference_measured"]}
    for candidate in result["candidates"]:
        ours = measured.get(candidate["name"])
        for name, row in rows.items():
            if ours is not None and (theirs := measured.get(name)) is not None:
                row.setdefault("ratio_to", {})[candidate["name"]] = latency.ratio(ours.times(), theirs.times())


def _npz(arrays: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _bytes(side: Contestant, spec: PolicySpec) -> int:
    """About what a side will hold."""
    if (Path(side.path) / MANIFEST).exists():
        files = Artifact(Path(side.path)).manifest.files.values()
        return PROCESS_BYTES + int(sum(entry["size"] for entry in files))
    each = 4 if side.dtype == "fp32" else 2
    return PROCESS_BYTES + each * sum(int(np.prod(entry.shape)) for entry in key_table(spec).values())


def _available() -> int:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 1 << 62
