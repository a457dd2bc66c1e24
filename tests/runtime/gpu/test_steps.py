"""Whether a pass becomes one launch: what a device may answer, played by a decoder that answers so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from edge_vla.artifact import Artifact
from edge_vla.errors import BackendError, DeviceLostError
from edge_vla.runtime.gpu import steps
from edge_vla.runtime.gpu.decoder import KernelDecoder
from edge_vla.runtime.gpu.device import CudaDevice
from edge_vla.runtime.gpu.graph import Direct, Work
from edge_vla.runtime.gpu.kernels.decode_pass import PassNetwork
from edge_vla.runtime.gpu.load import from_artifact
from tests.runtime.gpu.engines import CPU

ROWS = 8


@pytest.fixture(scope="module")
def decoder(tiny_artifacts: Mapping[int, Path]) -> KernelDecoder:
    return from_artifact(Artifact(tiny_artifacts[4]), torch.bfloat16, CPU, "reference", steps="chain").decoder


def changed(decoder: KernelDecoder, answer: Callable[[Tensor], Tensor]) -> KernelDecoder:
    """The decoder, but for what a pass in one launch gives."""

    def at_once(whole: PassNetwork, *given: Any) -> Tensor:
        return answer(decoder.at_once(whole, *given))

    return cast(KernelDecoder, SimpleNamespace(at_once=at_once, chain=decoder.chain, cache=decoder.cache))


def try_it(decoder: KernelDecoder, whole: PassNetwork, clock: steps.Clock | None = None) -> None:
    rows = torch.randn(ROWS, whole.norm.shape[0], generator=torch.Generator().manual_seed(0)).bfloat16()
    steps.try_on_device(decoder, whole, rows, CudaDevice(CPU), Direct(), clock)


def test_equal_rows_pass_and_the_slower_way_does_not(decoder: KernelDecoder) -> None:
    whole = decoder.network()
    try_it(decoder, whole)

    def clock(one_launch: float) -> steps.Clock:
        times = [one_launch, 1.0] * steps.REPEATS  # of one launch and of the chain, in turns

        def tell(replay: Work) -> float:
            replay()
            return times.pop(0)

        return tell

    try_it(decoder, whole, clock(1.02))
    with pytest.raises(BackendError, match=r"1\.00 ms a pass against 1\.10 in one launch"):
        try_it(decoder, whole, clock(1.1))


def test_what_a_device_may_answer_instead(decoder: KernelDecoder) -> None:
    whole, runs = decoder.network(), list[int]()

    def unsteady(rows: Tensor) -> Tensor:
        runs.append(0)
        rows[0, len(runs) % rows.shape[1]] += 0.5
        return rows

    def one_wrong_row(rows: Tensor) -> Tensor:
        rows[3] = rows[2]
        return rows

    def given_up(rows: Tensor) -> Tensor:
        whole.barrier[1] = 1
        return rows.fill_(torch.nan)

    def refused(_: Tensor) -> Tensor:
        raise RuntimeError("Triton Error [CUDA]: too many blocks in cooperative launch")

    def lost(_: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    answers: dict[str, Callable[[Tensor], Tensor]] = {
        "its bits change from run to run": unsteady,
        "something else than the chain": one_wrong_row,
        "something else than the chain \\(by nan": lambda rows: rows * torch.nan,
        "waited in vain": given_up,
        "does not run its programs together": refused,
    }
    for message, answer in answers.items():
        with pytest.raises(BackendError, match=message):
            try_it(changed(decoder, answer), whole)
    assert not whole.gave_up(), "an answer is not told twice"
    with pytest.raises(DeviceLostError):
        try_it(changed(decoder, lost), whole)


def test_who_names_it_gets_it_or_an_error(decoder: KernelDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device, which refuses."""
    cuda, rows = CudaDevice(torch.device("cuda")), torch.zeros(ROWS, 1)

    def refuses(*_: object) -> None:
        raise BackendError("its bits change from run to run")

    monkeypatch.setattr(steps, "try_on_device", refuses)
    monkeypatch.setattr(steps, "recorder", lambda _: Direct())
    assert steps.settle(decoder, "auto", rows, cuda) == "a chain of kernels: its bits change from run to run"
    assert decoder.whole is None
    with pytest.raises(BackendError, match=r"cannot be one launch here: its bits.*; leave /persistent out of --kernel"):
        steps.settle(decoder, "persistent", rows, cuda)
    assert steps.settle(decoder, "chain", rows, cuda) == "a chain of kernels"


def test_one_row_is_tried_as_well(decoder: KernelDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel is another, and no draft's pass would show what it does."""
    tried = list[int]()

    def try_on_device(_: object, __: object, rows: Tensor, *___: object) -> None:
        tried.append(rows.shape[0])
        if rows.shape[0] == 1:
            raise BackendError("its programs waited in vain for each other")

    monkeypatch.setattr(steps, "try_on_device", try_on_device)
    monkeypatch.setattr(steps, "recorder", lambda _: Direct())
    said = steps.settle(decoder, "auto", torch.zeros(ROWS, 1), CudaDevice(torch.device("cuda")))
    assert (said, tried) == ("a chain of kernels: its programs waited in vain for each other", [ROWS, 1])
    assert decoder.whole is None


def test_layers_in_several_formats_are_a_chain(tiny_artifacts: Mapping[int, Path]) -> None:
    made = from_artifact(Artifact(tiny_artifacts[4]), torch.bfloat16, CPU, "reference", steps="chain").decoder
    other = from_artifact(Artifact(tiny_artifacts[8]), torch.bfloat16, CPU, "reference", steps="chain").decoder
    made.layers = [made.layers[0], other.layers[1]]
    said = steps.settle(made, "auto", torch.zeros(ROWS, 1), CudaDevice(CPU))
    assert said.startswith("a chain of kernels: layer 1's products are")
    assert made.whole is None
