"""One device as an engine sees it: whether it can run, who holds its memory, and what went wrong on it.

Every call that may touch the device runs inside `CudaDevice.guard`, which turns what torch raises into errors that name
the remedy. After an error that CUDA does not recover from, the device is lost and refuses all further work.
Knows nothing of networks.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

import torch

from edge_vla.errors import BackendError, DeviceLostError, ResourceError, UsageError

Backend = Literal["reference", "triton"]
BACKENDS: Final = ("reference", "triton")
MIN_CAPABILITY: Final = (8, 0)  # Ampere: bf16 and int8 tensor cores, asynchronous copies
MIN_TRITON: Final = (3, 6)  # older versions are untested
CONTEXT_BYTES: Final = 0.6e9  # about what a CUDA context and its modules hold outside torch's allocator
QUERY_PROCESSES: Final = ("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")

Query = Callable[[Sequence[str]], "str | None"]


@dataclass(frozen=True)
class DeviceInfo:
    """A device's name, compute capability and memory in bytes."""

    name: str
    capability: tuple[int, int]
    total: int
    free: int
    reserved: int  # by torch in this process
    allocated: int = 0  # of `reserved`, what tensors hold

    @staticmethod
    def read(device: torch.device) -> DeviceInfo:
        free, total = torch.cuda.mem_get_info(device)
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        reserved, allocated = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
        return DeviceInfo(name, capability, total, free, reserved, allocated)

    @property
    def available(self) -> int:
        """What new tensors can take: free memory, and what torch's allocator has cached."""
        return self.free + self.reserved - self.allocated

    @property
    def held_by_others(self) -> int:
        """Approximately: used memory minus this process's. On a Jetson that includes programs on the CPU."""
        return max(0, round(self.total - self.free - self.reserved - CONTEXT_BYTES))


def check(backend: str, device: torch.device, read: Callable[[torch.device], DeviceInfo] = DeviceInfo.read) -> None:
    """BackendError with the remedy unless `backend` can run on `device`; UsageError for an unknown backend."""
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r}: choose one of {list(BACKENDS)}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise BackendError("--device cuda: torch sees no CUDA device; check nvidia-smi and the torch build")
        found = read(device)
        if found.capability < MIN_CAPABILITY:
            raise BackendError(
                f"{found.name} has compute capability {_dotted(found.capability)}; the GPU engine needs "
                f"{_dotted(MIN_CAPABILITY)} (Ampere) or later: run with --kernel reference (slow), or --device cpu"
            )
    if backend == "triton":
        _check_triton(device)


def _check_triton(device: torch.device) -> None:
    """On the device "meta" kernels are compiled ahead and none runs."""
    remedy = "pip install -U triton (on a Jetson: the wheel beside its torch), or run with --kernel reference (slow)"
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        raise BackendError(f"the Triton kernels need the package triton, which is not installed: {remedy}") from error
    version = str(triton.__version__)
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < MIN_TRITON:
        raise BackendError(f"triton {version} is too old; {_dotted(MIN_TRITON)} or later is needed: {remedy}")
    if device.type not in ("cuda", "meta") and os.environ.get("TRITON_INTERPRET") != "1":
        raise BackendError(
            f"the Triton kernels need CUDA, got device {device.type}: run with --kernel reference or --device cuda"
        )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


