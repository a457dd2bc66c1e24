"""Joules of an action and what throttled, from the stretches in which a system's back-to-back blocks were timed.

Knows sensors and counts of actions; knows nothing of policies.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_vla.bench.result import Energy, PowerDraw, Throttling
from edge_vla.device.energy import Joules, Stretch
from edge_vla.device.sensors import Range


def summary(stretches: Sequence[Stretch], actions: int, withheld: str | None) -> PowerDraw | None:
    """Of all stretches together; None if nothing was timed. `withheld`: why this machine has no sensor."""
    if not stretches or not actions:
        return None
    names = dict.fromkeys(name for stretch in stretches for name in stretch.joules)
    # A sensor that was silent in one stretch would count the others' joules for all the actions.
    whole = {
        name: [one.joules[name] for one in stretches] for name in names if all(name in s.joules for s in stretches)
    }
    energy = [_energy(name, found, actions) for name, found in whole.items()]
    silent = "its sensors did not answer while actions were timed" if not energy else None
    return PowerDraw(energy=energy, withheld=withheld or silent, throttling=_throttling(stretches))


def _energy(name: str, found: Sequence[Joules], actions: int) -> Energy:
    joules, seconds = sum(one.joules for one in found), sum(one.seconds for one in found)
    peaks = [one.highest_w for one in found if one.highest_w is not None]
    return Energy(
        sensor=name,
        joules_per_action=joules / actions,
        mean_w=joules / seconds,
        highest_w=max(peaks, default=None),
        actions=actions,
        seconds=seconds,
    )


def _throttling(stretches: Sequence[Stretch]) -> Throttling:
    zones = dict.fromkeys(zone for stretch in stretches for zone in stretch.temperatures_c)
    found = {zone: [one.temperatures_c[zone] for one in stretches if zone in one.temperatures_c] for zone in zones}
    return Throttling(
        gpu=sorted({why for stretch in stretches for why in stretch.slowed.gpu}),
        cpu_events=_together([stretch.slowed.cpu_events for stretch in stretches]),
        over_current_events=_together([stretch.slowed.over_current_events for stretch in stretches]),
        temperatures_c={
            zone: Range(lowest=min(one.lowest for one in ranges), highest=max(one.highest for one in ranges))
            for zone, ranges in found.items()
        },
    )


def _together(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
