"""Calls and definitions of tools, thoughts, weights, named templates and refusals, under templates of every style."""

import json
from typing import Any

import numpy as np
import pytest
from conftest import sentences
from transformers import PreTrainedTokenizerFast

from lmtrain.config.data import ClmData
from lmtrain.data.chats import Chat
from lmtrain.data.rows import Rows
from lmtrain.errors import InputError
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing import chat, train_tokenizer
from lmtrain.preprocessing.dataset import Examples, Limits

MARKERS = ("<|im_start|>", "<|im_end|>", "<|eot|>", "<|eom|>", "<tool_call>", "</tool_call>", "<|call|>", "[CALLS]")

END = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TOOLS = "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + END

HERMES = (
    TOOLS + "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ '\n<tool_call>' }}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}" + END
)
LLAMA = (
    TOOLS
    + "{% for m in messages %}{% if 'tool_calls' in m %}{% if m.tool_calls | length > 1 %}{{ raise_exception('one') }}"
    "{% endif %}{% set c = m.tool_calls[0].function %}<|im_start|>assistant\n"
    '{"name": "{{ c.name }}", "parameters": {{ c.arguments | tojson }}}<|eom|>'
    "{% else %}<|im_start|>{{ 'ipython' if m.role == 'tool' else m.role }}\n{{ m.content | trim }}<|eot|>{% endif %}"
    "{% endfor %}" + END
)
"""A message with calls has an end of its own and no content."""
DEEPSEEK = (
    "{% for m in messages %}{% if m.role == 'assistant' and (m.content is not defined or m.content is none) %}<|im_start|>assistant\n"
    "{% for c in m.tool_calls %}{{ '<tool_call>' + c.function.name + '\n```json\n' + c.function.arguments + '\n```' }}"
    "</tool_call>{% endfor %}<|im_end|>{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' + m.content }}<|im_end|>"
    "{% else %}<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>{% endif %}{% endfor %}" + END
)
"""Arguments are a text, and a message that calls has no content."""
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% elif m.tool_calls is defined %}[CALLS][{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
    "{{ raise_exception('ids have 9 characters') }}{% endif %}{{ c.function | tojson }}{% endfor %}]{{ eos_token }}"
    "{% elif m.role == 'tool' %}[RESULT]{{ m.content }}[/RESULT]{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
HARMONY = (
    "{% set ns = namespace(name='') %}{% for m in messages %}"
    "{% if m.tool_calls %}{% set c = m.tool_calls[0].function %}{% set ns.name = c.name %}<|im_start|>assistant"
    "{{ ' to=functions.' + c.name }}<|im_end|>{{ c.arguments | tojson }}<|call|>"
    "{% elif m.role == 'tool' %}<|im_start|>{{ 'functions.' + ns.name + ' to=assistant' }}<|im_end|>{{ m.content }}<|eot|>"
    "{% else %}<|im_start|>{{ m.role + ': ' + m.content }}<|eot|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
"""The name of the function is repeated where the tool answers."""
GLM = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>"
    "{{ c.function.name }}\n{% for k, v in c.function.arguments.items() %}<k>{{ k }}</k><v>{{ v }}</v>{% endfor %}</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}" + END
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{% generation %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>{% endgeneration %}"
    "{% else %}<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>{% endif %}\n{% endfor %}" + END
)
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}"
    "{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)

CALLED = {
    "hermes": (HERMES, '<tool_call>{"name": "NAME", "arguments": ARGUMENTS}</tool_call><|im_end|>', "<|im_end|>"),
    "llama": (LLAMA, '{"name": "NAME", "parameters": ARGUMENTS}<|eom|>', "<|eot|>"),
    "deepseek": (DEEPSEEK, "<tool_call>NAME\n```json\nARGUMENTS\n```</tool_call><|im_end|>", "<|im_end|>"),
    "mistral": (MISTRAL, '[CALLS][{"name": "NAME", "arguments": ARGUMENTS}]</s>', "</s>"),
    "harmony": (HARMONY, " to=functions.NAME<|im_end|>ARGUMENTS<|call|>", "<|eot|>"),
    "glm": (GLM, "<tool_call>NAME\n<k>city</k><v>CITY</v></tool_call><|im_end|>", "<|im_end|>"),
    "marked": (MARKED, '<tool_call>{"name": "NAME", "arguments": ARGUMENTS}</tool_call><|im_end|>', "<|im_end|>"),
    "plain": (PLAIN, '{"name": "NAME", "arguments": ARGUMENTS}', ""),
}
"""Style -> (template, what is trained of a call, the end of an answer)."""
styles = pytest.mark.parametrize(("template", "call", "end"), CALLED.values(), ids=CALLED.keys())


def made(template: str | dict[str, str], kind: str = "byte") -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer.train_tokenizer(kind, [*sentences(30), *MARKERS], OBJECTIVES["clm"].special_tokens)
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKERS)})
    tokenizer.chat_template = template
    return tokenizer


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def said(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def calling(city: str, name: str = "weather", as_text: bool = False) -> dict[str, Any]:
    arguments: Any = json.dumps({"city": city}) if as_text else {"city": city}
    return said(
        "", tool_calls=[{"id": "call00000", "type": "function", "function": {"name": name, "arguments": arguments}}]
    )


def gave(content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "call00000", "content": content}


def trained(tokenizer: PreTrainedTokenizerFast, value: Chat | list[dict[str, Any]]) -> list[str]:
    """The runs of trained tokens, decoded."""
    value = value if isinstance(value, Chat) else Chat(value)
    rendered = chat.rendered(tokenizer, value.messages, "row 1", value.tools)
    ids, mask = chat.tokenized(tokenizer, rendered, value.untrained)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [tokenizer.decode(ids[start:stop]) for start, stop in edges.reshape(-1, 2)]


def encoded(template: str | dict[str, str], *chats: Chat | list[dict[str, Any]], **options: Any) -> Examples:
    values = [value if isinstance(value, Chat) else Chat(value) for value in chats]
    data = ClmData(train=["x"], **options)
    return OBJECTIVES["clm"].encode(Rows.of("messages", values), made(template), data, Limits(None), False)


def spelled(call: str, city: str, name: str = "weather") -> str:
    return call.replace("NAME", name).replace("ARGUMENTS", json.dumps({"city": city})).replace("CITY", city)


# --- calls of tools --------------------------------------------------------------------------------------------------


@styles
@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("kind", ["byte", "bpe:400"])
def test_calls_and_answers_are_trained_and_what_tools_give_is_not(
    template: str, call: str, end: str, as_text: bool, kind: str
):
    messages = [
        user("Busan?"),
        calling("Busan", as_text=as_text),
        gave("21"),
        said("it is 21"),
        user("And?"),
        calling("Busan", as_text=as_text),
        gave("22"),
        calling("Seoul", "wind", as_text),
        gave("9"),
        said("it is 9"),
    ]
    calls = [spelled(call, "Busan"), spelled(call, "Busan"), spelled(call, "Seoul", "wind")]
    before = ": " if template == HARMONY else ""
    expected = [calls[0], f"{before}it is 21{end}", *calls[1:], f"{before}it is 9{end or '</s>'}"]
    assert trained(made(template, kind), messages) == expected


@styles
def test_a_chat_may_end_with_a_call(template: str, call: str, end: str):
    assert trained(made(template), [user("Busan?"), calling("Busan")]) == [
        spelled(call, "Busan") + ("" if end else "</s>")
    ]
    messages = [user("hi"), said("hello"), user("Busan?"), calling("Busan")]
    assert len(trained(made(template), messages)) == 2


@styles
def test_the_prompt_of_a_call_is_that_of_training(template: str, call: str, end: str):
    tokenizer, messages = made(template), [user("Busan?"), calling("Busan"), gave("21"), calling("Seoul"), gave("9")]
    ids, mask = chat.encode(tokenizer, [*messages, said("warm")], "row 1")
    for stop in (1, 3, 5):
        asked = chat.prompt_ids(tokenizer, messages[:stop], "row 1")
        assert ids[: len(asked)] == asked
        assert mask[len(asked)] and not mask[len(asked) - 1]


@pytest.mark.parametrize("opened", ["<think>\n", "<think>\n\n</think>\n\n"])
def test_a_call_need_not_have_the_thoughts_that_the_prompt_opens(opened: str):
    start = "<|im_start|>assistant\n"
    template = HERMES.replace(start + "{% endif %}", start + opened + "{% endif %}")
    messages = [user("Busan?"), calling("Busan"), gave("21"), said("<think>\nhm\n</think>\n\nwarm")]
    assert opened in template
    assert trained(made(template), messages) == [
        spelled(CALLED["hermes"][1], "Busan"),
        "<think>\nhm\n</think>\n\nwarm<|im_end|>",
    ]


def test_the_last_turn_may_end_in_another_way_than_the_others():
    ends = "{{ '<|eom|>' if loop.last else '<|eot|>' }}"
    template = "{% for m in messages %}<|im_start|>{{ m.role + ': ' + m.content }}" + ends + "{% endfor %}"
    template += "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    messages = [user("a"), said("b"), user("c"), said("d<|eot|>e"), user("f"), said("g")]
    assert trained(made(template), messages) == ["b<|eot|>", "d<|eot|>e<|eot|>", "g<|eom|>"]


def test_what_is_said_beside_a_call_is_trained_with_it_or_told_to_be_left_out():
    messages = [user("Busan?"), {**calling("Busan"), "content": "I look."}, gave("21"), said("21")]
    assert trained(made(HERMES), messages)[0] == "I look.\n" + spelled(CALLED["hermes"][1], "Busan")
    assert trained(made(LLAMA), messages)[0] == spelled(CALLED["llama"][1], "Busan")
    assert encoded(HERMES, messages).warnings == ()
    assert encoded(LLAMA, messages).warnings == (
        "the chat template does not render some messages of the role 'assistant', which are left out (1 of 1 chats)",
    )


def test_it_is_told_that_a_template_renders_no_calls_no_tools_and_no_such_keys():
    chats = [
        Chat([user("Busan?"), calling("Busan"), gave("21"), said("warm", mood="good")], TOOL),
        Chat([user("hi"), said("hello", mood="", id=7)]),
    ]
    assert encoded(CHATML, *chats).warnings == (
        "the chat template has no place for the definitions in the column 'tools', which are left out (1 of 2 chats)",
        "the chat template does not render calls of tools, which are left out (1 of 2 chats)",
        "the chat template makes no use of these keys of messages, which are left out: 'mood', 'id'",
    )


TOOL = [
    {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {"type": "object"}}}
]


