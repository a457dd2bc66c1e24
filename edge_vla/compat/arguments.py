"""Keyword arguments of transformers: which may be given, because they change nothing here or mean what is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from edge_vla.errors import UsageError


@dataclass(frozen=True)
class Place:
    """Where and in which type `to(…)` asks for something to be; None is as it is."""

    device: torch.device | None = None
    dtype: torch.dtype | None = None

    @staticmethod
    def of(*given: Any, device: Any = None, dtype: torch.dtype | None = None, non_blocking: bool = False) -> Place:  # noqa: ARG004
        """From the arguments of `Tensor.to`: a device, a dtype or both, in either order."""
        for one in given:
            if isinstance(one, torch.dtype):
                dtype = one
            elif isinstance(one, (str, int, torch.device)):
                device = one
            elif one is not None:
                raise UsageError(f"to() got {type(one).__name__}: expected a device or a dtype")
        return Place(None if device is None else torch.device(device), dtype)


def truth(value: object) -> bool:
    """Whether something is asked for: None, False and an empty list ask for nothing."""
    return value is not None and value is not False and not (isinstance(value, Sequence) and not value)


# Nothing that is decided here hangs on them: actions are greedy, one token a step, from one pass over a whole prompt.
NEUTRAL: Final[Mapping[str, frozenset[str]]] = {
    "predict_action": frozenset(
        "temperature top_k top_p typical_p use_cache pad_token_id early_stopping length_penalty synced_gpus".split()  # noqa: SIM905
    ),
    "load": frozenset(
        "attn_implementation low_cpu_mem_usage trust_remote_code use_safetensors use_fast "  # noqa: SIM905
        "resume_download code_revision use_flash_attention_2 use_flash_attn".split()
    ),
}
# Values with which these too change nothing.
NEUTRAL_VALUES: Final[Mapping[str, object]] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "renormalize_logits": False,
}
SECRET: Final = frozenset({"token", "use_auth_token"})  # their values are not repeated
WHY: Final[Mapping[str, str]] = {
    "do_sample": "actions are decoded greedily; pass do_sample=False",
    "num_beams": "actions are decoded greedily; pass num_beams=1",
    "output_hidden_states": "actions alone are returned; read policy.forced(…) for hidden states",
    "output_scores": "actions alone are returned; read policy.act(…).margins",
    "output_logits": "actions alone are returned; read policy.act(…).margins",
    "return_dict_in_generate": "actions alone are returned; leave it out",
    "proprio": "the policy sees an image and words; that is OpenVLA-OFT's",
    "action_head": "actions are tokens; that is OpenVLA-OFT's",
    "load_in_4bit": "export first: edge-vla export PATH --out DIR --bits 4, then load DIR",
    "load_in_8bit": "export first: edge-vla export PATH --out DIR --bits 8, then load DIR",
    "quantization_config": "export first: edge-vla export PATH --out DIR --bits 4, then load DIR",
    "cache_dir": "set HF_HOME, which huggingface_hub reads",
    "token": "set HF_TOKEN, or run huggingface-cli login",
    "use_auth_token": "set HF_TOKEN, or run huggingface-cli login",
    "local_files_only": "set HF_HUB_OFFLINE=1, or give a directory",
    "max_memory": "name one device: device='cuda' or device='cpu'",
    "offload_folder": "nothing is offloaded: export with fewer --bits",
}


def refuse_others(call: str, given: Mapping[str, object]) -> None:
    """UsageError for the first argument that asks for something which is not done; None and False ask for nothing."""
    for name, value in given.items():
        neutral = name in NEUTRAL[call] or (name in NEUTRAL_VALUES and value == NEUTRAL_VALUES[name])
        if truth(value) and not neutral:
            shown = value if isinstance(value, (str, int, float)) and name not in SECRET else type(value).__name__
            raise UsageError(
                f"{call} got {name}={shown!s:.60}: {WHY.get(name, 'it has no such argument; leave it out')}"
            )
