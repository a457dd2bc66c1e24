"""The decoder's layers, each read, rounded, packed, written and journalled before the next is read.

Rounding to nearest looks at one weight at a time. A calibrated export first asks, over all frames, what every row
means to the answers (forward with each layer's input kept on disk, then back), then rounds layer after layer on what
the rounded ones before it give. Every step is a unit of the journal: it reads files and leaves files, so a killed
export goes on with the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from edge_vla.artifact import NORMS, Linear, layer_file, linear_from_json, linear_json
from edge_vla.calibration.answers import PROBES, Gradients, probe_answers
from edge_vla.calibration.inputs import observe
from edge_vla.calibration.sequences import Rows, embed
from edge_vla.calibration.sets import CalibrationSet
from edge_vla.calibration.stream import STAGES, Weights, load_layer, pass_layer, quantise_layer
from edge_vla.calibration.weights import row_weights
from edge_vla.checkpoint import Checkpoint
from edge_vla.checkpoint.keys import layer_prefix
from edge_vla.checkpoint.quantised import stored_codes
from edge_vla.errors import NumericError
from edge_vla.export.budget import trades_vision
from edge_vla.export.progress import Progress
from edge_vla.export.recipe import Recipe
from edge_vla.export.rounding import round_together, stand_in
from edge_vla.export.sensitivity import Damages, measure, vision_damage
from edge_vla.export.smoothing import Fold, smooth
from edge_vla.export.writer import ArtifactWriter, pack_linear
from edge_vla.model.decoder import DecoderLayer
from edge_vla.quant import PackedWeight, Scheme, quantise, relative_error, sixteen

DTYPE: Final = torch.bfloat16  # the arithmetic that the policy runs in

Formats = Sequence[Mapping[str, tuple[Scheme, int | None]]]  # for each layer, each linear's scheme and group


def round_layers(
    checkpoint: Checkpoint, formats: Formats, writer: ArtifactWriter, progress: Progress
) -> list[dict[str, Linear]]:
    """Every linear to its nearest codes, or as it is where the source has such codes already."""
    layers = _resume(writer, len(formats), progress)
    for index in range(len(layers), len(formats)):
        packed: dict[str, PackedWeight] = {}
        linears: dict[str, Linear] = {}
        for name, (scheme, group) in formats[index].items():
            key = f"{layer_prefix(index)}{name}.weight"
            weight = checkpoint.tensors.load(key)
            packed[name] = stored_codes(checkpoint.tensors, key, scheme, group) or quantise(weight, scheme, group)
            linears[name] = _describe(weight, packed[name])
        _write(checkpoint, index, packed, writer)
        layers.append(_finish(writer, progress, index, linears))
    return layers


@dataclass(frozen=True)
class Calibration:
    """A calibrated export of one decoder. Rows, gradients and weights are passed on in the writer's kept files."""

    checkpoint: Checkpoint
    recipe: Recipe
    chosen: CalibrationSet
    writer: ArtifactWriter
    progress: Progress

    @property
    def device(self) -> torch.device:
        return torch.device(self.recipe.device)

    def listen(self) -> list[Damages]:
        """Forward through the decoder as it is, then back: what each row, and with mixed bits each linear, means.

        Returns the damages by layer, empty ones where every linear gets the same bits.
        """
        spec, writer = self.checkpoint.config.spec.decoder, self.writer
        layers = range(spec.layers)
        if "embedded" not in writer.done:
            self.progress.stage("calibration, pictures", 1)
            rows = embed(self.checkpoint, self.chosen.frames, DTYPE, self.device)
            writer.keep("rows-0", _hidden(rows))
            writer.finish("embedded", [[same.prompt, same.dims] for same in rows])
            self.progress.step(f"{len(self.chosen.frames)} frames")
        self.progress.stage("calibration, forward", sum(f"forward-{index}" not in writer.done for index in layers))
        for index in layers:
            if (unit := f"forward-{index}") not in writer.done:
                rows = self._rows(f"rows-{index}")
                pass_layer(self._layer(index), rows)
                writer.keep(f"rows-{index + 1}", _hidden(rows))
                writer.finish(unit)
                self.progress.step(f"layer {index}")
        self.progress.stage("calibration, back", sum(f"back-{index}" not in writer.done for index in layers))
        if (unit := "answers") not in writer.done:
            gradients = probe_answers(self.checkpoint, self._rows(f"rows-{spec.layers}"), self.recipe.seed)
            writer.keep(f"gradients-{spec.layers}", _gradients(gradients))
            writer.finish(unit)
        writer.drop(f"rows-{spec.layers}")
        for index in reversed(layers):
            if (unit := f"back-{index}") not in writer.done:
                writer.finish(unit, self._listen_at(index))
                self.progress.step(f"layer {index}")
            writer.drop(f"gradients-{index + 1}", *([f"rows-{index}"] if index else []))
        if trades_vision(self.recipe) and "vision damage" not in writer.done:
            at_the_input = [[part.cpu() for part in probe] for probe in self._kept_gradients(0)]
            writer.finish("vision damage", vision_damage(self.checkpoint, self.chosen.frames, at_the_input))
        writer.drop("gradients-0")
        return [writer.done[f"back-{index}"] for index in layers]

    def round_layers(self, formats: Formats) -> list[dict[str, Linear]]:
        """Layer by layer, every linear rounded on what the rounded ones before it give."""
        layers = _resume(self.writer, len(formats), self.progress)
        for index in range(len(layers), len(formats)):
            rows = self._rows("rows-0" if index == 0 else f"moved-{index}")
            layer = self._layer(index)
            packed, linears, fold = self._round(index, layer, rows, formats[index])
            if self.recipe.scaled:
                self.writer.finish(f"scales-{index}", {name: asdict(found) for name, found in fold.choices.items()})
            _write(self.checkpoint, index, packed, self.writer, fold.norms)
            self.writer.keep(f"moved-{index + 1}", _hidden(rows))
            layers.append(_finish(self.writer, self.progress, index, linears))
            self.writer.drop(f"weights-{index}", "rows-0" if index == 0 else f"moved-{index}")
        if self.recipe.scaled:
            found = [self.writer.done[f"scales-{index}"] for index in range(len(formats))]
            self.writer.evidence("scales.json", json.dumps(found, indent=1))
        return layers

    def _listen_at(self, index: int) -> Damages:
        layer, rows = self._layer(index), self._rows(f"rows-{index}")
        gradients = self._kept_gradients(index + 1)
        before = [[tensor.clone() for tensor in probe] for probe in gradients] if self.recipe.mixed else []
        weights = row_weights(layer, rows, gradients)
        self.writer.keep(f"gradients-{index}", _gradients(gradients))
        named = {f"{stage}.{which}": row for stage, same in enumerate(weights) for which, row in enumerate(same)}
        self.writer.keep(f"weights-{index}", named)
        return measure(layer, rows, before, weights, self.recipe.group) if self.recipe.mixed else {}

    def _round(
        self, index: int, layer: DecoderLayer, rows: Sequence[Rows], formats: Mapping[str, tuple[Scheme, int | None]]
    ) -> tuple[dict[str, PackedWeight], dict[str, Linear], Fold]:
        stored = {key: tensor.to(self.device) for key, tensor in self.writer.kept(f"weights-{index}").items()}
        weights = [[stored[f"{stage}.{which}"] for which in range(len(rows))] for stage in range(len(STAGES))]
        packed: dict[str, PackedWeight] = {}
        linears: dict[str, Linear] = {}
        fold = self._fold(index, layer, rows, weights, formats)

        def replace(names: Sequence[str], hessian: Tensor) -> Mapping[str, Tensor | nn.Module]:
            real = {name: fold.weight(name, self._load(index, f"{name}.weight")) for name in names}
            found = round_together(self.recipe, real, hessian, formats, f"layer {index}, {names[0]}")
            packed.update(found)
            linears.update({name: _describe(real[name], found[name]) for name in names})
            return {name: stand_in(found[name], DTYPE) for name in names}

        for name, norm in fold.norms.items():
            module = layer.get_submodule(name.removesuffix(".weight"))
            module.weight = nn.Parameter(norm.to(DTYPE), requires_grad=False)
        quantise_layer(layer, rows, weights, replace)
        if not all(bool(torch.isfinite(same.hidden).all()) for same in rows):
            wider = 8 if self.recipe.bits < 8 else 16
            raise NumericError(f"layer {index} gives non-finite numbers once it is rounded: use --bits {wider}")
        return packed, {name: linears[name] for name in formats}, fold

    def _fold(
        self,
        index: int,
        layer: DecoderLayer,
        rows: Sequence[Rows],
        weights: Sequence[Weights],
        formats: Mapping[str, tuple[Scheme, int | None]],
    ) -> Fold:
        """The scales that move from inputs into weights, if the recipe moves any."""
        if self.recipe.scaled is None:
            return Fold()
        what = f"layer {index}"
        inputs = observe(layer, rows, weights, what)
        linears = {name: self._load(index, f"{name}.weight") for name in formats}
        norms = {name: self._load(index, name) for name in NORMS}
        spec = self.checkpoint.config.spec.decoder
        return smooth(self.recipe.scaled, spec, inputs, linears, norms, formats, what, self.recipe.alpha)

    def _layer(self, index: int) -> DecoderLayer:
        return load_layer(self.checkpoint.tensors, self.checkpoint.config.spec.decoder, index, DTYPE, self.device)

    def _load(self, index: int, name: str) -> Tensor:
        return self.checkpoint.tensors.load(layer_prefix(index) + name)

    def _kept_gradients(self, index: int) -> Gradients:
        stored = self.writer.kept(f"gradients-{index}")
        return [
            [stored[f"{probe}.{i}"].to(self.device) for i in range(len(stored) // PROBES)] for probe in range(PROBES)
        ]

    def _rows(self, name: str) -> list[Rows]:
        stored, shapes = self.writer.kept(name), self.writer.done["embedded"]
        return [Rows(stored[str(which)].to(self.device), prompt, dims) for which, (prompt, dims) in enumerate(shapes)]


def _hidden(rows: Sequence[Rows]) -> dict[str, Tensor]:
    return {str(which): same.hidden for which, same in enumerate(rows)}


def _gradients(gradients: Gradients) -> dict[str, Tensor]:
    return {f"{number}.{which}": part for number, probe in enumerate(gradients) for which, part in enumerate(probe)}


def _resume(writer: ArtifactWriter, layers: int, progress: Progress) -> list[dict[str, Linear]]:
    """The layers that are finished, and the stage of those that are not."""
    done = [writer.done[unit] for unit in map(_unit, range(layers)) if unit in writer.done]
    resumed = f", resumed at layer {len(done)}" if done else ""
    progress.stage(f"decoder{resumed}", layers - len(done))
    return [{name: linear_from_json(entry) for name, entry in layer.items()} for layer in done]


def _unit(index: int) -> str:
    return f"layer-{index}"


def _describe(weight: Tensor, packed: PackedWeight) -> Linear:
    # Three digits: enough to compare layers, too few to depend on the order of a sum.
    return Linear(packed.scheme, packed.shape, packed.group, float(f"{relative_error(weight, packed):.2e}"))


def _write(
    checkpoint: Checkpoint,
    index: int,
    packed: Mapping[str, PackedWeight],
    writer: ArtifactWriter,
    norms: Mapping[str, Tensor] | None = None,
) -> None:
    """One layer's file. `norms` stand for the checkpoint's where scales have moved."""
    stored = {name: sixteen(checkpoint.tensors.load(layer_prefix(index) + name)) for name in NORMS} | dict(norms or {})
    for name in checkpoint.config.spec.decoder.linears():
        stored |= pack_linear(name, packed[name])
    writer.save(layer_file(index), stored)


def _finish(writer: ArtifactWriter, progress: Progress, index: int, linears: dict[str, Linear]) -> dict[str, Linear]:
    data: dict[str, Any] = {name: linear_json(linear) for name, linear in linears.items()}
    writer.finish(_unit(index), data)
    worst = max(linears.items(), key=lambda item: item[1].error)
    progress.step(f"worst error {worst[1].error:.2%} ({worst[0].rpartition('.')[2]})")
    return linears
