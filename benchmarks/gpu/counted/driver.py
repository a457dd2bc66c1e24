"""A Triton driver without a device: kernels' own launchers compile for a named chip and stop."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.gpu.counted.machine_code import MachineCode, read
from edge_vla.runtime.gpu.kernels import nibbles, tiles


@dataclass(slots=True)
class Compiled:
    """A kernel as the compiler made it, and the programs that its last launch asked for."""

    kernel: str
    shared_bytes: int
    code: MachineCode
    warps: int = 0
    constants: dict[str, Any] | None = None
    grid: tuple[int, int, int] = (0, 0, 0)


@contextmanager
def compiling_for(chip: tiles.Chip) -> Iterator[list[Compiled]]:
    """Within, launching a kernel on CPU tensors compiles it for `chip`; what the compiler made is added to the list."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase
    from triton.runtime.driver import driver

    compiled = list[Compiled]()
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

    class Utils:
        def get_device_properties(self, _: int) -> dict[str, int]:
            return {"max_shared_mem": chip.shared_bytes}

        def load_binary(self, name: str, binary: bytes, shared: int, _: int) -> tuple[None, Compiled, int, int, int]:
            compiled.append(Compiled(name, shared, read(tools, binary)))
            return None, compiled[-1], 0, 0, 1024

    class Launcher:
        """What Triton makes of a compiled kernel, and calls with its grid."""

        def __init__(self, source: Any, metadata: Any) -> None:
            names, self.warps = source.fn.arg_names, metadata.num_warps
            places = {at[0] if isinstance(at, tuple) else at: value for at, value in source.constants.items()}
            self.constants = {at if isinstance(at, str) else names[at]: value for at, value in places.items()}

        def __call__(self, x: int, y: int, z: int, _: object, kernel: Compiled, *__: object) -> None:
            kernel.warps, kernel.constants, kernel.grid = self.warps, self.constants, (x, y, z)

    class Dry(DriverBase):  # type: ignore[misc]
        utils = Utils()
        launcher_cls = Launcher
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
    with _as_on(chip):
        try:
            yield compiled
        finally:
            tiles.INTERPRETER = before  # type: ignore[misc]


@contextmanager
def _as_on(chip: tiles.Chip) -> Iterator[None]:
    """Within, kernels on CPU tensors take the branches of the chip: assembly, overlapped and cooperative launches."""
    early = {"EARLY": True, "launch_pdl": True} if chip.capability >= (9, 0) else {"EARLY": False}
    there = {
        "assembly": lambda dtype, _: nibbles.assembly(dtype, torch.device("cuda")),
        "overlap": lambda _: early,
        "cooperative": lambda _: True,
    }
    with ExitStack() as stack:
        for name, module in [*sys.modules.items()]:
            if name.startswith("edge_vla.runtime.gpu.kernels.") and module is not nibbles:
                for one in there.keys() & vars(module).keys():
                    stack.enter_context(patch.object(module, one, there[one]))
        yield
