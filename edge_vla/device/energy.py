"""Joules and throttling while something runs: counters where the device counts, else watts sampled and summed.

Each sensor says which part of the machine it covers; they are never added, for one may contain another. Nothing here is
ever zero for want of a sensor: `withheld` says why there is none. Reads below a root, so recorded trees test it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeVar

from edge_vla.device import sensors
from edge_vla.device.sensors import ROOT, THROTTLES, Range
from edge_vla.errors import BackendError

PERIOD_S: Final = 0.1  # an INA3221 averages over longer than a shorter one would show
RAPL: Final = "sys/class/powercap"
READABLE: Final = "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
GPU_CELSIUS: Final = 0  # NVML_TEMPERATURE_GPU

Done = TypeVar("Done")


@dataclass(frozen=True)
class Counter:
    """Joules since some moment; `wraps` is where it begins again, None if never."""

    name: str
    joules: Callable[[], float | None]
    wraps: float | None = None


@dataclass(frozen=True)
class Gauge:
    """Watts now."""

    name: str
    watts: Callable[[], float | None]


@dataclass(frozen=True)
class Found:
    """Every sensor of this machine, or why there is none."""

    counters: tuple[Counter, ...]
    gauges: tuple[Gauge, ...]
    withheld: str | None


@dataclass(frozen=True, kw_only=True)
class Joules:
    """What one sensor saw in a stretch of time. `highest_w` is None from a counter, which shows no peaks."""

    joules: float
    seconds: float
    highest_w: float | None


@dataclass(frozen=True, kw_only=True)
class Slowed:
    """What lowered clocks meanwhile. Counts are None where the system has no such counter."""

    gpu: tuple[str, ...]
    cpu_events: int | None
    over_current_events: int | None


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """One stretch of time: joules by sensor, what throttled, and degrees Celsius by zone."""

    joules: Mapping[str, Joules]
    slowed: Slowed
    temperatures_c: Mapping[str, Range]


def find(root: Path = ROOT, library: Any = None) -> Found:
    """RAPL, INA3221 and, with NVML's library, each GPU."""
    rapl, refused = _rapl(root)
    power = sensors.power(root)
    rails = [Gauge(power.total_is, lambda: sensors.power(root).total_w)] if power.total_w is not None else []
    gpu_counters, gpu_gauges = _gpus(library)
    counters, gauges = (*rapl, *gpu_counters), (*rails, *gpu_gauges)
    reasons = [refused] if refused else []
    if power.rails_w:
        reasons.append(power.total_is)
    none = "; ".join(reasons) or "no power rail, no RAPL and no NVML on this machine"
    return Found(counters, gauges, None if counters or gauges else none)


class Meter:
    """Measures stretches of time, with a thread that samples only within one."""

    def __init__(self, root: Path = ROOT, library: Any = None, period_s: float = PERIOD_S) -> None:
        self.root, self.library, self.period_s = root, library, period_s
        self.found = find(root, library)

    def during(self, work: Callable[[], Done]) -> tuple[Done, Stretch]:
        """What the work returns, and what was seen meanwhile."""
        samples = _Samples(self)
        counted, events, started = self._counted(), self._events(), time.monotonic()
        stopped = threading.Event()
        thread = threading.Thread(target=samples.keep_taking, args=(stopped,), daemon=True)
        samples.take()
        thread.start()
        try:
            done = work()
        finally:
            stopped.set()
            thread.join()
        samples.take()
        return done, self._stretch(samples, counted, events, time.monotonic() - started)

    def _stretch(
        self, samples: _Samples, before: Mapping[str, float], events: Sequence[int | None], seconds: float
    ) -> Stretch:
        after, joules = self._counted(), dict[str, Joules]()
        for counter in self.found.counters:
            if counter.name in before and counter.name in after:
                spent = after[counter.name] - before[counter.name]
                if spent < 0 and counter.wraps is not None:
                    spent += counter.wraps
                if spent > 0:  # a counter that stands still measures nothing
                    joules[counter.name] = Joules(joules=spent, seconds=seconds, highest_w=None)
        for gauge in self.found.gauges:
            if watts := samples.watts.get(gauge.name):
                joules[gauge.name] = _sum(watts)
        cpu, over_current = (
            None if was is None or now is None else now - was for was, now in zip(events, self._events(), strict=True)
        )
        slowed = Slowed(gpu=tuple(sorted(samples.reasons)), cpu_events=cpu, over_current_events=over_current)
        zones = {name: Range(lowest=min(celsius), highest=max(celsius)) for name, celsius in samples.celsius.items()}
        return Stretch(joules=joules, slowed=slowed, temperatures_c=zones)

    def _counted(self) -> dict[str, float]:
        read = {counter.name: counter.joules() for counter in self.found.counters}
        return {name: value for name, value in read.items() if value is not None}

    def _events(self) -> tuple[int | None, int | None]:
        jetson = sensors.jetson_state(self.root)
        return sensors.cpu_state(self.root).throttled, jetson.over_current_events if jetson else None


