"""Python and its packages: what imports, and what was built for something else than what is here."""

from __future__ import annotations

import re
from typing import Final

from edge_vla.device.doctor.check import Found, failure, note, warning
from edge_vla.device.doctor.jetpack import JetPack, jetpack
from edge_vla.device.doctor.system import System

MIN_PYTHON: Final = (3, 10)
MIN_TORCH: Final = (2, 6)
MIN_TRITON: Final = (3, 6)
MIN_CAPABILITY: Final = (8, 0)
CPU_TORCH: Final = "pip install torch --index-url https://download.pytorch.org/whl/cpu"
ORT: Final = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-training")
PROVIDERS: Final = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "OpenVINOExecutionProvider")


def numbers(version: str) -> tuple[int, int]:
    """Major and minor; (0, 0) for what is no version."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def dotted(pair: tuple[int, int]) -> str:
    return f"{pair[0]}.{pair[1]}"


def pack(system: System) -> JetPack | None:
    return jetpack(system.jetson.l4t) if system.jetson else None


def python(system: System) -> Found:
    version, abi = system.python.version, system.python.abi
    found = f"Python {'.'.join(map(str, version))} ({'-'.join(abi.split('-')[:2]) or 'no ABI tag'}, {system.machine})"
    if version[:2] < MIN_PYTHON:
        return failure(
            f"{found}, 3.10 or later is needed", "sudo apt install python3.10-venv; python3.10 -m venv .venv"
        )
    if re.search(r"cpython-\d+t", abi):
        return warning(
            f"{found} has no GIL, untested here", "python3.12 -m venv .venv && .venv/bin/pip install edge-vla"
        )
    if "musl" in abi:
        return failure(
            f"{found} is built for musl, torch has no wheels for it", "docker run -it python:3.12-slim  # has glibc"
        )
    known = pack(system)
    if known is not None and version[:2] != known.python:
        wanted = dotted(known.python)
        return warning(
            f"{found}, but TensorRT and CUDA wheels of JetPack {known.name} are for {wanted}",
            f"python{wanted} -m venv --system-site-packages .venv",
        )
    return Found(found)


def torch_command(system: System) -> str:
    """What installs the right torch here."""
    known = pack(system)
    if known is not None:
        return known.torch
    return cuda_torch(driver_cuda(system)) if system.has_gpu else CPU_TORCH


def cuda_torch(supported: str | None) -> str:
    """The newest published CUDA build that a driver of this CUDA version runs."""
    builds = {(12, 6): "cu126", (13, 0): "cu130"}
    able = [name for least, name in builds.items() if supported is None or least[0] <= numbers(supported)[0]]
    index = able[-1] if able else "cpu"
    return f"pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/{index}"


def torch(system: System) -> Found:
    found = system.torch
    if found.missing:
        return failure("torch is not installed", torch_command(system))
    if found.error:
        return failure(f"torch does not import: {found.error}", f"pip uninstall -y torch; {torch_command(system)}")
    version = str(found.version)
    if numbers(version) < MIN_TORCH:
        return failure(f"torch {version}, {dotted(MIN_TORCH)} or later is needed", torch_command(system))
    return Found(f"torch {version}")


def numpy(system: System) -> Found:
    found = system.importing("numpy")
    if found.version is None:
        return failure(
            f"numpy does not import: {found.error or 'not installed'}", "pip install --force-reinstall numpy"
        )
    if "numpy" in system.torch.facts:
        old = '"numpy<2"' if numbers(found.version) >= (2, 0) else '"numpy>=2"'
        return failure(
            f"numpy {found.version} has another ABI than torch {system.torch.version} was built for "
            f"({system.torch.facts['numpy']})",
            f"pip install {old}",
        )
    if system.torch.version is None:
        return note(f"numpy {found.version}, unchecked against torch")
    return Found(f"numpy {found.version}")


def torchvision(system: System) -> Found:
    version = system.installed("torchvision")
    if version is None:
        return Found("torchvision absent, as wanted")
    found = system.importing("torchvision")
    if found.version is None:
        return failure(
            f"torchvision {version} is broken and breaks transformers and timm with it: {found.error}",
            "pip uninstall -y torchvision  # edge-vla does not need it",
        )
    return note(f"torchvision {version}, unused")


def driver_cuda(system: System) -> str | None:
    """The CUDA version that the driver supports: nvidia-smi's, else libcuda's."""
    match = re.search(r"CUDA Version:\s*([\d.]+)", system.run(("nvidia-smi",)) or "")
    return match[1] if match else system.importing("libcuda").version


def cuda(system: System) -> Found:
    """torch's CUDA build beside the driver and the GPU."""
    if not system.has_gpu:
        return note("no NVIDIA GPU, the CPU engine runs")
    found, supported = system.torch, driver_cuda(system)
    if found.version is None:
        return note("a GPU, unchecked without torch")
    built = found.facts.get("cuda", "")
    if not built:
        return failure(f"torch {found.version} is built without CUDA, but there is a GPU", torch_command(system))
    if supported is None:
        return failure(
            f"torch is built for CUDA {built}, the driver does not answer",
            "nvidia-smi  # install or load the driver; in a container: docker run --gpus all",
        )
    if numbers(built)[0] > numbers(supported)[0]:
        update = "" if system.jetson else "  # or a newer driver: https://www.nvidia.com/drivers"
        return failure(
            f"torch is built for CUDA {built}, the driver supports up to {supported}",
            torch_command(system) + update,
        )
    if "gpu" not in found.facts:
        hidden = system.environment.get("CUDA_VISIBLE_DEVICES")
        why = f" (CUDA_VISIBLE_DEVICES={hidden!r})" if hidden is not None else ""
        return failure(
            f"torch for CUDA {built} sees no GPU{why}, the driver supports {supported}",
            "unset CUDA_VISIBLE_DEVICES; nvidia-smi -L  # in a container: docker run --gpus all",
        )
    return _capability(system, built, supported)


