"""The Hugging Face face, used as public scripts use OpenVLA; actions by OpenVLA's own formula, written out here.

The tokens are those that the original code gave (tests/golden). Each usage is told in our words; where it was read
stands beside it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edge_vla import compat
from edge_vla.compat import Model, Processor
from edge_vla.errors import CheckpointError, UsageError
from tests.golden.openvla_tiny import Case, cases

CASE = cases()[0]
KEY = CASE.unnorm_key
TEMPLATE = "In: What action should the robot take to {}?\nOut:"
PROMPT = TEMPLATE.format(CASE.instruction.lower())
PICTURE = Image.fromarray(CASE.image)
MINE: Mapping[str, Any] = {"action": {"q01": [-1.0] * 7, "q99": [3.0] * 7, "mask": [True] * 6 + [False]}}


@dataclass(frozen=True)
class Loaded:
    model: Model
    processor: Processor

    def inputs(self) -> Any:
        return self.processor(PROMPT, PICTURE)

    def act(self, **options: Any) -> Any:
        return self.model.predict_action(**self.inputs(), **{"unnorm_key": KEY, **options})


@pytest.fixture(scope="module")
def whole(golden_checkpoint: Path) -> Loaded:
    return Loaded(*compat.load(golden_checkpoint, "cpu", dtype="fp32"))


@pytest.fixture
def loaded(whole: Loaded) -> Loaded:
    """A model of its own, with statistics as loaded, over the same weights."""
    return Loaded(Model(whole.model.policy), whole.processor)


def formula(entry: Mapping[str, Any], case: Case = CASE) -> np.ndarray:
    """OpenVLA's `predict_action` from the tokens on: 256 bins below id 32000."""
    bins = np.linspace(-1, 1, 256)
    centres = (bins[:-1] + bins[1:]) / 2.0
    chosen = centres[np.clip(32000 - np.array(case.token_ids) - 1, 0, 254)]
    action = entry["action"]
    mask = action.get("mask", np.ones_like(action["q01"], dtype=bool))
    high, low = np.array(action["q99"]), np.array(action["q01"])
    return np.asarray(np.where(mask, 0.5 * (chosen + 1) * (high - low) + low, chosen))


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_original_codes_actions(case: Case, loaded: Loaded) -> None:
    """openvla experiments/robot/openvla_utils.py: prompt by hand, inputs cast, the gripper edited in place."""
    inputs = loaded.processor(TEMPLATE.format(case.instruction.lower()), Image.fromarray(case.image))
    action = loaded.model.predict_action(**inputs.to("cpu", dtype=torch.float32), unnorm_key=case.unnorm_key)
    assert np.array_equal(action, case.action)
    np.testing.assert_allclose(action, formula(loaded.model.norm_stats[case.unnorm_key], case), rtol=1e-12)
    action[-1] = 0.0
    assert action.dtype == np.float64


def set_key(model: Model) -> str:
    """A new arm's statistics written into the model (a Piper script)."""
    model.norm_stats["piper"] = copy.deepcopy(dict(MINE))
    return "piper"


def update(model: Model) -> str:
    """A run's dataset_statistics.json laid over the base's (a UR5 script)."""
    model.norm_stats.update(json.loads(json.dumps({"ur5": MINE})))
    return "ur5"


def replace(model: Model) -> str:
    """openvla vla-scripts/deploy.py and run_libero_eval.py: the run's file in place of all."""
    model.norm_stats = json.loads(json.dumps({"mine": MINE}))
    return "mine"


def overwrite(model: Model) -> str:
    """Another scale under a name that is known."""
    model.norm_stats[KEY] = {"action": {**MINE["action"], "q99": np.full(7, 9.0)}}
    return KEY


def one_number(model: Model) -> str:
    """A gripper's range corrected deep inside."""
    model.norm_stats[KEY]["action"]["q99"][0] = 123.0
    return KEY


def one_number_of_stats(model: Model) -> str:
    """The same by way of `get_action_stats`."""
    model.get_action_stats(KEY)["q01"][1] = -45.0
    return KEY


def a_mask(model: Model) -> str:
    model.norm_stats[KEY]["action"]["mask"] = [False] * 7
    return KEY


