"""A real, tiny model with random weights: made on the spot in seconds, loaded by vLLM like any other.

``python tests/engines/tiny_model.py DIR`` makes one by hand, for ``--model DIR``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

_CORPUS = Path(__file__).parents[2] / "examples" / "corpus"
_VOCABULARY = 4096
#: Of the model that the tests of the engines share.
CONTEXT = 4096
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

#: The usual form: one block per message, then the opening of the answer.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)


def make_tiny_model(folder: Path, *, context: int = 4096, seed: int = 0, template: str = CHAT_TEMPLATE) -> Path:
    """Write weights, configuration, tokenizer and chat template of a Qwen3 with 4 layers into ``folder``."""
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_train_tokenizer(), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(
        hidden_size=256,
        num_hidden_layers=4,
        head_dim=64,  # less than 32 kills vLLM's CPU engine
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=512,
        vocab_size=_VOCABULARY,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def _train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _texts() -> Iterator[str]:
    """Every string in the example corpus."""
    for path in sorted(_CORPUS.iterdir()):
        if path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                yield from _strings(json.loads(line))
        elif path.suffix == ".json":
            yield from _strings(json.loads(path.read_text()))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        yield from _strings(list(value.values()))


if __name__ == "__main__":
    print(make_tiny_model(Path(sys.argv[1])))
