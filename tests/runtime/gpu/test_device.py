"""Devices that cannot be used, memory that runs out, CUDA that fails: each an error with its remedy, and no action."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import edge_vla
from edge_vla.errors import BackendError, DeviceLostError, EdgeVLAError, ResourceError, UsageError
from edge_vla.runtime.gpu import device as gpu
from edge_vla.runtime.gpu.device import CudaDevice, DeviceInfo
from edge_vla.runtime.gpu.load import from_artifact
from tests.runtime.gpu.engines import CPU, WORDS, engine, pixels, policy

CUDA = torch.device("cuda")
GB = 10**9


def chip(
    capability: tuple[int, int] = (8, 9), free: int = 20 * GB, reserved: int = 0, allocated: int = 0
) -> DeviceInfo:
    return DeviceInfo("NVIDIA Test", capability, 24 * GB, free, reserved, allocated)


def test_no_cuda() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(BackendError, match=r"torch sees no CUDA device.*nvidia-smi"):
        gpu.check("triton", CUDA)


@pytest.mark.parametrize(("capability", "runs"), [((7, 5), False), ((8, 0), True), ((8, 7), True), ((12, 0), True)])
def test_a_chip_that_is_too_old(capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "triton", _triton("3.6.0"))
    if runs:
        gpu.check("triton", CUDA, lambda device: chip(capability))
    else:
        with pytest.raises(BackendError, match=r"NVIDIA Test has compute capability 7\.5.*8\.0.*--kernel reference"):
            gpu.check("triton", CUDA, lambda device: chip(capability))


@pytest.mark.parametrize("version", ["2.3.1", "3.5.1", "1.0", "nonsense"])
def test_a_triton_that_is_too_old(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", _triton(version))
    with pytest.raises(BackendError, match=rf"triton {version} is too old.*pip install -U triton"):
        gpu.check("triton", CPU)


def test_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(BackendError, match=r"not installed: pip install -U triton.*--kernel reference"):
        gpu.check("triton", CPU)


def test_triton_on_a_cpu_only_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", _triton("3.6.0"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="need CUDA, got device cpu"):
        gpu.check("triton", CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    gpu.check("triton", CPU)


def test_no_such_backend() -> None:
    with pytest.raises(UsageError, match=r"backend 'cutlass': choose one of \['reference', 'triton'\]"):
        gpu.check("cutlass", CPU)


@pytest.mark.parametrize("kernel", ["triton", "triton/int8", "triton/chain", "triton/int8/persistent"])
def test_a_kernel_asked_for_by_name_runs_or_raises(
    kernel: str, tiny_artifacts: Mapping[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match=r"(?i)triton.*--kernel reference"):
        edge_vla.load(tiny_artifacts[4], "cpu", kernel=kernel, check=False)
    with pytest.raises(UsageError, match="--vision onnx writes no image rows on the GPU: leave it out, choose among"):
        edge_vla.load(tiny_artifacts[4], "cpu", "onnx", kernel=kernel, check=False)


def test_triton_computes_in_16_bits(tiny_artifacts: Mapping[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", _triton("3.6.0"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendError, match=r"16 bits, not torch\.float32: --dtype bf16"):
        edge_vla.load(tiny_artifacts[4], "cpu", dtype="fp32", kernel="triton", check=False)


def test_out_of_memory_names_the_processes_that_hold_it() -> None:
    cuda = CudaDevice(CUDA, lambda device: chip(free=1 * GB, reserved=4 * GB), lambda command: "4711, 16000\n12, 300\n")
    with pytest.raises(ResourceError) as caught, cuda.guard("an action"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    text = str(caught.value)
    assert "an action: out of memory on NVIDIA Test (1.0 GB of 24.0 GB free, 4.0 GB held by this process" in text
    assert "16.8 GB by process 4711, 0.3 GB by process 12" in text
    assert "--bits 4 --vision-bits 8" in text
    with cuda.guard("the next"):
        pass  # full memory does not lose the device


@pytest.mark.parametrize("reported", [None, "[Not Supported]\n"])
def test_where_the_driver_reports_no_processes(reported: str | None) -> None:
    cuda = CudaDevice(CUDA, lambda device: chip(free=3 * GB, reserved=2 * GB), lambda command: reported)
    assert cuda.others() == []
    assert "18.4 GB by others" in cuda.memory()


def test_what_cannot_fit_is_refused_before_anything_is_loaded() -> None:
    cuda = CudaDevice(CUDA, lambda device: chip(free=4 * GB), lambda command: None)
    cuda.require_free(4 * GB, "loading it")
    with pytest.raises(ResourceError, match=r"loading it needs 15\.2 GB, more than is free.*4\.0 GB of 24\.0 GB free"):
        cuda.require_free(round(15.2 * GB), "loading it")
    CudaDevice(CPU).require_free(10**15, "anything")


def test_allocated_memory_is_not_available() -> None:
    """Only cached blocks without a tensor in them can be reused."""
    cuda = CudaDevice(CUDA, lambda device: chip(free=4 * GB, reserved=10 * GB, allocated=9 * GB), lambda command: None)
    cuda.require_free(5 * GB, "another policy")
    with pytest.raises(ResourceError, match=r"another policy needs 6\.0 GB"):
        cuda.require_free(6 * GB, "another policy")


def test_loading_checks_free_memory_first(tiny_artifacts: Mapping[int, Path]) -> None:
    artifact = edge_vla.artifact.Artifact(tiny_artifacts[4])
    cuda = CudaDevice(CUDA, lambda device: chip(free=100), lambda command: None)
    with pytest.raises(ResourceError, match="more than is free"):
        from_artifact(artifact, torch.bfloat16, CPU, "reference", cuda=cuda)


STICKY = [
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: device-side assert triggered",
    "CUDA error: uncorrectable ECC error encountered",
    "Triton Error [CUDA]: unspecified launch failure",
]


@pytest.mark.parametrize("said", STICKY)
def test_a_broken_cuda_is_remembered(said: str, tiny_artifacts: Mapping[int, Path]) -> None:
    """After it the engine refuses to act, whatever would have come next; restarting is the remedy."""
    made = policy(tiny_artifacts[4])
    prompt, image = made.prompter(WORDS[0]), pixels(made, 0)
    sound = engine(made).decide(prompt, image, 7)

    class Broken:
        bytes = 0

        def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
            raise RuntimeError(said)

    kept, engine(made).vision = engine(made).vision, Broken()
    with pytest.raises(DeviceLostError, match=r"no action; restart the process"):
        engine(made).decide(prompt, image, 7)
    engine(made).vision = kept
    with pytest.raises(DeviceLostError, match="an action: " + said.splitlines()[0].replace("[", r"\[")):
        engine(made).decide(prompt, image, 7)
    with pytest.raises(DeviceLostError):
        made.warm(WORDS)
    assert engine(policy(tiny_artifacts[4])).decide(prompt, image, 7) == sound, "another engine on a working device"


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: operation not permitted when stream is capturing",
        "CUDA error: operation failed due to a previous error during capture",
        "CUDA error: capturing stream has unjoined work",
    ],
)
def test_a_disturbed_recording_loses_no_device(said: str) -> None:
    """CUDA's errors 900 to 908 end the capture, not the context."""
    cuda = CudaDevice(CPU)
    with pytest.raises(BackendError, match=r"another thread used the device.*policy\.warm") as caught, cuda.guard("x"):
        raise RuntimeError(said)
    assert not isinstance(caught.value, DeviceLostError)
    with cuda.guard("the next action"):
        pass


