"""Matrices that gptqmodel, compressed-tensors and bitsandbytes stored are read to the bit as those libraries do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from edge_vla.interop import BitsAndBytes, CompressedTensors, Gptq, Layout, read_layout
from edge_vla.interop.layout import Parts
from edge_vla.quant import dequantise, unpack_codes

GOLDEN = Path(__file__).parents[1] / "golden"


class Loaded(dict[str, Tensor]):
    """Tensors in memory, with the interface of a directory."""

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self[name].shape)

    def load(self, name: str) -> Tensor:
        return self[name]


def parts_of(tensors: Mapping[str, Tensor]) -> Parts:
    return Parts("matrix", Loaded(tensors), {name: name for name in tensors})


def golden(library: str) -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
    """Case -> its `quantization_config` and its tensors."""
    found: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {}
    with safe_open(GOLDEN / f"{library}.safetensors", framework="pt") as file:
        configs: Mapping[str, str] = file.metadata() or {}
        names = list(file.keys())
        for case, _, part in (name.partition("/") for name in names):
            _, tensors = found.setdefault(case, (json.loads(configs.get(case, "{}")), {}))
            tensors[part] = file.get_tensor(f"{case}/{part}")
    return found


INTEGERS = {
    f"{library}: {case}": (*found, library)
    for library in ("gptqmodel", "compressed_tensors")
    for case, found in golden(library).items()
}


@pytest.mark.parametrize("case", INTEGERS)
def test_integers(case: str) -> None:
    config, tensors, _ = INTEGERS[case]
    expected = tensors["weight"]
    parts = parts_of({name: tensor for name, tensor in tensors.items() if name != "weight"})
    layout = read_layout(config)
    assert layout.shape(parts) == tuple(expected.shape)
    got = layout.decode(parts).weight()
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)


@pytest.mark.parametrize("case", [case for case in INTEGERS if "int" in case])
def test_what_is_on_our_grid_keeps_its_codes(case: str) -> None:
    """Codes are equal; a weight moves only by what a scale loses when it gets eight significant bits."""
    config, tensors, _ = INTEGERS[case]
    decoded = read_layout(config).decode(parts_of({name: part for name, part in tensors.items() if name != "weight"}))
    packed = decoded.packed()
    if "int8" in case and int(decoded.codes.min()) == 0:  # type: ignore[union-attr]
        assert packed is None, "-128 is no level of int8"
        return
    assert packed is not None
    expected = decoded.codes - int(packed.group is None)  # type: ignore[union-attr]
    assert torch.equal(unpack_codes(packed.codes, packed.scheme), expected)
    assert packed.check("matrix") is packed
    error = (dequantise(packed) - tensors["weight"].float()).abs()
    assert bool((error <= 2.0**-8 * tensors["weight"].float().abs()).all())


@pytest.mark.parametrize("case", [case for case in INTEGERS if "asym" in case or "carry" in case])
def test_what_is_not_on_our_grid_is_not_taken_over(case: str) -> None:
    config, tensors, _ = INTEGERS[case]
    parts = parts_of({name: part for name, part in tensors.items() if name != "weight"})
    assert read_layout(config).decode(parts).packed() is None


@pytest.mark.parametrize("case", ["gptqmodel: int4", "compressed_tensors: int4"])
def test_written_as_the_library_wrote_it(case: str) -> None:
    config, tensors, _ = INTEGERS[case]
    layout = read_layout(config)
    assert isinstance(layout, Gptq | CompressedTensors)
    packed = layout.decode(parts_of({name: part for name, part in tensors.items() if name != "weight"})).packed()
    assert packed is not None
    written = layout.encode(packed)
    for part, tensor in written.items():
        if part.endswith(("scales", "weight_scale")):  # rounded to eight significant bits
            tensor, tensors[part] = tensor.bfloat16(), tensors[part].bfloat16()
        assert tensor.dtype == tensors[part].dtype
        assert torch.equal(tensor, tensors[part]), part


@pytest.mark.parametrize(("case", "tensors"), [(case, found[1]) for case, found in golden("bitsandbytes").items()])
def test_bitsandbytes(case: str, tensors: dict[str, Tensor]) -> None:
    layout: Layout = BitsAndBytes()
    parts = parts_of({name: tensor for name, tensor in tensors.items() if name != "dequantised"})
    assert layout.shape(parts) == tuple(tensors["dequantised"].shape)
    got = layout.decode(parts).weight()
    assert got.dtype == tensors["dequantised"].dtype
    assert torch.equal(got, tensors["dequantised"]), case
