"""What only a GPU can show: replays equal the recorded work, memory stays bounded, errors are those torch raises.

python -m pytest -m gpu tests/runtime/gpu
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

import edge_vla
from edge_vla.artifact import TOKENIZER, Artifact
from edge_vla.errors import EdgeVLAError, ResourceError
from edge_vla.runtime.engine import StagedEngine
from edge_vla.runtime.gpu.config import Activations, Steps
from edge_vla.runtime.gpu.engine import PIECES
from edge_vla.runtime.gpu.graph import Direct, Recorder
from edge_vla.runtime.gpu.load import SPARE, from_artifact
from edge_vla.runtime.policy import Policy
from tests.runtime.gpu.engines import WORDS, engine, guess, pixels

pytestmark = pytest.mark.gpu
DIMS = 7
CLEAR = 0.05  # logits: twice what rounding moves a margin of these networks

# An index out of range on the device, then another action: both must be refused, the second without touching CUDA.
BROKEN = """
import sys, torch, edge_vla
from tests.runtime.gpu.engines import WORDS, engine, pixels
from edge_vla.errors import DeviceLostError
made = edge_vla.load(sys.argv[1], "cuda", check=False)
prompt, image = made.prompter(WORDS[0]), pixels(made, 0)
engine(made).decide(prompt, image, 7)
def break_it(pixels):
    return torch.zeros(4, device="cuda")[torch.tensor([1 << 30], device="cuda")].sum().item()
engine(made).vision = break_it
engine(made).graphs.clear()
for _ in range(2):
    try:
        engine(made).decide(prompt, image, 7)
    except DeviceLostError as error:
        print("refused:", "restart the process" in str(error))
