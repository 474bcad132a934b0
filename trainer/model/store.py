"""A trained model as a plain Hugging Face directory, written and opened.

config.json, model.safetensors …   the decoder: AutoModelForCausalLM opens it
tokenizer.json                     the content tokenizer of the dataset
streams.safetensors                the stream vectors [C, D]
streams.json                       layout, token ids, and how the model was trained to read: ``description``
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from pipeline.errors import UserError
from pipeline.store.dataset import Layout
from trainer.files import new_folder
from trainer.model import description, lora
from trainer.model.build import VECTORS_FILE, open_backbone
from trainer.model.description import Description
from trainer.model.streams import StreamModel

TOKENIZER_FILE = "tokenizer.json"


class Loaded(NamedTuple):
    """What :func:`load` gives."""

    model: StreamModel
    layout: Layout
    #: No text can become a control token in it.
    tokenizer: Tokenizer
    description: Description


def write(model: StreamModel, described: Description, tokenizer: str, directory: Path, dtype: torch.dtype) -> None:
    """Write a model; adapters are merged, separate rows joined: the model is used up.

    The directory is written beside and renamed; one that is there already is replaced.
    """
    lora.merge(model.backbone)
    model.join_rows()
    model.backbone.to(dtype)  # type: ignore[arg-type]
    with new_folder(directory) as beside:
        model.backbone.save_pretrained(beside)
        save_file({"vectors": model.vectors.detach().float().cpu().contiguous()}, beside / VECTORS_FILE)
        (beside / TOKENIZER_FILE).write_text(tokenizer)
        (beside / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}) + "\n")
        (beside / description.FILE).write_text(described.encode())


def load(directory: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Loaded:
    """Open a model that the trainer exported, ready to be run. ``dtype``: by default that of the files.

    Raises UserError where there is none.
    """
    path = Path(directory)
    described = description.read(path)
    if described is None:
        raise UserError(f"{directory}: no model that this trainer exported: there is no {description.FILE}")
    backbone = open_backbone(str(path), dtype or "auto")
    model = StreamModel(backbone, len(described.layout.streams))
    model.vectors = torch.nn.Parameter(load_file(path / VECTORS_FILE)["vectors"])
    tokenizer = Tokenizer.from_file(str(path / TOKENIZER_FILE))
    tokenizer.encode_special_tokens = True
    return Loaded(model.to(device).eval(), described.layout, tokenizer, described)