def no_mask(model: Model) -> str:
    model.norm_stats[KEY]["action"].pop("mask", None)
    return KEY


def by_config(model: Model) -> str:
    """In OpenVLA the model's dictionary is its config's."""
    model.config.norm_stats["by_config"] = dict(MINE)
    return "by_config"


def all_but_one(model: Model) -> str | None:
    """Then no key need be named."""
    for key in [key for key in model.norm_stats if key != KEY]:
        del model.norm_stats[key]
    return None


EDITS = (set_key, update, replace, overwrite, one_number, one_number_of_stats, a_mask, no_mask, by_config, all_but_one)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_what_norm_stats_holds_is_what_unnormalises(edit: Callable[[Model], str | None], loaded: Loaded) -> None:
    before = loaded.act()
    key = edit(loaded.model)
    entry = loaded.model.norm_stats[key or KEY]
    action = loaded.model.predict_action(**loaded.inputs(), unnorm_key=key, do_sample=False)
    np.testing.assert_allclose(action, formula(entry), rtol=1e-12)
    assert edit in (all_but_one, no_mask) or not np.array_equal(action, before)
    assert loaded.model.get_action_dim(key) == 7
    assert loaded.model.get_action_stats(key) is entry["action"]
    fresh = Model(loaded.model.policy)
    np.testing.assert_array_equal(fresh.predict_action(**loaded.inputs(), unnorm_key=KEY), before)


@pytest.mark.parametrize(
    "broken",
    [
        {"action": {"q01": [0.0] * 7}},
        {"action": {"q01": [0.0] * 7, "q99": [float("nan")] * 7}},
        {"action": {"q01": [0.0] * 6, "q99": [1.0] * 7}},
        {"actions": {}},
        17,
        None,
    ],
)
def test_a_broken_entry_is_refused_when_it_is_used(broken: object, loaded: Loaded) -> None:
    loaded.model.norm_stats["broken"] = broken
    np.testing.assert_allclose(loaded.act(), CASE.action, rtol=1e-12)
    for ask in (lambda: loaded.act(unnorm_key="broken"), lambda: loaded.model.get_action_dim("broken")):
        with pytest.raises(CheckpointError, match="broken"):
            ask()


def test_keys_that_are_not_there(loaded: Loaded) -> None:
    with pytest.raises(UsageError, match=r"unknown unnorm_key 'nobody'.*bridge_orig"):
        loaded.act(unnorm_key="nobody")
    with pytest.raises(UsageError, match="pass unnorm_key"):
        loaded.act(unnorm_key=None)
    del loaded.model.norm_stats[KEY]
    with pytest.raises(UsageError, match="unknown unnorm_key"):
        loaded.act()


def five_numbers(entry: dict[str, Any]) -> dict[str, Any]:
    return {"action": {name: values[:5] for name, values in entry["action"].items()}}


def test_a_key_of_fewer_dimensions_gives_shorter_actions(loaded: Loaded) -> None:
    loaded.model.norm_stats["arm"] = five_numbers(copy.deepcopy(dict(MINE)))
    action = loaded.act(unnorm_key="arm")
    np.testing.assert_allclose(action, formula(MINE)[:5], rtol=1e-12)


def by_keyword(loaded: Loaded) -> Any:
    """A Franka script: named arguments, then each tensor cast in a loop."""
    inputs: Any = loaded.processor(text=PROMPT, images=PICTURE, return_tensors="pt")
    for key in inputs:
        whole_numbers = key in ("input_ids", "attention_mask")
        inputs[key] = inputs[key].to("cpu", dtype=torch.long if whole_numbers else torch.float32)
    return inputs


def in_lists(loaded: Loaded) -> Any:
    return loaded.processor([PROMPT], [PICTURE], padding=True)


def space_added(loaded: Loaded) -> Any:
    """An evaluation that appends the empty token to ids and mask itself."""
    inputs: Any = loaded.inputs()
    space = torch.full((1, 1), loaded.processor.tokenizer.convert_tokens_to_ids("▁") or 0)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], space], dim=1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(space)], dim=1)
    return inputs


