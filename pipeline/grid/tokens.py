"""The content tokenizer: text to tokens and back, byte for byte (DESIGN §5).

It is derived once from the tokenizer that is given: no text can become a control token, and nothing is normalised away.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import tokenizers
from numpy.typing import NDArray

from pipeline.errors import UserError

BUILTIN = "builtin"
_BUILTIN_PATH = Path(__file__).with_name("builtin.tokenizer.json")

#: Texts that the library encodes in one call: few, so that its result is still in the cache when it is read.
CALL_TEXTS = 64
#: Texts whose tokens are handled at once, as arrays.
_BATCH_TEXTS = 1024
_BATCH_CHARS = 1 << 20

Ids = NDArray[np.int32]


class Spelling(NamedTuple):
    """What tokens stand for."""

    #: UTF-8, of all tokens joined. [bytes]
    text: NDArray[np.uint8]
    #: ``text[offsets[t] : offsets[t + 1]]`` is that of token t, which may be a part of a character. [tokens + 1]
    offsets: NDArray[np.int64]


class Tokenizer:
    """A content tokenizer, its byte table, and what the manifest says of it.

    Pickling sends the JSON and builds the object again: the library forgets ``encode_special_tokens`` on the way.
    """

    def __init__(self, name: str, source_sha256: str, content_json: str) -> None:
        self.name = name
        self.source_sha256 = source_sha256
        #: The derived tokenizer as it is stored beside the dataset.
        self.json = content_json
        self._tokenizer = tokenizers.Tokenizer.from_str(content_json)
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        #: The largest token id plus one; new ids follow.
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.vocabulary = vocabulary

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self.name, self.source_sha256, self.json)

    @cached_property
    def sha256(self) -> str:
        """Hash of the content tokenizer's JSON."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids that content can never become."""
        return frozenset(i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def _pieces(self) -> pa.LargeBinaryArray:
        """The bytes that every id stands for; behind the vocabulary one more id, which stands for none."""
        pieces = [b""] * (self.vocab_size + 1)
        added = self._tokenizer.get_added_tokens_decoder()
        byte_level = _byte_level_alphabet() if '"ByteLevel"' in json.dumps(json.loads(self.json)["decoder"]) else None
        for text, token_id in self.vocabulary.items():
            if token_id in self.control_ids:
                continue  # no content: where one ends a message, it is left out of the text
            if token_id in added or byte_level is None:
                pieces[token_id] = self._tokenizer.decode([token_id], skip_special_tokens=False).encode()
            else:
                pieces[token_id] = bytes([byte_level[char] for char in text])
        return pa.array(pieces, pa.large_binary())

    def spell(self, ids: Ids) -> Spelling:
        """What the tokens stand for. An id beyond the vocabulary (silence, end) stands for nothing."""
        if len(ids) == 0:
            return Spelling(np.empty(0, np.uint8), np.zeros(1, np.int64))
        if int(ids.max()) > self.vocab_size:
            ids = np.minimum(ids, self.vocab_size)
        _, offsets, data = self._pieces.take(pa.array(ids)).buffers()
        return Spelling(np.frombuffer(data or b"", np.uint8), np.frombuffer(offsets, np.int64, len(ids) + 1))

    def encode(self, texts: Sequence[str]) -> tuple[Ids, NDArray[np.int64]]:
        """Tokens of all texts, one after another, and how many each text has.

        Meant for batches of about a megabyte (:func:`batches`): larger ones leave the processor's cache.
        """
        ids = array("i")
        counts: list[int] = []
        for begin in range(0, len(texts), CALL_TEXTS):
            for encoding in self._tokenizer.encode_batch_fast(
                texts[begin : begin + CALL_TEXTS], add_special_tokens=False
            ):
                own = encoding.ids
                ids.fromlist(own)
                counts.append(len(own))
        return np.array(ids, np.int32), np.array(counts, np.int64)

    def decode(self, ids: Ids) -> str:
        """The text of a span. Control tokens (an end marker) and ids beyond the vocabulary stand for no text."""
        return self.spell(ids).text.tobytes().decode("utf-8")

    def token_id(self, text: str, what: str) -> int:
        """The id of a control token, or of a text that is one token. ``what`` names the option for the error."""
        control = self._tokenizer.token_to_id(text)
        if control in self.control_ids:
            return int(control)
        ids, _ = self.encode([text])
        if len(ids) != 1:
            raise UserError(
                f"{what}: '{text}' is {len(ids)} tokens in tokenizer '{self.name}'; give a text that is one token, "
                f"or null for a new token id"
            )
        return int(ids[0])


def batches(texts: Sequence[str]) -> Iterator[range]:
    """Ranges of texts that are worth encoding in one call."""
    begin = chars = 0
    for index, text in enumerate(texts):
        if index > begin and (index - begin == _BATCH_TEXTS or chars + len(text) > _BATCH_CHARS):
            yield range(begin, index)
            begin, chars = index, 0
        chars += len(text)
    if begin < len(texts):
        yield range(begin, len(texts))


def load_tokenizer(given: str) -> Tokenizer:
    """The content tokenizer of ``builtin``, a ``tokenizer.json``, a directory that holds one, or a hub name.

    Raises :class:`UserError` where there is none, or where it does not give back a probe text byte for byte.
    """
    name, source = _read(given)
    try:
        document = json.loads(source)
        tokenizer = Tokenizer(name, hashlib.sha256(source).hexdigest(), _content_json(document))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception for a malformed file
        raise UserError(
            f"--tokenizer {given}: not a tokenizer.json that the tokenizers library reads: {error}"
        ) from None
    _probe(tokenizer, given)
    return tokenizer


def _read(given: str) -> tuple[str, bytes]:
    if given == BUILTIN:
        return BUILTIN, _BUILTIN_PATH.read_bytes()
    path = Path(given)
    if path.is_dir():
        path = path / "tokenizer.json"
    try:
        if path.exists():
            # Only the name: a dataset does not depend on where its tokenizer lay.
            return (
                path.parent.name if path.name == "tokenizer.json" and path.parent.name else path.name,
                path.read_bytes(),
            )
    except OSError as error:
        raise UserError(f"--tokenizer {given}: cannot be read: {error.strerror}") from None
    if path.suffix == ".json" or given.startswith((".", "/", "~")) or given.count("/") > 1:
        raise UserError(
            f"--tokenizer {given}: no such file; give a tokenizer.json, a directory with one, or '{BUILTIN}'"
        )
    try:
        from huggingface_hub import hf_hub_download

        return given, Path(hf_hub_download(given, "tokenizer.json")).read_bytes()
    except Exception as error:  # noqa: BLE001 - the hub client raises many types, all of which mean "not available"
        raise UserError(
            f"--tokenizer {given}: neither a file nor a tokenizer that the hub gave ({type(error).__name__}); "
            f"give a tokenizer.json, a directory with one, a hub name, or '{BUILTIN}'"
        ) from None


def _content_json(document: dict[str, Any]) -> str:
    """The given tokenizer with every non-blank added token marked special, without Unicode normalisers and dropout."""
    document = dict(document)
    model = document.get("model")
    if isinstance(model, dict) and model.get("dropout"):
        # It is meant for training, and merges at random: the same text would give other tokens every time.
        document["model"] = model | {"dropout": None}
    document["added_tokens"] = [
        token | {"special": True} if token["content"].strip() else token for token in document.get("added_tokens", [])
    ]
    document["normalizer"] = _without_unicode(document.get("normalizer"))
    document["truncation"] = document["padding"] = document["post_processor"] = None
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _without_unicode(normalizer: dict[str, Any] | None) -> dict[str, Any] | None:
    if normalizer is None or normalizer["type"] in ("NFC", "NFD", "NFKC", "NFKD"):
        return None
    if normalizer["type"] == "Sequence":
        kept = [n for n in map(_without_unicode, normalizer["normalizers"]) if n is not None]
        return normalizer | {"normalizers": kept} if kept else None
    return normalizer


def _probe(tokenizer: Tokenizer, given: str) -> None:
    for text in _probe_texts(tokenizer):
        ids, _ = tokenizer.encode([text])
        decoded = tokenizer._tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        if decoded != text or tokenizer.spell(ids).text.tobytes() != text.encode():
            raise UserError(
                f"--tokenizer {given}: it does not give back every text byte for byte "
                f"({text[:40]!r} came back as {decoded[:40]!r}), so no dataset made with it would be faithful; "
                f"use a byte-level tokenizer (GPT-2, Llama 3, Qwen, …) or '{BUILTIN}'"
            )
        if not tokenizer.control_ids.isdisjoint(ids.tolist()):
            raise UserError(f"--tokenizer {given}: the text {text[:40]!r} becomes a control token")


def _probe_texts(tokenizer: Tokenizer) -> Iterator[str]:
    yield " Two  spaces,\ttabs,\r\nlines\n\n\n   and an end. "
    yield "don't  CAN'T 1234567890 3.14 x==y;  {\"a\": [1, 2]} ▁ Ġ Ċ"
    yield "e\u0301 \u00e9 \u212b \ufb01 \u2126 \u1100\u1161 가 日本語、中文。 العربية हिन्दी ไทย"
    yield "👩\u200d👩\u200d👧 👍🏽 \ufeff\u200b\u2028 \U000e0041"
    yield "".join(map(chr, range(0x100)))
    # every byte that UTF-8 can have: lead bytes up to F4, continuation bytes 80-BF
    yield "".join(map(chr, [*range(0x100, 0x800, 64), *range(0x800, 0xD800, 4096), *range(0xE000, 0x110000, 4096)]))
    yield "".join(chr(0x10000 + i) for i in range(64))
    yield "<|im_end|> <think>x</think> <|endoftext|> </s> <tool_call> [INST]" + "".join(
        token for token, i in sorted(tokenizer.vocabulary.items()) if i in tokenizer.control_ids
    )


def _byte_level_alphabet() -> dict[str, int]:
    """The byte that every character of a byte-level vocabulary stands for (the GPT-2 table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
