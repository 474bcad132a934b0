"""The content tokenizer: every text comes back byte for byte, and no text becomes a control token."""

from __future__ import annotations

import json
import pickle
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from samples import TRICKY, builtin, neox, texts
from tokenizers import decoders, models, normalizers, pre_tokenizers

from pipeline.errors import UserError
from pipeline.grid.ids import token_ids
from pipeline.grid.tokens import Tokenizer, batches, load_tokenizer
from pipeline.layout_file import load_layout


@given(text=texts(10))
@settings(max_examples=200)
def test_builtin_gives_every_text_back(text: str) -> None:
    round_trip(builtin(), text)


@given(text=texts(10))
@settings(max_examples=200)
def test_a_real_tokenizer_gives_every_text_back(text: str) -> None:
    round_trip(neox(), text)


def round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids, counts = tokenizer.encode([text, ""])
    assert counts.tolist() == [len(ids), 0]
    spelling = tokenizer.spell(ids)
    assert spelling.text.tobytes() == text.encode()
    assert spelling.offsets.tolist() == [len(tokenizer.spell(ids[:t]).text) for t in range(len(ids) + 1)]
    assert tokenizer.decode(ids) == text
    assert tokenizer.control_ids.isdisjoint(ids.tolist())
    assert all(0 <= i < tokenizer.vocab_size for i in ids.tolist())


def test_the_bytes_are_those_that_the_library_decodes(tokenizer: Tokenizer) -> None:
    """What a reader without this project gets: the library, control tokens kept."""
    library = tokenizers.Tokenizer.from_str(tokenizer.json)
    for text in TRICKY:
        ids, _ = tokenizer.encode([text])
        assert library.decode(ids.tolist(), skip_special_tokens=False) == text


def test_look_alikes_of_control_tokens_stay_text(tokenizer: Tokenizer) -> None:
    for control in tokenizer.control_ids:
        text = f"a{tokenizer._tokenizer.id_to_token(control)}b"
        ids, _ = tokenizer.encode([text])
        assert control not in ids.tolist()
        assert tokenizer.decode(ids) == text


def test_a_pickled_tokenizer_still_takes_control_tokens_for_text(tokenizer: Tokenizer) -> None:
    """The library forgets on the way that special tokens are text."""
    copy = pickle.loads(pickle.dumps(tokenizer))
    text = "".join(tokenizer._tokenizer.id_to_token(i) for i in sorted(tokenizer.control_ids))
    assert copy.control_ids.isdisjoint(copy.encode([text])[0].tolist())
    assert np.array_equal(copy.encode([text])[0], tokenizer.encode([text])[0])
    assert copy.sha256 == tokenizer.sha256
    assert (copy.name, copy.source_sha256) == (tokenizer.name, tokenizer.source_sha256)


def test_tokens_are_those_of_the_given_tokenizer(tokenizer: Tokenizer) -> None:
    """Deriving a content tokenizer changes nothing for plain text."""
    text = "The quick brown fox doesn't jump over 12 lazy dogs.\n\n    return x == y  # done"
    library = tokenizers.Tokenizer.from_str(tokenizer.json)
    assert tokenizer.encode([text])[0].tolist() == library.encode(text, add_special_tokens=False).ids


def test_new_ids_follow_the_vocabulary_silence_first() -> None:
    tokenizer = builtin()
    ids = token_ids(load_layout("chat-2"), tokenizer)
    assert (ids.silence_id, ids.end_id) == (tokenizer.vocab_size, tokenizer.vocab_size + 1)
    assert tokenizer.decode(np.array([ids.silence_id, ids.end_id], np.int32)) == ""


def test_ids_by_text_are_those_of_one_token() -> None:
    layout = load_layout("chat-2").to_dict()
    end = token_ids(load_layout({**layout, "silence": " the", "end": "<|endoftext|>"}), builtin())
    assert builtin().decode(np.array([end.silence_id], np.int32)) == " the"
    assert end.end_id in builtin().control_ids
    with pytest.raises(UserError, match=r"chat-2: silence: 'no such single token' is \d+ tokens"):
        token_ids(load_layout({**layout, "silence": "no such single token"}), builtin())
    with pytest.raises(UserError, match=r"chat-2: end: ' the' is an ordinary token"):
        token_ids(load_layout({**layout, "end": " the"}), builtin())


