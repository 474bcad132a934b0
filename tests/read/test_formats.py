"""Formats: what every field of every known form becomes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Reason, Rejected
from pipeline.read.conversation import Conversation, Part
from pipeline.read.formats import FORMATS, REGISTRY, detect, format_of
from pipeline.read.parse import read_conversation

Said = list[tuple[str, str]]


def read(record: Any, format: str | None = None, field: str | None = None) -> Conversation:
    """Detected, unless a format is given: so that detection is tested with every record."""
    raw = json.dumps(record).encode()
    return read_conversation(raw, format or detect([record], field) or "unknown", field)


def said(record: Any, format: str | None = None, field: str | None = None) -> Said:
    return [(part.role, part.text) for part in read(record, format, field).parts]


def openai(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": list(messages)}


def assistant(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", **fields}


def call(name: str, arguments: Any, call_id: str | None = None) -> dict[str, Any]:
    function = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return function if call_id is None else {"id": call_id, **function}


USER = {"role": "user", "content": "hi"}


# OpenAI


def test_openai_roles() -> None:
    record = openai(
        {"role": "system", "content": "s"},
        {"role": "developer", "content": "d"},
        {"role": "user", "content": ""},
        assistant(content=" a\n"),
    )
    assert said(record) == [("system", "s"), ("system", "d"), ("user", ""), ("answer", " a\n")]
    assert [part.message for part in read(record).parts] == [0, 1, 2, 3]


def test_openai_order_within_a_message() -> None:
    message = assistant(
        content="c",
        reasoning_content="r",
        tool_calls=[call("f", "{}", "1"), call("g", {"b": 1, "a": 2}, "2")],
    )
    assert said(openai(message)) == [
        ("think", "r"),
        ("answer", "c"),
        ("call", '{"name":"f","arguments":"{}"}'),
        ("call", '{"name":"g","arguments":{"b":1,"a":2}}'),
    ]
    assert [part.tool for part in read(openai(message)).parts] == [None, None, "f", "g"]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_openai_reasoning_fields(name: str) -> None:
    assert said(openai(assistant(content="a", **{name: "r"}))) == [("think", "r"), ("answer", "a")]


@pytest.mark.parametrize("content", ["", None])
def test_empty_content_beside_calls_is_nothing(content: str | None) -> None:
    assert [role for role, _ in said(openai(USER, assistant(content=content, tool_calls=[call("f", "")])))] == [
        "user",
        "call",
    ]
    assert said(openai(USER, assistant(content="", tool_calls=[]))) == [("user", "hi"), ("answer", "")]


def test_arguments_are_what_was_recorded() -> None:
    arguments = {"z": 123456789012345678901234567890, "ä": ["\u2028", 1.5, None], "a": {}}
    (part,) = read(openai(assistant(tool_calls=[call("f", arguments)]))).parts
    assert part.text == '{"name":"f","arguments":{"z":123456789012345678901234567890,"ä":["\u2028",1.5,null],"a":{}}}'
    text = '{"z" :  1e400}'
    (part,) = read(openai(assistant(tool_calls=[call("f", text)]))).parts
    assert json.loads(part.text) == {"name": "f", "arguments": text}


def test_content_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b "}, "c"]
    assert said(openai({"role": "user", "content": parts})) == [("user", "ab c")]


def test_refusal_and_older_calls() -> None:
    record = openai(
        USER,
        assistant(content=None, refusal="no"),
        assistant(content=None, function_call={"name": "f", "arguments": "{}"}),
        {"role": "function", "name": "f", "content": "42"},
    )
    assert said(record)[1:] == [("answer", "no"), ("call", '{"name":"f","arguments":"{}"}'), ("result", "42")]
    assert read(record).parts[3].reply_to == 2


def test_a_list_of_messages_is_a_record() -> None:
    assert said([USER, assistant(content="a")]) == [("user", "hi"), ("answer", "a")]


def replies(*messages: dict[str, Any]) -> list[int]:
    return [part.reply_to for part in read(openai(*messages)).parts if part.role == "result"]


def result(content: Any = "", **fields: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **fields}


def test_results_find_their_calls() -> None:
    both = assistant(tool_calls=[call("f", "1", "a"), call("g", "2", "b"), call("f", "3", "c")])
    by_id = [result(tool_call_id=call_id) for call_id in "cab"]
    assert replies(both, *by_id) == [2, 0, 1]
    assert replies(both, result(name="f"), result(name="f"), result(name="g")) == [0, 2, 1]
    assert replies(both, result(), result(), result()) == [0, 1, 2]
    assert replies(both, result(name="unheard of"), result(tool_call_id="b"), result()) == [0, 1, 2]


def test_an_id_may_come_again() -> None:
    turn = [assistant(tool_calls=[call("f", "", "same")]), result(tool_call_id="same")]
    assert replies(*turn, *turn) == [0, 2]
    assert replies(*turn, turn[1]) == [0, 0]


def test_more_results_than_calls() -> None:
    with pytest.raises(Rejected) as caught:
        replies(assistant(tool_calls=[call("f", "")]), result(), result())
    assert caught.value.reason is Reason.RESULT_WITHOUT_CALL and "message 2" in caught.value.message


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("text", "text"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        ({"b": 1, "a": "ä"}, '{"b":1,"a":"ä"}'),
        ([1, {"x": None}], '[1,{"x":null}]'),
        ([], "[]"),
        (None, "null"),
        (12, "12"),
    ],
)
def test_result_content(content: Any, text: str) -> None:
    assert said(openai(assistant(tool_calls=[call("f", "")]), result(content)))[1] == ("result", text)


def test_a_result_with_an_image_is_not_text() -> None:
    with pytest.raises(Rejected) as caught:
        said(openai(assistant(tool_calls=[call("f", "")]), result([{"type": "image_url", "image_url": {}}])))
    assert caught.value.reason is Reason.UNSUPPORTED_CONTENT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (1_700_000_000, 1_700_000_000.0),
        (1_700_000_000_250, 1_700_000_000.25),
        (1_700_000_000_250_000, 1_700_000_000.25),
        ("1700000000.5", 1_700_000_000.5),
        ("2023-11-14T22:13:20Z", 1_700_000_000.0),
        ("2023-11-14 22:13:20", 1_700_000_000.0),
        ("2023-11-14T23:13:20.5+01:00", 1_700_000_000.5),
        (0.25, 0.25),
        ("yesterday", None),
        (None, None),
        (True, None),
    ],
)
@pytest.mark.parametrize("name", ["timestamp", "created_at", "create_time", "time"])
def test_times(name: str, value: Any, seconds: float | None) -> None:
    (part,) = read(openai({**USER, name: value})).parts
    assert part.seconds == seconds


# What a message says beside that


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (openai(USER, assistant(text="a")), "'text'"),
        (openai(USER, assistant(contents="a", name="x", text="b")), "'contents', 'text'"),
        (openai(USER, assistant(content=None, reasoning_details=[{"text": "r"}])), "'reasoning_details'"),
        (openai(USER, assistant(content=None, audio={"id": "1", "transcript": "a"})), "'audio'"),
        (openai(USER, assistant(content="a", images=["a.png"])), "'images'"),
        (openai(assistant(content="a"), {**USER, "attachments": [{"path": "a"}]}), "'attachments'"),
        ({"messages": [USER, assistant(channel="final", content="a", image="a.png")]}, "'image'"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "a", "video": "v"}]}, "'video'"),
    ],
)
def test_content_that_no_part_can_hold(record: dict[str, Any], field: str) -> None:
    with pytest.raises(Rejected, match=field) as caught:
        read(record)
    assert caught.value.reason is Reason.UNSUPPORTED_CONTENT and "message 1" in caught.value.message


@pytest.mark.parametrize(
    ("record", "kept"),
    [
        (openai({**USER, "name": "Ann"}, assistant(content="a", weight=0)), {"0": {"name": "Ann"}, "1": {"weight": 0}}),
        (openai(USER, assistant(content=None, id="x", usage={"n": 1})), {"1": {"id": "x", "usage": {"n": 1}}}),
        (openai(USER, assistant(content="a", reasoning="r", thinking="s")), {"1": {"thinking": "s"}}),
        (openai({**USER, "tool_calls": [call("f", "")]}), {"0": {"tool_calls": [call("f", "")]}}),
        (openai(USER, assistant(content="a", reasoning_details=[1])), {"1": {"reasoning_details": [1]}}),
        ({"messages": [USER, assistant(channel="final", content="a", n=1)]}, {"1": {"n": 1}}),
        ({"messages": [USER, assistant(channel="analysis", content="a", n=1)]}, {"1": {"n": 1}}),
        ({"conversations": [{"from": "gpt", "value": "a", "markdown": None, "text": "b"}]}, {"0": {"text": "b"}}),
    ],
)
def test_other_fields_of_messages_are_kept(record: dict[str, Any], kept: dict[str, Any]) -> None:
    assert read({**record, "id": 1}).meta == {"id": 1, "message_fields": kept}
    assert read({**record, "message_fields": 1}).meta == {"message_fields": 1, "_message_fields": kept}


def test_fields_that_are_empty_or_read_are_not_kept() -> None:
    rest: dict[str, Any] = {
        "audio": {"id": None, "data": [""]},
        "images": [],
        "name": "",
        "function_call": None,
        "timestamp": 1,
    }
    message = assistant(content="a", reasoning="r", reasoning_content="r", tool_calls=[call("f", "", "1")], **rest)
    record = openai({**USER, "images": None}, message, result("r", tool_call_id="1", name="f"))
    assert read(record).meta == {}
    assert [role for role, _ in said(record)] == ["user", "think", "answer", "call", "result"]


def test_a_thought_in_harmony_may_have_calls() -> None:
    record = {
        "messages": [
            assistant(channel="analysis", content="t", tool_calls=[call("f", "", "1")]),
            assistant(channel="analysis", content=None, function_call={"name": "g"}),
            result("r", tool_call_id="1"),
        ]
    }
    assert [part.role for part in read(record).parts] == ["think", "call", "call", "result"]
    assert read(record).meta == {}


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [assistant(channel="analysis", content="t", tool_calls=[call("f", "")]), {"role": "tool"}]},
        openai(assistant(tool_calls=[call("f", "")]), {"role": "tool", "output": "r"}),
        {"conversations": [{"from": "function_call", "value": '{"name": "f"}'}, {"from": "tool", "output": "r"}]},
    ],
)
def test_a_result_must_be_where_it_is_looked_for(record: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match="message 1: a tool result without"):
        read(record)


# Meta, and the field of the messages


def test_meta_is_everything_else() -> None:
    rest = {"id": 7, "tools": [{"a": [1]}], "label": None, "big": 1 << 80}
    assert read({**openai(USER), **rest}).meta == rest
    assert read({"question": "q", "answer": "a", **rest}).meta == rest


@pytest.mark.parametrize("field", ["traj", "data.traj", "a.b.c"])
def test_the_field_can_be_named(field: str) -> None:
    record: dict[str, Any] = {"messages": "something else", "id": 1}
    inner = record
    *path, last = field.split(".")
    for name in path:
        inner[name] = inner = {"kept": name}
    inner[last] = [USER]
    conversation = read(record, field=field)
    assert [(part.role, part.text) for part in conversation.parts] == [("user", "hi")]
    del inner[last]
    assert conversation.meta == record


def test_a_dot_in_a_name() -> None:
    assert said({"a.b": [USER]}, field="a.b") == [("user", "hi")]
    assert said({"x": [{"from": "human", "value": "v"}]}, field="x") == [("user", "v")]


def test_a_record_without_the_named_field_is_read_as_usual() -> None:
    """One option names the field of some files of an input; the others need none."""
    assert read(openai(USER), "openai", "traj") == read(openai(USER), "openai")
    assert format_of({"question": "", "answer": ""}, "traj") == "prompt-completion"


def test_a_record_without_messages_says_which_field_may_hold_them() -> None:
    with pytest.raises(Rejected, match="--messages-field traj") as caught:
        read({"traj": [USER], "reward": 1}, "unknown")
    assert caught.value.reason is Reason.UNKNOWN_FORMAT
    with pytest.raises(Rejected, match="fields alpha, beta"):
        read({"alpha": 1, "beta": [2]}, "unknown")


# Think tags


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>\nt\n</think>\n\na", [("think", "\nt\n"), ("answer", "\n\na")]),
        ("a<think>t</think>", [("answer", "a"), ("think", "t")]),
        ("<think></think>a", [("answer", "a")]),
        ("<think>1</think><think>2</think> ", [("think", "1"), ("think", "2"), ("answer", " ")]),
        ("<think>open", [("think", "open")]),  # cut short
        ("<think>", [("answer", "<think>")]),
        ("a<think>open", [("answer", "a<think>open")]),
        ("closed</think>a", [("think", "closed"), ("answer", "a")]),  # the template wrote the opening tag
        ("t</think>a<think>b", [("think", "t"), ("answer", "a<think>b")]),
        ("<think>a<think>b</think>c", [("think", "a<think>b"), ("answer", "c")]),
        ("<think>a</think>b<think>c", [("think", "a"), ("answer", "b<think>c")]),
    ],
)
def test_think_tags(text: str, parts: Said) -> None:
    assert said(openai(assistant(content=text))) == parts
    assert said({"conversations": [{"from": "gpt", "value": text}]}) == parts
    assert said({"question": "q", "answer": text})[1:] == parts
    assert said({"instruction": "i", "output": text})[1:] == parts


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", "\n", "<", "think>"]), max_size=12).map("".join))
def test_think_tags_lose_nothing(text: str) -> None:
    """All that is between tags, and all that is not, stands in some part, in order."""

    def bare(tagged: str) -> str:
        return tagged.replace("<think>", "|").replace("</think>", "|").replace("|", "")

    parts = said(openai(assistant(content=text))) if bare(text) else []
    assert bare("".join(part for _, part in parts)) == bare(text)
    assert all(part for _, part in parts)


def test_many_open_tags_cost_linear_time() -> None:
    tags = "<think>" * 300_000
    assert said(openai(assistant(content=f"a{tags}"))) == [("answer", f"a{tags}")]
    assert said(openai(assistant(content=tags))) == [("think", tags[7:])]


def test_dolly_is_alpaca_under_other_names() -> None:
    record = {"instruction": "i", "context": "c", "response": "r", "category": "qa"}
    assert said(record) == [("system", "i"), ("user", "c"), ("answer", "r")]
    assert said({**record, "context": ""}) == [("system", "i"), ("answer", "r")]
    assert read(record).meta == {"category": "qa"}


def test_messages_that_a_table_holds_as_text() -> None:
    assert said({"messages": json.dumps([USER])}) == said(openai(USER))


# ShareGPT


def test_sharegpt() -> None:
    record = {
        "system": "be good",
        "id": "x",
        "conversations": [
            {"from": "human", "value": "h"},
            {
                "from": "function_call",
                "value": '{"name": "f", "arguments": {"b": 1, "a": 12345678901234567890123}}',
            },
            {"from": "observation", "value": {"r": 1}},
            {"from": "gpt", "value": "g"},
        ],
    }
    assert said(record) == [
        ("system", "be good"),
        ("user", "h"),
        ("call", '{"name":"f","arguments":{"b":1,"a":12345678901234567890123}}'),
        ("result", '{"r":1}'),
        ("answer", "g"),
    ]
    conversation = read(record)
    assert conversation.meta == {"id": "x"}
    assert [part.message for part in conversation.parts] == [0, 1, 2, 3, 4]
    assert conversation.parts[3].reply_to == 2


@pytest.mark.parametrize(
    ("name", "role"),
    [("human", "user"), ("user", "user"), ("system", "system")]
    + [(name, "answer") for name in ("gpt", "assistant", "chatgpt", "bing", "bard")],
)
def test_sharegpt_roles(name: str, role: str) -> None:
    assert said({"conversations": [{"from": name, "value": "v"}]}) == [(role, "v")]


@pytest.mark.parametrize("value", ["not json", "3", '{"arguments": {}}', None])
def test_sharegpt_calls_that_are_none(value: Any) -> None:
    with pytest.raises(Rejected) as caught:
        said({"conversations": [{"from": "function_call", "value": value}]})
    assert caught.value.reason is Reason.UNSUPPORTED_CONTENT


# Alpaca, prompt and completion


def test_alpaca() -> None:
    assert said({"instruction": "i", "input": "u", "output": "o"}) == [
        ("system", "i"),
        ("user", "u"),
        ("answer", "o"),
    ]
    conversation = read({"instruction": "i", "input": "", "output": "o", "history": [["a", "b"]]})
    assert [(part.role, part.message) for part in conversation.parts] == [("system", 0), ("answer", 2)]
    assert conversation.meta == {"history": [["a", "b"]]}
    assert said({"instruction": "i", "input": None, "output": "o"}) == [("system", "i"), ("answer", "o")]


@pytest.mark.parametrize("given", [0, [], False])
def test_an_alpaca_input_that_is_not_text(given: Any) -> None:
    with pytest.raises(Rejected, match="'input'"):
        read({"instruction": "i", "input": given, "output": "o"})


@pytest.mark.parametrize(
    "pair",
    [
        "prompt completion",
        "prompt response",
        "question answer",
        "question response",
        "instruction response",
        "query response",
    ],
)
def test_pairs(pair: str) -> None:
    prompt, answer = pair.split()
    assert said({answer: " a", prompt: "q "}) == [("user", "q "), ("answer", " a")]
    assert said({answer: "a", prompt: "q", "system_prompt": "s"})[0] == ("system", "s")


def test_a_pair_of_message_lists() -> None:
    record = {
        "prompt": [{"role": "system", "content": "s"}, USER],
        "completion": [assistant(content="a")],
        "id": 1,
    }
    conversation = read(record)
    assert [(part.role, part.message) for part in conversation.parts] == [
        ("system", 0),
        ("user", 1),
        ("answer", 2),
    ]
    assert conversation.meta == {"id": 1}
    assert said({"prompt": [USER], "completion": "a"}) == [("user", "hi"), ("answer", "a")]


@pytest.mark.parametrize("answer", [None, 42, {"text": ["a"]}])
def test_an_answer_that_is_not_text(answer: Any) -> None:
    with pytest.raises(Rejected) as caught:
        said({"question": "q", "answer": answer})
    assert caught.value.reason is Reason.UNSUPPORTED_CONTENT and "'answer'" in caught.value.message


# Topics


def test_a_topic_is_one_user_part() -> None:
    assert read({"topic": " Why is the sky blue?\n", "id": 1, "tags": ["a"]}) == Conversation(
        [Part("user", " Why is the sky blue?\n", 0)], {"id": 1, "tags": ["a"]}
    )
    assert read({"prompt": "p", "topic": "physics"}) == Conversation([Part("user", "p", 0)], {"topic": "physics"})


@pytest.mark.parametrize(
    "record",
    [
        {"topic": "t", "messages": [USER]},
        {"topic": "t", "conversations": [{"from": "human", "value": "v"}]},
        {"topic": "t", "question": "q", "answer": "a"},
        {"topic": "t", "instruction": "i", "output": "o"},
        {"prompt": "p", "completion": "c"},
        {"prompt": "p", "response": None},
    ],
)
def test_a_record_of_another_format_is_no_topic(record: dict[str, Any]) -> None:
    """Neither by detection, nor where the file is one of topics."""
    assert format_of(record) not in ("topic", None)
    with pytest.raises(Rejected, match="the file is read as topic, but this record is"):
        read(record, "topic")


@pytest.mark.parametrize(
    "more",
    [
        {"chosen": "c", "rejected": "r"},
        {"text": "a whole article"},
        {"traj": [USER]},
        {"traj": json.dumps([USER])},
        {"answers": {"text": ["a"]}},
    ],
)
def test_a_record_with_more_than_a_topic_is_of_no_format(more: dict[str, Any]) -> None:
    assert format_of({"prompt": "p", **more}) is None
    with pytest.raises(Rejected, match=f"'{next(iter(more))}'"):
        read({"prompt": "p", **more}, "topic")
    if "traj" in more:
        with pytest.raises(Rejected, match="--messages-field traj"):
            read({"prompt": "p", **more}, "unknown")
        assert said({"prompt": "p", **more}, field="traj") == [("user", "hi")]


@pytest.mark.parametrize("topic", ["", " \n", None, 3, ["t"], {}])
def test_a_topic_that_is_none(topic: Any) -> None:
    with pytest.raises(Rejected, match="'topic' is"):
        read({"topic": topic}, "topic")


def test_topics_are_a_file_s_format_only_if_nothing_else_is() -> None:
    """A prompt without its answer, among others that have theirs, has lost it."""
    chat, pair, topic = openai(USER), {"prompt": "p", "completion": "c"}, {"prompt": "p"}
    assert detect([topic, {"x": 1}, topic]) == "topic"
    assert detect([topic, topic, topic, pair]) == "prompt-completion"
    assert detect([topic, topic, chat]) == "openai"
    with pytest.raises(Rejected, match="none of the pairs") as caught:
        read(topic, "prompt-completion")
    assert caught.value.reason is Reason.NO_MESSAGES


# Harmony

HARMONY = [
    {"role": "developer", "content": "d"},
    {"role": "user", "content": "u"},
    {"role": "assistant", "channel": "analysis", "content": "t"},
    {"role": "assistant", "channel": "commentary", "content": "let me look"},
    {"role": "assistant", "channel": "commentary", "recipient": "functions.get", "content": '{"a": 1}'},
    {"role": "tool", "name": "functions.get", "content": "r"},
    {"role": "assistant", "channel": "final", "content": "f"},
]

RENDERED = (
    "<|start|>developer<|message|>d<|end|><|start|>user<|message|>u<|end|>"
    "<|start|>assistant<|channel|>analysis<|message|>t<|end|>"
    "<|start|>assistant<|channel|>commentary<|message|>let me look<|end|>"
    '<|start|>assistant<|channel|>commentary to=functions.get <|constrain|>json<|message|>{"a": 1}<|call|>'
    "<|start|>functions.get to=assistant<|channel|>commentary<|message|>r<|end|>"
    "<|start|>assistant<|channel|>final<|message|>f<|return|>"
)

CONVERSATION = [
    Part("system", "d", 0),
    Part("user", "u", 1),
    Part("think", "t", 2),
    Part("answer", "let me look", 3),
    Part("call", '{"name":"get","arguments":"{\\"a\\": 1}"}', 4, tool="get"),
    Part("result", "r", 5, reply_to=4),
    Part("answer", "f", 6),
]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": HARMONY, "id": 1},
        {"messages": RENDERED, "id": 1},
        {"text": RENDERED, "id": 1},
        {"text": RENDERED.replace("<|end|>", "<|end|>\n").removesuffix("<|return|>"), "id": 1},
        {
            "text": RENDERED.replace(
                "assistant<|channel|>commentary to=functions.get",
                "assistant to=functions.get<|channel|>commentary",
            ),
            "id": 1,
        },
    ],
)
def test_harmony(record: dict[str, Any]) -> None:
    assert format_of(record) == "harmony"
    assert read(record) == Conversation(CONVERSATION, {"id": 1})


def test_harmony_reads_plain_messages_too() -> None:
    plain = openai(USER, assistant(content="a", tool_calls=[call("f", "{}", "1")]), result("r", tool_call_id="1"))
    assert read(plain, "harmony") == read(plain, "openai")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|start|>user<|message|>u<|end|>stray", Reason.UNSUPPORTED_CONTENT),
        ("<|start|>user without message", Reason.UNSUPPORTED_CONTENT),
        ("<|start|>wizard<|message|>u<|end|>", Reason.UNKNOWN_ROLE),
        ("<|start|>assistant<|channel|>secret<|message|>u<|end|>", Reason.UNKNOWN_ROLE),
        ("<|start|>functions.f to=assistant<|message|>r<|end|>", Reason.RESULT_WITHOUT_CALL),
    ],
)
def test_broken_harmony(text: str, expected: Reason) -> None:
    with pytest.raises(Rejected) as caught:
        read({"text": text})
    assert caught.value.reason is expected


# Detection


def test_detection_goes_by_most_records() -> None:
    chat, pair, other = openai(USER), {"question": "", "answer": ""}, {"x": 1}
    assert detect([other, chat, pair, chat]) == "openai"
    assert detect([other, pair]) == "prompt-completion"
    assert detect([chat, pair]) == "openai"
    assert detect([chat, chat, {"messages": HARMONY}]) == "harmony"
    assert detect([other, 3, [], "x", None]) is None
    assert detect([]) is None


def test_every_format_is_reachable() -> None:
    assert set(FORMATS) == set(REGISTRY)
    assert FORMATS == ("harmony", "openai", "sharegpt", "alpaca", "prompt-completion", "topic")
