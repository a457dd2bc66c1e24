"""The instructions that the demo policy was trained on, as templates."""

from collections.abc import Mapping, Sequence
from typing import Final

from edge_vla.demo.world import Task, TaskKind

TEMPLATES: Final[Mapping[TaskKind, Sequence[str]]] = {
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
}


def phrase(task: Task, choice: int, templates: Mapping[TaskKind, Sequence[str]] = TEMPLATES) -> str:
    """The instruction for a task; `choice` picks the template, modulo their number."""
    wordings = templates[task.kind]
    return wordings[choice % len(wordings)].format(block=task.block, plate=task.plate)
