"""Make peft_4bit.safetensors: adapters on bitsandbytes' 4-bit base, and what peft merges them into.

Needs bitsandbytes 0.50.2 and peft 0.21.2; runs on the CPU, by hand:

    python -m tests.golden.make_peft_4bit

`base/...` are the tensors of a 4-bit checkpoint, `adapter/...` an adapter trained on it and `merged/q_proj.weight`
peft's merge, dequantised: it adds to the dequantised weight, then rounds to NF4 again. `copied/...` is the adapter with
lm_head adapted too: its file then holds the 4-bit copy of lm_head, which peft refuses to load into a 16-bit base
("size mismatch"; 0.11.1 does as well).
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Final

import bitsandbytes as bnb  # type: ignore[import-not-found,unused-ignore]
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

OUT: Final = Path(__file__).with_name("peft_4bit.safetensors")
WIDTH: Final = 64  # one block of NF4 a row


class Toy(nn.Module):
    is_loaded_in_4bit = True  # as transformers says it; peft asks

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        for name, outputs in (("q_proj", 32), ("lm_head", 40)):
            linear = bnb.nn.Linear4bit(WIDTH, outputs, bias=False, quant_type="nf4", compress_statistics=False)
            weight = (torch.randn(outputs, WIDTH, generator=generator) * 0.05).bfloat16()
            linear.weight = bnb.nn.Params4bit(weight, quant_type="nf4", compress_statistics=False)
            self.add_module(name, linear)

        self.embed_tokens = nn.Embedding(2, WIDTH)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.get_submodule("lm_head")


def save_adapter(folder: str, targets: list[str]) -> dict[str, Tensor]:
    model = get_peft_model(Toy().to("cpu"), LoraConfig(r=4, lora_alpha=6, target_modules=targets))
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            grid = torch.randint(-31, 32, parameter.shape, generator=generator).float()
            parameter.data = (grid / (64 if "lora_A" in name else 512)).to(parameter.dtype)
    model.save_pretrained(folder)
    tensors: dict[str, Tensor] = load_file(Path(folder) / "adapter_model.safetensors")
    return tensors


def main() -> None:
    warnings.simplefilter("ignore")
    base = Toy().to("cpu")
    tensors = {f"base/{key}": value for key, value in base.state_dict().items() if "embed" not in key}
    with tempfile.TemporaryDirectory() as folder:
        tensors |= {f"adapter/{key}": value for key, value in save_adapter(folder, ["q_proj"]).items()}
        merged = PeftModel.from_pretrained(base, folder).merge_and_unload().get_submodule("q_proj").weight
        tensors["merged/q_proj.weight"] = bnb.functional.dequantize_4bit(merged.data, merged.quant_state)
    with tempfile.TemporaryDirectory() as folder:
        tensors |= {f"copied/{key}": value for key, value in save_adapter(folder, ["q_proj", "lm_head"]).items()}
    save_file({key: value.detach().contiguous().clone() for key, value in tensors.items()}, OUT)


if __name__ == "__main__":
    main()
