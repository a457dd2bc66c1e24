"""Kernels compiled for a named chip without a device, by their own launchers, and read back from their machine code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.counted.machine_code import MachineCode, read
from edge_vla.runtime.gpu.ahead.driver import Launcher, dry_driver
from edge_vla.runtime.gpu.kernels.tiles import Chip


@dataclass(slots=True)
class Compiled:
    """A kernel as the compiler made it, and the programs that a launch asked for."""

    kernel: str
    shared_bytes: int
    code: MachineCode
    warps: int = 0
    constants: dict[str, Any] | None = None
    grid: tuple[int, int, int] = (0, 0, 0)


@contextmanager
def compiling_for(chip: Chip) -> Iterator[list[Compiled]]:
    """Within, launching a kernel compiles it for `chip`; what was launched is added to the list, each time."""
    import triton

    launched = list[Compiled]()
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

    def loaded(name: str, binary: bytes, shared: int) -> Compiled:
        return Compiled(name, shared, read(tools, binary))

    def launcher(source: Any, metadata: Any) -> Launcher:
        names = source.fn.arg_names
        places = {at[0] if isinstance(at, tuple) else at: value for at, value in source.constants.items()}
        constants = {at if isinstance(at, str) else names[at]: value for at, value in places.items()}

        def launch(x: int, y: int, z: int, _: object, kernel: Compiled, *__: object) -> None:
            launched.append(replace(kernel, warps=metadata.num_warps, constants=constants, grid=(x, y, z)))

        return launch

    with dry_driver(chip, launcher, loaded):
        yield launched