def ids_by_hand(loaded: Loaded) -> Any:
    """An attack study: ids from the tokenizer, put into the processor's output."""
    inputs: Any = loaded.processor("something else", PICTURE).to(loaded.model.device, dtype=torch.float32)
    inputs["input_ids"] = torch.tensor([loaded.processor.tokenizer.encode(PROMPT)])
    del inputs["attention_mask"]
    return inputs


def parts_apart(loaded: Loaded) -> Any:
    """Tokenizer and image processor called by themselves, and attributes read."""
    tokens = loaded.processor.tokenizer(PROMPT, return_tensors="pt", padding=False, truncation=True, max_length=2048)
    pixels = loaded.processor.image_processor.apply_transform(PICTURE).unsqueeze(0)
    return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, "pixel_values": pixels}


def array(loaded: Loaded) -> Any:
    return loaded.processor(PROMPT, CASE.image).to(torch.float32)


USAGES = (by_keyword, in_lists, space_added, ids_by_hand, parts_apart, array)


@pytest.mark.parametrize("usage", USAGES, ids=lambda usage: usage.__name__)
def test_inputs_as_scripts_make_them(usage: Callable[[Loaded], Any], loaded: Loaded) -> None:
    inputs = usage(loaded)
    assert np.array_equal(loaded.model.predict_action(**inputs, unnorm_key=KEY, do_sample=False), CASE.action)


def test_positional_as_the_signature_has_it(loaded: Loaded) -> None:
    inputs: Any = loaded.inputs()
    action = loaded.model.predict_action(inputs.pop("input_ids"), KEY, **inputs)
    assert np.array_equal(action, CASE.action)


def test_a_bare_task_is_not_put_into_a_template(loaded: Loaded) -> None:
    """SimplerEnv-OpenVLA's policy hands the task over as the whole prompt."""
    ids = loaded.processor(CASE.instruction, PICTURE).input_ids[0].tolist()
    assert ids == list(loaded.model.policy.prompter.encode(CASE.instruction))
    assert len(ids) < len(loaded.inputs().input_ids[0])
    raw = loaded.model.predict_action(**loaded.processor(CASE.instruction, PICTURE), unnorm_key=KEY)[None]
    assert raw[0, :3].shape == (3,)


def test_bf16_inputs_as_the_scripts_cast_them(golden_checkpoint: Path) -> None:
    model, processor = compat.load(golden_checkpoint, "cpu")
    inputs: Any = processor(PROMPT, PICTURE).to("cpu", dtype=torch.bfloat16)
    assert inputs["input_ids"].dtype == torch.int64
    assert inputs.pixel_values.dtype == torch.bfloat16
    expected = model.policy.act(CASE.image, CASE.instruction, KEY).values
    assert np.array_equal(model.predict_action(**inputs, unnorm_key=KEY), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False, "temperature": 1.0, "top_p": None, "top_k": 50, "use_cache": True, "num_beams": 1},
        {"max_new_tokens": 7, "pad_token_id": 32000, "repetition_penalty": 1.0},
        {"return_dict_in_generate": False, "output_hidden_states": False, "attention_mask": None, "streamer": None},
    ],
)
def test_options_that_change_nothing(options: dict[str, Any], loaded: Loaded) -> None:
    inputs: Any = {**loaded.inputs(), **options}
    assert np.array_equal(loaded.model.predict_action(**inputs, unnorm_key=KEY), CASE.action)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"do_sample": True}, "do_sample=True.*greedily"),
        ({"max_new_tokens": 6}, "max_new_tokens=6.*7 tokens"),
        ({"num_beams": 4}, "num_beams=4.*greedily"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"output_hidden_states": True}, "output_hidden_states"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"proprio": [0.0] * 8}, "proprio.*OFT"),
        ({"action_head": object()}, "action_head.*OFT"),
        ({"unnormkey": KEY}, "unnormkey.*no such argument"),
        ({"attention_mask": torch.tensor([[0, 1, 1]])}, "attention_mask hides"),
        ({"input_ids": torch.zeros(1, 3, dtype=torch.bfloat16)}, "input_ids must be integers.*bfloat16"),
        ({"input_ids": torch.zeros(2, 3, dtype=torch.long)}, "batch of 2"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "input_ids must be ids"),
        ({"input_ids": torch.full((1, 2), 99999)}, "input_ids must be ids from 0 to 32063"),
        ({"input_ids": None}, "no input_ids"),
        ({"pixel_values": None}, "no pixel_values"),
        (
            {"pixel_values": torch.zeros(1, 3, 224, 224)},
            r"pixel_values must be a tensor \(1, 6, 224, 224\), got \(1, 3",
        ),
        ({"pixel_values": torch.zeros(2, 6, 224, 224)}, "pixel_values must be a tensor"),
    ],
)
def test_what_would_mean_something_else_is_refused_by_name(options: dict[str, Any], said: str, loaded: Loaded) -> None:
    inputs: Any = {**loaded.inputs(), **options}
    with pytest.raises(UsageError, match=said):
        loaded.model.predict_action(**inputs, unnorm_key=KEY)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"images": None}, "no images"),
        ({"text": [PROMPT, PROMPT]}, "text: got a list of 2"),
        ({"images": [PICTURE, PICTURE, PICTURE]}, "images: got a list of 3"),
        ({"return_tensors": "np"}, "return_tensors=np"),
        ({"truncation": True, "max_length": 8}, "truncation to max_length=8: the prompt has"),
        ({"padding": "max_length", "max_length": 64}, "padding to max_length=64"),
        ({"return_token_type_ids": True}, "return_token_type_ids"),
    ],
)
def test_a_processors_call_that_is_refused(options: dict[str, Any], said: str, loaded: Loaded) -> None:
    with pytest.raises(UsageError, match=said):
        loaded.processor(**{"text": PROMPT, "images": PICTURE, **options})


