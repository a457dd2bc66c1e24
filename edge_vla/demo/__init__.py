"""A small real policy and its tabletop world: what the project's claims are measured on when no weights are at hand."""

from pathlib import Path
from typing import Final

POLICY: Final = Path(__file__).parent / "policy"
BASE: Final = POLICY / "base"  # a Hugging Face OpenVLA checkpoint, trained on world 1
ADAPTER: Final = POLICY / "adapter"  # a peft LoRA for world 2
