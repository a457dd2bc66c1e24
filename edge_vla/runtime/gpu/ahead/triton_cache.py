"""Triton's own cache of compiled kernels: what is taken out of it on one machine and put into it on another.

Triton names an entry by a hash of its own files, the native library and ptxas among them, so the same kernel has
another name on another machine. What does not depend on the machine is kept: the hash of the kernel's source with its
types and constants, and its options. The name is computed where the kernel is to run, by Triton's own functions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from edge_vla.errors import BackendError

BINARY: Final = "cubin"
OF_THE_MACHINE: Final = ("extern_libs", "hash")  # a path, and the name of the entry


@dataclass(frozen=True, slots=True)
class Kernel:
    """One compiled kernel. `source`: Triton's hash of it; `metadata`: Triton's, without what is the machine's."""

    name: str
    source: str
    metadata: Mapping[str, Any]
    binary: bytes

    @property
    def key(self) -> str:
        words = json.dumps([self.name, self.source, dict(self.metadata)], sort_keys=True)
        return hashlib.sha256(words.encode()).hexdigest()


class _Source:
    """As much of a kernel's source as its cache entry is named by."""

    def __init__(self, digest: str) -> None:
        self._digest = digest

    def hash(self) -> str:
        return self._digest


def take(source: Any, metadata: Any) -> Kernel:
    """A kernel that Triton has just compiled, or found, from its cache. BackendError for an entry that is not whole."""
    from triton.runtime.cache import get_cache_manager

    name = source.name[:150]  # as Triton cuts it
    group = get_cache_manager(metadata.hash).get_group(f"{name}.json") or {}
    paths = {Path(path).suffix[1:]: Path(path) for path in group.values()}
    if not {"json", BINARY} <= paths.keys():
        raise BackendError(f"Triton kept no binary of {name}: set TRITON_CACHE_DIR to a folder of your own")
    written = json.loads(paths["json"].read_text(encoding="utf-8"))
    kept = {key: value for key, value in written.items() if key not in OF_THE_MACHINE}
    kernel = Kernel(name, source.hash(), kept, paths[BINARY].read_bytes())
    if entry_name(kernel) != metadata.hash:
        raise BackendError(f"this Triton names {name} in a way that is not known: report the version of Triton")
    return kernel


def entry_name(kernel: Kernel) -> str:
    """What Triton on this machine calls the kernel's entry: SHA-256, in hexadecimal digits."""
    from triton._C.libtriton import get_cache_invalidating_env_vars
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.cache import get_cache_key

    target = kernel.metadata["target"]
    backend = make_backend(GPUTarget(target["backend"], target["arch"], target["warp_size"]))
    options = backend.parse_options({})
    known = {field.name for field in fields(options)} - {*OF_THE_MACHINE}
    given = {key: _hashable(value) for key, value in kernel.metadata.items() if key in known}
    options = type(options)(**given)
    key = get_cache_key(_Source(kernel.source), backend, options, get_cache_invalidating_env_vars())
    return hashlib.sha256(key.encode()).hexdigest()


def put(kernel: Kernel) -> None:
    """Into Triton's cache on this machine; an entry that is there stays."""
    from triton.runtime.cache import get_cache_manager

    name = entry_name(kernel)
    manager, record = get_cache_manager(name), f"{kernel.name}.json"
    if manager.get_group(record):
        return
    metadata = json.dumps({**kernel.metadata, "hash": name})
    paths = {
        record: manager.put(metadata, record, binary=False),
        f"{kernel.name}.{BINARY}": manager.put(kernel.binary, f"{kernel.name}.{BINARY}"),
    }
    manager.put_group(record, paths)


def _hashable(value: Any) -> Any:
    """Options hold tuples, which JSON makes lists of."""
    return tuple(value) if isinstance(value, list) else value
