"""Do other programs compute what we do from the checkpoints that `edge-vla export --format` writes?

    python -m benchmarks.formats.interop --python PYTHON --out RESULT.json

PYTHON is an environment with gptqmodel, optimum and compressed-tensors. Each format is exported as a whole policy,
which we read back, and as the decoder alone, which the other program loads; both get the same rows, a policy's images
and prompt. The other program computes in bfloat16. What bfloat16 does by itself is measured with our own code on the
same weights: theirs should be as far from our float32 as our bfloat16 is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import study
from benchmarks.formats import foreign
from benchmarks.formats.results import InteropCase, InteropResult
from edge_vla.bench import peers
from edge_vla.data import synthetic_image
from edge_vla.demo import BASE
from edge_vla.errors import BackendError
from edge_vla.export import Recipe
from edge_vla.export.huggingface import export_checkpoint

IMAGES: Final = 4
INSTRUCTION: Final = "put the red block on the blue pad"
CASES: Final = tuple(
    (form, bits, loader)
    for form, loaders in {"gptq": ("gptqmodel", "transformers"), "compressed-tensors": ("transformers",)}.items()
    for bits in (4, 8)
    for loader in loaders
)


def compare(python: str, source: str | Path, form: str, bits: int, loader: str) -> InteropCase:
    """Export, load in the other program, and compare. BackendError with its last line if that program fails."""
    with tempfile.TemporaryDirectory(prefix="edge-vla-interop-") as scratch:
        whole, alone = Path(scratch) / "whole", Path(scratch) / "alone"
        for out, decoder_only in ((whole, False), (alone, True)):
            export_checkpoint(source, out, form, Recipe(bits=bits), decoder_only=decoder_only)
        rows, expected = ours(whole, "fp32")
        rounded = ours(whole, "bf16", rows)[1]
        theirs, about = load_there(python, loader, alone, rows, Path(scratch))
    return InteropCase(
        format=form,
        bits=bits,
        loader=loader,
        linear_class=about["linear"],
        versions=json.loads(about["versions"]),
        rows=expected.shape[0] * expected.shape[1],
        largest_logit=float(expected.abs().max()),
        difference=float((theirs - expected).abs().max()),
        rounding=float((rounded - expected).abs().max()),
        same_token=float((theirs.argmax(dim=2) == expected.argmax(dim=2)).float().mean()),
    )


def ours(directory: Path, dtype: str, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Input rows (B, T, width) of a policy read back, float32, and their logits (B, T, vocabulary) float32."""
    peer = peers.load("hf-sdpa", directory, device="cpu", dtype=dtype)
    if rows is None:
        size, prompt = peer.config.spec.image_size, peer.prompter(INSTRUCTION)
        rows = torch.cat(
            [peer.sequence(prompt, peer.embed_image(synthetic_image(seed, size))) for seed in range(IMAGES)]
        )
        rows = rows.bfloat16().float()  # exact in both precisions
    llama: Any = peer.llama
    with torch.inference_mode():
        logits: Tensor = llama(inputs_embeds=rows.to(llama.dtype), use_cache=False).logits
    return rows, logits.float()


def load_there(python: str, loader: str, directory: Path, rows: Tensor, scratch: Path) -> tuple[Tensor, dict[str, str]]:
    """Logits of the rows by `loader` in another environment, and the metadata it wrote beside them."""
    given, made = scratch / "rows.safetensors", scratch / "logits.safetensors"
    save_file({"rows": rows}, given)
    # As text, not as a file: the child must not find modules of this checkout beside it.
    text = Path(foreign.__file__).read_text(encoding="utf-8")
    command = [python, "-c", text, loader, str(directory), str(given), str(made)]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["no message"]
        raise BackendError(f"{loader} in {python} failed: {words[-1]}")
    with safe_open(made, framework="pt") as file:
        logits: Tensor = file.get_tensor("logits")
        return logits, dict(file.metadata() or {})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formats.interop", description=__doc__)
    parser.add_argument("--python", required=True, help="a Python with gptqmodel, optimum and compressed-tensors")
    parser.add_argument("--source", default=str(BASE), help="checkpoint to export")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases = [compare(given.python, given.source, *case) for case in CASES]
    source = Path(given.source).name if Path(given.source).exists() else given.source
    study.write_result(given.out, InteropResult(source, cases))


if __name__ == "__main__":
    study.run(main)
