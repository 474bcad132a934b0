"""Datasets of grids that no converter would make, for laws that hold for all of them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from pipeline.grid.ids import token_ids
from pipeline.grid.spans import build_spans
from pipeline.grid.tokens import Tokenizer, load_tokenizer
from pipeline.layout import Layout
from pipeline.recipe import Recipe, load_recipe
from pipeline.store.counts import Counts
from pipeline.store.dataset import Dataset, open_dataset
from pipeline.store.format import MANIFEST, TOKENIZER, data_path, plans_path, schema_with_metadata
from pipeline.store.identity import build_manifest
from pipeline.store.manifest import File, Shard, Source
from pipeline.store.place import Place
from pipeline.store.writer import Rows, write_parquet

TOKENIZER_BUILTIN: Tokenizer = load_tokenizer("builtin")

TEXTS = [
    "Natalia sold clips",
    " to 48 of her friends.\n\n",
    "    def f(x):\n\treturn x\n",
    "日本語、中文。",
    "👩🏽‍🚀 é",
    " ",
    "",
]


ANY_OF_THEM = st.sampled_from(TEXTS)


class Piece(NamedTuple):
    """A span: its stream, first row, part and tokens."""

    stream: int
    start: int
    part: int
    tokens: list[int]


class Drawn(NamedTuple):
    """A grid: the role of every part, and its spans."""

    roles: list[str]
    pieces: list[Piece]


def recipe() -> Recipe:
    """Seven streams, with end markers."""
    return load_recipe("agent")


@st.composite
def grids(draw: st.DrawFn, layout: Layout, texts: st.SearchStrategy[str] = ANY_OF_THEM) -> Drawn:
    """Parts in any order of roles, each in up to two spans at any rows where its stream is free."""
    number = layout.index()
    end_id = token_ids(layout, TOKENIZER_BUILTIN).end_id
    kept = [role for role, stream in layout.roles.items() if layout.lanes(stream)]
    roles = draw(st.lists(st.sampled_from(kept), max_size=9))
    free = dict.fromkeys(number, 0)
    pieces = []
    for part, role in enumerate(roles):
        stream = draw(st.sampled_from(layout.lanes(layout.roles[role])))
        for _ in range(draw(st.integers(0, 2))):
            tokens = TOKENIZER_BUILTIN.encode([draw(texts)])[0].tolist()
            if layout.streams[number[stream]].end and draw(st.booleans()):
                tokens.append(end_id)
            start = free[stream] + draw(st.integers(0, 12))
            free[stream] = start + len(tokens)
            if tokens:
                pieces.append(Piece(number[stream], start, part, tokens))
    return Drawn(roles, pieces)


def write(folder: Path, made_with: Recipe, shards: list[list[Drawn]], counts: Counts | None = None) -> Dataset:
    """Store grids as a dataset. ``counts``: what the manifest shall say besides rows and tokens."""
    place = Place(str(folder))
    layout, tokenizer = made_with.layout, TOKENIZER_BUILTIN
    ids = token_ids(layout, tokenizer)
    finished = []
    for number, drawn in enumerate(shards):
        first = sum(map(len, shards[:number]))
        pieces = [(grid, piece) for grid, d in enumerate(drawn) for piece in d.pieces]
        lengths = np.array([len(piece.tokens) for _, piece in pieces], np.int64)
        spans = build_spans(
            len(drawn),
            np.array([grid for grid, _ in pieces], np.int64),
            np.array([piece.stream for _, piece in pieces], np.int64),
            np.array([piece.start for _, piece in pieces], np.int64),
            np.array([piece.part for _, piece in pieces], np.int64),
            np.array([token for _, piece in pieces for token in piece.tokens], np.int32),
            np.cumsum(lengths) - lengths,
            lengths,
            np.zeros(len(pieces), np.bool_),
            ids.end_id,
        )
        roles = [role for d in drawn for role in d.roles]
        rows = Rows(
            ids=[f"chats.jsonl:{first + grid}" for grid in range(len(drawn))],
            files=["chats.jsonl"] * len(drawn),
            records=[first + grid for grid in range(len(drawn))],
            sha256=[bytes(32)] * len(drawn),
            meta=["{}"] * len(drawn),
            part_offsets=[0, *np.cumsum([len(d.roles) for d in drawn]).tolist()],
            roles=roles,
            messages=list(range(len(roles))),
            reply_to=[-1] * len(roles),
        )
        data = write_parquet([spans], [rows], schema_with_metadata(layout.to_dict(), tokenizer.sha256))
        place.put(data_path(number), data)
        n, tokens = len(drawn), len(spans.tokens)
        finished.append(
            Shard(
                data_path(number),
                n,
                len(data),
                hashlib.sha256(data).hexdigest(),
                tokens,
                File(plans_path(number), 0, "0" * 64),
                None,
                Source("chats.jsonl", first, n),
                Counts(read=n, converted=n, rows=n, tokens=tokens) + (counts or Counts()),
            )
        )
    place.put(TOKENIZER, tokenizer.json.encode())
    place.put(MANIFEST, build_manifest(made_with, tokenizer, ids, None, None, [], finished).encode())
    return open_dataset(str(folder))
