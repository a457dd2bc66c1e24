"""A policy as robots use it: image and instruction in, one action in robot units out.

`load` opens an artifact, or a checkpoint as the reference, and checks an artifact's hashes and golden frames
before the first action. `Policy.act` keeps no state from one call to the next.
"""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edge_vla.artifact import MANIFEST, TOKENIZER, Artifact, GoldenFrame
from edge_vla.checkpoint import Arithmetic, open_checkpoint
from edge_vla.data import open_image
from edge_vla.errors import ArtifactError, BackendError, EdgeVLAWarning, NumericError, UsageError
from edge_vla.openvla import ActionTokens, PolicyConfig, Prompter, Statistics, as_rgb, preprocess
from edge_vla.runtime.decode import Decision, Loop, Stopwatch
from edge_vla.runtime.drafts import Draft
from edge_vla.runtime.kernels import AUTO, NATIVE
from edge_vla.runtime.network import Network, from_artifact, from_checkpoint
from edge_vla.runtime.session import Session

HeadChoice = Literal["actions", "full"]
DTYPES: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
VISIONS = (AUTO, NATIVE, "torch", "onnx")
PROMPTS = 32  # instructions whose ids are kept


@dataclass(frozen=True, eq=False)
class Action:
    """`values` (dims,) float64 in robot units, writable. `clipped[i]` marks a token that was no action id.

    `margins` are how far each token's logit led the second; `kernels` what ran, by weight format and part;
    `timing_ms` stages in their order, and `total`.
    """

    values: NDArray[np.float64]
    tokens: tuple[int, ...]
    unnorm_key: str
    margins: tuple[float, ...]
    clipped: tuple[bool, ...]
    kernels: Mapping[str, str]
    timing_ms: Mapping[str, float]
    passes: int = 0  # of the decoder after the prefill
    drafted: tuple[int, ...] = ()  # ids first proposed, where a session drafts

    def to_json(self) -> dict[str, Any]:
        return {
            "tokens": list(self.tokens),
            "action": self.values.tolist(),
            "unnorm_key": self.unnorm_key,
            "margins": [round(margin, 6) for margin in self.margins],
            "clipped": list(self.clipped),
            "kernels": dict(self.kernels),
            "passes": self.passes,
            "timing_ms": {stage: round(value, 3) for stage, value in self.timing_ms.items()},
        }


class Policy:
    """Made by `load`. Calls from several threads take turns."""

    def __init__(
        self, network: Network, config: PolicyConfig, tokenizer_json: str, head: HeadChoice = "actions"
    ) -> None:
        self.network, self.config = network, config
        self.prompter = Prompter(tokenizer_json, config.prompt, config.spec.decoder)
        self.tokens = ActionTokens(config.spec.action)
        self.loop = Loop(network)
        self.head = head
        self._turn = threading.Lock()
        self._prompt = lru_cache(PROMPTS)(self.prompter.__call__)

    def session(self, *, bitwise_exact: bool = True) -> Session:
        """A robot's own memory: see `Session`."""
        return Session(self, bitwise_exact=bitwise_exact)

    def act(
        self,
        image: Image.Image | NDArray[Any],
        instruction: str,
        unnorm_key: str | None = None,
        *,
        draft: Draft | None = None,
        bitwise_exact: bool = False,
    ) -> Action:
        """One action for an RGB image (Pillow, or uint8 H x W x 3) and an instruction.

        Raises UsageError for an ambiguous or unknown `unnorm_key` or an instruction that does not fit, FrameError
        for what is no image, NumericError rather than act on a non-finite number. `draft` and `bitwise_exact` are for
        `session`.
        """
        key = self.config.statistics.resolve(unnorm_key)
        watch = Stopwatch(self.network.device)
        prompt = self._prompt(instruction) if instruction.strip() else self.prompter(instruction)
        pixels = preprocess(as_rgb(image), self.config.image)
        watch.mark("preprocess")
        return self.decide(prompt, pixels, key, watch, draft=draft, bitwise_exact=bitwise_exact)

    def decide(
        self,
        prompt: tuple[int, ...],
        pixels: NDArray[np.float32],
        key: str,
        watch: Stopwatch | None = None,
        *,
        draft: Draft | None = None,
        bitwise_exact: bool = False,
    ) -> Action:
        """From finished prompt ids and pixel values (3 x towers, H, W) float32. Errors are those of `act`."""
        watch = watch or Stopwatch(self.network.device)
        statistics = self.config.statistics[key]
        self._check_length(prompt, statistics.dims)
        if not np.isfinite(pixels).all():
            raise NumericError("the pixel values hold a non-finite number: no action")
        with self._turn, torch.inference_mode():
            watch.mark("wait")
            if self.network.engine is not None:
                decision = self.network.engine.decide(
                    prompt, pixels, statistics.dims, draft, bitwise_exact=bitwise_exact
                )
                watch.mark("graph")
            else:
                decision = self._stages(prompt, pixels, statistics.dims, watch, draft, bitwise_exact)
        values = statistics.unnormalise(self.tokens.decode(decision.tokens))
        if not np.isfinite(values).all():
            raise NumericError(f"tokens {decision.tokens} give a non-finite action with {key!r}'s statistics")
        watch.mark("detokenise")
        return self._action(values, decision, key, watch)

    def warm(self, instructions: Iterable[str], unnorm_key: str | None = None) -> None:
        """Have ready what would else be made when a prompt of a new length first comes: the GPU engine's graphs."""
        dims = self.config.statistics[self.config.statistics.resolve(unnorm_key)].dims
        lengths = {len(self.prompter(instruction)) for instruction in instructions}
        if self.network.engine is not None and lengths:
            with self._turn:
                self.network.engine.warm(lengths, dims)

    def forced(self, image: Image.Image | NDArray[Any], instruction: str, tokens: Sequence[int]) -> torch.Tensor:
        """Hidden states (dims, width) before each of `tokens`, the earlier ones given: teacher forcing."""
        pixels = torch.from_numpy(preprocess(as_rgb(image), self.config.image))[None]
        with self._turn, torch.inference_mode():
            return self.loop.forced(self.prompter(instruction), self.network.vision(pixels), tuple(tokens))

    def use_statistics(self, raw: Mapping[str, Any]) -> None:
        """Replace the normalisation statistics, wholesale, by a `dataset_statistics.json` object."""
        with self._turn:
            self.config = dataclasses.replace(self.config, statistics=Statistics(raw, "the given statistics"))

    def _stages(
        self,
        prompt: tuple[int, ...],
        pixels: NDArray[np.float32],
        dims: int,
        watch: Stopwatch,
        draft: Draft | None,
        bitwise_exact: bool,
    ) -> Decision:
        """Vision and loop, one after the other."""
        embeddings = self.network.vision(torch.from_numpy(pixels)[None])
        watch.mark("vision")
        if self.head == "actions":
            return self.loop.greedy(prompt, embeddings, dims, watch.mark, draft=draft, bitwise_exact=bitwise_exact)
        return self.loop.unconstrained(prompt, embeddings, dims, watch.mark)

    def _action(self, values: NDArray[np.float64], decision: Decision, key: str, watch: Stopwatch) -> Action:
        return Action(
            values=values,
            tokens=decision.tokens,
            unnorm_key=key,
            margins=decision.margins,
            clipped=tuple(not self.tokens.is_action(token) for token in decision.tokens),
            kernels=self.network.kernels,
            timing_ms=watch.stop(),
            passes=decision.passes,
            drafted=decision.drafted,
        )

    def _check_length(self, prompt: tuple[int, ...], dims: int) -> None:
        rows, most = len(prompt) + self.config.spec.patches + dims, self.config.spec.decoder.max_positions
        if rows > most:
            raise UsageError(f"the prompt has {len(prompt)} tokens, {rows} rows with the image; at most {most} fit")


