"""A policy end to end: artifact against reference, statelessness, backends, fine-tuned checkpoints of every kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import edge_vla
from edge_vla.data import synthetic_image
from edge_vla.errors import UsageError
from edge_vla.export import export
from tests.conftest import TINY

TEXT = "put the red block on the plate"


def image(seed: int) -> Image.Image:
    return synthetic_image(seed, 28)


def test_16_bits_give_the_references_tokens(tiny_artifacts: Mapping[int, Path]) -> None:
    artifact, reference = edge_vla.load(tiny_artifacts[16], "cpu"), edge_vla.load(TINY, "cpu")
    for seed in range(12):
        ours, theirs = artifact.act(image(seed), TEXT), reference.act(image(seed), TEXT)
        assert ours.tokens == theirs.tokens
        assert np.array_equal(ours.values, theirs.values)


def test_onnx_sees_what_torch_sees(tiny_artifacts: Mapping[int, Path]) -> None:
    pytest.importorskip("onnxruntime")
    pixels = torch.randn(1, 6, 28, 28)
    by = {
        name: edge_vla.load(tiny_artifacts[4], "cpu", name, dtype="fp32", check=False).network.vision(pixels)
        for name in ("torch", "onnx")
    }
    assert (by["torch"] - by["onnx"]).abs().max() < 1e-5 * by["onnx"].abs().max()


def test_reference_kernels_and_packed_kernels_agree(tiny_artifacts: Mapping[int, Path]) -> None:
    for bits in (4, 8):
        fast, slow = (
            edge_vla.load(tiny_artifacts[bits], "cpu"),
            edge_vla.load(tiny_artifacts[bits], "cpu", kernel="reference"),
        )
        assert set(fast.network.kernels.values()) != set(slow.network.kernels.values())
        hidden = [policy.forced(image(0), TEXT, [320, 330, 340]).float() for policy in (fast, slow)]
        assert (hidden[0] - hidden[1]).abs().max() < 0.05 * hidden[1].abs().max()


def test_act_keeps_no_state(tiny_artifacts: Mapping[int, Path]) -> None:
    policy = edge_vla.load(tiny_artifacts[4], "cpu")
    alone = policy.act(image(1), TEXT)
    policy.act(image(2), "open the very much longer drawer of the cabinet on the left")
    policy.act(image(3), TEXT)
    again = policy.act(image(1), TEXT)
    assert again.tokens == alone.tokens
    assert again.margins == alone.margins


def test_an_action_can_be_edited(tiny_artifacts: Mapping[int, Path]) -> None:
    action = edge_vla.load(tiny_artifacts[4], "cpu").act(image(0), TEXT)
    action.values[-1] = 1.0
    assert action.values.dtype == np.float64
    assert action.values.shape == (7,)
    assert {"preprocess", "vision", "prefill", "decode", "total"} <= set(action.timing_ms)


def test_forced_agrees_with_free(tiny_artifacts: Mapping[int, Path]) -> None:
    policy = edge_vla.load(tiny_artifacts[16], "cpu", dtype="fp32", check=False)
    action = policy.act(image(5), TEXT)
    logits = policy.network.head.logits(policy.forced(image(5), TEXT, action.tokens))
    assert tuple((logits.argmax(-1) + policy.network.action.first).tolist()) == action.tokens


def test_the_prompt_is_read(tiny_artifacts: Mapping[int, Path]) -> None:
    policy = edge_vla.load(tiny_artifacts[16], "cpu")
    assert policy.act(image(0), "open the drawer").tokens != policy.act(image(0), "close the door").tokens


def test_full_head_stops_early_as_upstream_does(golden_checkpoint: Path, tmp_path: Path) -> None:
    """With end-of-sequence as the best first token, upstream's last seven ids reach back into the prompt."""
    first = edge_vla.load(golden_checkpoint, "cpu", dtype="fp32").forced(image(0), "close the drawer", [31900])[0]

    def favour_end_of_sequence(head: torch.Tensor) -> torch.Tensor:
        changed = head.clone()
        changed[2] = first.to(head.dtype)
        return changed

    directory = edit(golden_checkpoint, tmp_path, {"language_model.lm_head.weight": favour_end_of_sequence})
    policy = edge_vla.load(directory, "cpu", dtype="fp32", head="full")
    action = policy.act(image(0), "close the drawer", "bridge_orig")
    assert action.tokens[-1] == 2
    assert action.tokens[:-1] == policy.prompter("close the drawer")[-6:]
    assert all(action.clipped)
    constrained = edge_vla.load(directory, "cpu", dtype="fp32").act(image(0), "close the drawer", "bridge_orig")
    assert not any(constrained.clipped)


def test_artifacts_have_no_full_head(tiny_artifacts: Mapping[int, Path]) -> None:
    with pytest.raises(UsageError, match="no full head"):
        edge_vla.load(tiny_artifacts[4], "cpu", head="full")


FINE_TUNED: Mapping[str, tuple[str, ...]] = {
    "full": ("",),
    "last layer only": ("language_model.lm_head", "language_model.model.layers.2.", "language_model.model.norm"),
    "frozen vision": ("projector.", "language_model."),
    "sandwich": ("vision_backbone.", "language_model.model.embed_tokens", "language_model.model.layers.2."),
}


