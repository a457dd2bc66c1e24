"""The typed graphs: the network of the checkpoint, in one arithmetic type from the first product to the last."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from edge_vla.artifact import VISION, Artifact, dequantise_vision
from edge_vla.errors import ArtifactError
from edge_vla.export import Recipe, export
from edge_vla.export.vision_graph import write_typed_graph
from edge_vla.runtime.vision.precision import Arithmetic
from edge_vla.runtime.vision.towers import torch_vision
from tests.conftest import TINY as TINY_NAME
from tests.export.vision.graphs import SPECS, apart, exact, pixels_for, run, stored, types, weights_of

ELEMENTS = {
    Arithmetic.FP32: onnx.TensorProto.FLOAT,
    Arithmetic.FP16: onnx.TensorProto.FLOAT16,
    Arithmetic.BF16: onnx.TensorProto.BFLOAT16,
}


@pytest.fixture(params=SPECS)
def spec_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(("arithmetic", "bound"), [(Arithmetic.FP32, 3e-6), (Arithmetic.FP16, 2e-3)])
def test_a_graph_computes_what_the_network_computes(
    spec_name: str, arithmetic: Arithmetic, bound: float, tmp_path: Path
) -> None:
    spec = SPECS[spec_name]
    write_typed_graph(spec, stored(spec, tmp_path), tmp_path / "v.onnx", arithmetic)
    pixels = pixels_for(spec)
    wanted = exact(spec)(pixels).detach().numpy()
    got = run(tmp_path / "v.onnx", pixels)
    assert got.shape == wanted.shape
    assert apart(got, wanted) < bound
    assert arithmetic is Arithmetic.FP32 or apart(got, wanted) > 1e-5  # it did compute in 16 bits


@pytest.mark.parametrize("arithmetic", Arithmetic)
def test_one_type_from_end_to_end(spec_name: str, arithmetic: Arithmetic, tmp_path: Path) -> None:
    spec = SPECS[spec_name]
    write_typed_graph(spec, stored(spec, tmp_path), tmp_path / "v.onnx", arithmetic)
    found, model = types(tmp_path / "v.onnx"), onnx.load(tmp_path / "v.onnx", load_external_data=False)
    results = {node.output[0]: node.op_type for node in model.graph.node}
    other = {results[name] for name, kind in found.items() if kind != ELEMENTS[arithmetic]}
    assert not other, "only pixels and embeddings are of another type, and they are no inner values"
    assert "Conv" not in results.values(), "TensorRT 10.3 reads no bf16 convolution"
    assert model.opset_import[0].version == 20
    outside = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    assert outside == [onnx.TensorProto.FLOAT] * 2


def test_every_graph_reads_the_same_bytes(tmp_path: Path) -> None:
    spec = SPECS["two towers"]
    weights = stored(spec, tmp_path)
    for arithmetic in Arithmetic:
        write_typed_graph(spec, weights, tmp_path / f"{arithmetic.value}.onnx", arithmetic)
        model = onnx.load(tmp_path / f"{arithmetic.value}.onnx", load_external_data=False)
        outside = {tensor.name for tensor in model.graph.initializer if tensor.external_data}
        assert outside == set(weights_of(spec))
        assert (tmp_path / f"{arithmetic.value}.onnx").stat().st_size < 120_000
        again = tmp_path / "again.onnx"
        write_typed_graph(spec, weights, again, arithmetic)
        assert again.read_bytes() == (tmp_path / f"{arithmetic.value}.onnx").read_bytes()


def test_weights_that_are_not_the_networks_are_refused(tmp_path: Path) -> None:
    spec = SPECS["two towers"]
    weights = stored(spec, tmp_path)
    tensors = load_file(weights)
    first = tensors.pop("projector.fc1.bias")
    save_file(tensors, weights)
    with pytest.raises(ArtifactError, match=r"lacks projector\.fc1\.bias.*export again"):
        write_typed_graph(spec, weights, tmp_path / "v.onnx", Arithmetic.FP16)
    save_file({**tensors, "projector.fc1.bias": first, "projector.fc9.bias": first.clone()}, weights)
    with pytest.raises(ArtifactError, match=r"holds projector\.fc9\.bias"):
        write_typed_graph(spec, weights, tmp_path / "v.onnx", Arithmetic.FP16)
    assert not (tmp_path / "v.onnx").exists()


@pytest.mark.parametrize(("arithmetic", "bound"), [(Arithmetic.FP32, 3e-6), (Arithmetic.FP16, 3e-3)])
def test_an_artifact_of_8_bit_towers_has_16_bit_graphs_too(
    arithmetic: Arithmetic, bound: float, tmp_path: Path
) -> None:
    """int8 weights are dequantised in the graph; the oracle multiplies them out in torch."""
    directory = export(TINY_NAME, tmp_path / "artifact", Recipe(vision_bits=8)).directory
    artifact = Artifact(directory)
    spec = artifact.manifest.config.spec
    write_typed_graph(spec, directory / VISION, directory / "v.onnx", arithmetic)
    kinds = [node.op_type for node in onnx.load(directory / "v.onnx", load_external_data=False).graph.node]
    stored = load_file(directory / VISION)
    assert kinds.count("DequantizeLinear") == sum(one.dtype == torch.int8 for one in stored.values())
    weights = dequantise_vision(stored, torch.float32)
    wanted = torch_vision(spec, weights, torch.float32, torch.device("cpu"))(pixels_for(spec)).numpy()
    assert apart(run(directory / "v.onnx", pixels_for(spec)), wanted) < bound
