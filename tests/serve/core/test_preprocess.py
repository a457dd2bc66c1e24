"""A server that was started with --preprocess: what robots' images become, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import edge_vla
from edge_vla.commands.serve import described
from edge_vla.openvla import as_rgb
from edge_vla.openvla.evaluation import Preprocess, prepare
from edge_vla.serve.client.wire import Hello, smaller
from edge_vla.serve.limits import Limits
from edge_vla.serve.loading import Choices, Served, open_policy
from edge_vla.serve.messages import Metadata
from tests.golden.seeded import seeded_picture
from tests.serve.core.conftest import WORDS

IMAGE = seeded_picture("seen by a robot", 256, 320)


def opened(artifact: Path, name: Preprocess) -> Served:
    return open_policy(artifact, Choices("cpu", preprocess=name), Limits(), lambda stage, fraction: None)


def hello(about: Metadata) -> Hello:
    key = about.default_unnorm_key or ""
    return Hello("", "", tuple(about.unnorm_keys), key, about.dims, about.image_size, about.preprocess, "")


def test_the_policy_that_is_served_prepares_images(artifact: Path) -> None:
    served, plain = opened(artifact, "libero-upright"), edge_vla.load(artifact, "cpu", check=False)
    size = plain.config.image.size
    found = served.policy.session().act(IMAGE, WORDS)
    prepared = prepare(as_rgb(IMAGE), "libero-upright", size)
    assert found.tokens == plain.act(prepared, WORDS).tokens
    assert found.preprocess == "libero-upright"


def test_clients_learn_of_it_and_send_whole_images(artifact: Path) -> None:
    """A robot that resizes what it sends would do so before the script's steps, which begin with the camera's image."""
    scripted, plain = opened(artifact, "simpler"), opened(artifact, "none")
    assert (scripted.metadata.preprocess, plain.metadata.preprocess) == ("simpler", "resize-naive")
    assert smaller(IMAGE, hello(scripted.metadata)) is IMAGE
    size = plain.metadata.image_size
    assert smaller(np.ascontiguousarray(IMAGE), hello(plain.metadata)).shape == (size, size, 3)


def test_it_is_printed_at_the_start(artifact: Path) -> None:
    assert "preprocess simpler: area resize" in described(opened(artifact, "simpler"))
    assert "preprocess none: images as they come" in described(opened(artifact, "none"))
