"""Tokenise with transformers 4.40.1 itself, the version that OpenVLA pins, in every state of `tokenizer_states`.

Ran with Python 3.11, transformers 4.40.1, tokenizers 0.19.1, in an environment of its own:

    python -m tests.golden.make_tokenizer_states

The calls are those of OpenVLA's processor: `AutoTokenizer.from_pretrained(folder)`, then the tokenizer with
`padding=False, truncation=None, max_length=None`. What its source and these ids show:

- `set_truncation_and_padding` takes off, at every call, what truncation and padding the file was saved with.
- `LlamaTokenizerFast` builds the post-processor anew from `add_bos_token` (default true), `add_eos_token` (default
  false), `bos_token` and `eos_token`: what the file says there is dropped. `PreTrainedTokenizerFast` keeps the file's.
- `added_tokens_decoder` and every special token of tokenizer_config.json are added to the file's tokens. Without that
  key, special_tokens_map.json is put over the config, added_tokens.json is read, and the file's own tokens over both.
- `add_prefix_space` makes it convert tokenizer.model again, but is not handed on: true and false give the same ids.
- `legacy`, `model_max_length`, `padding_side`, `split_special_tokens` and `clean_up_tokenization_spaces` change no id.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import transformers

from tests.golden.tokenizer_states import RECORD, STATES, prompts, write


def main() -> None:
    found = dict[str, list[list[int]]]()
    with tempfile.TemporaryDirectory() as folder:
        for name in STATES:
            tokenizer = transformers.AutoTokenizer.from_pretrained(write(name, Path(folder) / name))
            how = {"padding": False, "truncation": None, "max_length": None}
            found[name] = [tokenizer(text, **how)["input_ids"] for text in prompts()]
    plain = found["plain"]
    record = {
        "transformers": transformers.__version__,
        "plain": plain,
        "differing": {
            name: {i: mine for i, (mine, usual) in enumerate(zip(rows, plain)) if mine != usual}  # noqa: B905
            for name, rows in found.items()
        },
    }
    RECORD.write_text(json.dumps(record, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
