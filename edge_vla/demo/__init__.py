"""A small real policy and its tabletop world: what this project measures itself on where no OpenVLA weights are."""

from pathlib import Path
from typing import Final

POLICY: Final = Path(__file__).parent / "policy"
BASE: Final = POLICY / "base"  # a Hugging Face OpenVLA checkpoint, trained on world 1
ADAPTER: Final = POLICY / "adapter"  # a peft LoRA for world 2


def statistics_key(world: int) -> str:
    """The `unnorm_key` of a world's action statistics."""
    return f"edge_vla_demo_world{world}"
