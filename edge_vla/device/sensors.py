"""What the device says of itself: power, clocks, throttling, temperatures, GPU memory.

Everything is read below a root that is given, so recorded trees test it. A figure that cannot be read is None, and
`device_state` says why a run there should not be published. Rails are never summed unless it is known which of them
make up the whole: some feed others. Knows nothing of policies; imports nothing heavy, for the memory watcher uses it.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from edge_vla.errors import BackendError, UsageError

ROOT: Final = Path("/")

# The first rule whose rails are all there says what the whole is. An input rail carries everything behind it. On AGX
# Orin nothing measures the input; VDDQ_VDD2_1V8AO reads 5 V, so it is taken as fed by VIN_SYS_5V0 and not added.
TOTALS: Final[Sequence[tuple[tuple[str, ...], str]]] = (
    (("VDD_IN",), "the module's input; the carrier board is not in it"),
    (("POM_5V_IN",), "the module's input; the carrier board is not in it"),
    (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), "three rails of the module; the carrier board is not in it"),
    (("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"), "six rails of the module; the carrier board is not in it"),
)

# Bits of NVML's clock event reasons. The first two and sync boost are choices, the others hold the clock down.
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
SMI_KEYS: Final = (
    "name", "driver", "state", "clock_mhz", "clock_max_mhz", "memory_clock_mhz", "power_w", "power_limit_w",
    "temperature_c", "reasons", "ecc",
)  # fmt: skip
BUSY: Final = 0.25  # load average for each core above which somebody else is at work

Ask = Callable[[Sequence[str]], "str | None"]


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
    """Watts rail by rail; `total_w` where it is known what the whole is, and `total_is` says what."""

    rails_w: dict[str, float]
    total_w: float | None
    total_is: str


@dataclass(frozen=True, kw_only=True)
class DeviceState:
    """Anything unknown that moves a time makes a run unpublishable."""

    cpu: CpuState
    jetson: JetsonState | None
    gpus: list[GpuState]
    temperatures_c: dict[str, float]
    power: Power
    publishable: bool
    unpublishable_because: list[str]


def power(root: Path = ROOT) -> dict[str, Any]:
    """Watts now, rail by rail, from the INA3221 monitors; `total_w` where it is known what the whole is."""
    rails: dict[str, float] = {}
    for monitor in sorted({path.resolve() for path in _monitors(root)}):
        for label in sorted(monitor.glob("in[123]_label")):
            channel, name = label.name[2], _text(label)
            volts, amps = _number(monitor / f"in{channel}_input"), _number(monitor / f"curr{channel}_input")
            if name and name != "NC" and volts is not None and amps is not None:
                rails[name] = volts * amps / 1e6  # mV, mA
    return {"rails_w": rails, **total(rails)}


def total(rails: Mapping[str, float]) -> dict[str, Any]:
    """`total_w` and what it is. None, and why, for rails that are not known to make up a whole."""
    for parts, what in TOTALS:
        if all(part in rails for part in parts):
            return {"total_w": sum(rails[part] for part in parts), "total_is": f"{' + '.join(parts)}: {what}"}
    why = f"it is not known which of {sorted(rails)} feed the others" if rails else "this device shows no power rail"
    return {"total_w": None, "total_is": f"none: {why}"}


def joules(samples: Sequence[tuple[float, float]]) -> float:
    """Energy under (seconds, watts), straight lines between them."""
    if len(samples) < 2:
        raise UsageError(f"{len(samples)} power samples: energy needs two at least")
    return sum((later - at) * (watts + then) / 2 for (at, watts), (later, then) in pairwise(samples))


def tegrastats(line: str) -> dict[str, Any]:
    """One line of `tegrastats`. Powers are the first figure of each rail, the one of now; MB there means MiB."""
    ram, swap = (re.search(rf"\b{name} (\d+)/(\d+)MB", line) for name in ("RAM", "SWAP"))
    cpu, gpu = re.search(r"CPU \[([^\]]*)\]", line), re.search(r"GR3D_FREQ (\d+)%(?:@\[?(\d+))?", line)
    powers = re.findall(r"\b([A-Z][A-Z0-9_]+) (\d+)(?:mW)?/\d+(?:mW)?(?![\d/]*[kM]B)", line)
    rails = {name: int(now) / 1e3 for name, now in powers}
    if ram is None:
        raise UsageError(f"not a line of tegrastats: {line[:60]!r}")
    return {
        "ram_bytes": int(ram[1]) << 20,
        "ram_total_bytes": int(ram[2]) << 20,
        "swap_bytes": int(swap[1]) << 20 if swap else None,
        "cpu_percent": [None if core == "off" else int(core.partition("%")[0]) for core in cpu[1].split(",")]
        if cpu
        else [],
        "gpu_percent": int(gpu[1]) if gpu else None,
        "gpu_mhz": int(gpu[2]) if gpu and gpu[2] else None,
        "temperatures_c": {name: float(value) for name, value in re.findall(r"(\w+)@(-?[\d.]+)C\b", line)},
        "rails_w": rails,
        **total(rails),
    }


def cpu_state(root: Path = ROOT) -> dict[str, Any]:
    """Governors and clocks over all cores (MHz); None where the system, often a virtual machine, does not show them."""
    folders = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    governors = {_text(folder / "scaling_governor") for folder in folders} - {None}

    def clocks(name: str) -> list[float]:
        return [value / 1e3 for folder in folders if (value := _number(folder / name)) is not None]

    now, low, high = clocks("scaling_cur_freq"), clocks("scaling_min_freq"), clocks("scaling_max_freq")
    counts = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    throttled = [value for path in counts if (value := _number(path)) is not None]
    return {
        "governor": "+".join(sorted(str(name) for name in governors)) or None,
        "clock_mhz": {"lowest": min(now), "highest": max(now)} if now else None,
        "allowed_mhz": {"lowest": min(low), "highest": max(high)} if low and high else None,
        "locked": all(one == other for one, other in zip(low, high, strict=False)) if low and high else None,
        "throttled": int(sum(throttled)) if throttled else None,
    }


def jetson_state(root: Path = ROOT) -> dict[str, Any] | None:
    """L4T release, power mode, whether clocks are locked as `jetson_clocks` does, over-current events. Else None."""
    release = re.search(r"R(\d+) .*?REVISION: ([\d.]+)", _text(root / "etc/nv_tegra_release") or "")
    if release is None:
        return None
    mode = re.search(r"pmode:(\d+)", _text(root / "var/lib/nvpmodel/status") or "")
    names = dict(re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", _text(root / "etc/nvpmodel.conf") or ""))
    gpus = [path for path in (root / "sys/class/devfreq").glob("*") if re.search(r"gpu|ga10b|gv11b", path.name)]
    bounds = [(_number(gpu / "min_freq"), _number(gpu / "max_freq"), _number(gpu / "cur_freq")) for gpu in gpus]
    known = [(low, high) for low, high, _ in bounds if low is not None and high is not None]
    cpu = cpu_state(root)["locked"]
    events = [
        value
        for path in (root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")
        if (value := _number(path)) is not None
    ]
    return {
        "l4t": f"R{release[1]}.{release[2]}",
        "power_mode": None if mode is None else names.get(str(int(mode[1])), f"mode {int(mode[1])}"),
        "gpu_clock_mhz": bounds[0][2] / 1e6 if bounds and bounds[0][2] is not None else None,
        "clocks_locked": None if cpu is None or not known else cpu and all(low == high for low, high in known),
        "over_current_events": int(sum(events)) if events else None,
    }


def gpu_states(ask: Ask) -> list[dict[str, Any]]:
    """Each GPU as `nvidia-smi` tells it, with what holds its clock down; empty where there is none."""
    for name in ("clocks_event_reasons", "clocks_throttle_reasons"):  # the second before driver 535
        said = ask(("nvidia-smi", f"--query-gpu={SMI.format(name)}", "--format=csv,noheader,nounits"))
        if said is not None:
            return [_gpu(line) for line in said.strip().splitlines() if line.count(",") == len(SMI_KEYS) - 1]
    return []


def temperatures(root: Path = ROOT) -> dict[str, float]:
    """Degrees Celsius by thermal zone."""
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    found = {_text(zone / "type") or zone.name: _number(zone / "temp") for zone in zones}
    return {name: value / 1e3 for name, value in found.items() if value is not None}


def device_state(root: Path = ROOT, ask: Ask | None = None) -> dict[str, Any]:
    """For a result's environment. Anything unknown that moves a time makes the run unpublishable, and says so."""
    cpu, jetson, gpus = cpu_state(root), jetson_state(root), gpu_states(ask or _ask)
    load = (_text(root / "proc/loadavg") or "").split()
    cores = len(list((root / "sys/devices/system/cpu").glob("cpu[0-9]*"))) or 1
    why = []
    if cpu["governor"] is None or cpu["clock_mhz"] is None:
        why.append("the processor's clock and governor are not visible, as in a virtual machine")
    if jetson is not None and jetson["power_mode"] is None:
        why.append("the Jetson's power mode is unknown: run `nvpmodel -q` once as root")
    if jetson is None and not gpus and (root / "proc/driver/nvidia").exists():
        why.append("there is a GPU, but nvidia-smi does not tell its clocks and limits")
    why += [f"{gpu['name']}: {reason}" for gpu in gpus for reason in gpu["throttled_by"]]
    why += [f"{gpu['name']}: nvidia-smi does not tell what limits its clock" for gpu in gpus if gpu["reasons"] is None]
    if not load:
        why.append("the load of the machine is unknown")
    elif float(load[0]) > BUSY * cores:
        why.append(f"load average {load[0]} on {cores} cores before the run: other work shares this machine")
    return {
        "cpu": cpu,
        "jetson": jetson,
        "gpus": gpus,
        "temperatures_c": temperatures(root),
        "power": power(root),
        "publishable": not why,
        "unpublishable_because": why,
    }