"""


@pytest.fixture(autouse=True, scope="module")
def _a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")


def on_gpu(
    directory: Path, backend: str = "triton", activations: Activations = "16", record: Recorder | None = None
) -> Policy:
    artifact = Artifact(directory)
    kind, device = "triton" if backend == "triton" else "reference", torch.device("cuda")
    engine = from_artifact(artifact, torch.bfloat16, device, kind, activations, record=record)  # type: ignore[arg-type]
    return Policy(engine, artifact.manifest.config, artifact.text(TOKENIZER))


@pytest.mark.parametrize("activations", ["16", "8"])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_tokens_of_the_reference(bits: int, activations: Activations, tiny_artifacts: Mapping[int, Path]) -> None:
    made, slow = (on_gpu(tiny_artifacts[bits], backend, activations) for backend in ("triton", "reference"))
    for index in range(8):
        prompt = made.prompter(WORDS[index % len(WORDS)])
        got, expected = (engine(one).decide(prompt, pixels(one, index), DIMS) for one in (made, slow))
        pairs = zip(got.tokens, expected.tokens, expected.margins, strict=True)
        differing = [margin for one, two, margin in pairs if one != two]
        assert not differing or differing[0] < CLEAR


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_steps_in_one_launch(bits: int, tiny_artifacts: Mapping[int, Path]) -> None:
    """By name, so that a device which refuses says why; loading has compared it with the chain already."""
    artifact, device = Artifact(tiny_artifacts[bits]), torch.device("cuda")
    whole, chain = (from_artifact(artifact, torch.bfloat16, device, steps=one) for one in get_args(Steps)[1:])
    made = on_gpu(tiny_artifacts[bits])
    assert made.network.kernels["decode steps"].startswith(("one launch", "a chain of kernels: faster on this device"))
    for index in range(8):
        prompt, image = made.prompter(WORDS[index % len(WORDS)]), pixels(made, index)
        got, expected = (one.decide(prompt, image, DIMS) for one in (whole, chain))
        pairs = zip(got.tokens, expected.tokens, expected.margins, strict=True)
        differing = [margin for one, two, margin in pairs if one != two]
        assert not differing or differing[0] < CLEAR
    assert not whole.decoder.gave_up()


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_replay_is_the_work_itself(bits: int, tiny_artifacts: Mapping[int, Path]) -> None:
    """Bit for bit, over changing pictures, prompts and lengths, with more lengths than graphs are kept."""
    made, direct = on_gpu(tiny_artifacts[bits]), on_gpu(tiny_artifacts[bits], record=Direct())
    engine(made).graphs.most = 2
    for index in range(12):
        prompt = made.prompter(" ".join(WORDS[: 1 + index % 3]))
        got, expected = (engine(one).decide(prompt, pixels(one, index), DIMS) for one in (made, direct))
        assert (got.tokens, got.margins) == (expected.tokens, expected.margins)


def test_a_replay_uses_nothing_that_others_free(tiny_artifacts: Mapping[int, Path]) -> None:
    """cuBLAS workspaces above all: a graph is let go, all that can be freed is freed, and its memory overwritten."""
    made, direct = on_gpu(tiny_artifacts[16]), on_gpu(tiny_artifacts[16], record=Direct())
    shorter, longer = (made.prompter(words) for words in (WORDS[0], " ".join(WORDS)))
    engine(made).warm([len(shorter), len(longer)], DIMS, ["action"])
    engine(made).graphs._replays.popitem(last=False)  # the shorter one's, as when another needs its place
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    other = [torch.full((8 << 20,), torch.nan, device="cuda") for _ in range(8)]
    for index in range(4):
        got, expected = (engine(one).decide(longer, pixels(one, index), DIMS) for one in (made, direct))
        assert (got.tokens, got.margins) == (expected.tokens, expected.margins)
    assert len(engine(made).graphs) == 1, "it was replayed, not recorded again"
    assert all(bool(tensor.isnan().all()) for tensor in other), "and wrote nothing there"


@pytest.mark.parametrize("activations", ["16", "8"])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_draft_never_changes_a_bit(bits: int, activations: Activations, tiny_artifacts: Mapping[int, Path]) -> None:
    made = on_gpu(tiny_artifacts[bits], activations=activations)
    first = made.config.spec.action.first
    for index in range(4):
        prompt, image = made.prompter(WORDS[0]), pixels(made, index)
        plain = engine(made).decide(prompt, image, DIMS)
        for wrong in range(DIMS + 1):
            guessed = [*(token - first for token in plain.tokens[:wrong]), *[0] * (DIMS - wrong)]
            drafted = engine(made).decide(prompt, image, DIMS, guess(guessed), bitwise_exact=True)
            assert (drafted.tokens, drafted.margins) == (plain.tokens, plain.margins)


def test_cuda_uses_the_engine_by_default(tiny_artifacts: Mapping[int, Path]) -> None:
    made = edge_vla.load(tiny_artifacts[4], "cuda")
    assert made.network.kernels["engine"] == "triton, one CUDA graph an action"
    slow = edge_vla.load(tiny_artifacts[4], "cuda", kernel="reference")
    assert isinstance(slow.engine, StagedEngine)
    image = np.full((40, 40, 3), 90, np.uint8)
    assert len(made.act(image, WORDS[0]).tokens) == len(slow.act(image, WORDS[0]).tokens)


def test_loading_takes_the_weights_and_little_more(tiny_artifacts: Mapping[int, Path]) -> None:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    made = on_gpu(tiny_artifacts[4])
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= Artifact(tiny_artifacts[4]).device_bytes + SPARE
    held = sum(size for name, size in made.network.weight_bytes.items() if "host" not in name)
    assert torch.cuda.memory_allocated() - before <= 1.2 * held + 2e6, "no second copy stays"


def test_a_thousand_actions_take_no_more_memory_than_ten(tiny_artifacts: Mapping[int, Path]) -> None:
    made = on_gpu(tiny_artifacts[4])
    prompt, image = made.prompter(WORDS[0]), pixels(made, 0)
    engine(made).warm([len(prompt)], DIMS)
    held = list[int]()
    for count in (10, 1000):
        for _ in range(count):
            engine(made).decide(prompt, image, DIMS)
        held.append(torch.cuda.memory_allocated())
    assert held[0] == held[1]


def test_a_second_thread_disturbs_no_recording(tiny_artifacts: Mapping[int, Path]) -> None:
    """One acts, and is timed, while the other records graphs for new prompt lengths."""
    made, image = on_gpu(tiny_artifacts[4]), np.full((40, 40, 3), 90, np.uint8)
    made.warm([WORDS[0]])
    expected, stop, wrong = made.act(image, WORDS[0]).tokens, threading.Event(), list[object]()

    def act() -> None:
        try:
            while not stop.is_set():
                wrong.extend(tokens for tokens in [made.act(image, WORDS[0]).tokens] if tokens != expected)
        except EdgeVLAError as error:
            wrong.append(error)

    beside = threading.Thread(target=act)
    beside.start()
    try:
        for words in range(2, 9):
            made.act(image, " ".join(["cup"] * words))
    finally:
        stop.set()
        beside.join()
    assert not wrong


def test_memory_that_runs_out_at_load_and_at_capture(tiny_artifacts: Mapping[int, Path]) -> None:
    """A device filled by a ballast, and then with free memory again."""
    made = on_gpu(tiny_artifacts[4])
    prompt, image = made.prompter(WORDS[0]), pixels(made, 0)
    torch.cuda.empty_cache()
    ballast, (size, _) = list[torch.Tensor](), torch.cuda.mem_get_info()
    try:
        while size >= 1 << 20:  # what is free is seldom free in one piece
            try:
                ballast.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            except torch.OutOfMemoryError:
                size //= 2
        with pytest.raises(ResourceError, match="free"):
            on_gpu(tiny_artifacts[4])
        with pytest.raises(ResourceError, match="out of memory"):
            engine(made).warm(range(20, 180, 20), DIMS, PIECES)
    finally:
        ballast.clear()
        torch.cuda.empty_cache()
    assert len(engine(made).decide(prompt, image, DIMS).tokens) == DIMS


def test_a_broken_cuda_refuses_to_act(tiny_artifacts: Mapping[int, Path]) -> None:
    command = [sys.executable, "-c", BROKEN, str(tiny_artifacts[4])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert done.stdout.split("\n")[:2] == ["refused: True", "refused: True"], done.stderr
