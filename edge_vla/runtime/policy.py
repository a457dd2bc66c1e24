"""A policy as robots use it: image and instruction in, one action in robot units out.

`edge_vla.load` makes one. `Policy.act` keeps no state from one call to the next. Knows prompts, pictures, statistics
and actions; which engine decides the tokens is not its business.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edge_vla.arguments import typed
from edge_vla.data import open_image
from edge_vla.errors import NumericError, UsageError
from edge_vla.openvla import ActionStatistics, ActionTokens, PolicyConfig, Prompter, Statistics
from edge_vla.openvla.evaluation import Preprocess, chosen, pixels
from edge_vla.runtime.decode import checked
from edge_vla.runtime.network import Network
from edge_vla.runtime.session import Session
from edge_vla.runtime.types import Action, Draft, Engine

PROMPTS = 32  # instructions whose ids are kept


class Stopwatch:
    """Milliseconds between marks, read after the device has finished this thread's work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: dict[str, float] = {}
        self._start = self._last = self._now()

    def mark(self, stage: str) -> None:
        now = self._now()
        self.laps[stage] = (now - self._last) * 1e3
        self._last = now

    def stop(self) -> dict[str, float]:
        """All laps, and their total."""
        return {**self.laps, "total": (self._last - self._start) * 1e3}

    def _now(self) -> float:
        if self.device.type == "cuda":
            # not the whole device: that would end a capture which another thread is making
            torch.cuda.current_stream(self.device).synchronize()
        return time.perf_counter()