class CudaDevice:
    """A device in use. `lost` says why it can no longer be used; empty while it can."""

    def __init__(
        self,
        device: torch.device,
        read: Callable[[torch.device], DeviceInfo] = DeviceInfo.read,
        query: Query | None = None,
    ) -> None:
        self.device, self.lost = device, ""
        self._read, self._query = read, query or _run

    @contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Run the body, named `what`. ResourceError when memory runs out, DeviceLostError when CUDA fails for good."""
        if self.lost:
            raise DeviceLostError(_lost(self.lost))
        try:
            yield
        except RuntimeError as error:
            if out_of_memory(error):
                raise ResourceError(f"{what}: out of memory on {self.memory()}; {FREE_MEMORY}") from error
            if _CAPTURE.search(str(error)):
                raise BackendError(
                    f"{what}: the recording of a CUDA graph was disturbed ({_first_line(error)}): another thread used "
                    "the device meanwhile; warm the policy (policy.warm) before others use the device, and try again"
                ) from error
            if "C compiler" in str(error):
                raise BackendError(
                    f"{what}: Triton compiles a launcher in C and finds no compiler ({_first_line(error)}): sudo apt "
                    "install gcc python3-dev, or run with --kernel reference (slow)"
                ) from error
            if not is_sticky(error):
                raise
            self.lost = f"{what}: {_first_line(error)}"
            raise DeviceLostError(_lost(self.lost)) from error
        except _triton_errors() as error:
            raise BackendError(
                f"{what}: Triton cannot compile a kernel for this chip ({_first_line(error)}); run with "
                "--kernel reference (slow), and report the chip and the Triton version"
            ) from error

    def require_free(self, needed: int, what: str) -> None:
        """ResourceError if `needed` bytes do not fit; call it before anything is loaded."""
        if self.device.type != "cuda":
            return
        info = self._read(self.device)
        if needed > info.available:
            raise ResourceError(f"{what} needs {_gb(needed)}, more than is free on {self.memory()}; {FREE_MEMORY}")

    def memory(self) -> str:
        """Who holds the device's memory, as a message says it."""
        if self.device.type != "cuda":
            return self.device.type
        info = self._read(self.device)
        text = f"{info.name} ({_gb(info.free)} of {_gb(info.total)} free, {_gb(info.reserved)} held by this process"
        others = self.others()
        if others:
            text += ", " + ", ".join(f"{_gb(held)} by process {pid}" for pid, held in others)
        elif info.held_by_others:
            text += f", {_gb(info.held_by_others)} by others"
        return text + ")"

    def others(self) -> list[tuple[int, int]]:
        """Other processes as (pid, bytes on the device), the largest first. Empty where the driver reports none."""
        listing = self._query(QUERY_PROCESSES) or ""
        pairs = re.findall(r"^\s*(\d+)\s*,\s*(\d+)\s*$", listing, re.MULTILINE)
        found = [(int(pid), int(mebibytes) << 20) for pid, mebibytes in pairs if int(pid) != os.getpid()]
        return sorted(found, key=lambda pair: -pair[1])


FREE_MEMORY: Final = (
    "end other programs that use it, or export with fewer bits (--bits 4 --vision-bits 8: about 4.6 GB for a 7B policy)"
)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in this error or in its causes: a capture that runs out reports an invalid capture."""
    if isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and "out of memory" in str(error)):
        return True
    before = error.__cause__ or error.__context__
    return before is not None and out_of_memory(before)


def is_sticky(error: RuntimeError) -> bool:
    """Whether the process's CUDA context is unusable after this error.

    Most CUDA errors are reported late, by another call than the one that failed, and persist. So all count.
    """
    typed = getattr(torch, "AcceleratorError", None)  # torch 2.8 and later
    return (typed is not None and isinstance(error, typed)) or bool(re.search(r"CUDA error|\[CUDA\]", str(error)))


# CUDA's errors 900 to 908 are about a capture, which ends with them; the device goes on.
_CAPTURE: Final = re.compile(r"\bcaptur", re.IGNORECASE)


def _triton_errors() -> tuple[type[Exception], ...]:
    """Triton's base exception, without importing Triton: () if nothing has imported it."""
    module = sys.modules.get("triton.errors")
    return (module.TritonError,) if module else ()


def _lost(why: str) -> str:
    return (
        f"the GPU failed and this process can no longer use it ({why}): no action; restart the process. If it fails "
        "again, look for Xid errors in dmesg and run with CUDA_LAUNCH_BLOCKING=1 to find the kernel"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _run(command: Sequence[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