def test_torchs_own_type_is_known() -> None:
    if not hasattr(torch, "AcceleratorError"):
        pytest.skip("torch before 2.8 has no type of its own for it")
    cuda = CudaDevice(CPU)
    with pytest.raises(DeviceLostError), cuda.guard("x"):
        raise torch.AcceleratorError("something new", 719)


def test_other_errors_are_left_alone() -> None:
    cuda = CudaDevice(CPU)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), cuda.guard("x"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(UsageError), cuda.guard("x"):
        raise UsageError("a wrong option")
    assert not cuda.lost


def test_a_kernel_that_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    class TritonError(Exception):
        pass

    class OutOfResourcesError(TritonError):
        pass

    monkeypatch.setitem(sys.modules, "triton.errors", SimpleNamespace(TritonError=TritonError))
    with (
        pytest.raises(BackendError, match=r"cannot compile a kernel for this chip \(shared memory"),
        CudaDevice(CPU).guard("x"),
    ):
        raise OutOfResourcesError("shared memory: required 200000, limit 101376")


def test_each_says_what_to_do_and_which_code() -> None:
    assert DeviceLostError.exit_code == BackendError.exit_code
    assert issubclass(DeviceLostError, BackendError)
    assert issubclass(ResourceError, EdgeVLAError)


def _triton(version: str) -> ModuleType:
    module = ModuleType("triton")
    module.__version__ = version  # type: ignore[attr-defined]
    return module
