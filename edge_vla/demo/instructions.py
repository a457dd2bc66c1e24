"""What people say to the demo robot: templates to train on, templates kept aside, and the token budget.

Knows words only. A wording kept aside is made of words that occur in training, in a sentence that does not.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from edge_vla.demo.world import BLOCK_COLOURS, PLATE_COLOURS, Task

Wording = Literal["trained", "kept aside"]

TEMPLATES: Final[Mapping[Wording, Mapping[str, Sequence[str]]]] = {
    "trained": {
        "pick": (
            "pick up the {block} block",
            "grab the {block} block",
            "lift the {block} block",
            "take the {block} cube",
            "pick the {block} cube up",
            "grasp the {block} block and lift it",
            "raise the {block} cube",
            "get the {block} block",
        ),
        "put": (
            "put the {block} block on the {plate} plate",
            "place the {block} cube on the {plate} plate",
            "move the {block} block to the {plate} plate",
            "set the {block} cube on the {plate} dish",
            "put the {block} cube onto the {plate} dish",
            "drop the {block} block on the {plate} dish",
        ),
    },
    "kept aside": {
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
    },
}


def phrase(task: Task, choice: int, wording: Wording = "trained") -> str:
    """The instruction for a task; `choice` picks the template, modulo their number."""
    templates = TEMPLATES[wording][task.name]
    return templates[choice % len(templates)].format(block=task.block, plate=task.plate)


def vocabulary() -> list[str]:
    """Every word of every template and colour, sorted: what the tokenizer must know whole."""
    words = {*BLOCK_COLOURS, *PLATE_COLOURS}
    for kinds in TEMPLATES.values():
        for templates in kinds.values():
            for template in templates:
                words.update(word for word in template.split() if "{" not in word)
    return sorted(words)
