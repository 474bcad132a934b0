"""Corpus text in a prompt: one line, nothing lost, nothing that a tokenizer takes for control, no way around it."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers

from pipeline.errors import UserError
from pipeline.teach.data import Plain, Text, fenced, harmless
from pipeline.teach.prompts import Prompt

#: Control tokens of chat templates in use, one or more of every notation.
CONTROL = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|END_OF_TURN_TOKEN|>", "<s>",
    "</s>", "<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>", "<think>", "</think>", "<tool_call>",
    "</tool_call>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<|channel|>", "<0x0A>", "<extra_id_0>",
    "<_system>", "<seed:bos>", "<image>", "<unk>", "<<SYS>>", "<</SYS>>", "<SPECIAL_10>", "<reserved_106>", "<2en>",
    "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[SYSTEM_PROMPT]", "[gMASK]", "[sMASK]", "[MASK]", "[CLS]",
    "[UNUSED_TOKEN_145]", "[unused1]", "[|user|]", "[|endofturn|]", "[e~[", "]~b]", "]~!b[", "◁think▷", "|||NAME|||",
)  # fmt: skip

_HOSTILE = st.lists(
    st.one_of(
        st.sampled_from(CONTROL),
        st.sampled_from(CONTROL).map(lambda token: "".join(_wide(each) for each in token)),
        st.sampled_from(
            list("<>[]|/\\\"'_~=-0 \n\t\r\v\f{}｜＜［▁◁\x00\x1b\x7f\x85\u2028\u2029\u202e\u200b\ufeff\U000e0041")
        ),
        st.tuples(st.sampled_from(CONTROL), st.integers(1, 9), st.sampled_from("\u0301\u200d\ufe0f")).map(
            lambda drawn: drawn[0][: drawn[1]] + drawn[2] + drawn[0][drawn[1] :]
        ),
        st.text(max_size=5),
    ),
    max_size=12,
).map("".join)


def _wide(character: str) -> str:
    """A character that NFKC takes back to the given one."""
    return chr(ord(character) + 0xFEE0) if "!" <= character <= "~" else character


@given(_HOSTILE)
def test_the_text_comes_back_exactly(text: str) -> None:
    assert json.loads(fenced(text)) == text


@given(_HOSTILE)
def test_it_is_one_line_of_visible_characters(text: str) -> None:
    line = fenced(text)
    assert line.splitlines() == [line]
    assert [line] == line.split("\n")
    for character in line:
        assert unicodedata.category(character) not in ("Cc", "Zl", "Zp", "Cs")
        assert unicodedata.bidirectional(character) not in (
            "LRE",
            "RLE",
            "LRO",
            "RLO",
            "PDF",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
        )


@given(_HOSTILE)
def test_nothing_inside_ends_the_string(text: str) -> None:
    inner = fenced(text)[1:-1]
    assert '"' not in inner.replace("\\\\", "").replace('\\"', "")
    decoded, end = json.JSONDecoder().raw_decode(fenced(text) + '", "another": "')
    assert (decoded, end) == (text, len(fenced(text)))


@pytest.fixture(scope="module")
def tokenizers() -> list[Tokenizer]:
    """Tokenizers that know all of :data:`CONTROL`: as they are, and after every kind of normalisation."""
    made = []
    drop = [normalizers.Replace(character, "") for character in "\u200d\ufe0f"]
    bare = normalizers.Sequence([*drop, normalizers.NFKD(), normalizers.StripAccents()])
    for normaliser in (None, normalizers.NFKC(), bare):
        tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
        if normaliser is not None:
            tokenizer.normalizer = normaliser
        tokens = [AddedToken(token, special=True, normalized=normaliser is not None) for token in CONTROL]
        assert tokenizer.add_special_tokens(tokens) == len(CONTROL)
        made.append(tokenizer)
    return made


def test_the_tokenizers_would_notice(tokenizers: list[Tokenizer]) -> None:
    for tokenizer in tokenizers:
        for token in CONTROL:
            assert any(tokenizer.encode(json.dumps(token, ensure_ascii=False)).ids), token


@given(text=_HOSTILE)
@example(text="".join(CONTROL))
@example(text="".join(token[:1] + "\u200d" + token[1:] for token in CONTROL))
@example(text="".join(token[:2] + "\u0301" + token[2:] for token in CONTROL))
@example(text=" ".join(CONTROL))
def test_nothing_is_a_control_token_for_any_tokenizer(tokenizers: list[Tokenizer], text: str) -> None:
    for tokenizer in tokenizers:
        assert not any(tokenizer.encode(fenced(text)).ids)


@given(text=_HOSTILE)
@example(text="".join(CONTROL))
def test_what_a_teacher_said_can_be_put_before_it_again(tokenizers: list[Tokenizer], text: str) -> None:
    for tokenizer in tokenizers:
        assert not any(tokenizer.encode(harmless(text)).ids)
    for escaped in (True, False):
        answer = json.dumps({"thoughts": [text]}, ensure_ascii=escaped, indent=1)
        assert json.loads(harmless(answer)) == {"thoughts": [text]}


@pytest.mark.parametrize(
    "text", ["a < b <= c << d", "if x<5: y[0] = z[i]", "n <- 3", "[1, 2] [link](url)", "≤ naïve 你好 😀"]
)
def test_ordinary_text_stays_readable(text: str) -> None:
    assert fenced(text) == json.dumps(text, ensure_ascii=False)


SECRET = "secret <|im_end|> text"

#: Every way that we could think of to get a text past the fence, or to cut it.
_ATTEMPTS = (
    "{{ text ~ '' }}", "{{ '' ~ text }}", "{{ text + '' }}", "{{ text * 1 }}", "{{ '%s' % text }}", "{{ '%s'|format(text) }}",
    "{{ '{}'.format(text) }}", "{{ '{0._text}'.format(text) }}", "{{ text._text }}", "{{ text|attr('_text') }}",
    "{{ text['_text'] }}", "{{ text.__str__() }}", "{{ text.__class__ }}", "{{ text[:3] }}", "{{ text[0] }}",
    "{{ text|string }}", "{{ text|upper }}", "{{ text|trim }}", "{{ text|replace('a', 'b') }}", "{{ text|truncate(3) }}",
    "{{ text|e }}", "{{ text|forceescape }}", "{{ text|safe }}", "{{ text|list }}", "{{ text|first }}", "{{ text|join }}",
    "{{ text|tojson }}", "{{ text|pprint }}", "{{ text|indent }}", "{{ text|wordwrap(3) }}", "{{ text|center(80) }}",
    "{{ text|urlize }}", "{{ text|urlencode }}", "{{ text|striptags }}", "{{ text|title }}", "{{ text|batch(2)|list }}",
    "{% for each in text %}{{ each }}{% endfor %}", "{{ [text] }}", "{{ [text]|string }}", "{{ {'a': text} }}",
    "{{ {'a': text}|xmlattr }}", "{{ [text]|sum(start='') }}", "{{ parts }}", "{{ parts[0] }}", "{{ parts[0].text ~ '' }}",
    "{{ parts|map(attribute='text')|map('string')|join }}", "{{ parts|map(attribute='text')|map('upper')|join }}",
    "{{ text is in text }}", "{{ ''.join([text]) }}", "{{ dict(a=text) }}", "{% set x = text ~ '' %}{{ x }}",
    "{{ (text, 1) }}", "{{ text|default('')|lower }}", "{{ parts[0].items()|list }}", "{{ text|filesizeformat }}",
    "{{ text|int('x') }}", "{{ text|round }}", "{{ text|data|string }}", "{{ text|format }}",
)  # fmt: skip


@pytest.mark.parametrize("template", _ATTEMPTS)
def test_there_is_no_way_around_the_fence(template: str) -> None:
    prompt = Prompt("mine", {"user.jinja": template})
    try:
        shown = prompt.render("user.jinja", text=SECRET, parts=[{"text": SECRET}])
    except UserError as error:
        assert "user.jinja" in str(error)
        shown = str(error)
    assert "secret" not in shown


@pytest.mark.parametrize(
    "template",
    [
        "{{ text }}",
        "{{ text|data }}",
        "{{ parts[0].text }}",
        "{{ parts|map(attribute='text')|join }}",
        "{{ [text]|join(', ') }}",
        "{% set x = text %}{{ x }}",
        "{% set x %}{{ text }}{% endset %}{{ x }}",
        "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(text) }}",
        "{% if text and text == text %}{{ text }}{% endif %}",
        "{% for key, value in parts[0].items() %}{{ value }}{% endfor %}",
        "{% for key in meta %}{{ key }}{% endfor %}",
    ],
)
def test_whoever_forgets_the_filter_is_safe(template: str) -> None:
    prompt = Prompt("mine", {"user.jinja": template})
    assert prompt.render("user.jinja", text=SECRET, parts=[{"text": SECRET}], meta={SECRET: 1}) == fenced(SECRET)


#: How a template can make a string of what it inserts.
_CAPTURES = (
    "{% set x %}{{ text }}{% endset %}",
    "{% set x %}\n- {{ text }};\n{% endset %}",
    "{% set x = [text]|join %}",
    "{% set x = [text, text]|join(', ') %}",
    "{% macro m(y) %}{{ y }}{% endmacro %}{% set x = m(text) %}",
    "{% macro m() %}({{ caller() }}){% endmacro %}{% set x %}{% call m() %}{{ text }}{% endcall %}{% endset %}",
    "{% from 'macros.jinja' import m %}{% set x = m(text) %}",
    "{% import 'macros.jinja' as macros with context %}{% set x = macros.m(text) ~ '' %}",
    "{% set x %}{% include 'part.jinja' %}{% endset %}",
    "{% set x %}{% for each in parts %}{{ each.text }}{% endfor %}{% endset %}",
    "{% set x %}{% filter trim %} {{ text }} {% endfilter %}{% endset %}",
)

#: What it can do with a string.
_CHANGES = (
    "x", "x[1:12]", "x[:-1]", "x[:2]", "x[::-1]", "x[:0]", "x|replace('\\\\u003c', '<')", "x|replace('\\\\n', '\\n')",
    "x|replace('e', '')", "x|upper", "x|lower", "x|title", "x|capitalize", "x|trim", "x.strip('\"')", "x|indent(2)",
    "x|wordwrap(5)", "x|wordwrap(5, false)", "x|first", "x|last", "x|list|join('-')", "x|reverse", "x|sort|join",
    "x|unique|join", "x|batch(3)|first|join", "x.split()[0]", "x.split('c')|join", "x.partition('|')[0]", "'%.5s' % x",
    "'%.0s' % x", "'%s' % x", "'{:.7}'.format(x)", "'%-80s' % x", "x|center(80)", "x|e", "x|forceescape", "x|urlize",
    "x|urlencode", "x|tojson", "x|striptags", "x|string", "x|int", "x|length", "x|format", "x|data", "x ~ x", "x * 2",
    "[x, text]|join", "x.encode()", "x.translate({60: 'a'})", "x.zfill(99)", "x.casefold()", "x.isascii()", "'%r' % x",
)  # fmt: skip

_PARTS = {"macros.jinja": "{% macro m(y) %}{{ y|data }}{% endmacro %}", "part.jinja": "{{ text }}"}


def _whole_or_nothing(template: str, text: str) -> bool:
    """Renders it; whether it gave anything. What it gave holds the text as it was fenced, and no piece of it besides."""
    prompt = Prompt("mine", {"user.jinja": template, **_PARTS})
    try:
        shown = prompt.render("user.jinja", text=text, parts=[{"text": text}])
    except UserError as error:
        assert str(error).startswith("prompt mine: ") and ".jinja" in str(error)
        assert not set(str(error)) & set(_MARKS)
        return False
    assert fenced(text) in shown
    rest = shown.replace(fenced(text), "")
    assert not set(rest) & (set(_MARKS) | set('<|"\\')), rest
    assert not any("\ufdd0" <= each <= "\ufdef" for each in rest)
    return True


#: Characters that stand in no template of ours.
_MARKS = "ÄÖÜäöüßéèñ"
_TEXT = f'{_MARKS[:5]} "{_MARKS[5:]}" \n<|im_end|>\n ÄÖ'


@pytest.mark.parametrize("capture", _CAPTURES)
def test_no_filter_cuts_or_changes_what_has_been_inserted(capture: str) -> None:
    """Whatever a template does with a string that holds corpus text: the text is there, whole, or there is no prompt."""
    given = [change for change in _CHANGES if _whole_or_nothing(f"{capture}{{{{ {change} }}}}", _TEXT)]
    assert {"x", "x|trim", "x|indent(2)", "'%s' % x", "x ~ x", "x|upper"} <= set(given)
    assert not {"x[1:12]", "x[::-1]", "x[:0]", "x|first", "'%.0s' % x", "x|urlencode", "x|tojson"} & set(given)


@given(
    capture=st.sampled_from(_CAPTURES),
    changes=st.lists(st.sampled_from(_CHANGES), min_size=1, max_size=3),
    text=st.text(st.sampled_from(_MARKS + '<|"\\\n'), min_size=1, max_size=40).map(lambda text: f"Ä{text}<|im_end|>"),
)
def test_nor_do_several(capture: str, changes: list[str], text: str) -> None:
    chain = "".join(f"{{% set x = {change} %}}" for change in changes)
    _whole_or_nothing(f"{capture}{chain}{{{{ x }}}}", text)


@pytest.mark.parametrize("name", ["upper", "replace('\\\\u003c', '<')", "replace('\\\\n', '\n')", "indent(4)", "trim"])
def test_a_filter_around_a_text_works_on_what_is_around_it(name: str) -> None:
    template = f"{{% filter {name} %}}a\n{{{{ text }}}}{{% endfilter %}}"
    assert _whole_or_nothing(template, _TEXT)


def test_a_long_list_is_not_cut_between_two_texts() -> None:
    """The cut is found wherever it falls."""
    texts = [f"{number}." * number for number in range(40)]
    block = "{% set x %}{% for text in texts %}{{ text }}{% endfor %}{% endset %}"
    whole = Prompt("mine", {"user.jinja": block + "{{ x }}"}).render("user.jinja", texts=texts)
    assert whole == "".join(map(fenced, texts))
    for end in range(len(whole)):
        with pytest.raises(UserError, match=r"prompt mine: user\.jinja: corpus text that user\.jinja inserts does not"):
            Prompt("mine", {"user.jinja": f"{block}{{{{ x[:{end}] }}}}"}).render("user.jinja", texts=texts)


def test_the_template_that_inserted_it_is_named() -> None:
    templates = {
        "user.jinja": "{% from 'part.jinja' import m %}{{ m(text)[:9] }}",
        "part.jinja": _PARTS["macros.jinja"],
    }
    with pytest.raises(
        UserError, match=r"^prompt mine: user\.jinja: corpus text that part\.jinja inserts .* cut, changed"
    ):
        Prompt("mine", templates).render("user.jinja", text=SECRET)


def test_what_is_only_looked_at_need_not_be_shown() -> None:
    template = (
        "{% if text and text != 'a' %}{{ text|length }}{% endif %}{% for each in parts %}{{ loop.index }}{% endfor %}"
        "{% set x = text %}{% macro m() %}{{ text }}{% endmacro %}{{ parts|map(attribute='text')|list|length }}"
        "{{ parts|selectattr('text', 'eq', text)|list|length }}"
    )
    prompt = Prompt("mine", {"user.jinja": template})
    assert prompt.render("user.jinja", text="secret", parts=[{"text": "a"}, {"text": "secret"}]) == "61221"


@given(text=_HOSTILE)
@example(text="\ufdd0\ufdd2\ufdd1")
def test_a_text_like_a_stand_in_is_a_text(text: str) -> None:
    prompt = Prompt("mine", {"user.jinja": "{% set x %}{{ a }}{{ b }}{% endset %}{{ x }}{{ a }}"})
    made = prompt.render("user.jinja", a=f"\ufdd0\ufdd2\ufdd1{text}\ufdd0\ufdd3", b=text)
    first = fenced(f"\ufdd0\ufdd2\ufdd1{text}\ufdd0\ufdd3")
    assert made == first + fenced(text) + first


def test_what_is_imported_knows_nothing_of_another_prompt() -> None:
    """Jinja keeps imported modules: their counters would go on, and their texts stand for texts of another conversation."""
    templates = {
        "user.jinja": "{% import 'part.jinja' as part %}{{ part.row.next() }}{{ part.own }}{% set ns = part.ns %}"
        "{% if ns.kept is defined %}{{ ns.kept }}{% endif %}{% set ns.kept = text %}{{ text }}",
        "part.jinja": "{% set row = cycler('a', 'b') %}{% set ns = namespace() %}"
        "{% set own %}{{ 'own'|data }}{% endset %}",
    }
    prompt = Prompt("mine", templates)
    assert [prompt.render("user.jinja", text=text) for text in "xy"] == ['a"own""x"', 'a"own""y"']


def test_plain_strings_are_inserted_as_they_are_and_compared() -> None:
    prompt = Prompt(
        "mine", {"user.jinja": "{{ name }}{% if role == 'user' %}, {{ {'user': 'User'}[role] }}{% endif %}"}
    )
    assert prompt.render("user.jinja", name=Plain("Analytical"), role="user") == "Analytical, User"


def test_a_text_says_nothing_of_itself() -> None:
    text = Text(SECRET)
    with pytest.raises(TypeError, match="can only be inserted"):
        str(text)
    assert "secret" not in repr(text)
    assert len(text) == len(SECRET)


def test_no_template_of_ours_goes_without(tmp_path: Path) -> None:
    """Every shipped template parses under the rules of a user's, and inserts what it is given fenced."""
    from pipeline.resources import folder
    from pipeline.teach.prompts import SHARED, load_prompt

    for path in sorted(folder("prompts").iterdir()):
        if path.is_dir() and path.name != SHARED and list(path.glob("*.jinja")):
            assert load_prompt(path.name).templates
