"""The grids of one shard by themselves: ids, parts, spans, tokens, rows. NumPy over all spans at once."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.plan.edges import streams_for
from pipeline.read.conversation import ROLES
from pipeline.store.validate.report import Code
from pipeline.store.validate.view import View


def check_grids(view: View) -> None:
    """All checks that need nothing but the shard's Parquet file and the manifest."""
    _check_ids(view)
    _check_parts(view)
    _check_meta(view)
    _check_places(view)
    _check_roles(view)
    _check_sizes(view)
    _check_tokens(view)
    _check_text(view)
    view.context.findings.checked(grids=len(view), spans=len(view.length), tokens=len(view.spans.tokens))


def _check_ids(view: View) -> None:
    findings, shard = view.context.findings, view.shard
    window_of = np.arange(len(view)) - np.repeat(view.first_grid[:-1], np.diff(view.first_grid))
    windows = np.repeat(np.diff(view.first_grid), np.diff(view.first_grid))
    newest = shard.source.first - 1
    for grid, (found, source) in enumerate(zip(view.ids, view.source, strict=True)):
        record = source["record"]
        expected = f"{source['file']}:{record}" + (f"#{window_of[grid]}" if windows[grid] > 1 else "")
        if found != expected:
            findings.add(Code.ID, view.file, found, expected=expected, found=found)
        inside = shard.source.first <= record < shard.source.first + shard.source.records
        if source["file"] != shard.source.file or not inside or record < newest:
            expected = f"a record of {shard.source.file} after {newest}"
            findings.add(Code.SOURCE, view.file, found, expected=expected, found=f"{source['file']}:{record}")
        newest = max(newest, record)
    if len(set(view.ids)) < len(view.ids):
        seen: set[str] = set()
        for found in view.ids:
            if found in seen:
                findings.add(Code.DUPLICATE_ID, view.file, found)
            seen.add(found)


def _check_parts(view: View) -> None:
    _, roles, message, reply_to = view.columns.parts
    offsets = view.part_offsets
    grid = np.repeat(np.arange(len(view)), np.diff(offsets))
    place = np.arange(len(roles)) - offsets[:-1][grid]
    role = _role_numbers(roles)
    first = np.zeros(len(roles), np.bool_)
    first[offsets[:-1][np.diff(offsets) > 0]] = True
    wrong = (role < 0) | (message < 0)
    if len(roles):
        wrong[1:] |= ~first[1:] & (message[1:] < message[:-1])
        answers = reply_to != -1
        call = np.where((reply_to >= 0) & (reply_to < place), offsets[:-1][grid] + reply_to, 0)
        is_call = (reply_to >= 0) & (reply_to < place) & (role[call] == ROLES.index("call"))
        wrong |= answers & ~(is_call & (role == ROLES.index("result")))
    view.context.findings.add_each(
        Code.PARTS,
        wrong,
        lambda i: view.at_grid(
            int(grid[i]),
            f"part {place[i]}",
            found=f"{roles[i]}, message {message[i]}, reply_to {reply_to[i]}",
        ),
    )


def _role_numbers(roles: Sequence[str]) -> NDArray[np.int64]:
    number = {role: index for index, role in enumerate(ROLES)}
    return np.array([number.get(role, -1) for role in roles], np.int64)


def _check_meta(view: View) -> None:
    for grid, meta in enumerate(view.columns.meta):
        if meta == "{}":
            continue
        try:
            wrong = not isinstance(msgspec.json.decode(meta), dict)
        except msgspec.DecodeError:
            wrong = True
        if wrong:
            view.context.findings.add(Code.META, view.file, view.ids[grid], found=meta)


def _check_places(view: View) -> None:
    """Streams, parts, order and overlap of spans."""
    findings, spans, layout = view.context.findings, view.spans, view.context.layout
    findings.add_each(Code.SPAN_EMPTY, view.length == 0, view.at_span)
    sayable = np.array([stream.clock is None for stream in layout.streams], np.bool_)
    known = (spans.stream >= 0) & (spans.stream < len(layout.streams))
    known &= sayable[np.clip(spans.stream, 0, len(layout.streams) - 1)]
    findings.add_each(
        Code.SPAN_STREAM,
        ~known,
        lambda i: view.at_span(i, f"0 to {len(layout.streams) - 1}, no clock", spans.stream[i]),
    )
    parts = np.diff(view.part_offsets)[view.grid]
    findings.add_each(
        Code.SPAN_PART,
        (spans.part < -1) | (spans.part >= parts),
        lambda i: view.at_span(i, f"-1 to {parts[i] - 1}", spans.part[i]),
    )
    start = spans.start.astype(np.int64)
    wrong = start < 0
    wrong[1:] |= (view.grid[1:] == view.grid[:-1]) & (
        (spans.stream[1:] < spans.stream[:-1]) | ((spans.stream[1:] == spans.stream[:-1]) & (start[1:] < start[:-1]))
    )
    findings.add_each(
        Code.SPAN_ORDER, wrong, lambda i: view.at_span(i, found=f"stream {spans.stream[i]}, row {start[i]}")
    )
    order = np.lexsort((start, spans.stream, view.grid)) if wrong.any() else np.arange(len(start))
    grid, stream, start, end = (
        view.grid[order],
        spans.stream[order],
        start[order],
        (start + view.length)[order],
    )
    overlap = np.zeros(len(order), np.bool_)
    overlap[1:] = (grid[1:] == grid[:-1]) & (stream[1:] == stream[:-1]) & (start[1:] < end[:-1])
    findings.add_each(
        Code.SPAN_OVERLAP,
        overlap,
        lambda i: view.at_span(int(order[i]), f"row {end[i - 1]} or later", f"row {start[i]}"),
    )