@dataclass
class _Samples:
    """Watts with their moments, reasons and temperatures of one stretch."""

    meter: Meter
    watts: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    reasons: set[str] = field(default_factory=set)
    celsius: dict[str, list[float]] = field(default_factory=dict)

    def keep_taking(self, stopped: threading.Event) -> None:
        while not stopped.wait(self.meter.period_s):
            self.take()

    def take(self) -> None:
        for gauge in self.meter.found.gauges:
            if watts := gauge.watts():  # none, or a sensor that is off: no machine runs on 0 W
                self.watts.setdefault(gauge.name, []).append((time.monotonic(), watts))
        for name, degrees in {**sensors.temperatures(self.meter.root), **_celsius(self.meter.library)}.items():
            self.celsius.setdefault(name, []).append(degrees)
        self.reasons |= _reasons(self.meter.library)


def _sum(samples: Sequence[tuple[float, float]]) -> Joules:
    """Trapezes between samples (s, W)."""
    pairs = pairwise(samples)
    joules = sum((then - now) * (watts + next_watts) / 2 for (now, watts), (then, next_watts) in pairs)
    return Joules(joules=joules, seconds=samples[-1][0] - samples[0][0], highest_w=max(watts for _, watts in samples))


def _rapl(root: Path) -> tuple[list[Counter], str | None]:
    """A counter for each package, and for the platform where it has one; or how to make them readable."""
    counters, refused = list[Counter](), None
    for zone in sorted((root / RAPL).glob("intel-rapl:[0-9]*")):
        name = _line(zone / "name")
        if zone.name.count(":") != 1 or name is None:  # parts of a package, which it contains
            continue
        if _micro(zone / "energy_uj") is None:
            refused = f"RAPL is readable by root alone: {READABLE}"
            continue
        wraps = _micro(zone / "max_energy_range_uj")
        counters.append(Counter(f"RAPL {name}", partial(_micro, zone / "energy_uj"), wraps))
    return counters, refused


def _gpus(library: Any) -> tuple[list[Counter], list[Gauge]]:
    """The whole card: by its own counter of energy where it has one (Volta and later), else by its watts."""
    counters, gauges = list[Counter](), list[Gauge]()
    for index, handle in enumerate(_handles(library)):
        name = f"GPU {index}, the whole card"
        energy = _asking(library, library.nvmlDeviceGetTotalEnergyConsumption, handle)
        watts = _asking(library, library.nvmlDeviceGetPowerUsage, handle)
        if energy() is not None:
            counters.append(Counter(name, energy))
        elif watts() is not None:
            gauges.append(Gauge(name, watts))
    return counters, gauges


def _asking(library: Any, ask: Callable[[Any], int], handle: Any) -> Callable[[], float | None]:
    """NVML's millijoules or milliwatts as joules or watts; None where the device does not support it."""

    def asked() -> float | None:
        try:
            return ask(handle) / 1e3
        except library.NVMLError:
            return None

    return asked


def _reasons(library: Any) -> set[str]:
    found = set[str]()
    for handle in _handles(library):
        with contextlib.suppress(library.NVMLError):
            bits = library.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
            found |= {what for bit, what in THROTTLES.items() if bits & bit}
    return found


def _celsius(library: Any) -> dict[str, float]:
    found = dict[str, float]()
    for index, handle in enumerate(_handles(library)):
        with contextlib.suppress(library.NVMLError):
            found[f"GPU {index}"] = float(library.nvmlDeviceGetTemperature(handle, GPU_CELSIUS))
    return found


def _handles(library: Any) -> list[Any]:
    if library is None:
        return []
    return [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]


def nvml_or_none() -> Any:
    try:
        return sensors.nvml()
    except BackendError:
        return None


def _micro(path: Path) -> float | None:
    text = _line(path)
    return int(text) / 1e6 if text is not None and text.isdigit() else None


def _line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None
