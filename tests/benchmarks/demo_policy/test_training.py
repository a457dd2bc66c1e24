"""Training is what it was: exact resume, the same frames for every stage; and it trains the network that runs."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.demo_policy import measure, muon, package, runs, samples, tokenizer, train
from benchmarks.demo_policy.actor import Actor
from benchmarks.demo_policy.learner import Learner, demo_spec, initialise
from benchmarks.demo_policy.stages import STAGES, Frames, Stage
from benchmarks.demo_policy.wordings import WORDINGS
from edge_vla.demo.instructions import phrase
from edge_vla.demo.render import world
from edge_vla.demo.world import Task
from edge_vla.model import Cache, OpenVLA
from edge_vla.openvla.config import PolicyConfig
from edge_vla.openvla.image import preprocess
from edge_vla.openvla.prompt import Prompter

SMALL = replace(STAGES["act"], name="small", steps=3, batch=2, prompts=1, warmup=2)


def short(run: Path, stage: Stage, interrupted: Callable[[], bool] = lambda: False) -> Learner:
    learner = train.begin(stage, None)
    train.train(learner, stage, run, compiled=False, workers=0, save_every=1, evaluate_every=0, interrupted=interrupted)
    return learner


@pytest.fixture(scope="module")
def noisy() -> OpenVLA:
    """The demo network with every weight random, also those that start at zero."""
    policy = OpenVLA(demo_spec())
    initialise(policy, 1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in policy.parameters():
            if not parameter.any():
                parameter.normal_(0.0, 0.05, generator=generator)
    return policy


def test_the_training_forward_is_the_models_own(noisy: OpenVLA) -> None:
    drawn = samples.batch(world(1), 50, 2, 3)
    batch = {name: torch.as_tensor(array) for name, array in drawn.arrays().items()}
    learner, actor = Learner(noisy, 3), Actor(noisy)
    coding, softness = samples.TOKENS, 0.015
    with torch.no_grad():
        patches = learner.patches(batch["images"])
        pixels = np.stack([preprocess(Image.fromarray(image), actor.contract) for image in drawn.images])
        slow = noisy.image_embeddings(torch.from_numpy(pixels))
        torch.testing.assert_close(patches, slow, atol=1e-4, rtol=1e-4)
        loss = learner.language_losses(patches, batch, torch.tensor(softness))["action"]
        expected = []
        model = noisy.language_model.model
        for frame in range(2):
            for prompt in range(3):
                last = int(drawn.answer_starts[frame, prompt])
                ids = torch.cat([torch.tensor([1]), batch["tokens"][frame, prompt, : last + 7]])
                x = noisy.splice(model.embed_tokens(ids)[None], slow[frame : frame + 1])
                cache = Cache.allocate(noisy.spec.decoder, 1, x.shape[1], x.dtype, x.device)
                hidden = model(x, torch.arange(x.shape[1])[None], cache)[0, noisy.spec.patches + 1 + last :]
                logs = noisy.language_model.lm_head(hidden).log_softmax(-1)
                wanted = batch["actions"][frame, prompt][:, None]
                soft = (-0.5 * ((torch.tensor(coding.centres).float() - wanted) / softness).square()).softmax(-1)
                ids_of_centres = coding.spec.end - 1 - torch.arange(coding.spec.bins - 1)
                expected.append(-(soft * logs[:, ids_of_centres]).sum(-1).mean())
        torch.testing.assert_close(loss, torch.stack(expected).mean(), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    whole = short(tmp_path / "whole", SMALL)
    path = tmp_path / "parts" / "state.pt"
    with pytest.raises(SystemExit) as end:
        short(tmp_path / "parts", SMALL, interrupted=lambda: True)
    assert end.value.code == 130
    assert runs.load(path)["step"] == 1
    parts = short(tmp_path / "parts", SMALL)
    for (name, a), (_, b) in zip(whole.named_parameters(), parts.named_parameters(), strict=True):
        assert torch.equal(a, b), name


# The first frames of each stage, as they have been since its figures were measured.
FRAMES = {
    "overfit": "57c78cbddee0aa52",
    "see": "d38d688aa4700531",
    "look": "fd020412cbcdb92e",
    "two": "1ef59ab148cb2647",
    "act": "918195ab23d2ce44",
    "finish": "482ebbdfe81e90fa",
    "adapt": "1b312931e034f845",
}


@pytest.mark.parametrize("name", STAGES)
def test_a_stages_frames_never_change(name: str) -> None:
    arrays = Frames(replace(STAGES[name], batch=3))[0]
    assert hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).hexdigest()[:16] == FRAMES[name]


def test_a_value_on_an_edge_is_answered_with_an_id_that_is_trained() -> None:
    edges = np.array([[-1.0] * 7, [1.0] * 7])
    coding = samples.TOKENS
    said = samples.label_tokens(edges)
    np.testing.assert_array_equal(
        coding.centres[coding.bins(said.ravel().tolist())], np.repeat(coding.centres[[0, -1]], 7)
    )
    np.testing.assert_array_equal(
        samples.label_tokens(coding.centres[coding.bins(said.ravel().tolist())]), said.ravel()
    )


def test_muon_makes_updates_orthogonal() -> None:
    matrices = torch.randn(3, 32, 64, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(muon.orthogonal(matrices))
    assert singular.min() > 0.5, "five quintic steps bring singular values to 0.7..1.2, in bf16 a little less"
    assert singular.max() < 1.4


def test_prompts_are_read_alike_in_training_and_at_run_time(tmp_path: Path) -> None:
    tokenizer.write(tmp_path / "tokenizer.json")
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    spec = demo_spec()
    (tmp_path / "config.json").write_text(json.dumps(package.config(spec)))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(package.preprocessor(spec)))
    config = PolicyConfig.read(tmp_path)
    assert config.spec == spec
    prompter = Prompter(text, config.prompt, spec.decoder)
    for templates in WORDINGS.values():
        for task in (Task("red"), Task("orange", "cyan")):
            for choice in range(8):
                said = phrase(task, choice, templates)
                assert list(prompter(said)) == tokenizer.encode(said)
    strange = prompter("Öffne die 抽屉 now\x00!")
    assert all(0 <= token < spec.action.first for token in strange)


def test_action_ids_lie_between_the_text_and_the_padding() -> None:
    spec = demo_spec()
    assert spec.action.first == tokenizer.TEXT_TOKENS
    assert len(tokenizer.pieces()) == spec.action.end == spec.decoder.vocab_rows - tokenizer.PADDING


def test_a_packaged_policy_comes_back(noisy: OpenVLA, tmp_path: Path) -> None:
    package.write(noisy, tmp_path)
    back = package.read(tmp_path)
    for key, tensor in noisy.state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor.bfloat16().float()), key
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size < 16e6
    assert sum(p.numel() for p in back.parameters()) <= 8e6


def test_measurement_is_free_running_and_complete(noisy: OpenVLA) -> None:
    found = measure.frames(Actor(noisy), world(1), 4)
    assert tuple(found.dimensions) == measure.NAMES
    assert {"dx sign", "named target", "grip decided", *(f"exact {name}" for name in measure.NAMES)} <= set(
        found.log_row()
    )
