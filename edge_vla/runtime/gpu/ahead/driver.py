"""A Triton driver without a device: a launch compiles its kernel for a named chip and runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from edge_vla.runtime.gpu.kernels.tiles import Chip, ahead_of

Launcher = Callable[..., None]  # is called at a launch with its grid (x, y, z), a stream, what `loaded` made, and more
OnKernel = Callable[[Any, Any], Launcher | None]  # Triton's source and metadata of a kernel that was compiled
Loaded = Callable[[str, bytes, int], object]  # its name, binary and bytes of shared memory


@contextmanager
def dry_driver(chip: Chip, on_kernel: OnKernel, loaded: Loaded = lambda *_: None) -> Iterator[None]:
    """Within, launching a kernel compiles it for `chip`; `on_kernel`, then `loaded` are called with each, once."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase
    from triton.runtime.driver import driver

    number = chip.capability[0] * 10 + chip.capability[1]

    class Utils:
        def get_device_properties(self, _: int) -> dict[str, int]:
            return {"max_shared_mem": chip.shared_bytes}

        def load_binary(self, name: str, binary: bytes, shared: int, _: int) -> tuple[object, object, int, int, int]:
            return object(), loaded(name, binary, shared), 0, 0, 1024  # module, function, registers, spills, threads

    class Dry(DriverBase):  # type: ignore[misc]
        utils = Utils()
        launcher_cls = staticmethod(lambda source, metadata: on_kernel(source, metadata) or (lambda *_: None))
        is_active = staticmethod(lambda: True)

        def map_python_to_cpp_type(self, kind: str) -> str:
            return kind

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", number, 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("meta")

        def get_benchmarker(self) -> Any:
            raise NotImplementedError

        def get_current_device(self) -> int:  # Triton keeps what it compiled by device
            return number

        def get_current_stream(self, _: int) -> int:
            return 0

    before = driver._active  # `active` would look for a device
    driver.set_active(Dry())
    try:
        with ahead_of(chip):
            yield
    finally:
        driver.set_active(before)
