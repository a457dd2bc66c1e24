"""The node's policy behind a server, as its parameters name it: what does not fit is said in their words."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_vla.commands.ros2_policies import open_source
from edge_vla.errors import EdgeVLAError, ResourceError, UsageError
from edge_vla.robot.ros2.parameters import Parameters
from edge_vla.robot.units import Declaration
from tests.robot.ros2.example import ROBOT


@pytest.mark.parametrize(
    ("server", "statistics", "kind", "says"),
    [
        ("http://127.0.0.1:9", "", UsageError, "server http://127.0.0.1:9: expected ws://HOST:PORT"),
        ("ws://127.0.0.1:9", "", ResourceError, "server ws://127.0.0.1:9: .*: start it there with"),
        ("ws://127.0.0.1:9", "no.json", ResourceError, "statistics no.json: No such file"),
    ],
)
def test_a_server_that_cannot_be_asked_is_refused(
    tmp_path: Path, server: str, statistics: str, kind: type[EdgeVLAError], says: str
) -> None:
    file = tmp_path / "arm.toml"
    file.write_text(ROBOT, encoding="utf-8")
    with pytest.raises(kind, match=f"^{says}"):
        open_source(Parameters(robot=str(file), server=server, statistics=statistics), Declaration.read(file))