def nvml() -> Any:
    """NVIDIA's management library, started. BackendError where the package, the driver or the GPU is missing."""
    try:
        library = importlib.import_module("pynvml")
    except ImportError as error:
        raise BackendError(
            "pynvml is not installed: pip install nvidia-ml-py for energy and memory by process"
        ) from error
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        raise BackendError(f"NVML does not start ({error}): there is no NVIDIA driver here") from error
    return library


def gpu_joules(library: Any, device: int = 0) -> float:
    """The GPU's own energy counter since the driver was loaded (board sensor, not wall): take the difference."""
    try:
        return float(library.nvmlDeviceGetTotalEnergyConsumption(library.nvmlDeviceGetHandleByIndex(device))) / 1e3
    except library.NVMLError as error:
        raise BackendError(
            f"GPU {device} has no energy counter ({error}): Volta and later do, Jetson does not"
        ) from error


class GpuMemory:
    """Peaks of GPU memory over all devices: of some processes, and of everybody. Jetson's NVML has neither."""

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

    def result(self) -> dict[str, int | None]:
        """A process that NVML never named is None, not zero: in a container it may see other ids than ours."""
        return {
            "nvml_process_peak_bytes": self.processes or None,
            "nvml_device_peak_bytes": self.device,
            "nvml_device_start_bytes": self.start,
        }

    def _device(self) -> int:
        return sum(int(self.library.nvmlDeviceGetMemoryInfo(handle).used) for handle in self.handles)


def _gpu(line: str) -> dict[str, Any]:
    said = dict(zip(SMI_KEYS, (field.strip() for field in line.split(",")), strict=True))
    bits = int(said["reasons"], 16) if re.fullmatch(r"0x[0-9a-fA-F]+", said["reasons"]) else None
    numbers = {key: _float(value) for key, value in said.items() if key.endswith(("_mhz", "_w", "_c"))}
    words = {key: said[key] for key in ("name", "driver", "state", "ecc")}
    return {
        **words,
        **numbers,
        "reasons": bits,
        "throttled_by": [what for bit, what in THROTTLES.items() if bits is not None and bits & bit],
    }


def _ask(command: Sequence[str]) -> str | None:
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


def _number(path: Path) -> float | None:
    return _float(_text(path) or "")


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
