"""Chats in every layout become the same messages, or an error says what is wrong; nothing is left out without a word."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmtrain.config.data import ClmData
from lmtrain.data import reading
from lmtrain.data.chats import Chat
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError

QUESTION, ANSWER = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "the cat"}
SYSTEM = {"role": "system", "content": "be kind"}


def load(*rows: dict[str, Any], **options: Any) -> Rows:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return reading.load(["rows.jsonl"], ClmData(train=["x"], **options))


def only(*rows: dict[str, Any], **options: Any) -> Chat:
    loaded = load(*rows, **options)
    assert loaded.kind == "messages"
    (value,) = loaded.values
    return value


def text(*parts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": part} for part in parts]


LAYOUTS: dict[str, dict[str, Any]] = {
    "as it is": {"messages": [QUESTION, ANSWER]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "the cat"}]},
    "conversation": {
        "id": 7,
        "conversation": [{"from": "user", "value": "Who?"}, {"from": "chatgpt", "value": "the cat"}],
    },
    "role and value": {"conversations": [{"role": "human", "value": "Who?"}, {"role": "bot", "value": "the cat"}]},
    "another column": {"id": "a", "dialog": [QUESTION, ANSWER], "n": 2},
    "a text column that holds no text": {"text": [QUESTION, ANSWER]},
    "roles in capitals": {"messages": [{**QUESTION, "role": "User"}, {**ANSWER, "role": " ASSISTANT "}]},
    "gemini": {
        "contents": [{"role": "user", "parts": [{"text": "Who?"}]}, {"role": "model", "parts": [{"text": "the cat"}]}]
    },
    "prompter": {"messages": [{"role": "prompter", "text": "Who?"}, {"role": "assistant", "text": "the cat"}]},
    "sender": {"chat": [{"sender": "human", "text": "Who?"}, {"sender": "ai", "text": "the cat"}]},
    "json": {"messages": json.dumps([QUESTION, ANSWER])},
    "json of an object": {"conversation": json.dumps({"messages": [QUESTION, ANSWER]})},
    "python": {"messages": repr([QUESTION, ANSWER])},
    "messages as json": {"messages": [json.dumps(QUESTION), json.dumps(ANSWER)]},
    "lists in an object": {"messages": {"role": ["user", "assistant"], "content": ["Who?", "the cat"]}},
    "text parts": {"messages": [{**QUESTION, "content": text("Wh", "o?")}, {**ANSWER, "content": text("the cat")}]},
    "parts of responses": {
        "messages": [
            {**QUESTION, "content": [{"type": "input_text", "text": "Who?"}]},
            {**ANSWER, "content": [{"type": "output_text", "text": "the cat", "annotations": None}]},
        ]
    },
    "nulls": {
        "messages": [{**QUESTION, "name": None, "tool_calls": None}, {**ANSWER, "tool_calls": None, "weight": None}]
    },
    "no calls": {"messages": [QUESTION, {**ANSWER, "tool_calls": []}]},
    "beside a text": {"text": "Who? the cat", "conversations": [QUESTION, ANSWER], "source": "web"},
    "weight 1": {"messages": [QUESTION, {**ANSWER, "weight": 1}]},
}


@pytest.mark.parametrize("row", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_chats_of_all_layouts_are_the_same_messages(row: dict[str, Any]):
    chat = only(row)
    assert chat.messages == [QUESTION, ANSWER]
    assert (chat.tools, chat.untrained) == (None, ())


CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": {"what": "cat"}}}
BARE = {"type": "function", "function": {"name": "find", "arguments": {"what": "cat"}}}
CALLING, RESULT = {"role": "assistant", "content": ""}, {"role": "tool", "content": "7"}

CALLS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "null": ([{**CALLING, "content": None, "tool_calls": [CALL]}, RESULT], CALL),
    "missing": ([{"role": "assistant", "tool_calls": [CALL]}, RESULT], CALL),
    "empty": ([{**CALLING, "tool_calls": [CALL]}, RESULT], CALL),
    "nulls inside": ([{**CALLING, "tool_calls": [{**CALL, "index": None}]}, {**RESULT, "tool_calls": None}], CALL),
    "without function": ([{**CALLING, "tool_calls": [CALL["function"]]}, RESULT], BARE),
    "parameters": ([{**CALLING, "tool_calls": [{"name": "find", "parameters": {"what": "cat"}}]}, RESULT], BARE),
    "json": ([{**CALLING, "tool_calls": json.dumps([CALL])}, RESULT], CALL),
    "each as json": ([{**CALLING, "tool_calls": [json.dumps(CALL)]}, RESULT], CALL),
    "function_call": ([{**CALLING, "function_call": CALL["function"]}, {**RESULT, "role": "function"}], BARE),
    "a role of its own": (
        [{"role": "function_call", "content": json.dumps(CALL["function"])}, {**RESULT, "role": "observation"}],
        BARE,
    ),
    "another role": ([{"role": "tool_call", "content": CALL["function"]}, {**RESULT, "role": "tool-response"}], BARE),
    "a result that is an object": ([{**CALLING, "tool_calls": [CALL]}, {**RESULT, "content": 7}], CALL),
}


@pytest.mark.parametrize(("turns", "call"), CALLS.values(), ids=CALLS.keys())
def test_calls_of_tools_have_one_layout(turns: list[dict[str, Any]], call: dict[str, Any]):
    chat = only({"messages": [QUESTION, *turns, ANSWER]})
    assert chat.messages == [QUESTION, {**CALLING, "tool_calls": [call]}, RESULT, ANSWER]


DEFINITION = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "columns",
    [
        {"tools": [DEFINITION]},
        {"tools": json.dumps([DEFINITION])},
        {"tools": [json.dumps(DEFINITION)]},
        {"tools": [{**DEFINITION, "strict": None}]},
        {"tools": [DEFINITION["function"]]},
        {"tools": json.dumps(DEFINITION["function"])},
        {"functions": [DEFINITION["function"]], "tools": None},
        {"tools": [{"type": "function", **DEFINITION["function"]}]},
    ],
)
def test_tools_beside_a_chat_belong_to_it(columns: dict[str, Any]):
    rows = load({"messages": [QUESTION, ANSWER], **columns})
    assert rows.values[0].tools == [DEFINITION]
    assert "is read as definitions of tools (1 of 1)" in rows.notes[-1]


def test_what_is_read_otherwise_or_left_out_is_told():
    sharegpt = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "the cat"}]
    rows = load(
        {"conversations": sharegpt, "rejected": [ANSWER], "tools": "hammer"},
        {
            "conversations": [*sharegpt[:1], {"from": "model", "value": text("the cat")[0]}],
            "tools": "[]",
            "system": "",
        },
        {"conversations": sharegpt, "system": "be kind"},
    )
    assert rows.notes == [
        "rows.jsonl: using column 'conversations'",
        "chats: the key 'from' of messages is read as 'role' (3 of 3); the key 'value' of messages is read as 'content' "
        "(3 of 3); the role 'human' is read as 'user' (3 of 3); the role 'gpt' is read as 'assistant' (2 of 3); "
        "the column 'rejected' is not used (1 of 3); "
        "the column 'tools' is not used: it holds no definitions of tools (1 of 3); "
        "the role 'model' is read as 'assistant' (1 of 3); a content of text parts is read as their text (1 of 3); "
        "the column 'system' is read as the system's message (1 of 3)",
    ]
    assert [chat.messages for chat in rows.values] == [[QUESTION, ANSWER]] * 2 + [[SYSTEM, QUESTION, ANSWER]]
    assert load({"messages": [QUESTION, ANSWER]}).notes == ["rows.jsonl: using column 'messages'"]


def test_a_system_column_does_not_replace_a_message():
    chat = only({"messages": [SYSTEM, QUESTION, ANSWER], "system_prompt": "be brief"})
    assert chat.messages == [SYSTEM, QUESTION, ANSWER]
    assert chat.remarks == ("the column 'system_prompt' is not used, because the chat has a message of the system",)


@pytest.mark.parametrize(("key", "off"), [("weight", 0), ("weight", 0.0), ("train", False), ("loss", False)])
def test_messages_of_weight_0_are_not_trained(key: str, off: Any):
    chat = only({"messages": [QUESTION, {**ANSWER, key: off}, QUESTION, {**ANSWER, key: 1}]})
    assert chat.messages == [QUESTION, ANSWER] * 2
    assert chat.untrained == (1,)
    assert chat.remarks == ("messages of weight 0 are not trained",)


@pytest.mark.parametrize("names", [("prompt", "completion"), ("prompt", "response"), ("asked", "said")])
@pytest.mark.parametrize("form", [list, json.dumps])
def test_prompt_and_completion_may_be_messages(names: tuple[str, str], form: Any):
    flags = {"prompt_column": names[0], "completion_column": names[1]} if names[0] == "asked" else {}
    row = {names[0]: form([SYSTEM, QUESTION, ANSWER, QUESTION]), names[1]: form([ANSWER]), "tools": [DEFINITION]}
    chat = only(row, **flags)
    assert chat.messages == [SYSTEM, QUESTION, ANSWER, QUESTION, ANSWER]
    assert (chat.untrained, chat.tools) == ((2,), [DEFINITION])


def test_prompts_that_are_texts_stay_texts():
    assert load({"prompt": "[1, 2]", "completion": "[3]"}).values == [("[1, 2]", "[3]")]
    assert load({"text": json.dumps([QUESTION, ANSWER])}, packing=False).kind == "text"


IMAGE = [{"type": "image_url", "image_url": {"url": "a.png"}}, *text("Who?")]
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "image": (
        {"messages": [{**QUESTION, "content": IMAGE}, ANSWER]},
        "message 1: the content has a part of type 'image_url'",
    ),
    "tool_use": (
        {"messages": [QUESTION, {**ANSWER, "content": [{"type": "tool_use", "name": "find", "input": {}}]}]},
        "message 2: the content has a part of type 'tool_use'; only text parts are read",
    ),
    "number": ({"messages": [{**QUESTION, "content": 7}, ANSWER]}, "message 1: the content is int 7, not text"),
    "weight": ({"messages": [QUESTION, {**ANSWER, "weight": 0.5}]}, "message 2: the weight is 0.5; it can be 0"),
    "weightless": ({"messages": [QUESTION, {**ANSWER, "weight": 0}]}, "no assistant turn is trained"),
    "only a prompt": ({"prompt": [QUESTION, ANSWER], "completion": [QUESTION]}, "no assistant turn is trained"),
    "nameless": (
        {"messages": [QUESTION, {**CALLING, "tool_calls": [{"id": "1"}]}]},
        "message 2: the call of a tool has no name",
    ),
    "no json": (
        {"messages": [QUESTION, {"role": "function_call", "content": "find()"}]},
        "the call of a tool is not JSON",
    ),
    "nobody": ({"messages": [{"content": "Who?"}, ANSWER]}, "message 1: unknown role None"),
    "silence": ({"messages": [QUESTION, {**ANSWER, "content": None}]}, "column 'messages[2].content': is null"),
    "half a chat": ({"messages": json.dumps([QUESTION, ANSWER])[:-1]}, "is not a list of {role, content} messages"),
    "turns without roles": ({"messages": ["Who?", "the cat"]}, "is not a list of {role, content} messages"),
    "surrogate": (
        {"messages": [QUESTION, {**ANSWER, "content": "\ud800"}]},
        "contains a value that JSON cannot represent",
    ),
}


@pytest.mark.parametrize(("row", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_chat_is_an_error_that_says_why_and_can_be_dropped(row: dict[str, Any], message: str):
    good = (
        {name: [QUESTION, ANSWER] for name in row}
        if "messages" in row
        else {"prompt": [QUESTION], "completion": [ANSWER]}
    )
    with pytest.raises(InputError, match="--on-bad drop leaves such rows out") as raised:
        load(good, row)
    assert str(raised.value).startswith("rows.jsonl, line 2, column '")
    assert message in str(raised.value)
    kept = load(good, row, on_bad="drop")
    assert (len(kept.values), kept.ledgers[0].rows_bad) == (1, 1)


def test_of_several_chats_none_is_guessed():
    with pytest.raises(InputError, match="which column to use"):
        load({"chosen": [QUESTION, ANSWER], "rejected": [QUESTION, ANSWER]})
    chosen = only({"chosen": [QUESTION, ANSWER], "rejected": [QUESTION, ANSWER]}, messages_column="chosen")
    assert chosen.remarks == ("the column 'rejected' is not used",)


# --- files -----------------------------------------------------------------------------------------------------------


CHATS = [
    {"messages": [QUESTION, ANSWER], "tools": None},
    {"messages": [SYSTEM, QUESTION, {**CALLING, "tool_calls": [CALL]}, RESULT, ANSWER], "tools": [DEFINITION]},
]


def test_files_of_all_formats_give_the_same_chats():
    import datasets

    expected = load(*CHATS)
    pq.write_table(pa.Table.from_pylist(CHATS), "rows.parquet")
    datasets.Dataset.from_list(CHATS).save_to_disk("saved")
    with Path("rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["messages", "tools"])
        writer.writeheader()
        writer.writerows({name: value and json.dumps(value) for name, value in row.items()} for row in CHATS)
    for name in ("rows.parquet", "saved", "rows.csv"):
        rows = reading.load([name], ClmData(train=["x"]))
        assert [*rows.contents()] == [*expected.contents()], name


def test_the_first_row_need_not_have_a_chat():
    rows = load({"conversations": None}, {"conversations": []}, {"conversations": [QUESTION, ANSWER]}, on_bad="drop")
    assert (len(rows.values), rows.ledgers[0].rows_bad, rows.ledgers[0].rows_empty) == (1, 1, 1)


def test_a_file_of_one_sharegpt_chat_is_one_row():
    chat = {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "the cat"}]}
    Path("one.json").write_text(json.dumps(chat))
    assert [chat.messages for chat in reading.load(["one.json"], ClmData(train=["x"])).values] == [[QUESTION, ANSWER]]


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("known", [True, False])
def test_values_of_arrows_json_type_are_decoded(form: str, known: bool):
    """As datasets writes mixed values: the content of one message is a text, that of another a list of parts."""
    contents = [json.dumps("Who?"), json.dumps(text("the cat"))]
    if known:
        kind: Any = pa.json_(pa.large_string())
        storage = pa.ExtensionArray.from_storage(kind, pa.array(contents, pa.large_string()))
        field = pa.field("content", kind)
    else:
        field = pa.field("content", pa.large_string(), metadata={"ARROW:extension:name": "arrow.json"})
        storage = pa.array(contents, pa.large_string())
    turns = pa.StructArray.from_arrays(
        [pa.array(["user", "assistant"]), storage], fields=[pa.field("role", pa.string()), field]
    )
    column = pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), turns)
    table = pa.Table.from_arrays([column], schema=pa.schema([pa.field("messages", column.type)]))
    if form == "parquet":
        pq.write_table(table, "rows.parquet")
    else:
        with pa.OSFile("rows.arrow", "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (chat,) = reading.load([f"rows.{form}"], ClmData(train=["x"])).values
    assert chat.messages == [QUESTION, ANSWER]
