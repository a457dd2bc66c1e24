"""Weights from file to device: every byte through the bounded buffer, nothing else on the way, damage refused."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import edge_vla
from edge_vla.artifact import HEAD, VISION, Artifact, layer_file
from edge_vla.errors import ArtifactError
from edge_vla.quant import PackedWeight, Scheme
from edge_vla.runtime.gpu.config import GpuConfig, kernels
from edge_vla.runtime.gpu.kernels.weights import restore_int4
from edge_vla.runtime.gpu.load import SPARE, from_artifact
from edge_vla.runtime.gpu.products import product, repack
from edge_vla.runtime.gpu.staging import BUFFER_BYTES, StagedFile, Staging
from edge_vla.runtime.parts import FUSED, fuse
from edge_vla.spec import OPENVLA_7B
from tests.runtime.gpu.engines import CPU


@pytest.fixture
def file(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "half": torch.randn(33, 7, generator=generator).half(),
        "bf16": torch.randn(5, generator=generator).bfloat16(),
        "codes": torch.randint(-128, 127, (9, 11), generator=generator).to(torch.int8),
        "bytes": torch.randint(0, 255, (300,), generator=generator).to(torch.uint8),
        "number": torch.tensor(3.5),
        "none": torch.zeros(0, 4),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors", tensors


@pytest.mark.parametrize("piece", [1, 7, 64, BUFFER_BYTES])
def test_the_same_bits_through_any_buffer(piece: int, file: tuple[Path, dict[str, Tensor]]) -> None:
    path, tensors = file
    staging = Staging(CPU, piece)
    read = dict(StagedFile(path, staging))
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert staging.moved == sum(tensor.nbytes for tensor in tensors.values())
    assert staging.bytes == 2 * piece


def test_the_host_holds_a_buffer_and_no_model(tiny_artifacts: Mapping[int, Path]) -> None:
    """Every byte of every file that is not a table goes through it, once."""
    artifact, staging = Artifact(tiny_artifacts[4]), Staging(CPU)
    from_artifact(artifact, torch.bfloat16, CPU, "reference", staging=staging)
    names = [HEAD, VISION, *map(layer_file, range(len(artifact.manifest.layers)))]
    total = sum(tensor.nbytes for name in names for tensor in load_file(artifact.directory / name).values())
    assert staging.moved == total
    assert staging.bytes <= 32 << 20
    assert total <= artifact.device_bytes <= total + 100_000, "files are tensors and a header"


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all tensors that Python holds: what an allocator would count, but for scratch inside of calls."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held: dict[int, tuple[int, int]] = {}  # address -> bytes, tensors on it
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in [out] if isinstance(out, Tensor) else []:
            storage = tensor.untyped_storage()
            address, size = storage.data_ptr(), storage.nbytes()
            before = self.held.get(address, (0, 0))[1]
            self.held[address] = (size, before + 1)
            self.now += size if before == 0 else 0
            weakref.finalize(tensor, self._gone, address)
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, address: int) -> None:
        size, count = self.held.pop(address)
        if count > 1:
            self.held[address] = (size, count - 1)
        else:
            self.now -= size


def zeros(scheme: Scheme, n: int, k: int) -> PackedWeight:
    shape = (n, k)
    if scheme is Scheme.INT4:
        codes, scales = torch.zeros(n, k // 2, dtype=torch.uint8), torch.ones(n, k // 128).half()
        return PackedWeight(scheme, shape, 128, codes, scales)
    if scheme is Scheme.INT8:
        return PackedWeight(scheme, shape, None, torch.zeros(shape, dtype=torch.int8), torch.ones(n).half())
    return PackedWeight(scheme, shape, None, torch.zeros(shape, dtype=torch.bfloat16), None)


@pytest.mark.parametrize("scheme", [Scheme.INT4, Scheme.INT8, Scheme.BF16])
def test_the_largest_product_of_a_7b_policy_takes_little_beside_itself(scheme: Scheme) -> None:
    """Load peak: weights and at most 300 MB. Layers load one after another, so this is all that comes on top."""
    shapes = OPENVLA_7B.decoder.linears()
    with Alive() as alive:
        parts = [zeros(scheme, *shapes[name]) for name in FUSED["gate_up"]]
        whole = fuse(parts)
        assert whole is not None
        made = product([whole], GpuConfig(kernels("reference"), torch.bfloat16, "16"))
    assert alive.peak > made.bytes >= 0.9 * whole.bytes
    assert alive.peak - made.bytes <= SPARE


def test_repacking_in_slices_is_repacking() -> None:
    n, k = 4100, 4096
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, generator=generator)
    scales = torch.rand(n, k // 128, generator=generator).half() + 1
    packed = PackedWeight(Scheme.INT4, (n, k), 128, codes, scales)
    whole = repack(packed)
    back = restore_int4(whole)
    assert torch.equal(back.codes, codes)
    assert back.scales is not None
    assert torch.equal(back.scales, scales)


@pytest.mark.parametrize("keep", [0, 4, 20, 200, -1])
def test_a_file_that_ends_too_early(keep: int, file: tuple[Path, dict[str, Tensor]]) -> None:
    path, _ = file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"not a valid safetensors file.*export the artifact again"):
        StagedFile(path, Staging(CPU))


def test_a_file_that_shrinks_after_it_was_opened(file: tuple[Path, dict[str, Tensor]]) -> None:
    path, _ = file
    opened = StagedFile(path, Staging(CPU))
    path.write_bytes(path.read_bytes()[: min(entry.begin for entry in opened.entries.values()) + 2])
    with pytest.raises(ArtifactError, match="is truncated"):
        dict(opened)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
        {"a": [1]},
        [],
    ],
)
def test_headers_that_lie(header: Any, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "a").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ArtifactError, match="not a valid safetensors file"):
        StagedFile(tmp_path / "a", Staging(CPU))


@pytest.mark.parametrize("name", [HEAD, VISION, layer_file(1)])
def test_a_tensor_that_is_missing(name: str, tiny_artifacts: Mapping[int, Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_artifacts[4], tmp_path / "a")
    tensors = load_file(tmp_path / "a" / name)
    gone = sorted(tensors)[0]
    del tensors[gone]
    save_file(tensors, tmp_path / "a" / name)
    artifact = object.__new__(Artifact)  # opening would notice the size
    artifact.directory, artifact.manifest = tmp_path / "a", Artifact(tiny_artifacts[4]).manifest
    with pytest.raises(ArtifactError, match="export again"):
        from_artifact(artifact, torch.bfloat16, CPU, "reference")


def test_scales_that_are_no_numbers(tiny_artifacts: Mapping[int, Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_artifacts[4], tmp_path / "a")
    path = tmp_path / "a" / layer_file(0)
    tensors = load_file(path)
    tensors["mlp.up_proj.scales"][0] = torch.nan
    save_file(tensors, path)
    artifact = edge_vla.artifact.Artifact(tiny_artifacts[4])
    artifact.directory = tmp_path / "a"
    with pytest.raises(ArtifactError, match="scales must be finite and positive"):
        from_artifact(artifact, torch.bfloat16, CPU, "reference")
