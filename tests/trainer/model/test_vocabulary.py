"""Rows for silence and end."""

from __future__ import annotations

import pytest
import torch
from tiny import decoder

from pipeline.errors import UserError
from pipeline.store.manifest import TokenizerEntry
from trainer.model.streams import StreamModel
from trainer.model.vocabulary import make_room, new_ids, tables


def entry(vocabulary: int, silence: int, end: int | None) -> TokenizerEntry:
    return TokenizerEntry("test", "", "", vocabulary, silence, end, {})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("size", "after"), [(64, 64), (50, 52), (51, 52)])
def test_new_rows_begin_as_the_mean_row_and_padding_is_used(tied: bool, size: int, after: int) -> None:
    backbone = decoder(vocabulary=size, tie_word_embeddings=tied)
    before = [table.detach().clone() for table in tables(backbone)]
    assert make_room(backbone, entry(50, 50, 51)) == [50, 51]
    inputs, outputs = tables(backbone)
    assert len(inputs) == len(outputs) == backbone.config.vocab_size == after
    assert (inputs is outputs) == tied
    for table, old in zip((inputs, outputs), before, strict=True):
        assert torch.equal(table[:50], old[:50])
        assert torch.allclose(table[50:52], old[:50].mean(0).expand(2, -1), atol=1e-6)
        assert torch.equal(table[52:], old[52:])


def test_an_ordinary_token_keeps_its_row() -> None:
    backbone = decoder()
    before = tables(backbone)[0].detach().clone()
    assert new_ids(entry(50, 7, 9)) == make_room(backbone, entry(50, 7, 9)) == []
    assert torch.equal(tables(backbone)[0], before)


def test_a_model_with_fewer_tokens_than_the_dataset() -> None:
    with pytest.raises(UserError, match=r"100 tokens and the model only 64.*--tokenizer"):
        make_room(decoder(), entry(100, 100, 101))


@pytest.mark.parametrize("tied", [True, False])
def test_separate_rows_compute_what_the_table_would_and_join_it(tied: bool) -> None:
    backbone = decoder(tie_word_embeddings=tied)
    model = StreamModel(backbone, 2)
    model.separate_rows([5, 9])
    assert model.rows_in is not None and (model.rows_out is None) == tied
    with torch.no_grad():
        model.rows_in.add_(1)
        if model.rows_out is not None:
            model.rows_out.sub_(1)
    ids = torch.tensor([5, 1, 9])
    zeros = torch.zeros(3, dtype=torch.long)

    class Own:
        def attend(self, module, q, k, v, scale):  # type: ignore[no-untyped-def]
            return v.repeat_interleave(2, 1)

    hidden = model.hidden(ids, zeros, zeros, Own())
    before = hidden, model.logits(hidden), model(ids, zeros, zeros, Own(), zeros, ids, torch.ones(3))[1]
    model.join_rows()
    assert model.rows_in is None
    after = model.hidden(ids, zeros, zeros, Own())
    for a, b in zip(
        before, (after, model.logits(after), model(ids, zeros, zeros, Own(), zeros, ids, torch.ones(3))[1]), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-5)


def test_stream_vectors_are_drawn_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever torch's default device is: a generator of one device cannot draw on another."""
    backbone = decoder()
    drawn: list[torch.Tensor] = []
    plain = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **how: drawn.append(plain(*size, **how)) or drawn[-1])
    with torch.device("meta"):
        StreamModel(backbone, 3)
    assert [x.device.type for x in drawn] == ["cpu"]
