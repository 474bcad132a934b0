"""Cutting tokens: every segment decodes on its own to exactly its text, wherever the cuts are (DESIGN §5)."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import builtin, neox, texts

from pipeline.grid.assemble import tokenize_plans
from pipeline.grid.encode import encode_segments
from pipeline.grid.tokens import Tokenizer
from pipeline.plan.plan import Segment
from pipeline.plan.segments import sentences
from pipeline.read.conversation import Part


@st.composite
def cut_texts(draw: st.DrawFn) -> list[tuple[str, list[int]]]:
    """Texts with any cuts: inside words, inside characters of several tokens, twice at one place."""
    cases = []
    for text in draw(st.lists(texts(), max_size=5)):
        cuts = draw(st.lists(st.integers(0, len(text)), max_size=6))
        cases.append((text, [*sorted(cuts), len(text)]))
    return cases


def check(tokenizer: Tokenizer, cases: list[tuple[str, list[int]]]) -> None:
    encoded = encode_segments(tokenizer, [text for text, _ in cases], [ends for _, ends in cases])
    assert encoded.failed == []
    wanted = [text[a:b] for text, ends in cases for a, b in zip([0, *ends], ends, strict=False)]
    assert len(encoded.begin) == len(encoded.length) == len(wanted)
    for text, begin, length in zip(wanted, encoded.begin, encoded.length, strict=True):
        assert tokenizer.decode(encoded.ids[begin : begin + length]) == text


@given(cases=cut_texts())
@settings(max_examples=150)
def test_any_cuts_with_the_built_in_tokenizer(cases: list[tuple[str, list[int]]]) -> None:
    check(builtin(), cases)


@given(cases=cut_texts())
@settings(max_examples=150)
def test_any_cuts_with_a_real_tokenizer(cases: list[tuple[str, list[int]]]) -> None:
    check(neox(), cases)


def test_cuts_at_every_character(tokenizer: Tokenizer) -> None:
    text = "Unbelievable 👩\u200d👩\u200d👧 e\u0301<|endoftext|>  \n日本語 don't"
    check(tokenizer, [(text, list(range(len(text) + 1)))] * 3)


@given(st.lists(texts(), min_size=1, max_size=4))
@settings(max_examples=60)
def test_where_no_token_crosses_a_cut_the_tokens_are_those_of_the_whole_text(given_texts: list[str]) -> None:
    """A message is encoded once: cutting it changes its tokens only where it must."""
    tokenizer = builtin()
    ends = [sentences(text) or [0] for text in given_texts]
    encoded = encode_segments(tokenizer, given_texts, ends)
    place = 0
    for text, own_ends in zip(given_texts, ends, strict=True):
        ids, _ = tokenizer.encode([text])
        own = range(place, place + len(own_ends))
        place += len(own_ends)
        reached = set(tokenizer.spell(ids).offsets.tolist())
        if all(len(text[:end].encode()) in reached for end in own_ends):
            begin, length = encoded.begin[own.start : own.stop], encoded.length[own.start : own.stop]
            spans = [encoded.ids[b : b + n] for b, n in zip(begin, length, strict=True)]
            assert np.array_equal(np.concatenate(spans), ids)


@cache
def forgetful() -> Tokenizer:
    """A tokenizer that loses every XYZZY, which no probe text holds."""
    document = json.loads(builtin().json)
    lose = {"type": "Split", "pattern": {"String": "XYZZY"}, "behavior": "Removed", "invert": False}
    document["pre_tokenizer"]["pretokenizers"].insert(0, lose)
    return Tokenizer("forgetful", "0" * 64, json.dumps(document))


@given(st.lists(st.one_of(st.just("a XYZZY b"), texts()), max_size=6), st.data())
@settings(max_examples=60)
def test_a_text_that_does_not_come_back_is_named_and_its_neighbours_are_whole(
    given_texts: list[str], data: st.DataObject
) -> None:
    tokenizer = forgetful()
    ends = [[data.draw(st.integers(0, len(text))), len(text)] for text in given_texts]
    encoded = encode_segments(tokenizer, given_texts, ends)
    assert encoded.failed == [i for i, text in enumerate(given_texts) if "XYZZY" in text]
    for index, (text, (cut, _)) in enumerate(zip(given_texts, ends, strict=True)):
        if index in encoded.failed:
            continue
        for segment, wanted in ((2 * index, text[:cut]), (2 * index + 1, text[cut:])):
            begin = encoded.begin[segment]
            assert tokenizer.decode(encoded.ids[begin : begin + encoded.length[segment]]) == wanted


def test_the_end_marker_follows_the_last_segment_of_every_message() -> None:
    """Of a part cut in two its second; of a part with no text its only one; of every generated text."""
    parts = [Part("user", "Hi", 0), Part("answer", "One. Two.", 1), Part("answer", "", 2)]
    segments = [
        Segment("user", 0, 0, 2),
        Segment("out", 1, 0, 4),
        Segment("audit", -1, 0, 2, "ok"),
        Segment("out", 1, 4, 9),
        Segment("out", 2, 0, 0),
    ]
    streams = {"user": 0, "out": 1, "audit": 2}
    made = tokenize_plans(builtin(), [(parts, segments)] * 2, streams, np.array([False, True, True]))
    assert made.has_end.tolist() == [False, False, True, True, True] * 2
    assert made.offsets == [0, 5, 10]
    said = [builtin().decode(made.ids[b : b + n]) for b, n in zip(made.begin, made.length, strict=True)]
    assert said == ["Hi", "One.", "ok", " Two.", ""] * 2