def test_a_name_among_the_definitions_is_no_call():
    chats = Chat([user("Busan?"), calling("Busan"), gave("21"), said("warm")], TOOL)
    assert encoded(TOOLS + CHATML, chats).warnings == (
        "the chat template does not render calls of tools, which are left out (1 of 1 chats)",
    )


def test_definitions_of_tools_are_read_not_trained():
    for template in (HERMES, LLAMA):
        value = Chat([user("Busan?"), calling("Busan"), gave("21"), said("warm")], TOOL)
        tokenizer = made(template)
        ids, mask = chat.encode(tokenizer, value.messages, "row 1", value.tools)
        assert '"description": "of a city"' in tokenizer.decode(np.array(ids)[~mask])
        assert "of a city" not in "".join(trained(tokenizer, value))
        asked = chat.prompt_ids(tokenizer, value.messages[:1], "row 1", value.tools)
        assert ids[: len(asked)] == asked
        assert encoded(template, value).warnings == ()


# --- roles, thoughts, weights ----------------------------------------------------------------------------------------


REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content and loop.last %}"
    "{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    + END
)


def test_thoughts_before_the_last_answer_are_trained():
    messages = [user("2+2?"), said("4", reasoning_content="two"), user("3+3?"), said("6", reasoning_content="three")]
    assert trained(made(REASONING), messages) == ["4<|im_end|>", "<think>\nthree\n</think>\n\n6<|im_end|>"]
    alone = [user("2+2?"), said("", reasoning_content="two")]
    assert trained(made(REASONING), alone) == ["<think>\ntwo\n</think>\n\n<|im_end|>"]
    told = "the chat template makes no use of these keys of messages, which are left out: 'reasoning_content'"
    assert encoded(REASONING, messages).warnings == ()
    for key in ("reasoning", "thinking"):
        other = [user("2+2?"), said("4", **{key: "two"})]
        assert trained(made(REASONING), other) == ["<think>\ntwo\n</think>\n\n4<|im_end|>"]
        assert encoded(REASONING, other).warnings == ()
    assert encoded(CHATML, messages).warnings == (told,)


