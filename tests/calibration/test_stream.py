"""The decoder run a layer at a time is the decoder: rows, gradients and Hessians."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from edge_vla import spec as spec_of
from edge_vla.calibration import stream
from edge_vla.calibration.action_gradients import action_logits, backpropagate_, probe_gradients
from edge_vla.calibration.row_weights import row_weights
from edge_vla.calibration.sequences import Rows, action_tokens, embed
from edge_vla.calibration.stream import STAGES, attend, causal, chunks, forward_, load_layer, quantise_layer
from edge_vla.checkpoint import Checkpoint, open_checkpoint
from edge_vla.data import Frame
from edge_vla.errors import FrameError
from edge_vla.model.decoder import DecoderLayer
from edge_vla.runtime import load
from tests.conftest import TINY
from tests.export.crash import tiny_frames


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(TINY)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[Frame]:
    return tiny_frames(tmp_path_factory.mktemp("calibration") / "frames")


def layers(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> list[DecoderLayer]:
    spec = checkpoint.config.spec.decoder
    return [load_layer(checkpoint.tensors, spec, index, dtype) for index in range(spec.layers)]


def copy(rows: Sequence[Rows]) -> list[Rows]:
    return [Rows(same.hidden.clone(), same.prompt, same.dims) for same in rows]


def nothing(names: Sequence[str], hessian: Tensor) -> Mapping[str, Tensor]:
    return {}


def test_streamed_logits_are_the_policys(checkpoint: Checkpoint, frames: list[Frame]) -> None:
    policy = load(TINY, "cpu", dtype="fp32")
    rows = embed(checkpoint, frames, torch.float32)
    for layer in layers(checkpoint):
        forward_(layer, rows)
    found = [logits for same in rows for logits in action_logits(checkpoint, same.hidden[:, -same.dims :])]
    lengths = {same.prompt for same in rows}
    assert len(lengths) == 2, "two instructions of different length"
    order = sorted(frames, key=lambda frame: len(policy.prompter(frame.instruction)))  # stable, as `embed` sorts
    for frame, logits in zip(order, found, strict=True):
        hidden = policy.forced(frame.open(), frame.instruction, action_tokens(frame, policy.config))
        assert torch.allclose(logits, policy.network.head.logits(hidden), atol=1e-4)


def test_a_layer_that_is_not_changed_moves_rows_as_it_does(checkpoint: Checkpoint, frames: list[Frame]) -> None:
    layer, rows = layers(checkpoint)[0], embed(checkpoint, frames, torch.float32)
    plain, staged = copy(rows), copy(rows)
    forward_(layer, plain)
    uniform = [[torch.ones(1, same.length) for same in rows] for _ in STAGES]
    quantise_layer(layer, staged, uniform, nothing)
    for one, other in zip(plain, staged, strict=True):
        assert torch.equal(one.hidden, other.hidden)


def test_hessians_are_the_weighted_moments_of_what_each_linear_reads(
    checkpoint: Checkpoint, frames: list[Frame]
) -> None:
    layer, rows = layers(checkpoint)[1], embed(checkpoint, frames, torch.float32)
    generator = torch.Generator().manual_seed(0)
    weights = [[torch.rand(same.hidden.shape[:2], generator=generator) for same in rows] for _ in STAGES]
    expected: dict[str, Tensor] = {}
    part = [slice(0, 0)]

    def watch(stage: int, name: str) -> None:
        def hook(module: object, given: tuple[Tensor, ...]) -> None:
            x, counts = given[0].double(), weights[stage][index].double()
            moment = torch.einsum("ntk,nt,ntl->kl", x, counts, x)
            expected[name] = expected.get(name, torch.zeros_like(moment)) + moment

        handles.append(layer.get_submodule(name).register_forward_pre_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for stage, names in enumerate(STAGES):
        for name in names:
            watch(stage, name)
    for chunk in chunks(layer.self_attn.spec, copy(rows)):
        index, part[0] = chunk.index, chunk.part
        assert len(chunk.hidden) == len(rows[index].hidden), "one chunk each at this size"
        forward_(layer, [Rows(chunk.hidden, 0, 0)])
    for handle in handles:
        handle.remove()
    found: dict[str, Tensor] = {}

    def keep(names: Sequence[str], hessian: Tensor) -> Mapping[str, Tensor]:
        found.update(dict.fromkeys(names, hessian))
        return {}

    quantise_layer(layer, copy(rows), weights, keep)
    assert set(found) == set(expected)
    for name, hessian in found.items():
        assert torch.allclose(hessian.double(), expected[name], rtol=1e-3, atol=1e-4 * float(hessian.max())), name


def test_each_stage_reads_what_the_quantised_ones_before_give(checkpoint: Checkpoint, frames: list[Frame]) -> None:
    """Zero weights in an early stage must be seen by the later ones."""
    rows = embed(checkpoint, frames, torch.float32)
    uniform = [[torch.ones(1, same.length) for same in rows] for _ in STAGES]
    seen = {}

    def wipe(names: Sequence[str], hessian: Tensor) -> Mapping[str, Tensor]:
        seen[names[0]] = float(hessian.abs().sum())
        return {name: torch.zeros(shapes[name]) for name in names if name in ("self_attn.v_proj", "mlp.up_proj")}

    shapes = checkpoint.config.spec.decoder.linears()
    quantise_layer(layers(checkpoint)[0], rows, uniform, wipe)
    assert seen["self_attn.q_proj"] > 0
    assert seen["self_attn.o_proj"] == 0
    assert seen["mlp.gate_proj"] > 0
    assert seen["mlp.down_proj"] == 0


def note(found: dict[str, Tensor], name: str, index: int, part: slice, x: Tensor, gradients: Tensor) -> None:
    found[name] = gradients[0]


def test_streamed_gradients_are_autograds(checkpoint: Checkpoint, frames: list[Frame]) -> None:
    """Layer by layer from kept inputs, against one graph through all layers."""
    stack, rows = layers(checkpoint), embed(checkpoint, frames, torch.float32)[:1]
    whole = rows[0].hidden.clone().requires_grad_(True)
    outputs: dict[tuple[int, str], Tensor] = {}
    x = whole
    kept = []
    for number, layer in enumerate(stack):
        kept.append([Rows(x.detach().clone(), rows[0].prompt, rows[0].dims)])
        names = [name for stage in STAGES for name in stage]
        handles = [
            layer.get_submodule(name).register_forward_hook(
                lambda module, given, output, key=(number, name): outputs.__setitem__(key, output)
            )
            for name in names
        ]
        x = x + attend(layer, x, causal(layer.self_attn.spec, x))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        for handle in handles:
            handle.remove()
    gradients = probe_gradients(checkpoint, [Rows(x.detach(), rows[0].prompt, rows[0].dims)], seed=3, probes=2)
    for probe in range(2):
        expected = torch.autograd.grad(x, [whole, *outputs.values()], gradients[probe][0].clone(), retain_graph=True)
        truth = dict(zip(outputs, expected[1:], strict=True))
        moved = [[gradients[probe][0].clone()]]
        for number in reversed(range(len(stack))):
            found: dict[str, Tensor] = {}
            backpropagate_(stack[number], kept[number], moved, partial(note, found))
            for name, gradient in found.items():
                assert torch.allclose(gradient, truth[number, name], atol=1e-5), (number, name)
        assert torch.allclose(moved[0][0], expected[0], atol=1e-5)


def test_probes_have_the_fisher_as_their_covariance(checkpoint: Checkpoint) -> None:
    """E[(u'dz)^2] = dz' F dz: the divergence of a small change, twice."""
    spec = checkpoint.config.spec
    torch.manual_seed(0)
    hidden = torch.randn(1, 3, spec.decoder.width)
    change = 1e-2 * torch.randn(1, 1, spec.decoder.width)
    logits, moved = action_logits(checkpoint, hidden[:, -1:]), action_logits(checkpoint, hidden[:, -1:] + change)
    ours, theirs = logits.double().log_softmax(-1), moved.double().log_softmax(-1)
    truth = float((ours.exp() * (ours - theirs)).sum())
    gradients = probe_gradients(checkpoint, [Rows(hidden, 0, 1)], seed=0, probes=4000)
    assert all(not gradient[0][:, :2].any() for gradient in gradients)
    estimate = sum(float((gradient[0][:, -1:] * change).sum()) ** 2 for gradient in gradients) / 2 / len(gradients)
    assert estimate == pytest.approx(truth, rel=0.1)


def test_rows_that_no_prediction_reads_count_nothing(checkpoint: Checkpoint, frames: list[Frame]) -> None:
    """In the last layer, beyond keys and values, only the acting rows matter; means are one."""
    stack, rows = layers(checkpoint), embed(checkpoint, frames, torch.float32)
    kept = []
    for layer in stack:
        kept.append(copy(rows))
        forward_(layer, rows)
    gradients = probe_gradients(checkpoint, rows, seed=0)
    for number in reversed(range(len(stack))):
        weights = row_weights(stack[number], kept[number], gradients)
        for stage, by_rows in enumerate(weights):
            total, count = sum(float(w.sum()) for w in by_rows), sum(w.numel() for w in by_rows)
            assert total / count == pytest.approx(1, rel=1e-4)
            silent = [w[:, : -same.dims] for w, same in zip(by_rows, rows, strict=True)]
            assert any(part.any() for part in silent) == (number < len(stack) - 1 or stage == 0)


def test_a_frame_needs_an_action_that_fits(checkpoint: Checkpoint, frames: list[Frame]) -> None:
    for action, words in ((None, "no recorded action"), ((0.0,) * 6, "expected 7"), ((float("nan"),) * 7, "finite")):
        with pytest.raises(FrameError, match=words):
            action_tokens(dataclasses.replace(frames[0], action=action), checkpoint.config)


def test_half_of_the_moments_mirrored_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK", 24)  # 64 is no multiple of it
    rows = torch.randn(100, 64, generator=torch.Generator().manual_seed(0))
    moments = torch.zeros(64, 64)
    for part in torch.split(rows, 40):
        stream.add_moments_(moments, part)
    stream.mirror_(moments)
    assert torch.allclose(moments, rows.T @ rows, atol=1e-4)
    assert torch.allclose(moments, moments.T)


def test_all_is_made_where_the_rows_are() -> None:
    """On the meta device, which refuses most products and sums with tensors of another."""
    meta, spec = torch.device("meta"), spec_of.TINY.decoder
    fresh = [DecoderLayer(spec).to(meta, torch.bfloat16).requires_grad_(False) for _ in range(2)]
    rows = [Rows(torch.empty(3, 20, spec.width, dtype=torch.bfloat16, device=meta), 5, 7)]
    uniform = [[torch.ones(3, 20, device=meta)] for _ in STAGES]
    gradients = [[torch.empty_like(same.hidden) for same in rows] for _ in range(2)]
    seen = []

    def look(name: str, index: int, part: slice, x: Tensor, gradient: Tensor) -> None:
        seen.extend([x.device, gradient.device])

    def replace(names: Sequence[str], hessian: Tensor) -> Mapping[str, Tensor]:
        seen.append(hessian.device)
        return {name: torch.zeros(spec.linears()[name], dtype=torch.bfloat16) for name in names}  # on the host

    backpropagate_(fresh[0], rows, gradients, look)
    forward_(fresh[0], rows)
    quantise_layer(fresh[1], rows, uniform, replace)
    assert {*seen, rows[0].hidden.device, gradients[0][0].device} == {meta}
    assert {weight.device for weight in fresh[1].parameters()} == {meta}
