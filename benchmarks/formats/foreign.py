"""A decoder loaded by another program, in that program's environment: rows in, logits out.

    PYTHON foreign.py LOADER DIRECTORY ROWS.safetensors LOGITS.safetensors

Runs as text, with nothing of this checkout importable: the directory must be enough. `rows` are (B, T, width) input
embeddings, `logits` (B, T, vocabulary) float32. The metadata of LOGITS holds the packages' versions and the class of
the linear layers.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from typing import Any

import torch
from safetensors.torch import load_file, save_file

PACKAGES = ("torch", "transformers", "gptqmodel", "optimum", "compressed-tensors")


def load(loader: str, directory: str) -> Any:
    """A bfloat16 LlamaForCausalLM, by `gptqmodel` or by `transformers`."""
    if loader == "gptqmodel":
        os.environ.setdefault(
            "GPTQMODEL_CPU_WORKERS", "2"
        )  # on one core it asks a pool of one worker for two, and fails
        from gptqmodel import GPTQModel  # type: ignore[import-not-found]

        return GPTQModel.load(directory, device="cpu", dtype=torch.bfloat16).model
    from transformers import AutoModelForCausalLM  # type: ignore[import-not-found,unused-ignore]

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, device_map="cpu")


def main(loader: str, directory: str, rows_file: str, logits_file: str) -> None:
    torch.set_num_threads(1)
    model = load(loader, directory).eval()
    rows = load_file(rows_file)["rows"]
    with torch.inference_mode():
        logits = model(inputs_embeds=rows.to(torch.bfloat16), use_cache=False).logits.float()
    packages = set(PACKAGES) & {found.metadata["Name"].lower() for found in importlib.metadata.distributions()}
    versions = {name: importlib.metadata.version(name) for name in sorted(packages)}
    kind = type(model.get_submodule("model.layers.0.mlp.down_proj")).__name__
    save_file({"logits": logits.contiguous()}, logits_file, {"versions": json.dumps(versions), "linear": kind})


if __name__ == "__main__":
    main(*sys.argv[1:])
