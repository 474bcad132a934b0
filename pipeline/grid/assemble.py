"""The tokens of many plans at once: every segment's slice of one flat array, in the order of the plans."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.grid.encode import Integers, encode_segments
from pipeline.grid.tokens import Ids, Tokenizer
from pipeline.plan.plan import Segment
from pipeline.read.conversation import Part


class TokenizedPlans(NamedTuple):
    """Segments of all plans, one plan after another."""

    ids: Ids
    #: Segment i is ``ids[begin[i] : begin[i] + length[i]]``, then the end marker where ``has_end[i]``. [segments]
    begin: Integers
    length: Integers
    has_end: NDArray[np.bool_]
    #: Stream number and part. [segments]
    stream: Integers
    part: Integers
    #: ``offsets[p] : offsets[p + 1]`` are the segments of plan p. [plans + 1]
    offsets: list[int]
    #: Plans with a text that the tokenizer does not give back.
    failed: set[int]


def tokenize_plans(
    tokenizer: Tokenizer,
    plans: Sequence[tuple[Sequence[Part], Sequence[Segment]]],
    stream_number: Mapping[str, int],
    stream_has_end: NDArray[np.bool_],
) -> TokenizedPlans:
    """Encode the parts (and generated texts) of all plans and cut them into their segments."""
    texts: list[str] = []
    ends: list[list[int]] = []
    order: list[int] = []  # the place among all plans' segments of every encoded segment
    stream: list[int] = []
    part: list[int] = []
    offsets = [0]
    plan_texts = [0]
    for parts, segments in plans:
        first = offsets[-1]
        count = len(segments)
        texts += [p.text for p in parts]
        stream += [stream_number[segment.stream] for segment in segments]
        numbers = [segment.part for segment in segments]
        part += numbers
        offsets.append(first + count)
        if numbers[:1] >= [0] and numbers == sorted(numbers):  # part by part, as most plans are
            own = [segment.end for segment in segments]
            done = 0
            for index in range(len(parts)):
                stop = bisect_right(numbers, index, done)
                ends.append(own[done:stop])
                done = stop
            order += range(first, first + count)
            plan_texts.append(len(texts))
            continue
        own_ends: list[list[int]] = [[] for _ in parts]
        places: list[list[int]] = [[] for _ in parts]
        for place, segment in enumerate(segments, first):
            index = segment.part
            if index >= 0:
                own_ends[index].append(segment.end)
                places[index].append(place)
            else:
                text = segment.text or ""
                texts.append(text)
                own_ends.append([len(text)])
                places.append([place])
        ends += own_ends
        for of_text in places:
            order += of_text
        plan_texts.append(len(texts))

    encoded = encode_segments(tokenizer, texts, ends)
    to_plan_order = np.array(order, np.int64)
    begin, length = np.empty_like(encoded.begin), np.empty_like(encoded.length)
    begin[to_plan_order], length[to_plan_order] = encoded.begin, encoded.length
    # A message ends with the last segment of its text.
    ends_message = np.zeros(len(order), np.bool_)
    if order:
        ends_message[to_plan_order[np.cumsum(list(map(len, ends))) - 1]] = True
    streams = np.array(stream, np.int64)
    failed = np.searchsorted(plan_texts, encoded.failed, side="right") - 1
    return TokenizedPlans(
        encoded.ids,
        begin,
        length,
        ends_message & stream_has_end[streams],
        streams,
        np.array(part, np.int64),
        offsets,
        set(failed.tolist()),
    )
