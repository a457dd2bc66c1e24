"""Every check of the doctor once where it passes and at least once where it does not, on recorded machines."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edge_vla.device.doctor.check import RESOURCE, Verdict
from edge_vla.device.doctor.examine import MACHINE
from edge_vla.device.doctor.jetpack import jetpack
from edge_vla.device.doctor.packages import runs_on
from edge_vla.device.doctor.system import Imported, Interpreter
from edge_vla.runtime.cpu.native.targets import TARGETS, file_name
from tests.device.recorded import CPU_TORCH, GPU_TORCH, MEMINFO, XEON, orin, recorded, smi

OK, NOTE, WARNING, FAILURE = Verdict.OK, Verdict.NOTE, Verdict.WARNING, Verdict.FAILURE
AVX512_VNNI = next(target for target in TARGETS if target.name == "avx512-vnni")
CHECKS = {row.name: row.look for row in MACHINE}


@dataclass(frozen=True)
class Case:
    """A machine, and what the check of this name must say of it; `says` and `remedy` are parts of the text."""

    name: str
    verdict: Verdict
    says: str
    remedy: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)


def python(
    version: tuple[int, int, int], abi: str = "cpython-312-x86_64-linux-gnu", headers: bool = True
) -> Interpreter:
    return Interpreter(version, abi, headers, "/usr/bin/python3")


def modules(**found: Imported) -> dict[str, Any]:
    return {"modules": found}


GPU = {"outputs": smi(), "modules": {"torch": GPU_TORCH, "triton": Imported("3.6.0")}}
CUDA_13 = Imported("2.13.0", facts={"cuda": "13.0"})
BROKEN = Imported(error="ImportError: libcudart.so.13: cannot open shared object file")
NO_NUMPY = Imported("2.6.0", facts={"cuda": "", "numpy": "Numpy is not available"})
OLD_GPU = Imported("2.11.0", facts={**GPU_TORCH.facts, "gpu": "GeForce GTX 1080", "capability": "6.1"})
NEW_GPU = Imported(
    "2.6.0", facts={**GPU_TORCH.facts, "gpu": "RTX 5090", "capability": "12.0", "architectures": "sm_90"}
)
OLD_L4T = {"etc/nv_tegra_release": "# R32 (release), REVISION: 7.1, GCID: 1, BOARD: t186ref"}
JETPACK_5 = {"etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64"}
MAXN = {**orin(), "var/lib/nvpmodel/status": "pmode:0000 fmode:fanNull\n"}
LOCKED = {
    path: "2201600" if path.endswith(("min_freq", "max_freq")) and "cpufreq" in path else text
    for path, text in orin().items()
} | {
    path: orin()[path.replace("min_freq", "max_freq")]
    for path in orin()
    if "devfreq" in path and path.endswith("min_freq")
}
HOT = {"sys/class/thermal/thermal_zone0/type": "gpu-thermal\n"}
TRIP = {
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "99000\n",
}
ZRAM = "Filename Type Size Used Priority\n/dev/zram0 partition 1000000 0 5\n"
SWAPPED = "Filename Type Size Used Priority\n/swapfile file 8000000 4000000 -2\n"
TIME = "timedatectl show -p NTPSynchronized --value"
CHRONY = "Reference ID    : A9FEA97B (ntp)\nSystem time     : 0.000012 seconds slow of NTP time\nLeap status     : {}\n"
HUMBLE = {"ROS_DISTRO": "humble"}
RCLPY = modules(rclpy=Imported("unknown"))
PYTHON_310 = python((3, 10, 12), "cpython-310-aarch64-linux-gnu")

CASES = [
    Case("python", OK, "3.12.3"),
    Case("python", FAILURE, "3.10 or later", "python3.10 -m venv", {"python": python((3, 8, 10))}),
    Case("python", WARNING, "no GIL", "venv", {"python": python((3, 13, 1), "cpython-313t-x86_64-linux-gnu")}),
    Case("python", FAILURE, "musl", "docker run", {"python": python((3, 12, 3), "cpython-312-x86_64-linux-musl")}),
    Case("python", WARNING, "JetPack 6.2", "python3.10 -m venv --system-site-packages", {"files": orin()}),
    Case("python", OK, "3.10.12", "", {"files": orin(), "python": PYTHON_310}),
    Case("torch", OK, "2.13.0+cpu", "", modules(torch=CPU_TORCH)),
    Case("torch", FAILURE, "not installed", "whl/cpu"),
    Case("torch", FAILURE, "not installed", "jetson-ai-lab.io/jp6", {"files": orin()}),
    Case("torch", FAILURE, "libcudart.so.13", "pip uninstall -y torch", modules(torch=BROKEN)),
    Case("torch", FAILURE, "2.6 or later", "pip install", modules(torch=Imported("2.4.1"))),
    Case("numpy", OK, "2.3.1", "", modules(torch=CPU_TORCH, numpy=Imported("2.3.1"))),
    Case("numpy", FAILURE, "another ABI", '"numpy<2"', modules(torch=NO_NUMPY, numpy=Imported("2.3.1"))),
    Case("numpy", FAILURE, "does not import", "pip install", modules(torch=CPU_TORCH)),
    Case("torchvision", OK, "absent"),
    Case(
        "torchvision",
        FAILURE,
        "nms does not exist",
        "pip uninstall -y torchvision",
        {
            "installed": {"torchvision": "0.28.0"},
            **modules(torchvision=Imported(error="RuntimeError: operator torchvision::nms does not exist")),
        },
    ),
    Case("cuda", OK, "RTX 4090", "", GPU),
    Case("cuda", NOTE, "no NVIDIA GPU"),
    Case(
        "cuda",
        FAILURE,
        "built for CUDA 13.0, the driver supports up to 12.6",
        "whl/cu126",
        {"outputs": smi("12.6"), **modules(torch=CUDA_13)},
    ),
    Case("cuda", FAILURE, "without CUDA", "whl/cu130", {"outputs": smi("13.0"), **modules(torch=CPU_TORCH)}),
    Case("cuda", FAILURE, "without CUDA", "jp6/cu126", {"files": orin(), **modules(torch=CPU_TORCH)}),
    Case(
        "cuda",
        FAILURE,
        "sees no GPU (CUDA_VISIBLE_DEVICES='')",
        "unset",
        {"outputs": smi("13.0"), "environment": {"CUDA_VISIBLE_DEVICES": ""}, **modules(torch=CUDA_13)},
    ),
    Case(
        "cuda",
        FAILURE,
        "the driver does not answer",
        "nvidia-smi",
        {"files": {"proc/driver/nvidia/version": "NVRM version"}, **modules(torch=CUDA_13)},
    ),
    Case(
        "cuda",
        OK,
        "driver for 12.6",
        "",
        {"files": orin(), **modules(torch=GPU_TORCH, libcuda=Imported("12.6"))},
    ),
    Case("cuda", WARNING, "capability 6.1", "--device cpu", {"outputs": smi(), **modules(torch=OLD_GPU)}),
    Case("cuda", FAILURE, "kernels for sm_90", "pip install", {"outputs": smi(), **modules(torch=NEW_GPU)}),
    Case("triton", OK, "3.6.0", "", GPU),
    Case("triton", FAILURE, "not installed", "pip install", {"outputs": smi()}),
    Case("triton", FAILURE, "3.6 or later", "-U", {"outputs": smi(), **modules(triton=Imported("3.2.0"))}),
    Case(
        "triton",
        FAILURE,
        "gcc and Python.h is missing",
        "apt install gcc python3-dev",
        {**GPU, "which": lambda name: None, "python": python((3, 12, 3), headers=False)},
    ),
    Case("instructions", OK, "the C engine, native@avx512-vnni; not here: ", "", {"files": {"proc/cpuinfo": XEON}}),
    Case(
        "instructions",
        OK,
        "avx512_bf16: torch's kernels",
        "",
        {"files": {"proc/cpuinfo": XEON}, "which": lambda name: None},
    ),
    Case(
        "instructions",
        OK,
        "avx512_bf16: torch's kernels",
        "",
        {"files": {"proc/cpuinfo": XEON}, "environment": {"EDGE_VLA_NATIVE": "0"}},
    ),
    Case(
        "instructions",
        OK,
        "dotprod fp16: the C engine, native@neon-dotprod; not here: i8mm bf16",
        "",
        {"machine": "aarch64", "files": {"proc/cpuinfo": "Features\t: fp asimd aes fphp asimdhp asimddp\n"}},
    ),
    Case("instructions", NOTE, "not visible", "", {"machine": "aarch64", "files": {"proc/cpuinfo": XEON}}),
    Case("instructions", WARNING, "without AVX2", "plan", {"files": {"proc/cpuinfo": "flags : sse2\n"}}),
    Case(
        "instructions",
        WARNING,
        "without dotprod",
        "plan",
        {"machine": "aarch64", "files": {"proc/cpuinfo": "Features : fp asimd\n"}},
    ),
    Case(
        "engine",
        OK,
        "compiled by cc 12.2.0 into the user's cache, for avx512-vnni",
        "",
        {
            "files": {"proc/cpuinfo": XEON},
            "outputs": {"/usr/bin/cc --version": "cc (Debian 12.2.0-14) 12.2.0\nCopyright\n"},
        },
    ),
    Case(
        "engine",
        OK,
        "installed with the package, for avx512-vnni",
        "",
        {
            "files": {"proc/cpuinfo": XEON},
            "which": lambda name: None,
            "libraries": frozenset({file_name(AVX512_VNNI)}),
        },
    ),
    Case(
        "engine",
        WARNING,
        "no library for avx512-vnni and no C compiler",
        "apt install gcc",
        {"files": {"proc/cpuinfo": XEON}, "which": lambda name: None},
    ),
    Case("engine", WARNING, "does not run", "--reinstall", {"files": {"proc/cpuinfo": XEON}}),
    Case("engine", NOTE, "a plain one", "", {"files": {"proc/cpuinfo": "flags : sse2\n"}}),
    Case("engine", NOTE, "is off", "", {"environment": {"EDGE_VLA_NATIVE": "0"}}),
    Case(
        "engine",
        WARNING,
        "EDGE_VLA_TARGET=amx: this processor or C has not, it has avx512-vnni, ",
        "unset EDGE_VLA_TARGET",
        {"files": {"proc/cpuinfo": XEON}, "environment": {"EDGE_VLA_TARGET": "amx"}},
    ),
    Case("threads", OK, "8 threads: 8 processors, OMP", "", {"environment": {"OMP_WAIT_POLICY": "PASSIVE"}}),
    Case("threads", WARNING, "spin", "PASSIVE", {"environment": {"OMP_WAIT_POLICY": "active"}}),
    Case(
        "threads",
        OK,
        "2 threads: 8 processors, 2 by the control group",
        "",
        {"files": {"sys/fs/cgroup/cpu.max": "200000 100000\n"}},
    ),
    Case(
        "threads",
        WARNING,
        "2 by the control group, but OMP_NUM_THREADS=4",
        "OMP_NUM_THREADS=2",
        {"files": {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, "environment": {"OMP_NUM_THREADS": "4"}},
    ),
    Case("threads", NOTE, "but OMP_NUM_THREADS=4", "", {"environment": {"OMP_NUM_THREADS": "4"}}),
    Case("threads", WARNING, "OMP_NUM_THREADS=16", "OMP_NUM_THREADS=8", {"environment": {"OMP_NUM_THREADS": "16"}}),
    Case(
        "onnxruntime",
        OK,
        "1.31.0 (CUDA, CPU)",
        "",
        modules(onnxruntime=Imported("1.31.0", facts={"providers": "CUDAExecutionProvider CPUExecutionProvider"})),
    ),
    Case("onnxruntime", NOTE, "absent"),
    Case(
        "onnxruntime",
        WARNING,
        "one folder",
        "pip install onnxruntime-gpu",
        {"installed": {"onnxruntime": "1.31.0", "onnxruntime-gpu": "1.31.0"}, "outputs": smi()},
    ),
    Case(
        "onnxruntime", WARNING, "does not import", "pip install", modules(onnxruntime=Imported(error="ImportError: x"))
    ),
    Case("tensorrt", OK, "10.3.0", "", {"files": orin(), **modules(tensorrt=Imported("10.3.0"))}),
    Case(
        "tensorrt",
        FAILURE,
        "JetPack 6.2 has 10.3",
        "apt install",
        {"files": orin(), **modules(tensorrt=Imported("11.4.1"))},
    ),
    Case(
        "tensorrt",
        WARNING,
        "libnvonnxparser",
        "pip install",
        {"outputs": smi(), **modules(tensorrt=Imported(error="ImportError: libnvonnxparser.so.11"))},
    ),
    Case("jetpack", OK, "JetPack 6.2 (L4T R36.4.3, CUDA 12.6)", "", {"files": orin()}),
    Case("jetpack", FAILURE, "3.10 is needed", "sdkmanager", {"files": JETPACK_5}),
    Case("jetpack", FAILURE, "older than JetPack 5", "sdkmanager", {"files": OLD_L4T}),
    Case("power mode", OK, "MAXN", "", {"files": MAXN}),
    Case("power mode", WARNING, "MODE_30W", "sudo nvpmodel -m 0", {"files": orin()}),
    Case("power mode", WARNING, "unknown", "nvpmodel -q", {"files": JETPACK_5}),
    Case("memory", OK, "20.5 GB free", "", {"files": {"proc/meminfo": MEMINFO.format(20_000_000)}}),
    Case("memory", WARNING, "2.0 GB free", "ps aux", {"files": {"proc/meminfo": MEMINFO.format(2_000_000)}}),
    Case(
        "memory",
        FAILURE,
        "shared with the GPU, CMA 0.2 GB free of 0.3 GB",
        "multi-user.target",
        {"files": {**orin(), "proc/meminfo": MEMINFO.format(500_000)}},
    ),
    Case("swap", OK, "no swap"),
    Case("swap", WARNING, "zram", "nvzramconfig", {"files": {**orin(), "proc/swaps": ZRAM}}),
    Case("swap", WARNING, "4.1 GB used", "swapoff", {"files": {"proc/swaps": SWAPPED}}),
    Case("clocks", OK, "clocks locked", "", {"files": LOCKED}),
    Case("clocks", WARNING, "follow the load", "sudo jetson_clocks", {"files": orin()}),
    Case(
        "clocks",
        WARNING,
        "powersave",
        "cpupower",
        {"files": {"sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n"}},
    ),
    Case(
        "heat",
        OK,
        "61 °C, throttles at 99",
        "",
        {"files": {**HOT, **TRIP, "sys/class/thermal/thermal_zone0/temp": "61000"}},
    ),
    Case("heat", WARNING, "96 °C", "fan", {"files": {**HOT, **TRIP, "sys/class/thermal/thermal_zone0/temp": "96000"}}),
    Case("heat", WARNING, "hardware thermal slowdown", "nvidia-smi -q", {"outputs": smi(reasons="0x0000000000000040")}),
    Case("heat", WARNING, "over-current", "supply", {"files": orin()}),
    Case("time", OK, "synchronised", "", {"outputs": {TIME: "yes\n"}}),
    Case("time", OK, "by chrony, off by 0.0 ms", "", {"outputs": {"chronyc tracking": CHRONY.format("Normal")}}),
    Case("time", WARNING, "not synchronised", "set-ntp true", {"outputs": {TIME: "no\n"}}),
    Case(
        "time",
        WARNING,
        "not synchronised",
        "set-ntp",
        {"outputs": {"chronyc tracking": CHRONY.format("Not synchronised")}},
    ),
    Case("ros2", OK, "humble, rmw_fastrtps_cpp, domain 0", "", {"environment": HUMBLE, "python": PYTHON_310, **RCLPY}),
    Case("ros2", NOTE, "no ROS 2"),
    Case("ros2", NOTE, "not sourced", "", {"files": {"opt/ros/jazzy/setup.bash": ""}}),
    Case("ros2", WARNING, "for Python 3.10, this is 3.12", "python3.10 -m venv", {"environment": HUMBLE}),
    Case("ros2", WARNING, "not on the path", "source /opt/ros/humble", {"environment": HUMBLE, "python": PYTHON_310}),
    Case(
        "ros2",
        WARNING,
        "RMW_IMPLEMENTATION=rmw_cyclonedds_cpp is not installed",
        "ros-humble-rmw-cyclonedds-cpp",
        {
            "environment": {**HUMBLE, "RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"},
            "files": {"opt/ros/humble/setup.bash": "", "opt/ros/humble/lib/librmw_fastrtps_cpp.so": ""},
            "python": PYTHON_310,
            **RCLPY,
        },
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}: {case.says}")
def test_what_a_check_says(case: Case, tmp_path: Path) -> None:
    found = CHECKS[case.name](recorded(tmp_path, **case.machine))
    assert found is not None
    assert found.verdict is case.verdict, found
    assert case.says in found.found
    assert case.remedy in found.remedy
    assert bool(found.remedy) == (found.verdict in (WARNING, FAILURE))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash to read commands")
@pytest.mark.parametrize("case", [case for case in CASES if case.remedy], ids=lambda case: f"{case.name}: {case.says}")
def test_a_remedy_can_be_pasted_into_a_shell(case: Case, tmp_path: Path) -> None:
    found = CHECKS[case.name](recorded(tmp_path, **case.machine))
    assert found is not None
    assert subprocess.run(["bash", "-n", "-c", found.remedy], capture_output=True, check=False).returncode == 0
    assert re.fullmatch(r"[a-z][\w.-]*", found.remedy.split()[0]), "a command comes first"


@pytest.mark.parametrize("name", CHECKS)
def test_each_check_is_seen_to_pass_and_to_fail(name: str) -> None:
    seen = {case.verdict for case in CASES if case.name == name}
    assert OK in seen
    assert seen & {WARNING, FAILURE}


@pytest.mark.parametrize("name", ["jetpack", "power mode", "triton", "tensorrt"])
def test_what_does_not_apply_is_left_out(name: str, tmp_path: Path) -> None:
    assert CHECKS[name](recorded(tmp_path)) is None


def test_little_memory_is_a_matter_of_resources(tmp_path: Path) -> None:
    found = CHECKS["memory"](recorded(tmp_path, {"proc/meminfo": MEMINFO.format(500_000)}))
    assert found is not None
    assert found.exit_code == RESOURCE


@pytest.mark.parametrize(
    ("l4t", "name"),
    [
        ("R36.4.3", "6.2"),
        ("R36.4.7", "6.2.1"),
        ("R36.5.2", "6.2.3"),
        ("R38.2.1", "7.0"),
        ("R39.2.0", "7.2"),
        ("R35.4.1", "5.1"),
    ],
)
def test_jetpack_of_a_release(l4t: str, name: str) -> None:
    found = jetpack(l4t)
    assert found is not None
    assert found.name == name


def test_kernels_run_on_later_chips_of_one_major_and_compiled_ones_on_all() -> None:
    assert runs_on("sm_80 sm_90", (8, 9))
    assert not runs_on("sm_80 sm_90", (12, 0))
    assert runs_on("sm_80 compute_90", (12, 0))
    assert not runs_on("sm_86", (8, 0))
    assert runs_on("sm_120", (12, 1))
