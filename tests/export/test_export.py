"""Export: what an artifact holds, that it is reproducible, and that its graph computes what torch computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

import edge_vla
from edge_vla.artifact import GRAPH, VISION, Artifact, layer_file
from edge_vla.checkpoint import open_checkpoint
from edge_vla.checkpoint.keys import layer_prefix
from edge_vla.export import Recipe, export
from edge_vla.quant import Scheme, dequantise, quantise
from tests.conftest import TINY


def test_every_linear_is_stored_as_the_manifest_says(tiny_artifacts: Mapping[int, Path]) -> None:
    source = open_checkpoint(TINY).tensors
    for bits, scheme in ((4, Scheme.INT4), (8, Scheme.INT8), (16, Scheme.BF16)):
        artifact = Artifact(tiny_artifacts[bits])
        for index, (linears, _) in enumerate(artifact.layers()):
            for name, packed in linears.items():
                weight = source.load(f"{layer_prefix(index)}{name}.weight")
                described = artifact.manifest.layers[index][name]
                assert packed.scheme is described.scheme is scheme
                assert torch.equal(dequantise(packed), dequantise(quantise(weight, scheme, described.group)))
                assert (described.error > 0) == (scheme is not Scheme.BF16)


def test_vision_is_stored_once_and_shared(tiny_artifacts: Mapping[int, Path]) -> None:
    model = onnx.load(tiny_artifacts[4] / GRAPH, load_external_data=False)
    stored = load_file(tiny_artifacts[4] / VISION)
    assert all(tensor.dtype == torch.bfloat16 for tensor in stored.values())
    external = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in stored}
    assert set(external) == set(stored), "every stored weight is in the graph"
    for name, tensor in external.items():
        places = {entry.key: entry.value for entry in tensor.external_data}
        assert places["location"] == VISION
        raw = (tiny_artifacts[4] / VISION).read_bytes()[int(places["offset"]) :][: int(places["length"])]
        assert raw == stored[name].view(torch.uint8).numpy().tobytes()
    casts = [node for node in model.graph.node if node.op_type == "Cast" and node.input[0] in stored]
    assert sorted(node.input[0] for node in casts) == sorted(stored), "one Cast per weight"
    onnx.checker.check_model(str(tiny_artifacts[4] / GRAPH))


def test_the_graph_takes_batches(tiny_artifacts: Mapping[int, Path]) -> None:
    policy = edge_vla.load(tiny_artifacts[4], "cpu", "onnx")
    pixels = torch.randn(3, 6, 28, 28)
    together = policy.network.vision(pixels)
    for row in range(3):
        assert np.allclose(together[row], policy.network.vision(pixels[row : row + 1])[0], atol=1e-5)


def test_the_check_is_in_the_manifest(tiny_artifacts: Mapping[int, Path]) -> None:
    check = Artifact(tiny_artifacts[4]).manifest.vision_check
    assert 0 < check.max_difference < 1e-4 * check.max_magnitude


def test_the_golden_frame_replays(tiny_artifacts: Mapping[int, Path]) -> None:
    for path in tiny_artifacts.values():
        (frame,) = Artifact(path).manifest.golden
        policy = edge_vla.load(path, "cpu", check=False)
        from edge_vla.data import open_image

        assert policy.act(open_image(path / frame.image), frame.instruction, frame.unnorm_key).tokens == frame.tokens


@pytest.mark.slow
def test_same_bits_in_another_directory_locale_and_hash_seed(
    tiny_artifacts: Mapping[int, Path], tmp_path: Path
) -> None:
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from edge_vla.export import Recipe, export\n"
        "print(export('random:openvla-tiny', Path(sys.argv[1]), Recipe(bits=4)).identity)"
    )
    env = {**os.environ, "TZ": "Pacific/Auckland", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "other name")],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip().splitlines()[-1] == Artifact(tiny_artifacts[4]).identity


def test_nothing_hashed_names_this_machine(tiny_artifacts: Mapping[int, Path]) -> None:
    path = tiny_artifacts[4]
    here = [str(Path(edge_vla.__file__).parent).encode(), str(path.parent).encode()]
    for name in [*Artifact(path).manifest.files, "manifest.json"]:
        content = (path / name).read_bytes()
        assert not [word for word in here if word in content], name


def test_an_adapter_is_merged_on_the_way(golden_checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    key = "base_model.model.language_model.model.layers.1.mlp.up_proj"
    torch.manual_seed(0)
    save_file({f"{key}.lora_A.weight": torch.randn(2, 128), f"{key}.lora_B.weight": torch.randn(352, 2)},
              adapter / "adapter_model.safetensors")  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    (adapter / "dataset_statistics.json").write_text(
        json.dumps({"mine": {"action": {"q01": [0.0] * 7, "q99": [1.0] * 7}}})
    )
    artifact = export(golden_checkpoint, tmp_path / "out", Recipe(bits=16), [adapter])
    merged = open_checkpoint(golden_checkpoint, [adapter]).tensors
    name = layer_prefix(1) + "mlp.up_proj.weight"
    stored = artifact.tensors(layer_file(1))["mlp.up_proj.weight"]
    assert torch.equal(stored, merged.load(name))
    assert not torch.equal(stored, open_checkpoint(golden_checkpoint).tensors.load(name))
    assert sorted(artifact.manifest.config.statistics) == ["mine"]
    assert artifact.manifest.source.adapters == 1
    assert [sorted(files) for files in artifact.manifest.source.files] == [
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ["adapter_config.json", "adapter_model.safetensors"],
    ]


def test_the_recipe_file_is_the_default() -> None:
    recipes = Path(__file__).parents[2] / "export"
    assert Recipe.read(recipes / "int4.toml") == Recipe()
    assert Recipe.read(recipes / "int8.toml") == Recipe(bits=8)
    assert Recipe.read(recipes / "w8a8.toml") == Recipe(bits=8, method="smoothquant")


@pytest.mark.parametrize("text", ["bits = 5", "bit = 4", "bits = '4'", "bits = 8\ngroup = 64", "bits ="])
def test_a_wrong_recipe_is_refused(text: str, tmp_path: Path) -> None:
    from edge_vla.errors import UsageError

    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(UsageError):
        Recipe.read(path)
