"""The graph in the device cache is this artifact's: whatever lay there, and whatever became of the weights."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from edge_vla.artifact import VISION, Artifact
from edge_vla.errors import ArtifactError
from edge_vla.export.device_graph import device_graph
from edge_vla.runtime.vision.precision import Precision


@pytest.mark.parametrize("kept", ["another precision", "cut short", "empty"])
def test_a_kept_graph_of_something_else_is_written_again(
    kept: str, tiny_artifacts: Mapping[int, Path], tmp_path: Path
) -> None:
    """Of an older edge-vla too: only a new one shows that it is of this one."""
    artifact = Artifact(tiny_artifacts[16])
    graph = device_graph(artifact, Precision.FP16, tmp_path)
    whole, identity = graph.path.read_bytes(), graph.identity
    other = device_graph(artifact, Precision.BF16, tmp_path).path.read_bytes()
    graph.path.write_bytes({"another precision": other, "cut short": whole[:500], "empty": b""}[kept])
    assert device_graph(artifact, Precision.FP16, tmp_path).identity == identity
    assert graph.path.read_bytes() == whole


def test_weights_that_change_after_the_first_build_are_refused(
    tiny_artifacts: Mapping[int, Path], tmp_path: Path
) -> None:
    """A second engine would have the changed weights under the name of the manifest's."""
    folder = shutil.copytree(tiny_artifacts[16], tmp_path / "artifact")
    device_graph(Artifact(folder), Precision.FP16, tmp_path)
    weights = bytearray((folder / VISION).read_bytes())
    weights[-100] ^= 1
    (folder / VISION).write_bytes(weights)
    with pytest.raises(ArtifactError, match="the manifest says another: copy or export it again"):
        device_graph(Artifact(folder), Precision.FP16, tmp_path)