def load(
    path: str | Path,
    device: str = "auto",
    vision: str = AUTO,
    *,
    dtype: str = "bf16",
    head: HeadChoice = "actions",
    kernel: str = AUTO,
    adapters: Sequence[Path] = (),
    merge_arithmetic: Arithmetic = "fp32",
    check: bool = True,
) -> Policy:
    """Open an artifact directory, or a checkpoint (directory, Hub id, `random:NAME`) as the reference.

    `head="full"` decodes over the whole vocabulary as upstream does, from a checkpoint only. `check=False` skips
    hashing and golden frames, for a caller that has just done both. Raises UsageError for a choice that does not fit,
    CheckpointError or ArtifactError for damaged files, BackendError for what this machine lacks, ResourceError where
    memory does not hold it.
    """
    place, kind = _device(device), _choose("--dtype", dtype, DTYPES)
    _choose("--head", head, dict.fromkeys(get_args(HeadChoice)))
    _choose("--vision", vision, dict.fromkeys(VISIONS))
    if (Path(path) / MANIFEST).exists():
        if adapters or head != "actions":
            raise UsageError(f"{path} is an artifact: it has no full head and its adapters are merged already")
        return _open_artifact(Path(path), kind, place, vision, kernel, check)
    if vision not in (AUTO, "torch") or kernel != AUTO:
        raise UsageError(f"{path} is a checkpoint: --vision and --kernel choose among an artifact's backends")
    checkpoint = open_checkpoint(path, adapters, merge_arithmetic)
    return Policy(from_checkpoint(checkpoint, kind, place), checkpoint.config, checkpoint.tokenizer_json, head)


def replay(policy: Policy, directory: Path, golden: Sequence[GoldenFrame]) -> list[str]:
    """Act on each golden frame; return a line for each whose tokens differ at a near-tie.

    A token that differs where the recorded lead is more than rounding moves it raises ArtifactError.
    """
    notes = []
    for frame in golden:
        action = policy.act(open_image(directory / frame.image), frame.instruction, frame.unnorm_key)
        if action.tokens == frame.tokens:
            continue
        where = next(i for i, pair in enumerate(zip(action.tokens, frame.tokens, strict=True)) if pair[0] != pair[1])
        line = f"{frame.image}: dimension {where} gave {action.tokens[where]}, recorded {frame.tokens[where]}"
        if frame.margins[where] > frame.noise:
            raise ArtifactError(
                f"golden frame {line}, which led by {frame.margins[where]:.3f} where rounding moves {frame.noise:.3f}: "
                "a kernel or a weight is wrong on this machine; try --kernel reference"
            )
        notes.append(f"{line}, a near-tie ({frame.margins[where]:.3f}, rounding moves {frame.noise:.3f})")
    return notes


def _open_artifact(
    directory: Path, dtype: torch.dtype, device: torch.device, vision: str, kernel: str, check: bool
) -> Policy:
    artifact = Artifact(directory)
    if check:
        artifact.verify()
    network = from_artifact(artifact, dtype, device, vision, kernel)
    policy = Policy(network, artifact.manifest.config, artifact.text(TOKENIZER))
    for note in replay(policy, directory, artifact.manifest.golden) if check else ():
        warnings.warn(f"golden frame {note}", EdgeVLAWarning, 3)
    return policy


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendError("--device cuda: torch sees no CUDA device; check nvidia-smi and the torch build")
    return torch.device(name)


def _choose(option: str, value: str, table: Mapping[str, Any]) -> Any:
    if value not in table:
        raise UsageError(f"{option} {value}: choose one of {list(table)}")
    return table[value]