def _check_roles(view: View) -> None:
    findings, spans, layout = view.context.findings, view.spans, view.context.layout
    number = layout.index()
    allowed = np.zeros((len(ROLES) + 1, len(layout.streams)), np.bool_)  # the last row: unknown roles
    for name, targets in streams_for(layout).items():
        allowed[ROLES.index(name), [number[target] for target in targets]] = True
    role = _role_numbers(view.roles)
    stream = np.clip(spans.stream, 0, len(layout.streams) - 1).astype(np.int64)
    recorded = view.part >= 0
    wrong = np.zeros(len(stream), np.bool_)
    wrong[recorded] = ~allowed[role[view.part[recorded]], stream[recorded]]
    # A part stands in one stream: that of its first span.
    stream_of_part = np.full(len(role), -1, np.int64)
    stream_of_part[view.part[recorded][::-1]] = stream[recorded][::-1]
    wrong[recorded] |= stream_of_part[view.part[recorded]] != stream[recorded]
    findings.add_each(
        Code.SPAN_ROLE,
        wrong,
        lambda i: view.at_span(
            i,
            f"a stream for {view.roles[view.part[i]]}, one for the whole part",
            layout.streams[int(stream[i])].name,
        ),
    )


def _check_sizes(view: View) -> None:
    findings, spans = view.context.findings, view.spans
    rows = np.zeros(len(view), np.int64)
    np.maximum.at(rows, view.grid, spans.start + view.length)
    tokens = np.bincount(view.grid, weights=view.length, minlength=len(view)).astype(np.int64)
    findings.add_each(Code.NUM_ROWS, spans.num_rows != rows, lambda g: view.at_grid(g, "", rows[g], spans.num_rows[g]))
    findings.add_each(
        Code.NUM_TOKENS,
        spans.num_tokens != tokens,
        lambda g: view.at_grid(g, "", tokens[g], spans.num_tokens[g]),
    )
    limit = view.context.recipe.rows.max
    if limit is not None:
        findings.add_each(Code.TOO_MANY_ROWS, rows > limit, lambda g: view.at_grid(g, "", limit, rows[g]))


def _check_tokens(view: View) -> None:
    findings, spans, entry = view.context.findings, view.spans, view.context.manifest.tokenizer
    tokens, vocab_size = spans.tokens, view.context.tokenizer.vocab_size
    is_end = tokens == entry.end_id if entry.end_id is not None else np.zeros(len(tokens), np.bool_)
    is_silence = tokens == entry.silence_id if entry.silence_id >= vocab_size else np.zeros(len(tokens), np.bool_)
    outside = (tokens < 0) | (tokens >= vocab_size)
    findings.add_each(
        Code.TOKEN_ID,
        outside & ~is_end & ~is_silence,
        lambda t: view.at_token(t, f"0 to {vocab_size - 1}", tokens[t]),
    )
    findings.add_each(Code.SILENCE, is_silence, view.at_token)
    control = np.zeros(vocab_size, np.bool_)
    control[list(view.context.tokenizer.control_ids)] = True
    findings.add_each(
        Code.CONTROL_TOKEN,
        control[np.where(outside, 0, tokens)] & ~outside & ~is_end,
        lambda t: view.at_token(t, found=tokens[t]),
    )

    # The last span of every message ends with the end marker where its stream has one; nothing else holds it.
    streams = view.context.layout.streams
    has_end = np.array([stream.end for stream in streams], np.bool_)
    last = view.part < 0  # generated text: every span is a message
    last_of_part = np.full(len(view.roles), -1, np.int64)
    recorded = np.flatnonzero(~last)
    last_of_part[view.part[recorded]] = recorded
    last[last_of_part[last_of_part >= 0]] = True
    ends = last & has_end[np.clip(spans.stream, 0, len(streams) - 1)] & (view.length > 0)
    expected = np.zeros(len(tokens), np.bool_)
    expected[spans.token_offsets[1:][ends] - 1] = True
    findings.add_each(
        Code.END_MARKER,
        expected != is_end,
        lambda t: view.at_token(t, "the end marker" if expected[t] else "content", tokens[t]),
    )


def _check_text(view: View) -> None:
    """Every span is valid UTF-8: all are where their bytes joined are and none begins inside a character."""
    data, offsets = view.texts
    begins = offsets[:-1][np.diff(offsets) > 0]
    try:
        data.tobytes().decode("utf-8")
        whole = not np.any((data[begins] & 0xC0) == 0x80)
    except UnicodeDecodeError:
        whole = False
    if whole:
        return
    reasons: dict[int, str] = {}
    for span in range(len(view.length)):
        try:
            view.texts.of(span).decode("utf-8")
        except UnicodeDecodeError as error:
            reasons[span] = error.reason
    wrong = np.zeros(len(view.length), np.bool_)
    wrong[list(reasons)] = True
    view.context.findings.add_each(Code.UTF8, wrong, lambda i: view.at_span(i, found=reasons[i]))
