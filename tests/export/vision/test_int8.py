"""INT8 vision: grids by search, outliers by measurement, and a Q/DQ graph that computes what was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor

from edge_vla.checkpoint import open_checkpoint
from edge_vla.checkpoint.keys import vision_keys
from edge_vla.demo import BASE
from edge_vla.demo.render import render, world
from edge_vla.demo.world import start
from edge_vla.errors import UsageError
from edge_vla.export.vision_int8 import Choice, choose, write_int8
from edge_vla.export.vision_int8.choose import BUDGET, as_int8, outliers
from edge_vla.export.vision_int8.ranges import absmax_grid, best_grid, weight_codes, weights_grid
from edge_vla.export.vision_int8.rows import InputRows, input_rows, linears
from edge_vla.openvla import preprocess
from edge_vla.runtime.vision.towers import torch_vision
from tests.export.vision.graphs import ONE_TOWER, apart, exact, pixels_for, run, types, weights_of

CALIBRATION = range(100, 132)
EVALUATION = range(80, 92)


class Demo:
    """The demo policy's vision: trained weights, and pictures of its world."""

    def __init__(self) -> None:
        checkpoint = open_checkpoint(BASE)
        self.config, self.spec = checkpoint.config, checkpoint.config.spec
        self.weights = {name: checkpoint.tensors.load(name) for name in vision_keys(self.spec)}
        self.network = torch_vision(self.spec, self.weights, torch.float32, torch.device("cpu"))
        self.calibration, self.evaluation = self.pixels(CALIBRATION), torch.cat(self.pixels(EVALUATION))
        self.exact = self.network(self.evaluation).numpy()

    def pixels(self, seeds: range) -> list[Tensor]:
        pictures = [render(start(seed, "pick")[0], world(1)) for seed in seeds]
        return [torch.from_numpy(np.ascontiguousarray(preprocess(one, self.config.image)))[None] for one in pictures]


@pytest.fixture(scope="module")
def demo() -> Demo:
    return Demo()


@pytest.fixture(scope="module")
def choice(demo: Demo) -> Choice:
    return choose(demo.network, demo.calibration)


@pytest.fixture(scope="module")
def graph(demo: Demo, choice: Choice, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_int8(demo.spec, demo.weights, choice, tmp_path_factory.mktemp("int8"))


def test_the_graph_computes_what_was_measured(demo: Demo, choice: Choice, graph: Path) -> None:
    """Folded into norms and value rows, in ONNX Runtime's arithmetic: the same as rounding in the plain network."""
    got, wanted = run(graph, demo.evaluation), demo.exact
    with as_int8(linears(demo.network), choice.grids), torch.inference_mode():
        simulated = demo.network(demo.evaluation).numpy()
    assert apart(got, simulated) < 0.6 * apart(simulated, wanted)  # rounding falls elsewhere in fp16
    assert apart(got, wanted) == pytest.approx(apart(simulated, wanted), rel=0.25)


def test_search_and_measurement_beat_the_largest_value(demo: Demo, choice: Choice, graph: Path) -> None:
    modules = linears(demo.network)
    rows = input_rows(demo.network, demo.calibration, len(demo.calibration))
    plain = {name: absmax_grid(rows[name], module.weight.data) for name, module in modules.items()}
    with as_int8(modules, plain), torch.inference_mode():
        absmax = apart(demo.network(demo.evaluation).numpy(), demo.exact)
    ours = apart(run(graph, demo.evaluation), demo.exact)
    assert ours < 0.6 * absmax
    assert ours < 0.015


def test_as_tensorrt_wants_it(choice: Choice, graph: Path) -> None:
    """Per-tensor rows, per-channel weights, zero points of zero, no int32 bias, fp16 between."""
    found = set(types(graph).values())
    assert found == {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8}
    model = onnx.load(graph)
    made = {node.output[0]: node for node in model.graph.node}
    values = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    quantised = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantised) == len(choice.grids) - len(choice.weights_only) > 0.8 * 35
    assert all(values[node.input[1]].shape == () and values[node.input[2]] == 0 for node in quantised)
    for name, grid in choice.grids.items():
        product = made[f"{name}/product"]
        weight = made[product.input[1]]
        assert (weight.op_type, weight.attribute[0].i, len(weight.input)) == ("DequantizeLinear", 1, 2)
        rows = made[product.input[0]]
        assert (rows.op_type == "DequantizeLinear") == (grid.scale is not None)
    for name in choice.kept:
        assert made[made[f"{name}/product"].input[1]].op_type == "Transpose"


