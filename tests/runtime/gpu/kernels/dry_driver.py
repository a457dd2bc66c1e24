"""A Triton driver without a device: kernels' own launchers compile for a named chip, with the real arguments, and stop.

A program, because Triton decides at import whether to interpret: `python -m tests.runtime.gpu.kernels.dry_driver 90
232448 132` (capability, shared memory, SMs) compiles every kernel at the shapes of OpenVLA-7B, a JSON line per kernel.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.gpu.kernel_checks.cases import of_policy
from benchmarks.gpu.kernel_checks.check import RandomInputs
from edge_vla.runtime.gpu.kernels import nibbles, tiles
from edge_vla.spec import OPENVLA_7B, PolicySpec

PREFILL = 288
SMALL_GROUPS = (32, 64)  # of int4 weights: they take branches of the kernels that a group of 128 does not
INT4 = ("w4a16_gemv", "w4a16_gemm", "w4a8_gemm")


@contextmanager
def compiling_for(chip: tiles.Chip) -> Iterator[list[dict[str, Any]]]:
    """Within, launching a kernel on CPU tensors compiles it for `chip`; what the compiler says is added to the list."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase
    from triton.runtime.driver import driver

    compiled = list[dict[str, Any]]()
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

    class Utils:
        def get_device_properties(self, _: int) -> dict[str, int]:
            return {"max_shared_mem": chip.shared_bytes}

        def load_binary(self, name: str, binary: bytes, shared: int, _: int) -> tuple[None, None, int, int, int]:
            compiled.append({"kernel": name, "shared": shared, **resources(tools, binary)})
            return None, None, 0, 0, 1024

    class Dry(DriverBase):  # type: ignore[misc]
        utils = Utils()

        class launcher_cls:  # noqa: N801
            def __init__(self, *_: object) -> None: ...

            def __call__(self, *_: object) -> None: ...

        is_active = staticmethod(lambda: True)

        def map_python_to_cpp_type(self, kind: str) -> str:
            return kind

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", chip.capability[0] * 10 + chip.capability[1], 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

        def get_benchmarker(self) -> Any:
            raise NotImplementedError

        def get_current_device(self) -> int:  # Triton keeps what it compiled by device
            return chip.capability[0] * 10 + chip.capability[1]

        def get_current_stream(self, _: int) -> int:
            return 0

    before, tiles.INTERPRETER = tiles.INTERPRETER, chip  # type: ignore[misc]
    driver.set_active(Dry())
    with as_on(chip):
        try:
            yield compiled
        finally:
            tiles.INTERPRETER = before  # type: ignore[misc]


@contextmanager
def as_on(chip: tiles.Chip) -> Iterator[None]:
    """Within, kernels on CPU tensors take the branches of the chip: assembly, and overlapped launches."""
    early = {"EARLY": True, "launch_pdl": True} if chip.capability >= (9, 0) else {"EARLY": False}
    there = {
        "assembly": lambda dtype, _: nibbles.assembly(dtype, torch.device("cuda")),
        "overlap": lambda _: early,
    }
    with ExitStack() as stack:
        for name, module in [*sys.modules.items()]:
            if name.startswith("edge_vla.runtime.gpu.kernels.") and module is not nibbles:
                for one in there.keys() & vars(module).keys():
                    stack.enter_context(patch.object(module, one, there[one]))
        yield


def resources(tools: Path, binary: bytes) -> dict[str, Any]:
    """Registers, bytes of stack, and how often each of the instructions occurs that say what a kernel runs on."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        used = subprocess.run(
            [tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        )
        sass = subprocess.run([tools / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", used.stdout + used.stderr)
    assert found, used
    names = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z0-9]+)", sass, re.M)
    telling = {name: names.count(name) for name in sorted(set(names)) if re.search("MMA|LDL|STL|LDGSTS|UTMALDG", name)}
    return {"registers": int(found[1]), "stack": int(found[2]), "instructions": len(names), **telling}


def compile_policy(spec: PolicySpec, chip: tiles.Chip) -> Iterator[dict[str, Any]]:
    """One line a compiled kernel; kernels that differ in nothing that is compiled come once."""
    inputs = RandomInputs.seeded(0, torch.device("cpu"), torch.bfloat16)
    with compiling_for(chip) as compiled:
        small = [case for group in SMALL_GROUPS for case in of_policy(spec, PREFILL, group) if case.kernel in INT4]
        for case in [*of_policy(spec, PREFILL), *small]:
            known = len(compiled)
            case.make(inputs).kernel()
            yield from ({"case": case.name, **line} for line in compiled[known:])


if __name__ == "__main__":
    major, minor = divmod(int(sys.argv[1]), 10)
    for line in compile_policy(OPENVLA_7B, tiles.Chip((major, minor), int(sys.argv[3]), int(sys.argv[2]))):
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