class Policy:
    """An engine with OpenVLA's conventions around it. Calls from several threads take turns.

    `preprocess` names what an evaluation script does to every image first. As a context manager it closes at the end.
    """

    def __init__(
        self, engine: Engine, config: PolicyConfig, tokenizer_json: str, preprocess: Preprocess = "none"
    ) -> None:
        self._engine: Engine | None = engine
        self.config, self.preprocess = config, chosen(preprocess)
        self.prompter = Prompter(tokenizer_json, config.prompt, config.spec.decoder)
        self.tokens = ActionTokens(config.spec.action)
        self._turn = threading.Lock()
        self._prompt = lru_cache(PROMPTS)(self.prompter.__call__)

    def __repr__(self) -> str:
        keys = list(self.unnorm_keys)
        shown = f"{len(keys)} data sets" if len(keys) > 3 else f"unnorm_keys={keys}"
        if self._engine is None:
            return f"<edge_vla.Policy, closed, {shown}>"
        kernels = ", ".join(f"{part} {name}" for part, name in self.network.kernels.items())
        return f"<edge_vla.Policy: {kernels}; {shown}>"

    def __enter__(self) -> Policy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the weights and the device's memory. What is asked afterwards is refused. May be repeated."""
        with self._turn:
            self._engine = None
        torch.cuda.empty_cache()  # nothing to do where CUDA was not used

    @property
    def engine(self) -> Engine:
        """What decides the tokens. UsageError once the policy is closed."""
        if self._engine is None:
            raise UsageError("this policy is closed: open it again with edge_vla.load")
        return self._engine

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def unnorm_keys(self) -> tuple[str, ...]:
        """The data sets whose statistics turn tokens into robot units. `act` needs one, unless there is only one."""
        return tuple(self.config.statistics)

    @property
    def network(self) -> Network:
        """The parts of the network, and which kernels run them."""
        return self.engine.network

    @typed()
    def session(self, *, bitwise_exact: bool = True) -> Session:
        """A robot's own memory of its last action: see `Session`."""
        if self.engine.full_vocabulary:
            raise UsageError("a session decodes over the action ids: load the policy with --head actions")
        return Session(self.act, self.dims, self.config.spec.action.first, bitwise_exact=bitwise_exact)

    @typed("image")
    def act(
        self,
        image: Image.Image | NDArray[Any],
        instruction: str,
        unnorm_key: str | None = None,
        *,
        preprocess: Preprocess | None = None,
        draft: Draft | None = None,
        bitwise_exact: bool = False,
    ) -> Action:
        """One action for an RGB image (Pillow, or uint8 H x W x 3) and an instruction.

        `action.values` are (dims,) float64 in the units of `unnorm_key`'s data set; `action.named` has their names.
        `preprocess` stands for this call in the place of the policy's own. Raises UsageError for one that is not
        known, an ambiguous or unknown `unnorm_key` or an instruction that does not fit, FrameError for an image that
        cannot be read, NumericError instead of acting on a non-finite number. `draft` and `bitwise_exact` are for
        `Session`.
        """
        key = self.config.statistics.resolve(unnorm_key)
        script = self.preprocess if preprocess is None else chosen(preprocess)
        watch = Stopwatch(self.network.device)
        prompt = self._prompt(instruction) if instruction.strip() else self.prompter(instruction)
        values = pixels(image, script, self.config.image)
        watch.mark("preprocess")
        action = self.decide(prompt, values, key, watch, draft=draft, bitwise_exact=bitwise_exact)
        return action if script == "none" else dataclasses.replace(action, preprocess=script)

    @typed()
    def act_many(
        self,
        images: Iterable[Any],
        instruction: str | Sequence[str],
        unnorm_key: str | None = None,
    ) -> Iterator[Action]:
        """An action for each image (or path of one), as it is asked for; one instruction for all, or one for each.

        Each image stands for itself, as with `act`. Raises as `act`, and UsageError if the instructions run out.
        """
        given = itertools.repeat(instruction) if isinstance(instruction, str) else instruction
        words: Iterator[str | None] = itertools.chain(given, itertools.repeat(None))
        return (self._act_on(image, one, unnorm_key) for image, one in zip(images, words, strict=False))

    def _act_on(self, image: Any, instruction: str | None, unnorm_key: str | None) -> Action:
        if instruction is None:
            raise UsageError("act_many: fewer instructions than images: give one for all, or one for each")
        opened = open_image(Path(image)) if isinstance(image, str | Path) else image
        return self.act(opened, instruction, unnorm_key)

    def decide(
        self,
        prompt: tuple[int, ...],
        pixels: NDArray[np.float32],
        key: str,
        watch: Stopwatch | None = None,
        *,
        draft: Draft | None = None,
        bitwise_exact: bool = False,
        statistics: ActionStatistics | None = None,
    ) -> Action:
        """`act`, from finished prompt ids and pixel values (3 x towers, H, W) float32 on.

        `statistics` are `key`'s, unless the caller keeps its own.
        """
        watch = watch or Stopwatch(self.network.device)
        statistics = self.config.statistics[key] if statistics is None else statistics
        self._check_length(prompt, statistics.dims)
        if not np.isfinite(pixels).all():
            raise NumericError("the pixel values hold a non-finite number: no action")
        if draft is not None:
            draft = checked(draft, statistics.dims, self.config.spec.action.end - self.config.spec.action.first)
        with self._turn, torch.inference_mode():
            watch.mark("wait")
            decision = self.engine.decide(
                prompt, pixels, statistics.dims, draft, bitwise_exact=bitwise_exact, mark=watch.mark
            )
        values = statistics.unnormalise(self.tokens.decode(decision.tokens))
        if not np.isfinite(values).all():
            raise NumericError(f"tokens {decision.tokens} give a non-finite action with {key!r}'s statistics")
        watch.mark("detokenise")
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

    @typed()
    def dims(self, unnorm_key: str | None = None) -> int:
        """How many numbers an action has."""
        return self.config.statistics[self.config.statistics.resolve(unnorm_key)].dims

    @typed()
    def warm(self, instructions: Iterable[str], unnorm_key: str | None = None, *, longest: int = 0) -> None:
        """Prepare what the first action of a new prompt length would wait for: the GPU engine's graphs.

        And room for prompts of `longest` tokens, or as many as fit: making it later would drop every graph.
        """
        words = list(instructions)
        if not all(isinstance(one, str) for one in words):
            raise UsageError("warm: instructions must be a list of str, got one that holds something else")
        lengths, dims = {len(self.prompter(instruction)) for instruction in words}, self.dims(unnorm_key)
        longest = min(longest, self.config.spec.decoder.max_positions - self.config.spec.patches - dims)
        if lengths or longest > 0:
            with self._turn:
                self.engine.warm(lengths, dims, longest=longest)

    def forced(self, image: Image.Image | NDArray[Any], instruction: str, tokens: Sequence[int]) -> torch.Tensor:
        """Teacher forcing: hidden states (dims, width) before each of `tokens`, the earlier ones given."""
        values = torch.from_numpy(pixels(image, self.preprocess, self.config.image))[None]
        with self._turn, torch.inference_mode():
            return self.engine.forced(self.prompter(instruction), self.network.vision(values), tuple(tokens))

    @typed("raw")
    def use_statistics(self, raw: Mapping[str, Any]) -> None:
        """Replace all normalisation statistics by those of a `dataset_statistics.json` object."""
        with self._turn:
            self.config = dataclasses.replace(self.config, statistics=Statistics(raw, "the given statistics"))

    def _check_length(self, prompt: tuple[int, ...], dims: int) -> None:
        rows, most = len(prompt) + self.config.spec.patches + dims, self.config.spec.decoder.max_positions
        if rows > most:
            raise UsageError(f"the prompt has {len(prompt)} tokens, {rows} rows with the image; at most {most} fit")
