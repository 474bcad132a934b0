"""A decoder that reads several streams: its embeddings get a learned vector per stream, its attention an index.

Shapes: S cells of one packed sequence, C streams, D hidden size, V vocabulary, R new rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from trainer.model.attention import use_streams
from trainer.model.loss import Head, chunked_cross_entropy
from trainer.model.vocabulary import tables

#: Spread of a stream vector at the start: that of the embeddings of most decoders, and of the paper's.
SPREAD = 0.02


class StreamModel(nn.Module):
    """A causal language model of transformers, and what makes streams of it.

    ``backbone`` is changed: its attention becomes stream attention. ``vectors`` [C, D] and, after
    :meth:`separate_rows`, the rows of the new tokens are parameters of their own.
    """

    def __init__(self, backbone: PreTrainedModel, streams: int, seed: int = 0) -> None:
        super().__init__()
        use_streams(backbone)
        self.backbone = backbone
        embedding, _ = tables(backbone)
        # On the CPU, whatever torch's default device: the same on every machine.
        generator = torch.Generator("cpu").manual_seed(seed)
        drawn = torch.randn(streams, embedding.shape[1], generator=generator, device="cpu")
        self.vectors = nn.Parameter((SPREAD * drawn).to(embedding.device))
        self.rows_in: nn.Parameter | None = None
        self.rows_out: nn.Parameter | None = None
        self.row_ids: torch.Tensor | None
        self.register_buffer("row_ids", None, persistent=False)

    def separate_rows(self, ids: Sequence[int]) -> None:
        """Make the rows of these ids parameters of their own, [R, D]: they train where the tables are frozen."""
        inputs, outputs = tables(self.backbone)
        self.row_ids = torch.tensor(list(ids), dtype=torch.long, device=inputs.device)
        self.rows_in = nn.Parameter(inputs.detach()[self.row_ids].float())
        self.rows_out = None if outputs is inputs else nn.Parameter(outputs.detach()[self.row_ids].float())

    @torch.no_grad()
    def join_rows(self) -> None:
        """Write separate rows into the tables again."""
        for table, rows in zip(tables(self.backbone), (self.rows_in, self.rows_out), strict=True):
            if rows is not None and self.row_ids is not None:
                table[self.row_ids] = rows.to(table.dtype)
        self.rows_in = self.rows_out = self.row_ids = None

    def hidden(self, ids: torch.Tensor, streams: torch.Tensor, positions: torch.Tensor, cells: Any) -> torch.Tensor:
        """The last hidden states [S, D] of cells with tokens ``ids``, in ``streams``, at ``positions``, int64 [S] each.

        ``cells``: the attention index on the device of the model, or what else ``model.attention`` takes.
        """
        embedded = self.backbone.get_input_embeddings()(ids)
        if self.rows_in is not None and self.row_ids is not None:
            for number, token in enumerate(self.row_ids):
                embedded = torch.where((ids == token)[:, None], self.rows_in[number].to(embedded.dtype), embedded)
        embedded = embedded + nn.functional.embedding(streams, self.vectors).to(embedded.dtype)
        kind = embedded.device.type
        if torch.is_autocast_enabled(kind):  # else what layers add to would stay float32, unlike with FSDP
            embedded = embedded.to(torch.get_autocast_dtype(kind))
        output = self.backbone.get_decoder()(
            inputs_embeds=embedded[None], position_ids=positions[None], use_cache=False, stream_cells=cells
        )
        hidden: torch.Tensor = output[0][0]
        return hidden

    def head(self) -> Head:
        """The output embedding, as the loss takes it."""
        bias = getattr(self.backbone.get_output_embeddings(), "bias", None)
        rows = self.rows_in if self.rows_out is None else self.rows_out
        return Head(tables(self.backbone)[1], bias, rows, self.row_ids)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [N, V] of hidden states [N, D]."""
        weight, bias, rows, ids = self.head()
        weight = weight.to(hidden.dtype)
        if rows is not None and ids is not None:
            weight = weight.index_copy(0, ids, rows.to(hidden.dtype))
        return nn.functional.linear(hidden, weight, None if bias is None else bias.to(hidden.dtype))

    def forward(
        self,
        ids: torch.Tensor,
        streams: torch.Tensor,
        positions: torch.Tensor,
        cells: Any,
        trained: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted sum of the losses of the ``trained`` cells, and the loss of each; see ``loss``.

        ``trained``: int64 [N], the cells with a target; ``targets`` int64 [N] and ``weights`` float [N] are theirs.
        """
        hidden = self.hidden(ids, streams, positions, cells)
        return chunked_cross_entropy(hidden.index_select(0, trained), self.head(), targets, weights)
