"""`random:NAME`: seeded weights at true shapes, made tensor by tensor, so that memory, size and speed can be
measured by anyone without the weights. Nothing is on disk; the same name gives the same bits.

The tokenizer is a stand-in with Llama-like prompt lengths, not Llama's. What such a policy does means nothing.
"""

from __future__ import annotations

import itertools
import math
import re
import string
import zlib
from collections.abc import KeysView
from typing import Final

import torch
from tokenizers import Tokenizer, models, normalizers, processors
from torch import Tensor

from edge_vla.checkpoint.keys import Key, key_table
from edge_vla.errors import UsageError
from edge_vla.openvla.config import CONSTANTS, PolicyConfig
from edge_vla.openvla.image import ImageContract
from edge_vla.openvla.prompt import SPACE_PIECE, PromptStyle
from edge_vla.openvla.statistics import Statistics
from edge_vla.spec import OPENVLA_7B, TINY, PolicySpec
from edge_vla.suggestions import choose

SPECS: Final = {"openvla-7b": OPENVLA_7B, "openvla-tiny": TINY}
STATISTICS: Final = {
    "random": {
        "action": {
            "q01": [-0.03] * 3 + [-0.1] * 3 + [0.0],
            "q99": [0.03] * 3 + [0.1] * 3 + [1.0],
            "mask": [True] * 6 + [False],
        }
    }
}
WORDS: Final = re.findall(
    r"\w+",
    "in what action should the robot take to out pick up put place move open close push pull turn on off slide lift "
    "drop grasp stack left right front back top bottom middle near from into and it of with between next red green "
    "blue yellow orange black white pink brown silver block cube bowl plate cup mug can bottle spoon fork knife towel "
    "cloth pot pan lid drawer cabinet door stove table basket box sink rack soup sauce cheese butter milk juice "
    "carrot apple banana egg",
)


class RandomTensors:
    """Matrices of variance 1 / fan-in; norms one; biases and positions small. Each keyed by its own name.

    Made on `device`; another kind of device makes other numbers.
    """

    def __init__(self, name: str, spec: PolicySpec, device: torch.device | None = None) -> None:
        self.name, self.device = name, device or torch.device("cpu")
        self.table: dict[str, Key] = key_table(spec)

    def __str__(self) -> str:
        return f"random:{self.name}"

    def names(self) -> KeysView[str]:
        return self.table.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.table[name].shape

    def load(self, name: str) -> Tensor:
        shape = self.shape(name)
        if "norm" in name and name.endswith("weight"):
            return torch.ones(shape, dtype=torch.bfloat16, device=self.device)
        generator = torch.Generator(self.device).manual_seed(zlib.crc32(name.encode()))
        matrix = name.endswith(".weight") and len(shape) > 1 and "embed_tokens" not in name
        deviation = 1 / math.sqrt(math.prod(shape[1:])) if matrix else 0.02
        return (torch.randn(shape, generator=generator, device=self.device) * deviation).to(torch.bfloat16)


def open_random(name: str) -> tuple[RandomTensors, PolicyConfig, str]:
    """Tensors, config and tokenizer.json of the policy called `name`."""
    if name not in SPECS:
        raise UsageError(f"random:{name}: {choose('random:' + name, ['random:' + known for known in SPECS])}")
    spec = SPECS[name]
    constants = [CONSTANTS[tower.layer_scale] for tower in spec.towers]
    image = ImageContract(spec.image_size, "resize-naive", *map(tuple, zip(*constants, strict=True)))
    config = PolicyConfig(spec, PromptStyle.OPENVLA, image, Statistics(STATISTICS, f"random:{name}"))
    return RandomTensors(name, spec), config, stand_in_tokenizer(spec)


def stand_in_tokenizer(spec: PolicySpec) -> str:
    """tokenizer.json: common words whole, everything else in letter pairs, letters or bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE_PIECE]
    pieces += [*string.ascii_lowercase, *string.punctuation]
    pieces += [SPACE_PIECE + word for word in (*WORDS, *(word.capitalize() for word in WORDS[:4]))] + ["Out"]
    pieces += ["".join(pair) for pair in itertools.product(string.ascii_lowercase, repeat=2)]
    pieces = list(dict.fromkeys(pieces))[: spec.action.first]
    # A flat cost a piece makes the fewest pieces win; bytes cost more, so they are the last resort.
    vocabulary = [(piece, -20.0 if piece.startswith("<0x") and piece != "<0x0A>" else -1.0) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE_PIECE), normalizers.Replace(" ", SPACE_PIECE)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", spec.decoder.bos)]
    )
    return str(tokenizer.to_str())