@pytest.mark.parametrize("template", [CHATML, HERMES, MARKED, PLAIN, chat.DEFAULT_TEMPLATE])
def test_messages_that_are_only_read_are_not_trained(template: str):
    messages = [user("a"), said("the cat"), user("b"), said("the dog"), user("c"), said("the king")]
    whole = trained(made(template), messages)
    assert len(whole) == 3
    assert trained(made(template), Chat(messages, untrained=(1,))) == whole[1:]
    assert trained(made(template), Chat(messages, untrained=(1, 5))) == whole[1:2]


def test_marks_that_do_not_tell_messages_apart_are_no_guide_to_one():
    template = MARKED.replace("{% generation %}", "{% generation %}<b>{% endgeneration %}{% generation %}")
    with pytest.raises(InputError, match="row 1: the generation marks of the chat template do not enclose every"):
        trained(made(template), Chat([user("a"), said("b"), user("a"), said("b")], untrained=(1,)))


def test_developer_is_the_role_of_the_system_where_a_template_does_not_know_it():
    messages = [{"role": "developer", "content": "be kind"}, user("a"), said("b")]
    tokenizer = made(CHATML)
    assert "<|im_start|>system\nbe kind" in tokenizer.decode(chat.encode(tokenizer, messages, "row 1")[0])
    assert encoded(CHATML, messages).warnings == (
        "the chat template does not know the role 'developer', which is written as 'system' (1 of 1 chats)",
    )
    known = CHATML + "{# developer #}"
    assert encoded(known, messages).warnings == ()


