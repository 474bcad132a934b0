"""Whether a dataset's tokens mean to a model what they mean in the dataset."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from pipeline.errors import UserError
from pipeline.store.dataset import Dataset


def check_vocabulary(dataset: Dataset, embedding_rows: int, tokenizer_json: str | Path | None = None) -> None:
    """Raise UserError where the dataset was made with another tokenizer than the model's.

    ``embedding_rows``: rows of the model's embedding, padding included. The ids of silence and end may lie behind them:
    they get rows of their own. ``tokenizer_json``: the model's ``tokenizer.json``, if it has one; then every token of the
    dataset's tokenizer must have the same id there.
    """
    entry = dataset.manifest.tokenizer
    remedy = "convert the corpus again with '--tokenizer' and the model's own, or train the model that it belongs to"
    if entry.vocab_size > embedding_rows:
        raise UserError(
            f"{dataset.place}: made with tokenizer '{entry.name}', whose ids go up to {entry.vocab_size - 1}, "
            f"but the model has {embedding_rows} embedding rows: {remedy}"
        )
    if tokenizer_json is None:
        return
    own = Tokenizer.from_str(dataset.tokenizer.json).get_vocab(with_added_tokens=True)
    try:
        other = Tokenizer.from_file(str(tokenizer_json)).get_vocab(with_added_tokens=True)
    except Exception as error:  # noqa: BLE001 — the library raises Exception itself
        raise UserError(f"{tokenizer_json}: not a tokenizer: {error}") from None
    differing = [token for token, id_ in own.items() if other.get(token) != id_]
    if differing:
        token = min(differing, key=lambda name: own[name])
        there = other.get(token)
        raise UserError(
            f"{dataset.place}: made with tokenizer '{entry.name}', in which {len(differing)} of {len(own)} tokens have "
            f"other ids than in {tokenizer_json}: {token!r} is {own[token]} and "
            f"{'is missing there' if there is None else f'{there} there'}: {remedy}"
        )
