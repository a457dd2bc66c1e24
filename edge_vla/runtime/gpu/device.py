"""One card as an engine sees it: whether it can be used, what else holds its memory, and what went wrong on it.

Every call that may touch the card runs inside `CudaDevice.guard`, which turns what torch raises into errors that name the
remedy. After an error that CUDA does not recover from, the card is lost and refuses all further work.
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
OLDEST_CHIP: Final = (8, 0)  # Ampere: bf16 and int8 tensor cores, asynchronous copies
OLDEST_TRITON: Final = (3, 6)  # older ones were never tried
OWN: Final = 0.6e9  # a CUDA context and the modules in it: held beside torch's allocator, by nobody else
APPS: Final = ("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")

Ask = Callable[[Sequence[str]], "str | None"]


@dataclass(frozen=True)
class DeviceInfo:
    """What is read off a card, or given by a test: bytes, and the capability (major, minor)."""

    name: str
    capability: tuple[int, int]
    total: int
    free: int
    reserved: int  # by torch in this process
    allocated: int = 0  # of that, what tensors take

    @staticmethod
    def read(device: torch.device) -> DeviceInfo:
        free, total = torch.cuda.mem_get_info(device)
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        reserved, allocated = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
        return DeviceInfo(name, capability, total, free, reserved, allocated)

    @property
    def room(self) -> int:
        """What more tensors can take: what is free, and what torch keeps but nothing uses."""
        return self.free + self.reserved - self.allocated

    @property
    def held_by_others(self) -> int:
        """About: what is in use less what this process uses. On a Jetson that includes the CPU's programs."""
        return max(0, round(self.total - self.free - self.reserved - OWN))


def check(backend: str, device: torch.device, chip: Callable[[torch.device], DeviceInfo] = DeviceInfo.read) -> None:
    """BackendError, with the remedy, unless kernels of `backend` can run on `device`; UsageError for no backend."""
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r}: choose one of {list(BACKENDS)}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise BackendError("--device cuda: torch sees no CUDA device; check nvidia-smi and the torch build")
        found = chip(device)
        if found.capability < OLDEST_CHIP:
            raise BackendError(
                f"{found.name} has compute capability {_dotted(found.capability)}, the GPU engine needs "
                f"{_dotted(OLDEST_CHIP)} (Ampere) or later: run with --kernel reference (slow), or --device cpu"
            )
    if backend == "triton":
        _check_triton(device)


def _check_triton(device: torch.device) -> None:
    remedy = "pip install -U triton (on a Jetson: the wheel beside its torch), or run with --kernel reference (slow)"
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        raise BackendError(f"the triton kernels need the package triton, which is not installed: {remedy}") from error
    said = str(triton.__version__)
    numbers = re.match(r"(\d+)\.(\d+)", said)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST_TRITON:
        raise BackendError(f"triton {said} is too old, {_dotted(OLDEST_TRITON)} or later is needed: {remedy}")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise BackendError(f"the triton kernels run on CUDA, not on {device.type}: use the backend 'reference' there")


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


class CudaDevice:
    """A device in use. `lost` is why it cannot be used any more, once that is so."""

    def __init__(
        self, device: torch.device, chip: Callable[[torch.device], DeviceInfo] = DeviceInfo.read, ask: Ask | None = None
    ) -> None:
        self.device, self.lost = device, ""
        self._chip, self._ask = chip, ask or _run

    @contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Run `what` on the cuda. ResourceError when memory runs out, DeviceLostError when CUDA breaks."""
        if self.lost:
            raise DeviceLostError(_gone(self.lost))
        try:
            yield
        except RuntimeError as error:
            if out_of_memory(error):
                raise ResourceError(f"{what}: out of memory on {self.memory()}; {FEWER_BYTES}") from error
            if not broke_cuda(error):
                raise
            self.lost = f"{what}: {_first_line(error)}"
            raise DeviceLostError(_gone(self.lost)) from error
        except _triton_errors() as error:
            raise BackendError(
                f"{what}: triton cannot build a kernel for this chip ({_first_line(error)}); run with "
                "--kernel reference (slow), and report the chip and the triton version"
            ) from error

    def require_free(self, needed: int, what: str) -> None:
        """ResourceError before anything is loaded if `needed` bytes cannot fit."""
        if self.device.type != "cuda":
            return
        chip = self._chip(self.device)
        if needed > chip.room:
            raise ResourceError(f"{what} needs {_gb(needed)}, more than is free on {self.memory()}; {FEWER_BYTES}")

    def memory(self) -> str:
        """How full the card is and who else holds it, in words."""
        if self.device.type != "cuda":
            return self.device.type
        chip = self._chip(self.device)
        words = f"{chip.name} ({_gb(chip.free)} of {_gb(chip.total)} free, {_gb(chip.reserved)} held by this process"
        others = self.others()
        if others:
            words += ", " + ", ".join(f"{_gb(held)} by process {pid}" for pid, held in others)
        elif chip.held_by_others:
            words += f", {_gb(chip.held_by_others)} by others"
        return words + ")"

    def others(self) -> list[tuple[int, int]]:
        """Other processes on the card as (pid, bytes), the largest first. Empty where the driver does not tell."""
        listed = self._ask(APPS) or ""
        pairs = re.findall(r"^\s*(\d+)\s*,\s*(\d+)\s*$", listed, re.MULTILINE)
        found = [(int(pid), int(mebibytes) << 20) for pid, mebibytes in pairs if int(pid) != os.getpid()]
        return sorted(found, key=lambda pair: -pair[1])


FEWER_BYTES: Final = (
    "end the other programs on it, or export with fewer bits (--bits 4, --vision-bits 8: about 4.6 GB for a 7B policy)"
)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, here or in what came before: a capture that fails for it reports an invalid capture."""
    if isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and "out of memory" in str(error)):
        return True
    before = error.__cause__ or error.__context__
    return before is not None and out_of_memory(before)


def broke_cuda(error: RuntimeError) -> bool:
    """Whether the process's CUDA context cannot be trusted after this error.

    Most CUDA errors surface late and stay: what failed is not what reports it. So all but a full memory count.
    """
    typed = getattr(torch, "AcceleratorError", None)  # torch 2.8 and later
    return (typed is not None and isinstance(error, typed)) or bool(re.search(r"CUDA error|\[CUDA\]", str(error)))


def _triton_errors() -> tuple[type[Exception], ...]:
    """Its base of errors, without importing it: () where nothing has."""
    module = sys.modules.get("triton.errors")
    return (module.TritonError,) if module else ()


def _gone(why: str) -> str:
    return (
        f"the GPU failed and this process can no longer use it ({why}): no action; restart the process, and if it "
        "comes again look for Xid errors in dmesg and run with CUDA_LAUNCH_BLOCKING=1 to see which kernel it is"
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
