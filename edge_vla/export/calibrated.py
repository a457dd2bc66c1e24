"""A decoder quantised on recorded frames, in three passes over its layers.

Forward, each layer's input is kept on disk. Backward, every row of it gets its weight from the action's gradient, and
with mixed bits every linear the KL cost of each format. Then layer after layer is quantised on what the quantised
layers before it give. Every step is a unit of the journal: it reads files and leaves files, so a killed export resumes
with the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Final

import torch
from torch import Tensor, nn

from edge_vla.artifact import NORMS
from edge_vla.calibration.action_gradients import probe_gradients
from edge_vla.calibration.inputs import observe
from edge_vla.calibration.row_weights import row_weights
from edge_vla.calibration.sequences import Rows, embed
from edge_vla.calibration.sets import CalibrationSet
from edge_vla.calibration.stream import Weights, forward_, load_layer, quantise_layer
from edge_vla.checkpoint import Checkpoint
from edge_vla.checkpoint.keys import layer_prefix
from edge_vla.errors import NumericError
from edge_vla.export.decoder import Linears, begin_layers, describe, finish_layer, write_layer, written_layers
from edge_vla.export.formats import Formats, LayerFormats
from edge_vla.export.gptq import clipped, factorise, gptq
from edge_vla.export.progress import Progress
from edge_vla.export.recipe import Recipe
from edge_vla.export.sensitivity import measure, vision_kl_cost
from edge_vla.export.smoothing import Fold, smooth
from edge_vla.export.store import CalibrationStore
from edge_vla.export.units import (
    ActionsProbed,
    FramesEmbedded,
    KlCosts,
    LayerBackpropagated,
    LayerForwarded,
    LayerWritten,
    VisionMeasured,
)
from edge_vla.export.writer import ArtifactWriter
from edge_vla.model.decoder import DecoderLayer
from edge_vla.model.widened import widened, widening_pays
from edge_vla.quant import PackedWeight, Scheme, dequantise, quantise
from edge_vla.runtime.kernels import pick

DTYPE: Final = torch.bfloat16  # the arithmetic that the policy runs in


@dataclass(frozen=True)
class CalibratedDecoder:
    checkpoint: Checkpoint
    recipe: Recipe
    frames: CalibrationSet
    writer: ArtifactWriter
    progress: Progress

    def calibrate(self) -> None:
        """Weigh every row and, with mixed bits, measure every format."""
        self.writer.write_evidence("evidence/calibration.json", self.frames.to_json())
        self._embed_frames()
        self._forward()
        self._probe_actions()
        self._backward()
        self._measure_vision()

    def kl_costs(self) -> list[KlCosts]:
        """By layer, what each format of each linear costs; after `calibrate` of a mixed recipe."""
        units = [self.writer.get(LayerBackpropagated, index) for index in self._layers]
        return [unit.kl_costs for unit in units if unit is not None]

    def vision_kl_cost(self) -> float | None:
        """What int8 towers and projector cost; None where the recipe does not let a budget choose their bits."""
        unit = self.writer.get(VisionMeasured)
        return None if unit is None else unit.kl_cost

    def quantise(self, formats: Formats) -> list[Linears]:
        """Write layer after layer, every linear quantised on what the quantised ones before it give."""
        for index in begin_layers(self.writer, len(formats), self.progress):
            self._quantise_layer(index, formats[index])
        units = written_layers(self.writer, len(formats))
        if self.recipe.scaled:
            scalings = [asdict(unit)["scalings"] for unit in units]
            self.writer.write_evidence("evidence/scales.json", json.dumps(scalings, indent=1))
        return [unit.linears for unit in units]

    def _embed_frames(self) -> None:
        if self.writer.get(FramesEmbedded) is None:
            self.progress.stage("calibration, pictures", 1)
            self._store.inputs.write(0, embed(self.checkpoint, self.frames.frames, DTYPE, self._store.device))
            self.writer.finish(FramesEmbedded())
            self.progress.step(f"{len(self.frames.frames)} frames")

    def _forward(self) -> None:
        left = self.writer.unfinished(LayerForwarded, self._layers)
        self.progress.stage("calibration, forward", len(self._layers), len(self._layers) - len(left))
        for index in left:
            rows = self._store.inputs.read(index)
            layer = self._layer(index)
            with self._products(layer):
                forward_(layer, rows)
            self._store.inputs.write(index + 1, rows)
            self.writer.finish(LayerForwarded(layer=index))
            self.progress.step(f"layer {index}")

    def _probe_actions(self) -> None:
        last = len(self._layers)
        if self.writer.get(ActionsProbed) is None:
            rows = self._store.inputs.read(last)
            self._store.gradients.write(last, probe_gradients(self.checkpoint, rows, self.recipe.seed))
            self.writer.finish(ActionsProbed())
        self._store.inputs.drop(last)

    def _backward(self) -> None:
        left = self.writer.unfinished(LayerBackpropagated, self._layers[::-1])
        self.progress.stage("calibration, back", len(self._layers), len(self._layers) - len(left))
        for index in left:
            kl_costs = self._backpropagate(index)
            self.writer.finish(LayerBackpropagated(layer=index, kl_costs=kl_costs))
            self._store.gradients.drop(index + 1)
            if index:  # the first layer's inputs are read again when it is quantised
                self._store.inputs.drop(index)
            self.progress.step(f"layer {index}")

    def _backpropagate(self, index: int) -> KlCosts:
        layer, rows, gradients = (
            self._layer(index),
            self._store.inputs.read(index),
            self._store.gradients.read(index + 1),
        )
        at_output = [[part.clone() for part in probe] for probe in gradients] if self.recipe.mixed else []
        with self._products(layer):
            weights = row_weights(layer, rows, gradients)
        self._store.gradients.write(index, gradients)
        self._store.row_weights.write(index, weights)
        return measure(layer, rows, at_output, weights, self.recipe.group) if self.recipe.mixed else {}

    def _products(self, layer: DecoderLayer) -> AbstractContextManager[None]:
        """The layer's in float32, where torch would emulate those of bf16, which takes many times as long."""
        return widened(layer) if widening_pays(DTYPE, self._store.device) else nullcontext()

    def _measure_vision(self) -> None:
        if self.recipe.chooses_vision_bits and self.writer.get(VisionMeasured) is None:
            at_input = [[part.cpu() for part in probe] for probe in self._store.gradients.read(0)]
            cost = vision_kl_cost(self.checkpoint, self.frames.frames, at_input)
            self.writer.finish(VisionMeasured(kl_cost=cost))
        self._store.gradients.drop(0)

    def _quantise_layer(self, index: int, formats: LayerFormats) -> None:
        inputs = self._store.quantised_inputs if index else self._store.inputs
        layer, rows, weights = self._layer(index), inputs.read(index), self._store.row_weights.read(index)
        packed, linears = dict[str, PackedWeight](), Linears()
        fold = self._scale(index, layer, rows, weights, formats)

        def replace(names: Sequence[str], hessian: Tensor) -> Mapping[str, Tensor | nn.Module]:
            real = {name: fold.weight(name, self._load(index, f"{name}.weight")) for name in names}
            found = quantise_together(self.recipe, real, hessian, formats, f"layer {index}, {names[0]}")
            packed.update(found)
            linears.update({name: describe(real[name], found[name]) for name in names})
            return {name: stand_in(found[name], DTYPE) for name in names}

        quantise_layer(layer, rows, weights, replace)
        if not all(bool(torch.isfinite(same.hidden).all()) for same in rows):
            wider = 8 if self.recipe.bits < 8 else 16
            raise NumericError(f"layer {index} gives non-finite numbers once it is quantised: use --bits {wider}")
        write_layer(self.checkpoint, index, packed, fold.norms, self.writer)
        self._store.quantised_inputs.write(index + 1, rows)
        in_order = {name: linears[name] for name in formats}
        unit = LayerWritten(layer=index, linears=in_order, scalings=dict(fold.scalings))
        finish_layer(self.writer, self.progress, unit)
        inputs.drop(index)
        self._store.row_weights.drop(index)

    def _scale(
        self, index: int, layer: DecoderLayer, rows: Sequence[Rows], weights: Sequence[Weights], formats: LayerFormats
    ) -> Fold:
        """The scales that move from inputs into weights, if the recipe moves any; puts the new norms into `layer`."""
        if self.recipe.scaled is None:
            return Fold()
        what, spec = f"layer {index}", self.checkpoint.config.spec.decoder
        inputs = observe(layer, rows, weights, what)
        linears = {name: self._load(index, f"{name}.weight") for name in formats}
        norms = {name: self._load(index, name) for name in NORMS}
        fold = smooth(self.recipe.scaled, spec, inputs, linears, norms, formats, what, self.recipe.alpha)
        for name, norm in fold.norms.items():
            module = layer.get_submodule(name.removesuffix(".weight"))
            module.weight = nn.Parameter(norm.to(DTYPE), requires_grad=False)
        return fold

    @property
    def _store(self) -> CalibrationStore:
        return CalibrationStore(self.writer, torch.device(self.recipe.device))

    @property
    def _layers(self) -> range:
        return range(self.checkpoint.config.spec.decoder.layers)

    def _layer(self, index: int) -> DecoderLayer:
        spec = self.checkpoint.config.spec.decoder
        return load_layer(self.checkpoint.tensors, spec, index, DTYPE, self._store.device)

    def _load(self, index: int, name: str) -> Tensor:
        return self.checkpoint.tensors.load(layer_prefix(index) + name)