@pytest.mark.parametrize("kind", FINE_TUNED)
def test_every_kind_of_fine_tuned_checkpoint_opens_and_runs(kind: str, golden_checkpoint: Path, tmp_path: Path) -> None:
    def tuned(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor * 1.25 if name.startswith(FINE_TUNED[kind]) else tensor

    directory = rewrite(golden_checkpoint, tmp_path, tuned)
    base, changed = edge_vla.load(golden_checkpoint, "cpu"), edge_vla.load(directory, "cpu")
    for name, weight in loaded(base).items():
        expected = weight * 1.25 if name.startswith(FINE_TUNED[kind]) else weight
        assert torch.equal(loaded(changed)[name], expected), name
    before, after = (policy.act(image(0), "close the drawer", "bridge_orig") for policy in (base, changed))
    assert after.margins != before.margins
    assert np.isfinite(after.values).all()


def loaded(policy: edge_vla.Policy) -> dict[str, torch.Tensor]:
    """Every weight that a reference policy runs on, by checkpoint key."""
    network = policy.network
    assert isinstance(network.vision, torch.nn.Module)
    assert isinstance(network.decoder, torch.nn.Module)
    decoder = {f"language_model.model.{name}": weight for name, weight in network.decoder.state_dict().items()}
    ends = {"language_model.model.embed_tokens.weight": network.embeddings.table}
    assert network.head.full is not None
    return {**network.vision.state_dict(), **decoder, **ends, "language_model.lm_head.weight": network.head.full}


def test_a_single_tower_with_letterbox_runs_and_exports(golden_checkpoint: Path, tmp_path: Path) -> None:
    """The v0.1 shape: SigLIP alone, two projector layers, Vicuna's prompt, down to its int4 artifact and graph."""
    pytest.importorskip("onnxscript")
    directory = tmp_path / "v01"
    directory.mkdir()
    for name in ("dataset_statistics.json", "tokenizer.json"):
        shutil.copy(golden_checkpoint / name, directory)
    config = json.loads((golden_checkpoint / "config.json").read_text())
    siglip = config["timm_model_kwargs"][1]
    config |= {
        "vision_backbone_id": "siglip-vit-so400m",
        "llm_backbone_id": "vicuna-v15-7b",
        "image_resize_strategy": "letterbox",
        "use_fused_vision_backbone": False,
        "timm_model_ids": config["timm_model_ids"][1:],
        "timm_model_kwargs": [siglip],
        "timm_override_act_layers": [None],
        "image_sizes": [224],
    }
    (directory / "config.json").write_text(json.dumps(config))
    tensors = {}
    for shard in sorted(golden_checkpoint.glob("*.safetensors")):
        for name, tensor in load_file(shard).items():
            if "fused_featurizer" in name:
                tensors[name.replace("fused_featurizer", "featurizer")] = tensor
            elif name.startswith("language_model."):
                tensors[name] = tensor
    text, width = config["text_config"]["hidden_size"], siglip["embed_dim"]
    for name, (outer, inner) in {"fc1": (text, width), "fc2": (text, text)}.items():
        tensors[f"projector.{name}.weight"] = torch.randn(outer, inner).bfloat16()
        tensors[f"projector.{name}.bias"] = torch.zeros(outer, dtype=torch.bfloat16)
    save_file(tensors, directory / "model.safetensors")
    policy = edge_vla.load(directory, "cpu")
    assert policy.config.image.resize == "letterbox"
    assert policy.prompter.text("go").startswith("A chat between")
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    assert policy.act(wide, "put spoon on towel", "bridge_orig").values.shape == (7,)
    artifact = export(directory, tmp_path / "v01-int4").directory
    assert set(edge_vla.load(artifact, "cpu").network.kernels) >= {"int4"}
    # Unchecked: in float32 a golden frame made in bf16 may well be a near-tie.
    by_torch, by_onnx = (
        edge_vla.load(artifact, "cpu", vision, dtype="fp32", check=False) for vision in ("torch", "onnx")
    )
    actions = [policy.act(wide, "put spoon on towel", "bridge_orig") for policy in (by_torch, by_onnx)]
    assert actions[0].tokens == actions[1].tokens
    assert np.allclose(actions[0].margins, actions[1].margins, atol=1e-3)


def test_a_float16_checkpoint_keeps_its_type(golden_checkpoint: Path, tmp_path: Path) -> None:
    """Towers in float16, the rest in bfloat16: stored as they are, in the graph too."""
    pytest.importorskip("onnxscript")

    def narrowed(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.half() if name.startswith("vision_backbone.") else tensor

    directory = rewrite(golden_checkpoint, tmp_path, narrowed)
    artifact = export(directory, tmp_path / "out")
    kinds = {tensor.dtype for name, tensor in artifact.tensors("vision.safetensors").items() if "featurizer" in name}
    assert kinds == {torch.float16}
    by_torch, by_onnx = (
        edge_vla.load(artifact.directory, "cpu", vision, dtype="fp32", check=False) for vision in ("torch", "onnx")
    )
    pixels = torch.randn(1, 6, 224, 224)
    difference = (by_torch.network.vision(pixels) - by_onnx.network.vision(pixels)).abs().max()
    assert difference < 1e-4 * by_torch.network.vision(pixels).abs().max()


def rewrite(source: Path, target: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """A copy of a checkpoint with every tensor passed through `change`."""
    directory = target / "changed"
    shutil.copytree(source, directory)
    for shard in directory.glob("*.safetensors"):
        tensors = {name: change(name, tensor).contiguous() for name, tensor in load_file(shard).items()}
        save_file(tensors, shard)
    return directory


def edit(source: Path, target: Path, changes: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]) -> Path:
    return rewrite(source, target, lambda name, tensor: changes[name](tensor) if name in changes else tensor)