def test_what_is_kept_fits_the_budget_and_does_most_harm(demo: Demo, choice: Choice) -> None:
    sizes = {name: module.weight.numel() for name, module in linears(demo.network).items()}
    assert choice.kept
    assert sum(sizes[name] for name in choice.kept) <= BUDGET * sum(sizes.values())
    worst = max(sizes, key=lambda name: choice.alone[name] ** 2 / sizes[name])
    assert worst in choice.kept
    with as_int8(linears(demo.network), choice.grids), torch.inference_mode():
        with_outliers_kept = apart(demo.network(demo.evaluation).numpy(), demo.exact)
    rows = input_rows(demo.network, demo.calibration, len(demo.calibration))
    everything = {name: best_grid(name, rows[name], one.weight.data) for name, one in linears(demo.network).items()}
    with as_int8(linears(demo.network), everything), torch.inference_mode():
        assert with_outliers_kept < 0.85 * apart(demo.network(demo.evaluation).numpy(), demo.exact)


@given(st.lists(st.tuples(st.floats(1e-6, 1.0), st.integers(1, 10**6)), min_size=1, max_size=40))
def test_outliers_are_worst_first_and_within_budget(linears: list[tuple[float, int]]) -> None:
    alone = {str(index): error for index, (error, _) in enumerate(linears)}
    sizes = {str(index): size for index, (_, size) in enumerate(linears)}
    kept, rows_only = outliers(alone, sizes)
    assert not set(kept) & set(rows_only)
    assert sum(sizes[name] for name in kept) <= BUDGET * sum(sizes.values())
    harm = {name: alone[name] ** 2 / sizes[name] for name in alone}
    rest = [harm[name] for name in alone if name not in (*kept, *rows_only)]
    assert not rest or all(harm[name] >= max(rest) for name in (*kept, *rows_only))


def test_a_loud_channel_is_evened_out() -> None:
    torch.manual_seed(0)
    sample = torch.randn(300, 32)
    sample[:, 3] *= 60
    rows, weight = InputRows(sample, sample.abs().amax(0)), torch.randn(48, 32)
    ours, plain = best_grid("one", rows, weight), absmax_grid(rows, weight)
    assert ours.even is not None
    assert plain.even is None
    exact, errors = sample @ weight.T, list[float]()
    for grid in (ours, plain):
        assert grid.scale is not None
        even = 1 if grid.even is None else grid.even
        got = ((sample / even / grid.scale).round().clamp(-127, 127) * grid.scale) @ grid.weight.T
        errors.append(float((got - exact).norm()))
    assert errors[0] < 0.3 * errors[1]


def test_weights_make_up_for_each_others_rounding() -> None:
    """On rows of few directions GPTQ loses far less than the nearest codes."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(400, 6, generator=generator) @ torch.randn(6, 64, generator=generator)
    weight = torch.randn(32, 64, generator=generator)
    ours = weights_grid("one", InputRows(sample, sample.abs().amax(0)), weight)
    codes, scales = weight_codes(weight)
    nearest = codes.float() * scales.float()[:, None]
    assert (sample @ (ours.weight - weight).T).norm() < 0.5 * (sample @ (nearest - weight).T).norm()


def test_weight_codes_are_nearest_and_symmetric() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    codes, scales = weight_codes(weight)
    assert codes.dtype == torch.int8
    assert int(codes.min()) >= -127
    inside = codes.abs() < 127
    error = (codes.float() * scales.float()[:, None] - weight).abs()
    assert (error[inside] <= 0.5001 * scales.float()[:, None].expand_as(error)[inside]).all()
    plain = weight.abs().amax(1, keepdim=True) / 127
    assert error.square().sum() <= ((weight / plain).round() * plain - weight).square().sum() * 1.001


def test_no_images_no_ranges(demo: Demo) -> None:
    with pytest.raises(UsageError, match="--frames"):
        choose(demo.network, [])


def test_a_tower_of_another_shape_is_int8_too(tmp_path: Path) -> None:
    spec = ONE_TOWER
    network = exact(spec)
    found = choose(network, [one[None] for one in pixels_for(spec, 6)])
    graph = write_int8(spec, weights_of(spec), found, tmp_path)
    assert apart(run(graph, pixels_for(spec)), network(pixels_for(spec)).numpy()) < 0.05
