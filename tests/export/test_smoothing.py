"""SmoothQuant and AWQ equal the textbook; moving scales keeps the function; a warning names what cannot move."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edge_vla.artifact import NORMS
from edge_vla.calibration.inputs import Inputs, draw, observe
from edge_vla.calibration.sequences import Rows
from edge_vla.calibration.stream import STAGES, causal
from edge_vla.errors import NumericError
from edge_vla.export.formats import Format
from edge_vla.export.smoothing import EXPONENTS, LARGEST, Fold, Rule, divided, largest, scales, search, smooth
from edge_vla.model.decoder import Cache, DecoderLayer, Step
from edge_vla.quant import Scheme, round_scale
from edge_vla.spec import DecoderSpec

SPECS = {
    "plain": DecoderSpec(vocab_rows=64, width=64, mlp_width=96, layers=1, heads=4, kv_heads=4),
    "grouped": DecoderSpec(vocab_rows=64, width=64, mlp_width=96, layers=1, heads=8, kv_heads=2),
}
seeds = st.integers(0, 2**31)


def problem(seed: int, in_features: int = 64) -> tuple[Inputs, list[Tensor]]:
    """Rows with a few loud channels, and two weights that read them."""
    generator = torch.Generator().manual_seed(seed)
    loud = (torch.randn(in_features, generator=generator) * 1.5).exp()
    rows = torch.randn(60, in_features, generator=generator) * loud
    weights = [torch.randn(out, in_features, generator=generator) * 0.05 for out in (12, 20)]
    return Inputs(rows.abs().mean(dim=0), rows.abs().amax(dim=0), rows), weights


def textbook_scales(rule: Rule, rows: Tensor, weights: Sequence[Tensor], exponent: float) -> list[float]:
    """The formulas of the two papers, a channel at a time, in Python's own floats."""
    found = []
    for j in range(rows.shape[1]):
        x = [abs(float(value)) for value in rows[:, j]]
        w = max(abs(float(value)) for weight in weights for value in weight[:, j])
        migrated, salient = max(x) ** exponent / w ** (1 - exponent), (sum(x) / len(x)) ** exponent
        found.append(migrated if rule == "smoothquant" else salient)
    if rule == "awq":
        middle = (max(found) * min(found)) ** 0.5
        found = [value / middle for value in found]
    return found


def textbook_error(rule: Rule, rows: Tensor, weights: Sequence[Tensor], scale: Sequence[float]) -> float:
    """Round weights times scale, for SmoothQuant inputs over it too, by loops over rows and groups; compare outputs."""
    s, group, total = torch.tensor(scale, dtype=torch.float64), 32, 0.0
    x = rows.double() / s
    if rule == "smoothquant":
        for t in range(len(x)):
            step = float(x[t].abs().max()) / 127
            x[t] = (x[t] / step).round() * step
    for weight in weights:
        w = weight.double() * s
        size = w.shape[1] if rule == "smoothquant" else group
        for n in range(len(w)):
            for start in range(0, w.shape[1], size):
                part = w[n, start : start + size]
                most, reach = float(part.abs().max()), 127 if rule == "smoothquant" else 7.5
                step = float(round_scale(torch.tensor(most / reach, dtype=torch.float32)))
                low, high = (-127, 127) if rule == "smoothquant" else (-8, 7)
                w[n, start : start + size] = (part / step).round().clamp(low, high) * step
        total += float((x @ w.T - rows.double() @ weight.double().T).square().sum())
    return total


