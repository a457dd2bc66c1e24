"""What devices report about themselves, from trees of `/sys` written after the documented layouts of two Jetsons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_vla import typed_json
from edge_vla.device import sensors
from edge_vla.device.sensors import (
    DeviceState,
    GpuMemory,
    GpuMemoryPeaks,
    JetsonState,
    Power,
    Range,
    device_state,
    power,
)
from edge_vla.errors import BackendError

JETSON = Path(__file__).parent / "jetson"
SMI = "NVIDIA H200, 570.86.15, P0, 1980, 1980, 3201, 612.34, 700.00, 61, {}, Enabled\n"


def tree(name: str, root: Path) -> Path:
    for path, content in json.loads((JETSON / f"{name}.json").read_text(encoding="utf-8")).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content + "\n", encoding="utf-8")
    return root


def nobody(command: Sequence[str]) -> str | None:
    return None


def test_agx_orin_has_four_rails_and_a_total_of_three(tmp_path: Path) -> None:
    got = power(tree("agx-orin", tmp_path))
    assert set(got.rails_w) == {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"}
    assert got.rails_w["VDD_GPU_SOC"] == pytest.approx(19.296 * 0.331)
    assert got.total_w == pytest.approx(19.296 * (0.331 + 0.062) + 4.968 * 0.765)
    assert got.total_is.startswith("VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0")
    assert "without the carrier board" in got.total_is


def test_an_input_rail_is_the_total_and_nothing_is_added_to_it(tmp_path: Path) -> None:
    got = power(tree("orin-nano", tmp_path))
    assert set(got.rails_w) == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}
    assert got.total_w == pytest.approx(5.04 * 0.944)


def test_one_monitor_listed_twice_is_read_once(tmp_path: Path) -> None:
    root = tree("orin-nano", tmp_path)
    (root / "sys/class/hwmon").mkdir(parents=True)
    (root / "sys/class/hwmon/hwmon1").symlink_to(root / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1")
    assert power(root).total_w == pytest.approx(5.04 * 0.944)


def test_rails_that_nobody_knows_are_not_summed(tmp_path: Path) -> None:
    assert sensors.total({"VDD_A": 1.0, "VDD_B": 2.0}).total_w is None
    assert power(tmp_path) == Power(rails_w={}, total_w=None, total_is="none: this device shows no power rail")


def test_a_jetson_with_floating_clocks(tmp_path: Path) -> None:
    got = device_state(tree("agx-orin", tmp_path), nobody)
    assert got.jetson == JetsonState(
        l4t="R36.4.3",
        power_mode="MODE_30W",
        gpu_clock_mhz=306,
        clocks_locked=False,
        over_current_events=2,
    )
    assert got.cpu.governor == "schedutil"
    assert got.cpu.clock_mhz == Range(lowest=729.6, highest=1420.8)
    assert got.temperatures_c == {"cpu-thermal": 47.906}
    assert got.publishable
    assert typed_json.from_json(DeviceState, json.loads(json.dumps(asdict(got)))) == got


def test_locked_clocks_and_an_unknown_power_mode(tmp_path: Path) -> None:
    got = device_state(tree("orin-nano", tmp_path), nobody)
    assert got.jetson is not None
    assert got.jetson.clocks_locked
    assert not got.publishable
    assert got.unpublishable_because == ["the Jetson's power mode is unknown: run `nvpmodel -q` once as root"]


def test_a_machine_that_shows_nothing_is_not_publishable(tmp_path: Path) -> None:
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    got = device_state(tmp_path, nobody)
    assert got.jetson is None
    assert len(got.unpublishable_because) == 3


def test_a_busy_machine_is_not_publishable(tmp_path: Path) -> None:
    root = tree("agx-orin", tmp_path)
    (root / "proc/loadavg").write_text("6.80 5.0 4.0 9/400 1\n", encoding="utf-8")
    assert device_state(root, nobody).unpublishable_because == [
        "load average 6.80 on 12 cores before the run: other work shares this machine"
    ]


@pytest.mark.parametrize(
    ("bits", "throttled"),
    [
        ("0x0000000000000000", []),
        ("0x0000000000000003", []),
        ("0x0000000000000044", ["software power cap", "hardware thermal slowdown"]),
    ],
)
def test_what_holds_a_gpu_clock_down(bits: str, throttled: list[str]) -> None:
    (gpu,) = sensors.gpu_states(lambda command: SMI.format(bits))
    assert gpu.throttled_by == throttled
    assert (gpu.name, gpu.power_limit_w, gpu.clock_mhz) == ("NVIDIA H200", 700, 1980)


def test_an_older_driver_and_a_silent_one(tmp_path: Path) -> None:
    def older(command: Sequence[str]) -> str | None:
        return None if "clocks_event_reasons" in command[1] else SMI.format("[N/A]")

    got = device_state(tree("agx-orin", tmp_path), older)
    assert got.gpus[0].reasons is None
    assert got.unpublishable_because == ["NVIDIA H200: nvidia-smi does not report what limits its clock"]


class Library:
    """NVML, as far as it is used: one GPU whose memory is what `held` says, by process."""

    NVMLError = KeyError

    def __init__(self) -> None:
        self.held: dict[int, int | None] = {}

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(used=100 + sum(value or 0 for value in self.held.values()))

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> Any:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=value) for pid, value in self.held.items()]


def test_gpu_memory_of_processes_and_of_everybody() -> None:
    library = Library()
    watched = GpuMemory(library)
    for held in ({7: 50}, {7: 80, 9: 40}, {7: None}):
        library.held = dict(held)
        watched.sample({7, 8})
    assert watched.peaks() == GpuMemoryPeaks(process_peak_bytes=80, device_peak_bytes=220, device_start_bytes=100)
    assert GpuMemory(Library()).peaks().process_peak_bytes is None


def test_nvml_missing_is_a_typed_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    with pytest.raises(BackendError, match="pip install nvidia-ml-py"):
        sensors.nvml()


def test_this_machine_can_be_asked() -> None:
    got = device_state()
    assert got.publishable == (not got.unpublishable_because)
    assert typed_json.from_json(DeviceState, json.loads(json.dumps(asdict(got)))) == got
