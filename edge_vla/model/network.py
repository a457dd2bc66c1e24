"""The whole network as one module tree whose `state_dict` keys are the checkpoint's keys.

Knows tensors only. Tokens, prompts and units belong to `edge_vla.openvla`, the loop to `edge_vla.runtime`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_vla.model.decoder import Decoder
from edge_vla.model.vision import Projector, VisionBackbone
from edge_vla.spec import PolicySpec


class LanguageModel(nn.Module):
    def __init__(self, spec: PolicySpec) -> None:
        super().__init__()
        self.model = Decoder(spec.decoder)
        self.lm_head = nn.Linear(spec.decoder.width, spec.decoder.vocab_rows, bias=False)


class OpenVLA(nn.Module):
    def __init__(self, spec: PolicySpec) -> None:
        super().__init__()
        self.spec = spec
        self.vision_backbone = VisionBackbone(spec)
        self.projector = Projector(spec)
        self.language_model = LanguageModel(spec)

    def image_embeddings(self, pixels: Tensor) -> Tensor:
        """pixels (B, 3 x towers, H, W) -> (B, patches, decoder width)."""
        out: Tensor = self.projector(self.vision_backbone(pixels))
        return out

    def splice(self, text: Tensor, image: Tensor) -> Tensor:
        """Embeddings in reading order: the beginning-of-sequence token, the image, the rest of the prompt."""
        return torch.cat([text[:, :1], image, text[:, 1:]], dim=1)
