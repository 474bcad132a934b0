"""Running a trained model row by row, so that it sees what it saw in training.

One forward per row: over the input cells that are said, and one cell of every stream that the model predicts, said or
silent. Keys and values are kept of said cells only (in mode ``keys``: of all, and all exist), so memory grows with what was
said and not with rows. Row r has position id r + 1; before it comes the silent virtual row with position id 0.

    loaded = trainer.load("run/model")
    decoder = Decoder(loaded.model, loaded.description)
    question = loaded.tokenizer.encode("Can it run?", add_special_tokens=False).ids
    for said in decoder.run(({"user": token} for token in question), rows=100):
        ...                                   # {"output": 4317}: what the predicted streams say in this row

What a predicted stream says can be forced row by row: ``decoder.step({"user": 17, "output": 4317})``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from pipeline.errors import UserError
from trainer.model.description import Description
from trainer.model.streams import StreamModel
from trainer.model.vocabulary import tables


class _Cache:
    """Keys and values [1, Hk, N, D] of every layer, and the stream of every key [N]."""

    def __init__(self, sees: torch.Tensor) -> None:
        self._sees = sees  # bool [C, C], row = who reads
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._streams = torch.empty(0, dtype=torch.long, device=sees.device)

    def __len__(self) -> int:
        return len(self._streams)

    def begin(self, streams: torch.Tensor, kept: torch.Tensor) -> None:
        """A row with cells in these streams, int64 [n]; ``kept``: which of them later rows may see, bool [n]."""
        past = self._sees[streams[:, None], self._streams]
        self._mask = torch.cat([past, torch.eye(len(streams), dtype=torch.bool, device=past.device)], 1)  # [n, N + n]
        self._keep = kept.nonzero()[:, 0]
        self._streams = torch.cat([self._streams, streams[kept]])

    def attend(
        self, module: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """Attention of the row's cells to what is kept, and of each to itself; called once per layer and row."""
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        past = self._kept.get(layer, (k[:, :, :0], v[:, :, :0]))
        keys, values = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        out = scaled_dot_product_attention(q, keys, values, attn_mask=self._mask, scale=scale, enable_gqa=True)
        new = (x.index_select(2, self._keep) for x in (k, v))
        self._kept[layer] = tuple(torch.cat(pair, 2) for pair in zip(past, new, strict=True))  # type: ignore[assignment]
        return out


class Decoder:
    """One conversation with a model. The streams it predicts are those with a loss weight."""

    def __init__(self, model: StreamModel, description: Description) -> None:
        self._model, self._description = model.eval(), description
        self._device = model.vectors.device
        self._vocabulary = len(tables(model.backbone)[0])
        streams = description.layout.streams
        visibility = description.visibility()
        sees = torch.ones(len(streams), len(streams), dtype=torch.bool)
        if visibility is not None:
            sees = torch.from_numpy(visibility)
        self._cache = _Cache(sees.to(self._device))
        self._numbers = description.layout.index()
        self._position = 0
        #: Names of the streams that the model predicts.
        self.predicted = [stream.name for stream in streams if stream.loss]
        #: Logits [len(predicted), V] for row 0; None without virtual rows, where nothing precedes row 0.
        self.logits = self._forward({}) if description.virtual_rows else None

    @property
    def cached(self) -> int:
        """How many cells the next row can see."""
        return len(self._cache)

    def step(self, said: Mapping[str, int]) -> torch.Tensor:
        """Go over one row: what is said in it, by stream; all others are silent, but for the ticks of clocks.

        A predicted stream may be given, too: so it is forced to say something. Returns the logits [len(predicted), V] of the
        next row. Raises UserError for a stream or a token that the model does not have.
        """
        if unknown := said.keys() - self._numbers.keys():
            raise UserError(f"no such stream: {', '.join(sorted(unknown))}; the model has {', '.join(self._numbers)}")
        for name, token in said.items():
            if not 0 <= token < self._vocabulary:
                raise UserError(f"{name}: no such token: {token}; the model has ids from 0 to {self._vocabulary - 1}")
        row = self._position - self._description.virtual_rows
        ticks = {
            stream.name: self._description.tokenizer.tick_ids[stream.name]
            for stream in self._description.layout.streams
            if stream.clock is not None and row % stream.clock.every == 0
        }
        self.logits = self._forward({**ticks, **said})
        return self.logits

    def run(
        self,
        inputs: Iterable[Mapping[str, int]],
        rows: int,
        choose: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits.argmax(-1),
    ) -> Iterator[dict[str, int]]:
        """Decode rows: ``inputs`` gives what the world says, row by row, and then falls silent.

        ``choose`` makes tokens [n] of logits [n, V]. Yields what the predicted streams say in every row. Without virtual rows
        they are silent in row 0, from which their first tokens are predicted. Raises UserError for an input to a predicted
        stream, which is the model's own here: :meth:`step` is for forcing it.
        """
        silence = self._description.tokenizer.silence_id
        heard = iter(inputs)
        for _ in range(rows):
            said: dict[str, int] = {}
            if self.logits is not None:
                tokens = choose(self.logits).tolist()
                said = {name: t for name, t in zip(self.predicted, tokens, strict=True) if t != silence}
            yield said
            inputs_of_row = next(heard, {})
            if own := inputs_of_row.keys() & set(self.predicted):
                raise UserError(
                    f"{', '.join(sorted(own))}: the model says this itself, so it is no input of run(); "
                    f"give it row by row to step(), which forces it"
                )
            self.step({**inputs_of_row, **said})

    @torch.no_grad()
    def _forward(self, said: Mapping[str, int]) -> torch.Tensor:
        """One row: the logits [len(predicted), V] of its predicted cells."""
        keys = self._description.silence == "keys"
        names = [name for name in self._numbers if keys or name in said or name in self.predicted]
        silence = self._description.tokenizer.silence_id

        def tensor(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, device=self._device)

        streams = tensor([self._numbers[name] for name in names])
        self._cache.begin(streams, tensor([keys or name in said for name in names]).bool())
        hidden = self._model.hidden(
            tensor([said.get(name, silence) for name in names]),
            streams,
            torch.full_like(streams, self._position),
            self._cache,
        )
        self._position += 1
        return self._model.logits(hidden[[names.index(name) for name in self.predicted]])