def test_the_model_as_scripts_hold_it(loaded: Loaded) -> None:
    """Moved to where it is, set to evaluate, frozen: all in one line, and each gives the model."""
    model = loaded.model
    assert model.to("cpu").eval().requires_grad_(False).train(False).float() is model
    assert model.to(torch.device("cpu"), dtype=torch.float32).cpu() is model
    assert (model.device, model.dtype, model.training) == (torch.device("cpu"), torch.float32, False)
    assert model.config.model_type == "openvla"
    assert model.config.norm_stats is model.norm_stats
    assert model.config.image_sizes == [224, 224]
    assert KEY in model.norm_stats
    assert not hasattr(model, "llm_dim")


def test_actions_are_detokenised_as_scripts_do_it(loaded: Loaded) -> None:
    """An action tokenizer of a script's own: the model's vocabulary and bins, or the config's."""
    model, config = loaded.model, loaded.model.config
    assert model.vocab_size == config.text_config.vocab_size - config.pad_to_multiple_of == 32000
    assert np.array_equal(model.bins, np.linspace(-1, 1, config.n_action_bins))
    chosen = model.bin_centers[np.clip(model.vocab_size - np.array(CASE.token_ids) - 1, 0, 254)]
    stats = model.get_action_stats(KEY)
    scaled = 0.5 * (chosen + 1) * (np.array(stats["q99"]) - np.array(stats["q01"])) + np.array(stats["q01"])
    np.testing.assert_allclose(np.where(stats["mask"], scaled, chosen), CASE.action, rtol=1e-12)
    tokenizer = loaded.processor.tokenizer
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.vocab_size) == (1, 2, 32000)
    assert len(tokenizer) == 32001
    said = loaded.processor.decode(tokenizer.encode("pick up", add_special_tokens=False))
    assert said.replace("▁", " ").split() == ["pick", "up"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model: model.to("cuda:0"), "on cpu, not cuda:0"),
        (lambda model: model.cuda(), "on cpu, not cuda:0"),
        (lambda model: model.half(), "float32, not torch.float16"),
        (lambda model: model.to(torch.bfloat16), "float32, not torch.bfloat16"),
        (lambda model: model.train(), "not trained"),
        (lambda model: model.requires_grad_(), "not trained"),
    ],
)
def test_another_place_type_or_mode_is_refused(call: Callable[[Model], Any], said: str, loaded: Loaded) -> None:
    with pytest.raises(UsageError, match=said):
        call(loaded.model)


def test_a_method_that_is_not_there_says_what_is(loaded: Loaded) -> None:
    with pytest.raises(AttributeError, match="'generate': it decides action tokens only"):
        loaded.model.generate()
    with pytest.raises(AttributeError, match="no 'pixels'"):
        _ = loaded.inputs().pixels
