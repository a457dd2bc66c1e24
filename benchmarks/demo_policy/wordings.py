"""Instructions held out of the demo policy's training, and every word that its tokenizer must know.

A held-out sentence is made of words that occur in training, in a sentence that does not.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from edge_vla.demo.instructions import TEMPLATES
from edge_vla.demo.world import BLOCK_COLOURS, PLATE_COLOURS, TaskKind

Wording = Literal["trained", "held out"]

HELD_OUT: Final[Mapping[TaskKind, Sequence[str]]] = {
    "pick": (
        "grab the {block} cube",
        "lift up the {block} cube",
        "take the {block} block and raise it",
    ),
    "put": (
        "place the {block} block on the {plate} dish",
        "set the {block} block onto the {plate} plate",
        "move the {block} cube onto the {plate} dish",
    ),
}
WORDINGS: Final[Mapping[Wording, Mapping[TaskKind, Sequence[str]]]] = {"trained": TEMPLATES, "held out": HELD_OUT}


def vocabulary() -> list[str]:
    """Every word of every template and colour, sorted: what the tokenizer must know whole."""
    templates = [template for kinds in WORDINGS.values() for kind in kinds.values() for template in kind]
    words = {word for template in templates for word in template.split() if "{" not in word}
    return sorted({*words, *BLOCK_COLOURS, *PLATE_COLOURS})
