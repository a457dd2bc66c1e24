"""What the device reports about itself: power, clocks, throttling, temperatures, GPU memory.

Everything is read below a given root, so recorded trees test it. A figure that cannot be read is None, and
`device_state` says why a run there should not be published. Power rails are summed only where it is known which of them
make up the whole: some feed others. Knows nothing of policies; imports nothing heavy, for the memory watcher uses it.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_vla.errors import BackendError

ROOT: Final = Path("/")

# The first rule whose rails are all present defines the total. An input rail carries everything behind it. On AGX Orin
# nothing measures the input; VDDQ_VDD2_1V8AO reads 5 V, so it is taken as fed by VIN_SYS_5V0 and not added.
TOTALS: Final[Sequence[tuple[tuple[str, ...], str]]] = (
    (("VDD_IN",), "the module's input, without the carrier board"),
    (("POM_5V_IN",), "the module's input, without the carrier board"),
    (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), "three rails of the module, without the carrier board"),
    (("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"), "six rails of the module, without the carrier board"),
)

# Bits of NVML's clock event reasons that throttle the clock; the bits left out are idle and user settings.
THROTTLES: Final[Mapping[int, str]] = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}

SMI: Final = (
    "name,driver_version,pstate,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu,"
    "{}.active,ecc.mode.current"
)
BUSY: Final = 0.25  # load average a core, above which other work shares the machine

RunCommand = Callable[[Sequence[str]], "str | None"]


@dataclass(frozen=True, kw_only=True)
class Range:
    lowest: float
    highest: float


@dataclass(frozen=True, kw_only=True)
class CpuState:
    """Over all cores; None where the system, often a virtual machine, does not show it."""

    governor: str | None
    clock_mhz: Range | None
    allowed_mhz: Range | None
    locked: bool | None
    throttled: int | None  # events since boot


@dataclass(frozen=True, kw_only=True)
class JetsonState:
    l4t: str
    power_mode: str | None
    gpu_clock_mhz: float | None
    clocks_locked: bool | None
    over_current_events: int | None


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """One GPU as nvidia-smi reports it."""

    name: str
    driver: str
    state: str
    ecc: str
    clock_mhz: float | None
    clock_max_mhz: float | None
    memory_clock_mhz: float | None
    power_w: float | None
    power_limit_w: float | None
    temperature_c: float | None
    reasons: int | None  # bits of NVML's clock event reasons
    throttled_by: list[str]


@dataclass(frozen=True, kw_only=True)
class Power:
    """Watts by rail. `total_w` is None where it is unknown which rails make up the whole; `total_is` explains."""

    rails_w: dict[str, float]
    total_w: float | None
    total_is: str


@dataclass(frozen=True, kw_only=True)
class DeviceState:
    """A run is unpublishable if anything that changes timings is unknown."""

    cpu: CpuState
    jetson: JetsonState | None
    gpus: list[GpuState]
    temperatures_c: dict[str, float]
    power: Power
    publishable: bool
    unpublishable_because: list[str]


@dataclass(frozen=True, kw_only=True)
class GpuMemoryPeaks:
    """Bytes over all GPUs. The process peak is None where NVML never listed it: a container may see other ids."""

    process_peak_bytes: int | None
    device_peak_bytes: int
    device_start_bytes: int


def power(root: Path = ROOT) -> Power:
    """Watts now, rail by rail, from the INA3221 monitors."""
    rails: dict[str, float] = {}
    for monitor in sorted({path.resolve() for path in _monitors(root)}):
        for label in sorted(monitor.glob("in[123]_label")):
            channel, name = label.name[2], _text(label)
            volts, amps = _number(monitor / f"in{channel}_input"), _number(monitor / f"curr{channel}_input")
            if name and name != "NC" and volts is not None and amps is not None:
                rails[name] = volts * amps / 1e6  # mV, mA
    return total(rails)


def total(rails: Mapping[str, float]) -> Power:
    """The rails with their total, as far as `TOTALS` knows how they are wired."""
    for parts, what in TOTALS:
        if all(part in rails for part in parts):
            watts = sum(rails[part] for part in parts)
            return Power(rails_w=dict(rails), total_w=watts, total_is=f"{' + '.join(parts)}: {what}")
    why = f"it is unknown which of {sorted(rails)} feed the others" if rails else "this device shows no power rail"
    return Power(rails_w=dict(rails), total_w=None, total_is=f"none: {why}")


def cpu_state(root: Path = ROOT) -> CpuState:
    """Governors and clocks (MHz) over all cores."""
    folders = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    governors = {_text(folder / "scaling_governor") for folder in folders} - {None}
    now, low, high = (_numbers(folders, f"scaling_{name}_freq", 1e3) for name in ("cur", "min", "max"))
    counters = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle")
    throttled = _numbers(counters, "core_throttle_count")
    return CpuState(
        governor="+".join(sorted(str(name) for name in governors)) or None,
        clock_mhz=Range(lowest=min(now), highest=max(now)) if now else None,
        allowed_mhz=Range(lowest=min(low), highest=max(high)) if low and high else None,
        locked=all(one == other for one, other in zip(low, high, strict=False)) if low and high else None,
        throttled=int(sum(throttled)) if throttled else None,
    )


def jetson_state(root: Path = ROOT) -> JetsonState | None:
    """L4T release, power mode, whether clocks are locked as `jetson_clocks` does, over-current events. Else None."""
    release = re.search(r"R(\d+) .*?REVISION: ([\d.]+)", _text(root / "etc/nv_tegra_release") or "")
    if release is None:
        return None
    mode = re.search(r"pmode:(\d+)", _text(root / "var/lib/nvpmodel/status") or "")
    names = dict(re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", _text(root / "etc/nvpmodel.conf") or ""))
    gpus = [path for path in (root / "sys/class/devfreq").glob("*") if re.search(r"gpu|ga10b|gv11b", path.name)]
    bounds = [(_number(gpu / "min_freq"), _number(gpu / "max_freq"), _number(gpu / "cur_freq")) for gpu in gpus]
    known = [(low, high) for low, high, _ in bounds if low is not None and high is not None]
    cpu_locked = cpu_state(root).locked
    counters = (root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")
    events = [value for path in counters if (value := _number(path)) is not None]
    return JetsonState(
        l4t=f"R{release[1]}.{release[2]}",
        power_mode=None if mode is None else names.get(str(int(mode[1])), f"mode {int(mode[1])}"),
        gpu_clock_mhz=bounds[0][2] / 1e6 if bounds and bounds[0][2] is not None else None,
        clocks_locked=None if cpu_locked is None or not known else cpu_locked and all(a == b for a, b in known),
        over_current_events=int(sum(events)) if events else None,
    )


def gpu_states(run: RunCommand) -> list[GpuState]:
    """Each GPU as `nvidia-smi` reports it, with what throttles its clock; empty where there is none."""
    for name in ("clocks_event_reasons", "clocks_throttle_reasons"):  # the second before driver 535
        table = run(("nvidia-smi", f"--query-gpu={SMI.format(name)}", "--format=csv,noheader,nounits"))
        if table is not None:
            return [_gpu(line) for line in table.strip().splitlines() if line.count(",") == SMI.count(",")]
    return []


def temperatures(root: Path = ROOT) -> dict[str, float]:
    """Degrees Celsius by thermal zone."""
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    found = {_text(zone / "type") or zone.name: _number(zone / "temp") for zone in zones}
    return {name: value / 1e3 for name, value in found.items() if value is not None}


def device_state(root: Path = ROOT, run: RunCommand | None = None) -> DeviceState:
    """The device now, and every reason not to publish what is measured on it. `run` stands in for `nvidia-smi`."""
    cpu, jetson, gpus = cpu_state(root), jetson_state(root), gpu_states(run or _run)
    reasons = [*_unknown(root, cpu, jetson, gpus), *_throttled(gpus), *_busy(root)]
    return DeviceState(
        cpu=cpu,
        jetson=jetson,
        gpus=gpus,
        temperatures_c=temperatures(root),
        power=power(root),
        publishable=not reasons,
        unpublishable_because=reasons,
    )


def _unknown(root: Path, cpu: CpuState, jetson: JetsonState | None, gpus: Sequence[GpuState]) -> Iterator[str]:
    if cpu.governor is None or cpu.clock_mhz is None:
        yield "the CPU's clock and governor are not visible, as in a virtual machine"
    if jetson is not None and jetson.power_mode is None:
        yield "the Jetson's power mode is unknown: run `nvpmodel -q` once as root"
    if jetson is None and not gpus and (root / "proc/driver/nvidia").exists():
        yield "there is a GPU, but nvidia-smi does not report its clocks and limits"


def _throttled(gpus: Sequence[GpuState]) -> Iterator[str]:
    for gpu in gpus:
        yield from (f"{gpu.name}: {reason}" for reason in gpu.throttled_by)
        if gpu.reasons is None:
            yield f"{gpu.name}: nvidia-smi does not report what limits its clock"


def _busy(root: Path) -> Iterator[str]:
    load = (_text(root / "proc/loadavg") or "").split()
    cores = len(list((root / "sys/devices/system/cpu").glob("cpu[0-9]*"))) or 1
    if not load:
        yield "the load of the machine is unknown"
    elif float(load[0]) > BUSY * cores:
        yield f"load average {load[0]} on {cores} cores before the run: other work shares this machine"


def nvml() -> Any:
    """NVIDIA's management library, initialised. BackendError where the package, the driver or the GPU is missing."""
    try:
        library = importlib.import_module("pynvml")
    except ImportError as error:
        raise BackendError("pynvml is not installed: pip install nvidia-ml-py for GPU memory by process") from error
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        raise BackendError(f"NVML does not start ({error}): install the NVIDIA driver") from error
    return library


