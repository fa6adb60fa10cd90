"""Chats -> ids: exactly what the assistant wrote and the end of each answer is trained, under templates of every style."""

import numpy as np
import pytest
from conftest import sentences
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lmtrain.errors import InputError
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.preprocessing import chat, train_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + (m.content | trim) + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role not in ('user', 'assistant') %}{{ raise_exception('only user and assistant take turns') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('the roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system turns here') }}{% endif %}"
    "{% set who = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + who + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
THINKING = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% set said = m.content %}"
    "{% if m.role == 'assistant' %}{% set thought = '' %}"
    "{% if '</think>' in said %}{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{% endif %}"
    "{{ said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Of earlier answers the thoughts are taken away; the last one always has some, if empty ones."""
OPENING = THINKING.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}")
"""The generation prompt opens the thoughts, which earlier answers do without."""
FAREWELL = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
"""Behind the last turn there is an end token more."""

MARKERS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "[INST]",
    "[/INST]",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)

ENDS = {
    CHATML: (str, "", "<|im_end|>"),
    LLAMA3: (str.strip, "", "<|eot_id|>"),
    MISTRAL: (str, " ", "</s>"),
    GEMMA: (str.strip, "", "<end_of_turn>"),
    PLAIN: (str, "", ""),
}
"""What each template makes of an answer, and what it puts in front of it and behind."""

styles = pytest.mark.parametrize("template", ENDS, ids=["chatml", "llama3", "mistral", "gemma", "plain"])

WORDS = [*sentences(30), "user assistant User: Assistant: model Who? the cat 가나다 🙂\n\n"]


def made(kind: str, template: str, markers: bool = True) -> PreTrainedTokenizerFast:
    made_tokenizer = train_tokenizer.train_tokenizer(kind, [*WORDS, *MARKERS], OBJECTIVES["clm"].special_tokens)
    if markers:
        made_tokenizer.add_special_tokens({"additional_special_tokens": list(MARKERS)})
    made_tokenizer.chat_template = template
    return made_tokenizer


def own(model: models.Model, template: str, pre: object, decoder: object = None, normalizer: object = None):
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre
    if decoder:
        backend.decoder = decoder
    if normalizer:
        backend.normalizer = normalizer
    made_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    made_tokenizer.add_special_tokens({"additional_special_tokens": list(MARKERS)})
    made_tokenizer.chat_template = template
    return made_tokenizer


