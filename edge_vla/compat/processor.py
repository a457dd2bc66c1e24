"""OpenVLA's processor: a prompt and a picture in, tensors by name out, with the same ids and the same pixel values.

Knows a tokenizer and how pictures are prepared; needs no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edge_vla.compat.arguments import Place
from edge_vla.errors import UsageError
from edge_vla.openvla import ImageContract, Prompter, as_rgb, preprocess

Picture = Image.Image | NDArray[Any]


class Inputs(dict[str, Tensor]):
    """Tensors by name or as attributes, moved together."""

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f"the inputs have no {name!r}: {list(self)}") from error

    def to(self, *place: Any, **options: Any) -> Inputs:
        """As `BatchFeature.to`: these tensors to the device, floating-point ones also to the dtype."""
        asked = Place.of(*place, **options)
        for key, value in self.items():
            self[key] = value.to(asked.device, asked.dtype if value.is_floating_point() else None)
        return self


class TokenizerFace:
    """What scripts ask a tokenizer for; prompts go through the policy's own."""

    model_input_names = ("input_ids", "attention_mask")
    padding_side = "right"

    def __init__(self, prompter: Prompter, eos: int) -> None:
        self._prompter, self._tokenizer = prompter, prompter.tokenizer
        self.bos_token_id, self.eos_token_id = prompter.bos, eos
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        size: int = self._tokenizer.get_vocab_size()
        return size

    def __call__(self, text: str | Sequence[str], **options: object) -> Inputs:
        """(1, T) int64 `input_ids` and `attention_mask`, as with `return_tensors="pt"`."""
        special = bool(options.pop("add_special_tokens", True))
        ids = torch.tensor([self.encode(one_of("text", text), special)])
        check_tensors_asked(options)
        check_length(options, ids.shape[1])
        return Inputs(input_ids=ids, attention_mask=torch.ones_like(ids))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if add_special_tokens:
            return list(self._prompter.encode(text))
        plain: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return plain

    def decode(self, token_ids: Tensor | Sequence[int] | int, skip_special_tokens: bool = False, **_: object) -> str:
        ids = token_ids.tolist() if isinstance(token_ids, Tensor) else token_ids
        text: str = self._tokenizer.decode([ids] if isinstance(ids, int) else list(ids), skip_special_tokens)
        return text

    def batch_decode(self, sequences: Tensor | Sequence[Any], skip_special_tokens: bool = False) -> list[str]:
        return [self.decode(one, skip_special_tokens) for one in sequences]

    def convert_tokens_to_ids(self, token: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(token)
        return found


class ImageFace:
    """What scripts ask an image processor for."""

    model_input_names = ("pixel_values",)

    def __init__(self, contract: ImageContract) -> None:
        self.contract = contract
        self.size = {"height": contract.size, "width": contract.size}

    def apply_transform(self, img: Picture) -> Tensor:
        """One picture -> (3 x towers, size, size) float32."""
        return torch.from_numpy(preprocess(as_rgb(img), self.contract))

    def __call__(self, images: Picture | Sequence[Picture], return_tensors: object = "pt") -> Inputs:
        check_tensors_asked({"return_tensors": return_tensors})
        pictures: Sequence[Picture] = images if isinstance(images, (list, tuple)) else [images]  # type: ignore[list-item]
        return Inputs(pixel_values=torch.stack([self.apply_transform(one) for one in pictures]))


class Processor:
    def __init__(self, prompter: Prompter, contract: ImageContract, eos: int) -> None:
        self.tokenizer, self.image_processor = TokenizerFace(prompter, eos), ImageFace(contract)

    def __call__(
        self, text: str | Sequence[str], images: Picture | Sequence[Picture] | None = None, **options: object
    ) -> Inputs:
        """A full prompt and one image -> input_ids and attention_mask (1, T), pixel_values (1, C, H, W) float32.

        Either may be a list of one. `padding`, `truncation`, `max_length` and `return_tensors` may ask for what comes
        out anyway; UsageError for more.
        """
        if images is None:
            raise UsageError("the processor got no images: give processor(prompt, image)")
        options.setdefault("return_tensors", "pt")
        tokens = self.tokenizer(text, **options)
        return Inputs(**tokens, pixel_values=self.image_processor.apply_transform(one_of("images", images))[None])

    def decode(self, token_ids: Tensor | Sequence[int] | int, skip_special_tokens: bool = False) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens)

    def batch_decode(self, sequences: Tensor | Sequence[Any], skip_special_tokens: bool = False) -> list[str]:
        return self.tokenizer.batch_decode(sequences, skip_special_tokens)


def one_of(name: str, given: Any) -> Any:
    """The thing, or the only one of a list; UsageError for a batch, which `predict_action` does not take either."""
    if not isinstance(given, (list, tuple)):
        return given
    if len(given) != 1:
        raise UsageError(f"{name}: got a list of {len(given)}, expected one: call it once per image")
    return given[0]


def check_tensors_asked(options: dict[str, object]) -> None:
    """Take `return_tensors` out, if it asks for torch's or nothing."""
    kind = options.pop("return_tensors", None)
    if getattr(kind, "value", kind) not in ("pt", None):
        raise UsageError(f"return_tensors={kind}: the tensors are torch's; pass return_tensors='pt'")


def check_length(options: dict[str, object], length: int) -> None:
    """UsageError for an option that would change a prompt of so many tokens, or is not known."""
    most = options.pop("max_length", None)
    padding, truncation = options.pop("padding", False), options.pop("truncation", None)
    padding, truncation = getattr(padding, "value", padding), getattr(truncation, "value", truncation)
    if truncation not in (None, False, "do_not_truncate") and isinstance(most, int) and most < length:
        raise UsageError(f"truncation to max_length={most}: the prompt has {length} tokens and must stay whole")
    if padding == "max_length" and most != length:
        raise UsageError(f"padding to max_length={most}: the prompt has {length} tokens; pass padding=False")
    if unknown := sorted(options):
        raise UsageError(f"the processor got {unknown[0]}: it takes text, images, padding, truncation, max_length")
