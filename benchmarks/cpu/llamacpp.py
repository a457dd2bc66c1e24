"""llama.cpp's decoder at the shapes of a network, random Q4_0 weights: prefill and step, in a Python of its own.

    python -m benchmarks.cpu.llamacpp '{"spec": …, "prompt": …, "threads": …, "scratch": …}'

is the child process, which needs llama-cpp-python and gguf and no torch: it writes a GGUF of random weights, loads it,
and runs `prefill` or `step` for each line of its standard input. `LlamaCpp` is the parent's end. Speed does not depend
on the weights' values. Unlike ours, its step computes the whole vocabulary: `head_bytes` of `bytes`.
"""

from __future__ import annotations

import dataclasses
import importlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.cpu import child
from benchmarks.cpu.child import Child
from edge_vla.spec import DecoderSpec

PYTHON_NEEDS: Final = "llama-cpp-python and gguf: pip install llama-cpp-python gguf"
BLOCK: Final = 32  # weights of a Q4_0 block: a 16-bit scale, then two weights a byte
BYTES_OF_BLOCK: Final = 2 + BLOCK // 2
SCALE: Final = 2.0**-10
SPARE: Final = 64  # cache slots beyond the prompt
NAMES: Final = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LlamaCppFacts:
    """What llama.cpp runs: bytes of its weights without the embedding, and the head's part of them."""

    bytes: int
    head_bytes: int
    version: str
    built_for: str
    format: str
    threads: int


class LlamaCpp(Child):
    """A running child process. `prefill` and `step` return when it has finished them."""

    def __init__(self, python: str, spec: DecoderSpec, prompt: int, threads: int) -> None:
        """`python` must have the packages. BackendError names the command that installs them."""
        self._scratch = tempfile.TemporaryDirectory(prefix="edge-vla-gguf-")
        asked = {"spec": dataclasses.asdict(spec), "prompt": prompt, "threads": threads, "scratch": self._scratch.name}
        super().__init__(python, "benchmarks.cpu.llamacpp", asked, PYTHON_NEEDS)
        self.facts = LlamaCppFacts(**self.about)

    def prefill(self) -> None:
        self.request("prefill")

    def step(self) -> None:
        self.request("step")

    def close(self) -> None:
        super().close()
        self._scratch.cleanup()

    def __enter__(self) -> LlamaCpp:
        return self


def write_gguf(path: Path, spec: DecoderSpec) -> dict[str, int]:
    """A Llama of these shapes, one tensor in memory at a time; returns `bytes` of all weights and `head_bytes`."""
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
    for name, (rows, columns) in tensors:
        if rows:
            shape = (rows, columns // BLOCK * BYTES_OF_BLOCK)
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), shape[0] * shape[1], q4_0)
        else:
            writer.add_tensor_info(name, (columns,), np.dtype(np.float32), 4 * columns, f32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.default_rng(0)
    for _, (rows, columns) in tensors:
        writer.write_tensor_data(_blocks(rows, columns, generator) if rows else np.ones(columns, np.float32))
    writer.close()
    sizes = {name: rows * columns // BLOCK * BYTES_OF_BLOCK for name, (rows, columns) in tensors}
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


def _blocks(rows: int, columns: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """(rows, bytes of a row): random codes, all of one scale."""
    blocks = generator.integers(0, 256, (rows, columns // BLOCK, BYTES_OF_BLOCK), dtype=np.uint8)
    blocks[..., :2] = np.frombuffer(np.float16(SCALE).tobytes(), np.uint8)
    return blocks.reshape(rows, -1)


class Engine:
    """llama.cpp on one prompt; each step follows it directly."""

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
        self.model.n_tokens = len(self.prompt)  # discards earlier steps
        self.model.eval(self.prompt[:1])


def main() -> None:
    """The child process."""
    reply, asked = child.replier(), child.asked()
    spec, file = DecoderSpec(**asked["spec"]), Path(asked["scratch"]) / "random.gguf"
    llama_cpp: Any = importlib.import_module("llama_cpp")
    about: dict[str, Any] = write_gguf(file, spec)
    engine = Engine(file, spec, asked["prompt"], asked["threads"])
    about |= {
        "version": llama_cpp.__version__,
        "built_for": llama_cpp.llama_print_system_info().decode().strip(),
        "format": "Q4_0, head included",
        "threads": asked["threads"],
    }
    reply(about)
    for word in child.questions():
        {"prefill": engine.prefill, "step": engine.step}[word]()
        reply({})


if __name__ == "__main__":
    main()