def _capability(system: System, built: str, supported: str) -> Found:
    facts = system.torch.facts
    name, capability = facts["gpu"], numbers(facts["capability"])
    if capability < MIN_CAPABILITY:
        return warning(
            f"{name} has compute capability {dotted(capability)}, the GPU engine needs {dotted(MIN_CAPABILITY)}",
            "edge-vla run ARTIFACT --device cpu  # or --kernel reference, slow",
        )
    if not runs_on(facts["architectures"], capability):
        return failure(
            f"torch {system.torch.version} has kernels for {facts['architectures']}, {name} is {dotted(capability)}",
            torch_command(system),
        )
    return Found(f"{name}, CUDA {built} on a driver for {supported}")


def runs_on(architectures: str, capability: tuple[int, int]) -> bool:
    """sm_80 runs on 8.0 and later of the same major; compute_80 is compiled for anything later."""
    for kind, major, minor in re.findall(r"(sm|compute)_(\d+)(\d)", architectures):
        built = int(major), int(minor)
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def triton(system: System) -> Found | None:
    """Of the GPU engine alone; it compiles a launcher with the C compiler, against Python's headers."""
    if not system.has_gpu:
        return None
    found = system.importing("triton")
    if found.version is None:
        return failure(f"triton does not import: {found.error or 'not installed'}", 'pip install "triton>=3.6"')
    if numbers(found.version) < MIN_TRITON:
        return failure(
            f"triton {found.version}, {dotted(MIN_TRITON)} or later is needed", 'pip install -U "triton>=3.6"'
        )
    wanting = [what for what, there in (("gcc", system.compiler), ("Python.h", system.python.headers)) if not there]
    if wanting:
        return failure(
            f"triton {found.version} compiles with a C compiler, and {' and '.join(wanting)} is missing",
            "sudo apt install gcc python3-dev",
        )
    return Found(f"triton {found.version}")


def onnxruntime(system: System) -> Found:
    there = [name for name in ORT if system.installed(name)]
    if len(there) > 1:
        keep = "onnxruntime-gpu" if system.has_gpu and "onnxruntime-gpu" in there else there[0]
        return warning(
            f"{' and '.join(there)} write into one folder, the last one installed wins",
            f"pip uninstall -y {' '.join(there)}; pip install {keep}",
        )
    found = system.importing("onnxruntime")
    if found.missing:
        return note("onnxruntime absent, only --vision onnx needs it")
    if found.error:
        return warning(f"onnxruntime does not import: {found.error}", "pip install --force-reinstall onnxruntime")
    providers = found.facts.get("providers", "").split()
    shown = [
        name.removesuffix("ExecutionProvider") for name in providers if name in (*PROVIDERS, "CPUExecutionProvider")
    ]
    return Found(f"onnxruntime {found.version} ({', '.join(shown) or 'no provider'})")


def tensorrt(system: System) -> Found | None:
    known = pack(system)
    if known is None and not system.has_gpu:
        return None
    found = system.importing("tensorrt")
    if found.missing:
        return note("tensorrt absent, only --vision tensorrt needs it")
    if found.error:
        return warning(
            f"tensorrt does not import: {found.error}",
            "sudo apt install tensorrt python3-libnvinfer" if known else "pip install --force-reinstall tensorrt",
        )
    version = numbers(str(found.version))
    if known is not None and known.tensorrt is not None and version != known.tensorrt:
        return failure(
            f"tensorrt {found.version}, but JetPack {known.name} has {dotted(known.tensorrt)}",
            "pip uninstall -y tensorrt; sudo apt install tensorrt python3-libnvinfer  # and a venv with "
            "--system-site-packages",
        )
    return Found(f"tensorrt {found.version}")
