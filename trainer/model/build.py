"""From a pretrained decoder to a model that can be trained on streams."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.errors import UserError
from trainer.config import ModelOptions
from trainer.model import description, lora, refuse
from trainer.model.description import Description
from trainer.model.streams import StreamModel
from trainer.model.vocabulary import make_room, new_ids

VECTORS_FILE = "streams.safetensors"


def build(
    options: ModelOptions, described: Description, seed: int = 0, bf16: bool = False, rows: int = 3
) -> StreamModel:
    """The model at ``options.path`` on the CPU, ready for these streams and conversations of up to ``rows`` rows.

    Stream vectors and rows of silence and end begin anew, unless the model is one that was exported here: then vectors
    are taken over by name, and the rows are kept. Weights are float32; with LoRA those that stay as they are have the type of
    the products. Raises UserError for a model that cannot be trained, by name.
    """
    frozen = torch.bfloat16 if bf16 and options.tune == "lora" else torch.float32
    backbone = open_backbone(options.path, frozen)
    before = description.read(Path(options.path))
    if before is not None:
        _check_before(options.path, before, described)
    ids = make_room(backbone, described.tokenizer, keep=before is not None)
    model = StreamModel(backbone, len(described.layout.streams), seed)
    refuse.check(backbone, rows)
    if before is not None:
        _take_over(model, Path(options.path), before, described)
    if options.tune == "lora":
        lora.add(backbone, options, seed)
        trained = {*ids, described.tokenizer.silence_id, described.tokenizer.end_id} - {None}
        model.separate_rows(sorted(number for number in trained if number is not None))
    return model


def open_backbone(path: str, dtype: torch.dtype | str) -> PreTrainedModel:
    """A causal language model on the CPU. Raises UserError where there is none."""
    local = Path(path)
    if not local.exists() and (path.startswith((".", "/", "~")) or path.count("/") != 1):
        raise UserError(f"--model {path}: no such directory; give one that holds a Hugging Face model, or a hub name")
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--model {path}: not a decoder that transformers opens: {reason}") from None


def _check_before(path: str, before: Description, described: Description) -> None:
    """Raise UserError where a model was trained on streams that these data contradict."""
    old, new = before.tokenizer, described.tokenizer
    if new_ids(old) != new_ids(new) or (old.silence_id, old.end_id) != (new.silence_id, new.end_id):
        raise UserError(
            f"--model {path}: it was trained with silence {old.silence_id} and end {old.end_id}, the dataset has "
            f"{new.silence_id} and {new.end_id}; convert with the same tokenizer and layout conventions"
        )
    for what in ("silence", "virtual_rows"):
        if getattr(before, what) != getattr(described, what):
            raise UserError(
                f"--model {path}: it was trained with {what} {getattr(before, what)!r}; set data.{what} to that"
            )


def _take_over(model: StreamModel, path: Path, before: Description, described: Description) -> None:
    """Use the stream vectors that were learnt already, by name."""
    vectors = load_file(path / VECTORS_FILE)["vectors"]
    names = before.layout.index()
    with torch.no_grad():
        for number, stream in enumerate(described.layout.streams):
            if stream.name in names:
                model.vectors[number] = vectors[names[stream.name]]