class GpuMemory:
    """Peaks of GPU memory over all devices: of some processes, and of all. Jetson's NVML has neither."""

    def __init__(self, library: Any) -> None:
        self.library = library
        self.handles = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
        self.start = self.device = self._device()
        self.processes = 0

    def sample(self, pids: Collection[int]) -> None:
        self.device = max(self.device, self._device())
        held = 0
        for handle in self.handles:
            with contextlib.suppress(self.library.NVMLError):
                running = self.library.nvmlDeviceGetComputeRunningProcesses(handle)
                held += sum(process.usedGpuMemory or 0 for process in running if process.pid in pids)
        self.processes = max(self.processes, held)

    def peaks(self) -> GpuMemoryPeaks:
        return GpuMemoryPeaks(
            process_peak_bytes=self.processes or None,
            device_peak_bytes=self.device,
            device_start_bytes=self.start,
        )

    def _device(self) -> int:
        return sum(int(self.library.nvmlDeviceGetMemoryInfo(handle).used) for handle in self.handles)


def _gpu(line: str) -> GpuState:
    name, driver, state, clock, clock_max, memory_clock, watts, limit, celsius, reasons, ecc = (
        field.strip() for field in line.split(",")
    )
    bits = int(reasons, 16) if re.fullmatch(r"0x[0-9a-fA-F]+", reasons) else None
    return GpuState(
        name=name,
        driver=driver,
        state=state,
        ecc=ecc,
        clock_mhz=_float(clock),
        clock_max_mhz=_float(clock_max),
        memory_clock_mhz=_float(memory_clock),
        power_w=_float(watts),
        power_limit_w=_float(limit),
        temperature_c=_float(celsius),
        reasons=bits,
        throttled_by=[what for bit, what in THROTTLES.items() if bits is not None and bits & bit],
    )


def _run(command: Sequence[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _monitors(root: Path) -> Iterable[Path]:
    """Folders of INA3221 chips: by name under the class, and by driver where the class does not list them."""
    listed = (root / "sys/class/hwmon").glob("hwmon*")
    yield from (folder for folder in listed if (_text(folder / "name") or "").startswith("ina3221"))
    yield from (root / "sys/bus/i2c/drivers").glob("ina3221*/*/hwmon/hwmon*")


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _numbers(folders: Iterable[Path], name: str, divisor: float = 1) -> list[float]:
    return [value / divisor for folder in folders if (value := _number(folder / name)) is not None]


def _number(path: Path) -> float | None:
    return _float(_text(path) or "")


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
