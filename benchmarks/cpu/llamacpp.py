"""llama.cpp's decoder at the shapes of a network, random Q4_0 weights: prefill and step, in a Python of its own.

    python -m benchmarks.cpu.llamacpp '{"spec": …, "prompt": …, "threads": …, "scratch": …}'

is the child, which needs `pip install llama-cpp-python gguf` and no torch: it writes a GGUF of invented weights and
tokens, loads it and does what its standard input says, one word a line. `LlamaCpp` is the parent's end of it. Speed
does not depend on what the weights are. Unlike ours, its step computes the whole vocabulary: `head_bytes` of `bytes`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_vla.errors import BackendError
from edge_vla.files import PACKAGE
from edge_vla.spec import DecoderSpec

PYTHON_NEEDS: Final = "llama-cpp-python and gguf: pip install llama-cpp-python gguf"
BLOCK: Final = 32  # weights of a Q4_0 block: a 16-bit scale, then two weights a byte
BYTES_OF_BLOCK: Final = 2 + BLOCK // 2
SCALE: Final = 2.0**-10
SPARE: Final = 64  # slots of its cache beyond the prompt
NAMES: Final = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


class LlamaCpp:
    """A running child. `prefill` and `step` wait until it has finished."""

    def __init__(self, python: str, spec: DecoderSpec, prompt: int, threads: int) -> None:
        """`python` has the packages. BackendError with the command that helps where it has not."""
        self._scratch = tempfile.TemporaryDirectory(prefix="edge-vla-gguf-")
        self._words: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        asked = {"spec": dataclasses.asdict(spec), "prompt": prompt, "threads": threads, "scratch": self._scratch.name}
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.cpu.llamacpp", json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        )
        self.about: dict[str, Any] = self._answer()

    def prefill(self) -> None:
        self._call("prefill")

    def step(self) -> None:
        self._call("step")

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._process.communicate(timeout=30)
        self._words.close()
        self._scratch.cleanup()

    def _call(self, word: str) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = self._process.wait()
        self._words.seek(0)
        said = (self._words.read().strip() or "it said nothing").splitlines()[-1]
        hint = f"; that Python needs {PYTHON_NEEDS}" if "ModuleNotFoundError" in said else ""
        raise BackendError(f"llama.cpp stopped (exit {code}): {said}{hint}")


def write_gguf(path: Path, spec: DecoderSpec) -> dict[str, int]:
    """A Llama of these shapes, one tensor in memory at a time. Returns bytes of all weights, and of the head's."""
    gguf: Any = importlib.import_module("gguf")
    q4_0, f32 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.F32
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(spec.layers)
    writer.add_context_length(spec.max_positions)
    writer.add_embedding_length(spec.width)
    writer.add_feed_forward_length(spec.mlp_width)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_rope_dimension_count(spec.head_width)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_vocab_size(spec.vocab_rows)
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += [f"word{index}" for index in range(len(words), spec.vocab_rows)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(words) - 259)])  # unknown, control, byte, normal
    writer.add_bos_token_id(spec.bos)
    writer.add_eos_token_id(spec.eos)
    tensors = list(_tensors(spec))
    for name, (outer, inner) in tensors:
        if outer:
            shape = (outer, inner // BLOCK * BYTES_OF_BLOCK)
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), shape[0] * shape[1], q4_0)
        else:
            writer.add_tensor_info(name, (inner,), np.dtype(np.float32), 4 * inner, f32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.default_rng(0)
    for _, (outer, inner) in tensors:
        writer.write_tensor_data(_blocks(outer, inner, generator) if outer else np.ones(inner, np.float32))
    writer.close()
    sizes = {name: outer * inner // BLOCK * BYTES_OF_BLOCK for name, (outer, inner) in tensors}
    return {"bytes": sum(sizes.values()) - sizes["token_embd.weight"], "head_bytes": sizes["output.weight"]}


def _tensors(spec: DecoderSpec) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name and shape of every tensor; a norm has 0 rows."""
    yield "token_embd.weight", (spec.vocab_rows, spec.width)
    for layer in range(spec.layers):
        yield f"blk.{layer}.attn_norm.weight", (0, spec.width)
        yield f"blk.{layer}.ffn_norm.weight", (0, spec.width)
        for name, shape in spec.linears().items():
            yield f"blk.{layer}.{NAMES[name]}.weight", shape
    yield "output_norm.weight", (0, spec.width)
    yield "output.weight", (spec.vocab_rows, spec.width)


def _blocks(outer: int, inner: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """(outer, bytes of a row): any codes, all of one scale."""
    blocks = generator.integers(0, 256, (outer, inner // BLOCK, BYTES_OF_BLOCK), dtype=np.uint8)
    blocks[..., :2] = np.frombuffer(np.float16(SCALE).tobytes(), np.uint8)
    return blocks.reshape(outer, -1)


class Engine:
    """llama.cpp on one prompt: each step stands right behind it."""

    def __init__(self, path: Path, spec: DecoderSpec, prompt: int, threads: int) -> None:
        llama_cpp: Any = importlib.import_module("llama_cpp")
        self.prompt = [3 + index % (spec.vocab_rows - 3) for index in range(prompt)]
        self.model = llama_cpp.Llama(
            str(path), n_ctx=prompt + SPARE, n_batch=prompt, n_ubatch=prompt, n_threads=threads,
            n_threads_batch=threads, verbose=False,
        )  # fmt: skip

    def prefill(self) -> None:
        self.model.reset()
        self.model.eval(self.prompt)

    def step(self) -> None:
        self.model.n_tokens = len(self.prompt)  # what stands behind is overwritten
        self.model.eval(self.prompt[:1])


def main() -> None:
    """The child. Standard output carries answers and nothing else, whatever a library prints."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asked = json.loads(sys.argv[1])
    spec, file = DecoderSpec(**asked["spec"]), Path(asked["scratch"]) / "random.gguf"
    llama_cpp: Any = importlib.import_module("llama_cpp")
    about: dict[str, Any] = write_gguf(file, spec)
    engine = Engine(file, spec, asked["prompt"], asked["threads"])
    about |= {
        "llama_cpp_python": llama_cpp.__version__,
        "built for": llama_cpp.llama_print_system_info().decode().strip(),
        "format": "Q4_0, head included",
        "threads": asked["threads"],
    }
    answers.write(json.dumps(about) + "\n")
    answers.flush()
    for word in iter(partial(sys.stdin.readline), ""):
        {"prefill": engine.prefill, "step": engine.step}[word.strip()]()
        answers.write("{}\n")
        answers.flush()


if __name__ == "__main__":
    main()