@pytest.mark.parametrize("rule", ["smoothquant", "awq"])
@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_textbook(rule: Rule, seed: int) -> None:
    """Scales channel by channel, the error of every candidate, and so the same exponent."""
    inputs, weights = problem(seed)
    form = Format(Scheme.W8A8, None) if rule == "smoothquant" else Format(Scheme.INT4, 32)
    ours = [(exponent, scales(rule, inputs, largest(weights), exponent)) for exponent in EXPONENTS]
    theirs = [textbook_scales(rule, inputs.rows, weights, exponent) for exponent in EXPONENTS]
    for (_, mine), other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, torch.tensor(other), rtol=1e-5)
    errors = [textbook_error(rule, inputs.rows, weights, scale) for scale in theirs]
    plain = textbook_error(rule, inputs.rows, weights, [1.0] * 64)
    chosen, left = search(inputs.rows, weights, [form, form], ours)
    assert chosen == min(range(len(errors)), key=errors.__getitem__)
    assert left == pytest.approx(errors[chosen] / plain, rel=1e-3)
    assert left < 0.9, "loud channels are what scaling is for"


class Layer:
    """One decoder layer in float32 with norms that are not 1, and rows to run through it."""

    def __init__(self, spec: DecoderSpec, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.spec, self.layer = spec, DecoderLayer(spec).requires_grad_(False)
        for name in NORMS:
            self.layer.get_parameter(name).copy_(torch.randn(spec.width).exp().bfloat16())
        hidden = [torch.randn(count, 9 + count, spec.width) for count in (2, 3)]
        self.rows = [Rows(one, 4, 3) for one in hidden]
        self.weights = [[torch.rand(one.shape[:2]) for one in hidden] for _ in STAGES]

    @property
    def linears(self) -> dict[str, Tensor]:
        return {name: self.layer.get_parameter(f"{name}.weight") for stage in STAGES for name in stage}

    @property
    def norms(self) -> dict[str, Tensor]:
        return {name: self.layer.get_parameter(name).bfloat16() for name in NORMS}

    def inputs(self) -> list[Inputs]:
        return observe(self.layer, self.rows, self.weights, "layer 0", samples=32)

    def fold(self, rule: Rule, exponent: float | None = None) -> Fold:
        form = Format(Scheme.W8A8, None) if rule == "smoothquant" else Format(Scheme.INT4, 32)
        formats = dict.fromkeys(self.linears, form)
        return smooth(rule, self.spec, self.inputs(), self.linears, self.norms, formats, "layer 0", exponent)

    def out(self, rows: Rows) -> Tensor:
        step: Step = causal(self.spec, rows.hidden)
        cache = Cache.allocate(self.spec, len(rows.hidden), rows.length, torch.float32, torch.device("cpu"))
        out: Tensor = self.layer(rows.hidden, step, cache.keys[0], cache.values[0])
        return out


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("rule", ["smoothquant", "awq"])
@pytest.mark.parametrize("exponent", [None, 0.5, 1.0])
def test_the_layer_stays_the_same_function(name: str, rule: Rule, exponent: float | None) -> None:
    """All four folds at once, norms in 16 bits and value heads that query heads share: nothing but float32 rounding."""
    one = Layer(SPECS[name])
    before = [one.out(rows) for rows in one.rows]
    linears, fold = one.linears, one.fold(rule, exponent)
    assert set(fold.columns) == set(linears)
    for linear, weight in linears.items():
        one.layer.get_submodule(linear).weight = nn.Parameter(fold.weight(linear, weight), requires_grad=False)
    for norm, new in fold.norms.items():
        assert new.dtype == torch.bfloat16
        one.layer.get_parameter(norm).copy_(new)
    for rows, expected in zip(one.rows, before, strict=True):
        assert (one.out(rows) - expected).abs().max() <= 1e-5 * expected.abs().max()
    if exponent == 0.5:
        assert max(float(scale.max() / scale.min()) for scale in fold.columns.values()) > 1.2, "and yet it moved"


def test_what_is_seen_is_what_the_linears_read() -> None:
    one = Layer(SPECS["grouped"])
    read: dict[str, list[Tensor]] = {}

    def keep(name: str, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        read.setdefault(name, []).append(given[0].flatten(0, 1))

    handles = [
        one.layer.get_submodule(names[0]).register_forward_pre_hook(lambda m, g, n=names[0]: keep(n, m, g))
        for names in STAGES
    ]
    for rows in one.rows:
        one.out(rows)
    for handle in handles:
        handle.remove()
    for stage, (found, names) in enumerate(zip(one.inputs(), STAGES, strict=True)):
        x, counts = torch.cat(read[names[0]]), torch.cat([weight.flatten() for weight in one.weights[stage]])
        assert torch.allclose(found.mean, (counts[:, None] * x.abs()).sum(dim=0) / counts.sum(), rtol=1e-4)
        assert torch.allclose(found.peak, x.abs().amax(dim=0), rtol=1e-5)
        assert torch.allclose(found.rows, x[draw(counts, 32)], atol=1e-5)


@settings(max_examples=50)
@given(seeds, st.integers(1, 300))
def test_rows_are_drawn_as_often_as_they_count(seed: int, count: int) -> None:
    weights = torch.rand(40, generator=torch.Generator().manual_seed(seed)) ** 4
    weights[::7] = 0
    times = torch.bincount(draw(weights, count), minlength=40).double()
    expected = weights.double() * count / weights.double().sum()
    assert times.sum() == count
    assert ((times - expected).abs() < 1 + 1e-6).all()
    assert not times[weights == 0].any()


@pytest.mark.parametrize("rule", ["smoothquant", "awq"])
def test_dead_channels_keep_the_scale_1_and_are_named(rule: Rule, caplog: pytest.LogCaptureFixture) -> None:
    one = Layer(SPECS["plain"])
    one.layer.get_parameter(NORMS[0])[[3, 9]] = 0  # never active
    for name in STAGES[2]:
        one.layer.get_parameter(f"{name}.weight")[:, 5] = 0  # never read
    with caplog.at_level(logging.WARNING):
        fold = one.fold(rule, 0.7)
    assert "layer 0, self_attn.q_proj: 2 of 64 inputs are never active, not scaled" in caplog.text
    assert fold.columns["self_attn.q_proj"][[3, 9]].tolist() == [1, 1]
    assert fold.columns["mlp.gate_proj"][5] == 1
    for scale in fold.columns.values():
        assert torch.isfinite(scale).all()
        assert (scale > 0).all()


def test_a_channel_of_any_size_gets_a_scale_that_formats_hold() -> None:
    inputs, weights = problem(0)
    wild = Inputs(inputs.mean * torch.logspace(-30, 30, 64), inputs.peak * torch.logspace(-30, 30, 64), inputs.rows)
    for rule in ("smoothquant", "awq"):
        for exponent in EXPONENTS:
            found = scales(rule, wild, largest(weights), exponent)
            assert found.min() >= 1 / LARGEST
            assert found.max() <= LARGEST


def test_a_norm_that_16_bits_cannot_hold_is_left_and_named(caplog: pytest.LogCaptureFixture) -> None:
    norm = torch.tensor([1.0, 6e-5, 0.0], dtype=torch.float16)
    with caplog.at_level(logging.WARNING):
        new, by = divided(norm, torch.tensor([4.0, 1000.0, 3.0]), "layer 2, q")
    assert new.tolist() == [0.25, norm[1].item(), 0.0]
    assert by.tolist() == [4.0, 1.0, 1.0]
    assert "layer 2, q: 1 norm weights are too small or too large" in caplog.text


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_activations_that_are_not_finite_are_refused(value: float) -> None:
    one = Layer(SPECS["plain"])
    one.rows[1].hidden[0, 2, 5] = value
    with pytest.raises(NumericError, match=r"layer 0, self_attn\.q_proj: calibration activations are not finite"):
        one.inputs()


def test_a_layer_that_is_never_active_is_refused() -> None:
    one = Layer(SPECS["plain"])
    for rows in one.rows:
        rows.hidden.zero_()
    with pytest.raises(NumericError, match="no input is ever active"):
        one.inputs()