def test_messages_that_a_template_passes_over_are_told():
    template = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}")
    messages = [user("a"), said("b"), gave("9 degrees"), said("c")]
    assert encoded(template, messages).warnings == (
        "the chat template does not render some messages of the role 'tool', which are left out (1 of 1 chats)",
    )
    changed = CHATML.replace("{{ m.content }}", "{{ m.content | upper }}")
    assert encoded(changed, [user("who?"), said("THE CAT")]).warnings == ()


# --- named templates, refusals, lengths ------------------------------------------------------------------------------


def test_of_named_templates_the_default_is_used_and_tool_use_for_tools():
    names = {"rag": "{{ 1 / 0 }}", "tool_use": HERMES, "default": CHATML}
    tokenizer = made(names)
    assert chat.ensure_template(tokenizer) == (
        "the tokenizer has the chat templates rag, tool_use, default: using default, and tool_use for chats with tools"
    )
    assert chat.notes(tokenizer) == []
    assert trained(tokenizer, [user("a"), said("b")]) == ["b<|im_end|>"]
    assert "of a city" in tokenizer.decode(chat.encode(tokenizer, [user("a"), said("b")], "row 1", TOOL)[0])
    assert trained(made({"only": CHATML}), [user("a"), said("b")]) == ["b<|im_end|>"]
    with pytest.raises(InputError, match="has the chat templates one, two, but none of the name default"):
        chat.notes(made({"one": CHATML, "two": CHATML}))


ALTERNATING = CHATML.replace(
    "{% for m in messages %}",
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}",
)


def test_a_chat_that_its_template_refuses_is_a_bad_row():
    good, bad = [user("a"), said("b")], [user("a"), user("b"), said("c")]
    reason = "in memory, line 2: the chat template raises an error: roles must alternate"
    with pytest.raises(InputError) as raised:
        encoded(ALTERNATING, good, bad, good)
    assert str(raised.value) == f"{reason}; --on-bad drop leaves such rows out"
    examples = encoded(ALTERNATING, good, bad, good, on_bad="drop")
    ledger = examples.ledger
    assert (ledger.rows_read, ledger.rows_used, ledger.rows_bad) == (3, 2, 1)
    assert examples.warnings == (f"1 of 3 chats are left out as bad, the first: {reason}",)
    with pytest.raises(InputError, match=r"line 1: the chat template .*; no chat is left"):
        encoded(ALTERNATING, bad, bad, on_bad="drop")


def test_it_is_told_how_many_chats_have_no_answer_within_the_length():
    chats = [[user("a"), said("x" * n)] for n in (1, 40, 50)] + [[user("x" * 60), said("b")]]
    assert encoded(CHATML, *chats, max_length=60).warnings == (
        "1 of 4 chats are left out: what is trained begins beyond --max-length 60",
    )
    assert encoded(CHATML, *chats, max_length=60, on_long="drop").warnings == ()
    assert encoded(CHATML, *chats[:1]).warnings == ()
