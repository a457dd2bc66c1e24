"""What a package says of itself once imported. Runs in a process of its own: a broken torch may end it.

`python -m edge_vla.device.doctor.probe torch` writes one JSON object of text values. Imports what it is asked for.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

Facts = dict[str, str]


def facts(name: str) -> Facts:
    """Version and what else the checks need of a module; `error` in place of both where its import fails."""
    try:
        return SAID.get(name, _version)(name)
    except ModuleNotFoundError as error:
        missing = error.name == name
        return {} if missing else {"error": f"{type(error).__name__}: {error}"}
    except Exception as error:  # noqa: BLE001  whatever a broken package raises is the finding
        lines = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {lines[0]}"}


def _version(name: str) -> Facts:
    module = importlib.import_module(name)
    return {"version": str(getattr(module, "__version__", "unknown"))}


def _torch(name: str) -> Facts:
    torch: Any = importlib.import_module(name)
    found = {"version": str(torch.__version__), "cuda": str(torch.version.cuda or "")}
    try:
        torch.zeros(1).numpy()
    except RuntimeError as error:  # "Numpy is not available": the two were built for other ABIs
        found["numpy"] = str(error)
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info(0)
        found["gpu"] = torch.cuda.get_device_name(0)
        found["capability"] = "{}.{}".format(*torch.cuda.get_device_capability(0))
        found["architectures"] = " ".join(torch.cuda.get_arch_list())
        found["free"], found["total"] = str(free), str(total)
    return found


def _onnxruntime(name: str) -> Facts:
    module: Any = importlib.import_module(name)
    return {"version": str(module.__version__), "providers": " ".join(module.get_available_providers())}


def _driver(name: str) -> Facts:  # noqa: ARG001
    """The CUDA version that the driver supports, from libcuda itself."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return {}
    number = ctypes.c_int()
    code = library.cuDriverGetVersion(ctypes.byref(number))
    if code:
        return {"error": f"libcuda: error {code}"}
    return {"version": f"{number.value // 1000}.{number.value % 1000 // 10}"}


SAID: Final[Mapping[str, Callable[[str], Facts]]] = {
    "torch": _torch,
    "onnxruntime": _onnxruntime,
    "libcuda": _driver,
}


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(facts(sys.argv[1])) + "\n")
