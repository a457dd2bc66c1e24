"""Towers and projector in int8: a smaller file (half of it at true widths), the same graph, answers that stay near."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file

import edge_vla
from edge_vla.artifact import GRAPH, VISION, VISION_SCALES, Artifact
from edge_vla.checkpoint import key_table, open_checkpoint
from edge_vla.checkpoint.keys import vision_keys
from edge_vla.errors import ArtifactError
from edge_vla.export import Recipe, export
from edge_vla.inspection import describe
from edge_vla.quant import Scheme, dequantise, quantise
from tests.bad_input.damage import edit_tensors, link
from tests.conftest import TINY


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(TINY, tmp_path_factory.mktemp("vision") / "out", Recipe(vision_bits=8)).directory


def test_every_matrix_is_int8_and_read_as_its_nearest_codes(artifact: Path) -> None:
    checkpoint, opened = open_checkpoint(TINY), Artifact(artifact)
    assert opened.manifest.version == 2
    assert opened.manifest.recipe.vision_bits == 8
    spec = checkpoint.config.spec
    stored, table = load_file(artifact / VISION), key_table(spec)
    read = opened.tensors(VISION, {name: table[name].shape for name in vision_keys(spec)})
    for name in vision_keys(spec):
        weight = checkpoint.tensors.load(name)
        if weight.ndim == 2:
            assert stored[name].dtype == torch.int8
            assert torch.equal(read[name], dequantise(quantise(weight, Scheme.INT8, None), torch.bfloat16))
        else:
            assert torch.equal(read[name], weight)
    assert {name.removesuffix(VISION_SCALES) for name in stored} == set(read)


def test_the_graph_reads_the_same_bytes(artifact: Path) -> None:
    model = onnx.load(artifact / GRAPH, load_external_data=False)
    onnx.checker.check_model(str(artifact / GRAPH))
    stored = load_file(artifact / VISION)
    external = {tensor.name for tensor in model.graph.initializer if tensor.external_data}
    assert external == set(stored)
    widening = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert len(widening) == sum(tensor.dtype == torch.int8 for tensor in stored.values())


def test_torch_and_onnx_see_the_same(artifact: Path) -> None:
    pixels = torch.randn(2, 6, 28, 28, generator=torch.Generator().manual_seed(0))
    seen = [edge_vla.load(artifact, "cpu", vision, dtype="fp32").network.vision(pixels) for vision in ("torch", "onnx")]
    # torch's weights are rounded to bf16 once more; the graph's are not.
    assert (seen[0] - seen[1]).abs().max() < 2e-2 * seen[0].abs().max()


def test_inspection_tells_8_bits_from_16(artifact: Path) -> None:
    stored = load_file(artifact / VISION)
    rows = {row.format: row for row in describe(str(artifact)).parts if row.part == "towers, projector"}
    eight = [name for name, tensor in stored.items() if tensor.dtype == torch.int8]
    assert rows["int8"].tensors == len(eight)
    assert rows["int8"].tensors + rows["16 bits"].tensors == len(stored) - len(eight)
    assert sum(row.bytes for row in rows.values()) == sum(tensor.nbytes for tensor in stored.values())


def test_smaller_and_near(artifact: Path, tiny_artifacts: Mapping[int, Path]) -> None:
    wide = tiny_artifacts[4]
    assert (artifact / VISION).stat().st_size < 0.8 * (wide / VISION).stat().st_size
    pixels = torch.randn(2, 6, 28, 28, generator=torch.Generator().manual_seed(0))
    near, truth = (edge_vla.load(path, "cpu", dtype="fp32").network.vision(pixels) for path in (artifact, wide))
    assert (near - truth).norm() < 0.03 * truth.norm()


def test_scales_that_are_missing_or_wrong_are_refused(artifact: Path, tmp_path: Path) -> None:
    name = "projector.fc1.weight" + VISION_SCALES
    for number, change in enumerate((lambda t: t.pop(name), lambda t: t[name].fill_(-1))):
        spoiled = link(artifact, tmp_path / str(number))
        size = (spoiled / VISION).stat().st_size
        edit_tensors(spoiled / VISION, change)
        if (spoiled / VISION).stat().st_size != size:
            continue  # refused by size already
        with pytest.raises(ArtifactError, match="fc1"):
            Artifact(spoiled).tensors(VISION)