def quantise_together(
    recipe: Recipe, weights: Mapping[str, Tensor], hessian: Tensor, formats: LayerFormats, what: str
) -> dict[str, PackedWeight]:
    """`weights` (N, K) that share an input with this (K, K) Hessian; `what` names them in warnings and errors."""
    rounded = any(formats[name].scheme is not Scheme.BF16 for name in weights)
    factor = factorise(hessian, what) if rounded and recipe.compensated else None
    packed = {}
    for name, weight in weights.items():
        form = formats[name]
        if form.scheme is Scheme.BF16:
            packed[name] = quantise(weight, *form)
        elif factor is not None:
            packed[name] = gptq(weight, factor, *form)
        elif recipe.method == "awq":
            packed[name] = clipped(weight, hessian.diagonal(), *form)
        else:
            packed[name] = quantise(weight, *form)
    return packed


def stand_in(packed: PackedWeight, dtype: torch.dtype) -> Tensor | nn.Module:
    """What calibration goes on with: the rounded weight, or the kernel's module where that rounds its input too."""
    if packed.scheme is not Scheme.W8A8:
        return dequantise(packed, dtype)
    cpu = torch.device("cpu")
    product = pick(packed, dtype, cpu)(packed, dtype, cpu)
    assert isinstance(product, nn.Module), "a kernel is a module"
    return product
