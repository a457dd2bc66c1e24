"""A peer: another engine's decoder between this package's image preprocessing, towers, projector and action tokens.

Only the decoder differs, so a difference in time or tokens is the decoder's. Decoding is upstream's: a prefill from
embeddings, then one pass a token through the Python model, over the whole vocabulary, stopping at end-of-sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from edge_vla.checkpoint import Checkpoint
from edge_vla.checkpoint.keys import vision_keys
from edge_vla.errors import NumericError
from edge_vla.openvla import ActionTokens, Prompter
from edge_vla.openvla.evaluation import Preprocess, pixels
from edge_vla.runtime import Action, Stopwatch
from edge_vla.runtime.vision.towers import torch_vision

Picture = Image.Image | NDArray[Any]


class PeerPolicy:
    """What the bench needs of `edge_vla.runtime.Policy`, around a transformers LlamaForCausalLM."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        llama: nn.Module,
        name: str,
        dtype: torch.dtype,
        device: torch.device,
        preprocess: Preprocess = "none",
    ) -> None:
        spec, source = checkpoint.config.spec, checkpoint.tensors
        self.config, self.llama, self.device, self.preprocess = checkpoint.config, llama, device, preprocess
        self.vision = torch_vision(spec, {key: source.load(key) for key in vision_keys(spec)}, dtype, device)
        self.prompter = Prompter(checkpoint.tokenizer_json, self.config.prompt, spec.decoder)
        self.tokens = ActionTokens(spec.action)
        self.kernels: Mapping[str, str] = {
            "decoder": name,
            "vision": "torch",
            "arithmetic": str(dtype).removeprefix("torch."),
            "device": device.type,
        }

    def act(self, image: Picture, instruction: str, unnorm_key: str | None = None) -> Action:
        """One action, its stages timed under the names that `Policy.act` uses."""
        key = self.config.statistics.resolve(unnorm_key)
        statistics = self.config.statistics[key]
        watch = Stopwatch(self.device)
        prompt = self.prompter(instruction)
        values = pixels(image, self.preprocess, self.config.image)
        watch.mark("preprocess")
        with torch.inference_mode():
            image_rows = self.vision(torch.from_numpy(values)[None])
            watch.mark("vision")
            decoded, logits = self._greedy(prompt, image_rows, statistics.dims, watch.mark)
            watch.mark("decode")
        # After an early stop upstream takes the last ids of prompt and decoded tokens together.
        tokens = tuple([*prompt, *decoded][-statistics.dims :])
        action = statistics.unnormalise(self.tokens.decode(tokens))
        watch.mark("detokenise")
        timing = watch.stop()
        return Action(
            values=action,
            tokens=tokens,
            unnorm_key=key,
            margins=_margins(logits),
            clipped=tuple(not self.tokens.is_action(token) for token in tokens),
            kernels=self.kernels,
            timing_ms=timing,
            preprocess=self.preprocess,
        )

    def forced(self, image: Picture, instruction: str, tokens: Sequence[int]) -> Tensor:
        """Hidden states (dims, width) before each of `tokens`, the earlier ones given: one pass over all rows."""
        prompt = self.prompter(instruction)
        with torch.inference_mode():
            rows = self.sequence(prompt, self.embed_image(image))
            if len(tokens) > 1:
                rows = torch.cat([rows, self._embed(tokens[:-1])], dim=1)
            decoder = self.llama.get_submodule("model")
            hidden: Tensor = decoder(inputs_embeds=rows, use_cache=False).last_hidden_state[0, -len(tokens) :]
        return hidden

    def embed_image(self, image: Picture) -> Tensor:
        """Image embeddings (1, patches, width)."""
        with torch.inference_mode():
            rows: Tensor = self.vision(torch.from_numpy(pixels(image, self.preprocess, self.config.image))[None])
        return rows

    def action_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., width) -> logits of the action ids (..., bins) float32, lowest id first."""
        action = self.config.spec.action
        with torch.inference_mode():
            return F.linear(hidden, self._head()[action.first : action.end]).float()

    @property
    def weight_bytes(self) -> Mapping[str, int]:
        """Bytes held now, by part. Some layers repack themselves at their first product."""
        table, head = self._embeddings().weight, self._head()
        decoder = sum(_held_bytes(module) for module in self.llama.modules()) - table.nbytes - head.nbytes
        vision = sum(tensor.nbytes for tensor in self.vision.state_dict().values())
        return {"vision": vision, "decoder": decoder, "head": head.nbytes, "embeddings": table.nbytes}

    def _greedy(
        self, prompt: tuple[int, ...], image_rows: Tensor, dims: int, mark: Callable[[str], None]
    ) -> tuple[list[int], list[Tensor]]:
        """At most `dims` ids and the logits (vocabulary,) that each was the best of."""
        out: Any = self.llama(inputs_embeds=self.sequence(prompt, image_rows), use_cache=True, logits_to_keep=1)
        mark("prefill")
        ids, logits = list[int](), list[Tensor]()
        while True:
            logits.append(out.logits[0, -1])
            best = logits[-1].argmax()
            ids.append(int(best))
            if ids[-1] == self.config.spec.decoder.eos or len(ids) == dims:
                return ids, logits
            out = self.llama(input_ids=best.view(1, 1), past_key_values=out.past_key_values, use_cache=True)

    def sequence(self, prompt: tuple[int, ...], image_rows: Tensor) -> Tensor:
        """Embeddings (1, rows, width) in reading order: the first token, the image, the rest of the prompt."""
        text = self._embed(prompt)
        return torch.cat([text[:, :1], image_rows.to(text.dtype), text[:, 1:]], dim=1)

    def _embed(self, ids: Sequence[int]) -> Tensor:
        rows: Tensor = self._embeddings()(torch.tensor([list(ids)], device=self.device))
        return rows

    def _embeddings(self) -> nn.Embedding:
        table = self.llama.get_submodule("model.embed_tokens")
        assert isinstance(table, nn.Embedding)
        return table

    def _head(self) -> Tensor:
        weight: Any = self.llama.get_submodule("lm_head").weight
        assert isinstance(weight, Tensor)
        return weight


def _margins(logits: Sequence[Tensor]) -> tuple[float, ...]:
    """Top-1 minus top-2 logit of each row."""
    top = [row.float().topk(2).values for row in logits]
    margins = tuple(float(pair[0] - pair[1]) for pair in top)
    if not all(map(math.isfinite, margins)):
        raise NumericError("the peer's network produced a non-finite number: no action")
    return margins


def _held_bytes(module: Any) -> int:
    """Bytes of a module's own tensors, without its children's, and those that bitsandbytes keeps beside a weight."""
    state, scales = getattr(getattr(module, "weight", None), "quant_state", None), getattr(module, "state", None)
    beside = [getattr(state, "absmax", None), getattr(state, "code", None)]
    beside += [getattr(module.weight, "SCB", None), getattr(scales, "SCB", None)] if scales is not None else []
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return sum(tensor.nbytes for tensor in [*own, *beside] if tensor is not None)