def talk(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def trained_text(made_tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> list[str]:
    """The runs of trained tokens, decoded."""
    ids, mask = chat.encode(made_tokenizer, messages, "row 1")
    assert len(ids) == len(mask)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [made_tokenizer.decode(ids[start:stop]) for start, stop in edges.reshape(-1, 2)]


def wanted(template: str, messages: list[dict[str, str]]) -> list[str]:
    change, before, end = ENDS[template]
    answers = [before + change(m["content"]) + end for m in messages if m["role"] == "assistant"]
    return [*answers[:-1], answers[-1] + ("" if end else "</s>")]


CONTENTS = {
    "several": ("Who?", "the cat", "Why?", "the dog", "And?", "again"),
    "white space": ("Who?", "  the cat \n", "Why?", "\n\nthe dog\n\n"),
    "korean and emoji": ("누구?", "가나다 🙂", "왜?", "🙂🙂"),
    "one": ("Who?", "the cat"),
}


@styles
@pytest.mark.parametrize("contents", CONTENTS.values(), ids=CONTENTS.keys())
@pytest.mark.parametrize("kind", ["byte", "bpe:400"])
def test_the_answers_and_their_ends_are_trained_and_nothing_else(template: str, contents: tuple[str, ...], kind: str):
    messages = talk(*contents)
    assert trained_text(made(kind, template), messages) == wanted(template, messages)


@styles
@pytest.mark.parametrize("end", ["<|im_end|>\n", "</s>", "a<|eot_id|>b", "<end_of_turn>\n", "\nUser: x\nAssistant: "])
def test_an_answer_may_hold_what_ends_answers(template: str, end: str):
    messages = talk("Who?", end, "Why?", end + "c")
    assert trained_text(made("byte", template), messages) == wanted(template, messages)


@styles
def test_an_empty_answer_is_its_end(template: str):
    messages = talk("Who?", "", "Why?", "the dog")
    assert trained_text(made("byte", template), messages) == [text for text in wanted(template, messages) if text]


@styles
def test_markers_that_are_no_tokens_of_their_own_are_found_as_well(template: str):
    messages = talk("Who?", " the cat\n", "Why?", "the dog")
    assert trained_text(made("byte", template, markers=False), messages) == wanted(template, messages)


KINDS = ("byte", "bpe:300", "bpe:400", "char", "unigram:100", "wordpiece:150")


@styles
@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_of_an_answer_is_tokenised_as_it_is_when_the_model_is_asked(template: str, kind: str):
    for contents in CONTENTS.values():
        messages = talk(*contents)
        for markers in (True, False):
            made_tokenizer = made(kind, template, markers)
            ids, mask = chat.encode(made_tokenizer, messages, "row 1")
            for index in range(1, len(messages), 2):
                asked = chat.prompt_ids(made_tokenizer, messages[:index], "row 1")
                assert asked == ids[: len(asked)]
                assert mask[len(asked) :].any()
                assert mask[len(asked)]
                assert not mask[len(asked) - 1]
            plain = made_tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
            assert plain == ids[: len(plain)]


# --- templates that rewrite, refuse, mark ----------------------------------------------------------------------------


THOUGHT = talk("Who?", "<think>\nhm\n</think>\n\nthe cat", "Why?", "<think>\noh\n</think>\n\nthe dog")


@pytest.mark.parametrize("markers", [True, False])
def test_thoughts_that_a_template_takes_out_of_earlier_answers_are_not_trained(markers: bool):
    made_tokenizer = made("byte", THINKING, markers)
    assert trained_text(made_tokenizer, THOUGHT) == [
        "the cat<|im_end|>",
        "<think>\noh\n</think>\n\nthe dog<|im_end|>",
    ]
    assert trained_text(made_tokenizer, talk("a", "b", "c", "d")) == [
        "b<|im_end|>",
        "<think>\n\n</think>\n\nd<|im_end|>",
    ]


def test_a_prompt_that_opens_thoughts_ends_where_the_answer_begins():
    assert trained_text(made("byte", OPENING), THOUGHT) == ["the cat<|im_end|>", "oh\n</think>\n\nthe dog<|im_end|>"]
    chat_with_tag = talk("Who?", "<b>the cat", "Why?", "d")
    assert trained_text(made("byte", OPENING), chat_with_tag)[0] == "<b>the cat<|im_end|>"


def test_answers_to_tools_are_trained_though_the_thoughts_before_them_are_gone():
    messages = [
        *talk("Who?", "<think>\nhm\n</think>\n\nask"),
        {"role": "tool", "content": "7"},
        *talk("-", "<think>\noh\n</think>\n\n7", "Why?", "d")[1:],
    ]
    assert trained_text(made("byte", THINKING), messages) == [
        "ask<|im_end|>",
        "7<|im_end|>",
        "<think>\n\n</think>\n\nd<|im_end|>",
    ]


def test_an_end_token_behind_the_last_turn_alone_is_trained_there():
    assert trained_text(made("byte", FAREWELL), talk("a", "b", "c", "d")) == ["b<|end|>", "d<|end|>\n</s>"]


def test_a_chat_may_begin_with_an_answer_and_end_with_a_question():
    messages = talk("-", "b", "c", "d", "e")[1:]
    assert trained_text(made("byte", CHATML), messages) == ["b<|im_end|>", "d<|im_end|>"]
    made_tokenizer = made("byte", PLAIN)
    assert trained_text(made_tokenizer, messages) == ["b", "d</s>"]
    assert made_tokenizer.decode(chat.encode(made_tokenizer, messages, "")[0]).endswith("Assistant: d</s>")


UNCLEAR = {
    "forgets": (CHATML.replace("messages %}", "messages[-2:] %}", 1), "does not render every assistant message once"),
    "repeats": (CHATML.replace("m.content", "m.content * 2"), "does not render every assistant message once"),
    "addresses": (
        "{% for m in messages %}{% if loop.last and m.role == 'user' %}dear {% endif %}{{ m.content }};{% endfor %}",
        "where the assistant's part begins is unknown",
    ),
    "bursts": (CHATML + "{{ 1 / 0 }}", "the chat template raises an error: division by zero"),
}


@pytest.mark.parametrize(("template", "message"), UNCLEAR.values(), ids=UNCLEAR.keys())
def test_a_template_that_hides_where_an_answer_is_is_an_error_that_names_the_row(template: str, message: str):
    with pytest.raises(InputError, match=r"^row 7: the chat template") as raised:
        chat.encode(made("byte", template), talk("a", "b", "c", "d"), "row 7")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_answer_that_is_rewritten_is_found_by_what_is_around_it_unless_there_are_two_ways():
    template = PLAIN.replace("m.content", "m.content | replace('z', 'B')")
    assert trained_text(made("byte", template), talk("a", "z", "c", "dz")) == ["B", "dB</s>"]
    with pytest.raises(
        InputError, match="row 7: the chat template changes an assistant message so that it cannot be told"
    ):
        chat.encode(made("byte", template), talk("a", "z\nUser: C\nAssistant: x", "C", "d"), "row 7")


def test_what_a_template_raises_names_the_row():
    for template, reason in ((GEMMA, "no system turns here"), (MISTRAL, "only user and assistant take turns")):
        with pytest.raises(InputError, match=f"^row 3: the chat template raises an error: {reason}$"):
            chat.encode(made("byte", template), talk("a", "b", system="c"), "row 3")


MARKED = {
    "as it should": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}",
    "with white space control": "{%- for m in messages %}\n  {%- if m.role == 'assistant' %}\n    {%- generation -%}\n"
    "  {{ m.content + '<|im_end|>' }}\n  {%- endgeneration -%}\n  {%- else %}{{ m.content }}{%- endif %}{{ '\n' }}{%- endfor %}",
    "in a macro": "{% macro turn(m) %}{{ m.role }}:{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n{% endmacro %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ turn(m) }}{% else %}{{ m.content }}\n{% endif %}{% endfor %}",
    "with the line break": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>\n' }}"
    "{% endgeneration %}{% else %}{{ m.content + '\n' }}{% endif %}{% endfor %}",
    "without the end": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "<|im_end|>{% else %}{{ m.content }}{% endif %}\n{% endfor %}",
}


@pytest.mark.parametrize("template", MARKED.values(), ids=MARKED.keys())
@pytest.mark.parametrize("kind", ["byte", "bpe:400"])
def test_marks_of_a_template_are_followed_and_the_end_belongs_to_them(template: str, kind: str):
    messages = talk("Who?", " the cat\n", "Why?", "<|im_end|>\n", "누구?", "\U000f0000가나다 🙂")
    expected = [message["content"] + "<|im_end|>" for message in messages[1::2]]
    assert trained_text(made(kind, template), messages) == expected


def test_a_mark_in_a_comment_is_none():
    template = "{# {% generation %} is for others #}" + CHATML
    assert trained_text(made("byte", template), talk("a", "b")) == ["b<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "note"),
    [
        *[(template, None) for template in (CHATML, LLAMA3, MISTRAL, GEMMA, THINKING, OPENING, FAREWELL)],
        (PLAIN, "the chat template has no end marker: </s> is appended to the last assistant turn of every chat"),
        (chat.DEFAULT_TEMPLATE, None),
        (
            chat.DEFAULT_TEMPLATE.replace(" + eos_token", ""),
            "the chat template has no end marker: </s> is appended to the last assistant turn of every chat",
        ),
        (
            MARKED["without the end"],
            "the chat template's generation marks leave out '<|im_end|>', which ends an assistant turn: it is trained anyway",
        ),
        *[(MARKED[name], None) for name in MARKED if name != "without the end"],
    ],
)
def test_it_is_said_when_a_template_does_not_teach_to_stop(template: str, note: str | None):
    assert chat.notes(made("byte", template)) == ([note] if note else [])


def test_without_any_end_there_is_nothing_to_learn_stopping_from():
    made_tokenizer = made("byte", PLAIN)
    made_tokenizer.eos_token = None
    for attempt in (lambda: chat.notes(made_tokenizer), lambda: chat.encode(made_tokenizer, talk("a", "b"), "row 1")):
        with pytest.raises(InputError, match="no end marker and the tokenizer has no end token"):
            attempt()


def test_marks_without_an_end_get_one_and_the_end_token():
    template = chat.DEFAULT_TEMPLATE.replace(" + eos_token", "")
    assert trained_text(made("byte", template), talk("a", "b", "c", "d", "e")) == ["b", "d</s>"]


# --- tokenizers ------------------------------------------------------------------------------------------------------


def gpt2_like(template: str, trim: bool, prefix: bool = False):
    """Byte-level BPE whose line breaks and spaces grow together."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = ["<unk>", "<s>", "</s>", *alphabet, "ĊĊ", "ĊĊĊ", "Ġt", "ĠĠ"]
    merges = [("Ċ", "Ċ"), ("ĊĊ", "Ċ"), ("Ġ", "t"), ("Ġ", "Ġ")]
    model = models.BPE({entry: n for n, entry in enumerate(entries)}, merges)
    pre = pre_tokenizers.ByteLevel(add_prefix_space=prefix, trim_offsets=trim)
    made_tokenizer = own(model, template, pre, decoders.ByteLevel())
    if trim:
        from tokenizers import processors

        made_tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return made_tokenizer


@styles
@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
def test_no_token_reaches_from_a_header_into_an_answer(template: str, trim: bool, prefix: bool):
    made_tokenizer = gpt2_like(template, trim, prefix)
    for messages in (talk("Who?", "\n\nthe cat\n"), talk("Who?", "  the dog  "), talk("Who?", "the two")):
        ids, mask = chat.encode(made_tokenizer, messages, "row 1")
        asked = made_tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
        assert ids[: len(asked)] == asked
        assert mask.argmax() == len(asked)
        text = made_tokenizer.decode(np.array(ids)[mask])
        # A tokenizer with a prefix space writes one behind every added token, where it is told to and where it is not.
        assert (
            text.strip() == wanted(template, messages)[0].strip() if prefix else text == wanted(template, messages)[0]
        )


def test_a_tokenizer_with_a_space_in_front_of_a_text_writes_none_in_front_of_an_answer():
    entries = [
        ("<unk>", 0.0),
        ("<s>", 0.0),
        ("</s>", 0.0),
        ("\n", -3.0),
        ("▁the", -1.0),
        ("the", -2.0),
        ("▁", -3.0),
        *((c, -5.0) for c in "Useristantcdog:?WhoA▁"),
    ]
    entries = list(dict(entries).items())
    made_tokenizer = own(
        models.Unigram(entries, 0), PLAIN, pre_tokenizers.Metaspace(prepend_scheme="always"), decoders.Metaspace()
    )
    ids, mask = chat.encode(made_tokenizer, talk("Who?", "the dog"), "row 1")
    asked = made_tokenizer.apply_chat_template(talk("Who?"), add_generation_prompt=True, return_dict=False)
    assert made_tokenizer.convert_ids_to_tokens(asked)[-1] == "▁"
    assert ids[: len(asked)] == asked
    assert made_tokenizer.convert_ids_to_tokens(ids[len(asked) :]) == ["the", "▁", "d", "o", "g", "</s>"]
    assert mask.tolist() == [False] * len(asked) + [True] * 6


def test_words_are_told_apart_where_white_space_is_lost():
    words = [
        "<unk>",
        "<s>",
        "</s>",
        "User",
        "Assistant",
        ":",
        "the",
        "cat",
        "dog",
        "Who",
        "?",
        *MARKERS,
        "user",
        "assistant",
    ]
    for template in (CHATML, PLAIN):
        made_tokenizer = own(
            models.WordLevel({word: n for n, word in enumerate(words)}, "<unk>"),
            template,
            pre_tokenizers.Whitespace(),
            normalizer=normalizers.NFC(),
        )
        ends = ["<|im_end|>", "<|im_end|>"] if template == CHATML else ["", "</s>"]
        messages = talk("Who?", "the cat ", "dog?", " the unheard dog")
        wanted_words = [f"the cat {ends[0]}".strip(), f"the <unk> dog {ends[1]}"]
        assert trained_text(made_tokenizer, messages) == wanted_words


def test_a_tokenizer_that_cannot_say_where_its_tokens_are_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="row 1: a chat needs a tokenizer that knows where"):
        chat.encode(Slow(), talk("a", "b"), "row 1")


# --- any chat --------------------------------------------------------------------------------------------------------


PIECES = st.sampled_from(
    ["a", "B ", " ", "\n", "가", "🙂", "é", *MARKERS[:5], "</s>", "<s>", "User: ", "\nAssistant: ", "[INST] "]
)
contents = st.lists(st.lists(PIECES, max_size=6).map("".join), min_size=1, max_size=4)
TOKENIZERS = {(kind, template): made(kind, template) for kind in ("byte", "bpe:400") for template in ENDS}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(list(ENDS)), st.sampled_from(["byte", "bpe:400"]), contents, contents)
@example(PLAIN, "byte", ["x"], ["\nUser: x\nAssistant: "])
def test_of_any_chat_the_answers_are_trained(template: str, kind: str, questions: list[str], answers: list[str]):
    messages = talk(*(part for pair in zip(questions, answers, strict=False) for part in pair))
    made_tokenizer = TOKENIZERS[kind, template]
    ids, mask = chat.encode(made_tokenizer, messages, "row 1")
    assert made_tokenizer.decode(np.array(ids)[mask]) == "".join(wanted(template, messages))
    text = made_tokenizer.apply_chat_template(messages, tokenize=False)
    if template == PLAIN:
        text = text[:-1] + "</s>"
    assert made_tokenizer.decode(ids) == text
    if kind == "byte":
        assert ids == made_tokenizer(text, add_special_tokens=False)["input_ids"]
    for index in range(1, len(messages), 2):
        asked = chat.prompt_ids(made_tokenizer, messages[:index], "row 1")
        assert ids[: len(asked)] == asked


def test_a_long_chat_is_not_rendered_over_and_over():
    """Work in turns rendered: not a multiple of the chat for each of its turns."""
    made_tokenizer = made("byte", CHATML)
    rendered = []

    class Counting:
        def __getattr__(self, name: str):
            return getattr(made_tokenizer, name)

        def __len__(self) -> int:
            return len(made_tokenizer)

        def __call__(self, *arguments: object, **options: object):
            return made_tokenizer(*arguments, **options)

        def apply_chat_template(self, messages: list[dict[str, str]], **options: object):
            rendered.append(len(messages))
            return made_tokenizer.apply_chat_template(messages, **options)

    chat.encode(Counting(), talk(*"ab" * 10), "row 1")
    assert sum(rendered) <= 20 * 8
