"""Silence and end in a pretrained vocabulary: which rows are new, and how they begin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import cached_file

from pipeline.errors import UserError
from pipeline.store.manifest import TokenizerEntry


def tables(backbone: PreTrainedModel) -> tuple[nn.Parameter, nn.Parameter]:
    """The weights [V, D] of input and output embedding; one and the same where they are tied."""
    inputs, outputs = backbone.get_input_embeddings(), backbone.get_output_embeddings()
    assert isinstance(inputs.weight, nn.Parameter) and isinstance(outputs.weight, nn.Parameter)
    return inputs.weight, outputs.weight


def new_ids(entry: TokenizerEntry) -> list[int]:
    """The ids of silence and end that follow the vocabulary; those of ordinary tokens are not among them."""
    found = {entry.silence_id, *([] if entry.end_id is None else [entry.end_id])}
    return sorted(number for number in found if number >= entry.vocab_size)


def make_room(backbone: PreTrainedModel, entry: TokenizerEntry, keep: bool = False) -> list[int]:
    """Give silence and end rows in the embeddings, each beginning as the mean row. Returns the new ids.

    A row inside a padded vocabulary is begun anew and nothing is resized; embeddings that are tied stay tied. ``keep``:
    the model has learnt these rows already. Raises UserError for a model with fewer tokens than the dataset.
    """
    size = len(tables(backbone)[0])
    if entry.vocab_size > size:
        raise UserError(
            f"the dataset's tokenizer '{entry.name}' has {entry.vocab_size} tokens and the model only {size}: it is "
            f"another model's; convert again with --tokenizer set to this model"
        )
    ids = new_ids(entry)
    if ids and ids[-1] >= size:
        if keep:
            raise UserError(f"the model has been trained on streams, but has no row for token {ids[-1]}")
        # The library's own initialisation would draw the rows at random; they are set below.
        backbone.resize_token_embeddings(ids[-1] + 1, mean_resizing=False)
    if not keep:
        inputs, outputs = tables(backbone)
        bias = getattr(backbone.get_output_embeddings(), "bias", None)
        for table in (inputs, *([] if outputs is inputs else [outputs]), *([] if bias is None else [bias])):
            _begin(table, ids, entry.vocab_size)
    return ids


@torch.no_grad()
def _begin(table: nn.Parameter | torch.Tensor, ids: Sequence[int], vocabulary: int) -> None:
    """Set rows to the mean of the rows of real tokens."""
    table[list(ids)] = table[:vocabulary].double().mean(0).to(table.dtype)


def tokenizer_file(model: str) -> Path | None:
    """The ``tokenizer.json`` of a model, or None where it has none."""
    local = Path(model) / "tokenizer.json"
    if Path(model).is_dir():
        return local if local.exists() else None
    found = cached_file(model, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)
