"""Joules and throttling from recorded trees that change while the work runs, as a device's would."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_vla.device.energy import READABLE, Meter, find
from tests.device.test_sensors import tree

JOULE = 1_000_000  # RAPL counts microjoules, NVML milli-


def rapl(root: Path, joules: dict[str, float], wraps: float = 262_143.0) -> Path:
    """Two packages as Intel's driver lists them, with their cores beneath, and what each has counted."""
    for zone, name in {"intel-rapl:0": "package-0", "intel-rapl:1": "package-1", "intel-rapl:0:0": "core"}.items():
        folder = root / "sys/class/powercap" / zone
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{int(joules[name] * JOULE)}\n")
        (folder / "max_energy_range_uj").write_text(f"{int(wraps * JOULE)}\n")
    return root


class Library:
    """NVML of two GPUs: one counts millijoules, an older one has watts alone."""

    class NVMLError(Exception):
        pass

    millijoules, milliwatts, reasons = 5_000_000, 60_000, 0x1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        if handle:
            raise self.NVMLError("Not Supported")
        return self.millijoules

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        return self.milliwatts

    def nvmlDeviceGetTemperature(self, handle: int, kind: int) -> int:  # noqa: N802
        return 71 + handle

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:  # noqa: N802
        return self.reasons


def test_a_machine_without_a_sensor_gives_a_reason_and_no_number(tmp_path: Path) -> None:
    meter = Meter(tmp_path)
    answer, stretch = meter.during(lambda: 42)
    assert answer == 42
    assert meter.found.withheld == "no power rail, no RAPL and no NVML on this machine"
    assert stretch.joules == {}
    assert stretch.temperatures_c == {}
    assert (stretch.slowed.gpu, stretch.slowed.cpu_events, stretch.slowed.over_current_events) == ((), None, None)


def test_rails_of_a_jetson_are_summed_over_time(tmp_path: Path) -> None:
    """The Nano's input rail: 5.04 V, and a current that doubles halfway."""
    root = tree("orin-nano", tmp_path)
    (current,) = [
        path.with_name(path.name.replace("in", "curr").replace("label", "input"))
        for path in root.rglob("in*_label")
        if path.read_text().strip() == "VDD_IN"
    ]

    def work() -> None:
        time.sleep(0.2)
        current.write_text("1888\n")
        time.sleep(0.2)

    _, stretch = Meter(root, period_s=0.01).during(work)
    ((name, seen),) = stretch.joules.items()
    assert name.startswith("VDD_IN: the module's input")
    assert seen.highest_w == pytest.approx(5.04 * 1.888)
    # Half of the time at the one, half at the other; a busy machine samples late.
    assert 5.04 * 0.944 < seen.joules / seen.seconds < 5.04 * 1.888
    assert seen.seconds >= 0.4


def test_throttling_is_what_was_added_meanwhile(tmp_path: Path) -> None:
    root = tree("agx-orin", tmp_path)
    zone = next(path for path in root.rglob("thermal_zone*") if path.is_dir())
    before = int((zone / "temp").read_text())

    def work() -> None:
        (root / "sys/class/hwmon/hwmon2/oc1_event_cnt").write_text("3\n")
        (zone / "temp").write_text(f"{before + 9000}\n")

    _, stretch = Meter(root).during(work)
    assert stretch.slowed.over_current_events == 3, "of the five since boot, three while it ran"
    hottest = stretch.temperatures_c[(zone / "type").read_text().strip()]
    assert hottest.highest - hottest.lowest == pytest.approx(9)


def test_packages_are_counted_each_and_their_parts_not_again(tmp_path: Path) -> None:
    root = rapl(tmp_path, {"package-0": 100, "package-1": 50, "core": 60})
    _, stretch = Meter(root).during(lambda: rapl(root, {"package-0": 112.5, "package-1": 50, "core": 70}))
    assert {name: seen.joules for name, seen in stretch.joules.items()} == {"RAPL package-0": 12.5}, (
        "the other stood still"
    )
    assert stretch.joules["RAPL package-0"].highest_w is None


def test_a_counter_that_begins_again_is_followed(tmp_path: Path) -> None:
    root = rapl(tmp_path, {"package-0": 990, "package-1": 0, "core": 0}, wraps=1000)
    _, stretch = Meter(root).during(lambda: rapl(root, {"package-0": 15, "package-1": 0, "core": 0}, wraps=1000))
    assert stretch.joules["RAPL package-0"].joules == pytest.approx(25)


def test_a_counter_for_root_alone_says_how_to_open_it(tmp_path: Path) -> None:
    root = rapl(tmp_path, {"package-0": 1, "package-1": 1, "core": 1})
    for path in root.rglob("energy_uj"):
        path.unlink()
        path.mkdir()  # to root every file is readable; a folder is not
    found = find(root)
    assert found.counters == ()
    assert found.withheld == f"RAPL is readable by root alone: {READABLE}"


def test_rails_that_nobody_knows_are_withheld_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "sys/class/hwmon/hwmon0"
    folder.mkdir(parents=True)
    for name, value in {"name": "ina3221", "in1_label": "VDD_X", "in1_input": "5000", "curr1_input": "100"}.items():
        (folder / name).write_text(value)
    assert "unknown which of ['VDD_X']" in str(find(tmp_path).withheld)


def test_gpus_by_their_counter_or_by_their_watts(tmp_path: Path) -> None:
    library = Library()

    def work() -> None:
        library.millijoules += 30_000
        library.reasons = 0x20
        time.sleep(0.1)

    _, stretch = Meter(tmp_path, library, period_s=0.01).during(work)
    counted, sampled = stretch.joules["GPU 0, the whole card"], stretch.joules["GPU 1, the whole card"]
    assert counted.joules == pytest.approx(30)
    assert sampled.joules == pytest.approx(60 * sampled.seconds)
    assert sampled.highest_w == 60
    assert stretch.slowed.gpu == ("software thermal slowdown",)
    assert stretch.temperatures_c["GPU 1"].highest == 72


def test_a_sensor_that_reads_nothing_is_no_zero(tmp_path: Path) -> None:
    library: Any = SimpleNamespace(
        **{name: getattr(Library(), name) for name in dir(Library) if name.startswith("nvmlDevice")},
        NVMLError=Library.NVMLError,
    )
    library.nvmlDeviceGetPowerUsage = lambda handle: 0
    library.nvmlDeviceGetTotalEnergyConsumption = Library().nvmlDeviceGetTotalEnergyConsumption
    _, stretch = Meter(tmp_path, library, period_s=0.01).during(lambda: time.sleep(0.03))
    assert stretch.joules == {}, "one counter stood still, one gauge read 0 W"


def test_work_that_fails_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        Meter(tmp_path).during(lambda: 1 // 0)