def test_a_layout_without_end_markers_has_no_end_id() -> None:
    assert token_ids(load_layout("cognition-10"), builtin()).end_id is None


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@pytest.mark.parametrize("in_sequence", [False, True])
def test_unicode_normalisers_are_removed(form: str, in_sequence: bool, tmp_path: Path) -> None:
    normalizer: dict[str, Any] = {"type": form}
    if in_sequence:
        normalizer = {"type": "Sequence", "normalizers": [normalizer]}
    tokenizer = load_tokenizer(str(derived(tmp_path, normalizer=normalizer)))
    text = "e\u0301 \u00e9 \u212b \ufb01"
    assert unicodedata.normalize(form, text) != text
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_dropout_is_removed(tmp_path: Path) -> None:
    """It merges at random, and a dataset has the same bytes whenever it is made."""
    model = json.loads(builtin().json)["model"]
    tokenizer = load_tokenizer(str(derived(tmp_path, model={**model, "dropout": 0.5})))
    text = "The same text gives the same tokens, always. " * 20
    assert tokenizer.encode([text])[0].tolist() == builtin().encode([text])[0].tolist()
    assert tokenizer.sha256 == builtin().sha256


def test_added_tokens_that_are_not_special_are_text_and_white_space_stays_a_token(tmp_path: Path) -> None:
    size = builtin().vocab_size
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    added = [{"id": size, "content": "<think>", **flags}, {"id": size + 1, "content": " " * 24, **flags}]
    known = json.loads(builtin().json)["added_tokens"]
    tokenizer = load_tokenizer(str(derived(tmp_path, added_tokens=[*known, *added])))
    ids, _ = tokenizer.encode(["<think>" + " " * 24 + "x"])
    assert size not in ids.tolist()
    assert size + 1 in ids.tolist()
    assert size in tokenizer.control_ids
    assert size + 1 not in tokenizer.control_ids


def derived(folder: Path, **changes: Any) -> Path:
    """The built-in tokenizer's file with some keys changed."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(builtin().json), **changes}))
    return path


def lossy(folder: Path, kind: str) -> Path:
    """A tokenizer that does not give back every text."""
    path = folder / "lossy.json"
    if kind == "word pieces":
        made = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.decoder = decoders.WordPiece()
    else:
        made = tokenizers.Tokenizer.from_str(builtin().json)
        if kind == "lower case":
            made.normalizer = normalizers.Lowercase()
        elif kind == "BERT":
            made.normalizer = normalizers.BertNormalizer()
        elif kind == "stripped":
            made.normalizer = normalizers.Strip()
        elif kind == "metaspace":
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
            made.decoder = decoders.Metaspace(prepend_scheme="always")
        elif kind == "prefix space":
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        elif kind == "no white space":
            made.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
    made.save(str(path))
    return path


@pytest.mark.parametrize(
    "kind", ["word pieces", "lower case", "BERT", "stripped", "metaspace", "prefix space", "no white space"]
)
def test_a_tokenizer_that_loses_something_is_refused_before_any_work(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lossy.json: .*(byte for byte|control token)"):
        load_tokenizer(str(lossy(tmp_path, kind)))


@pytest.mark.parametrize("content", ["", "{}", "[]", "not json", '{"model": {"type": "BPE"}}'])
def test_a_file_that_is_no_tokenizer_is_a_user_error(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"tokenizer.json: not a tokenizer"):
        load_tokenizer(str(path))


def test_a_path_that_is_not_there_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_tokenizer(str(tmp_path / "none.json"))


def test_a_directory_stands_for_its_tokenizer_and_names_it(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    derived(folder)
    assert load_tokenizer(str(folder)).name == "my-model"


def test_batches_cover_all_texts_in_order() -> None:
    texts = ["x" * size for size in (10, 1 << 21, 0, 5)] + ["y"] * 3000
    ranges = list(batches(texts))
    assert [i for r in ranges for i in r] == list(range(len(texts)))
    assert list(batches([])) == []
