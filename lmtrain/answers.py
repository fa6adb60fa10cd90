"""What the three kinds of model make of a prompt: go on with it, fill its masks, turn it into another text."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lmtrain import chat, encode, generate
from lmtrain.errors import InputError, UsageError, visible
from lmtrain.generate import Output, Settings, decode
from lmtrain.prompts import Prompt

Answer = dict[str, Any]
"""`output`, the text; with several, `outputs` as {text, score}; of masks, `masks` with the best tokens of each."""

MASKS = ("[MASK]", "<mask>")


@dataclass(frozen=True)
class Manner:
    """How to ask: what is generated, whether as a chat, after which prefix, how many words are shown for a mask.

    `kind` is the kind of rows that the model was trained on, None where that is not known.
    """

    settings: Settings
    kind: str | None
    chat: bool
    prefix: str
    candidates: int
    streamer: Any = None


def complete(network: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], manner: Manner) -> list[Answer]:
    """How a causal model goes on."""
    answers = []
    for prompt in prompts:
        ids = _asked(tokenizer, prompt, manner)
        if not ids:
            raise InputError("the prompt is empty, and this model has no mark to begin with; write something")
        _check_length(network, len(ids) + 1, prompt)
        answers.append(_written(network, tokenizer, ids, manner))
    return answers


def _asked(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, manner: Manner) -> list[int]:
    """The ids that stand before the answer, framed as in training."""
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and not tokenizer.chat_template:
        raise UsageError("a chat needs a model with a chat template; this one has none")
    if isinstance(prompt, list) or (manner.chat and tokenizer.chat_template and manner.kind in (None, "messages")):
        return chat.prompt(tokenizer, messages, "the prompt")
    before, _ = encode.marks(tokenizer)
    text = encode.asking(prompt) if manner.kind == "prompt" else prompt
    return [*before, *tokenizer(text, add_special_tokens=False)["input_ids"]]


def transform(network: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], manner: Manner) -> list[Answer]:
    """What an encoder-decoder turns each text into."""
    sources = encode.source_ids(tokenizer, [_text(prompt) for prompt in prompts], manner.prefix)
    for prompt, ids in zip(prompts, sources, strict=True):
        _check_length(network, len(ids), prompt)
    if manner.settings.num_beams > 1:
        return [_written(network, tokenizer, ids, manner) for ids in sources]
    return [_answer(written) for written in generate.outputs(network, tokenizer, sources, manner.settings)]


def _written(network: Any, tokenizer: PreTrainedTokenizerBase, ids: list[int], manner: Manner) -> Answer:
    """What follows from one source. Beams want the logits of all steps for their scores: not of many sources at once."""
    more = {"streamer": manner.streamer} if manner.streamer else {}
    beams = manner.settings.num_beams > 1
    (written,) = generate.outputs(network, tokenizer, [ids], manner.settings, output_scores=beams, **more)
    return _answer(written)


@torch.no_grad()
def fill_in(network: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], manner: Manner) -> list[Answer]:
    """Each text with its masks filled, each by its most probable token, and the best candidates of each."""
    if tokenizer.mask_token is None:
        raise InputError("the tokenizer has no mask token, so there is nothing to fill")
    answers = []
    for prompt in prompts:
        text = _text(prompt)
        for mask in MASKS:
            text = text.replace(mask, tokenizer.mask_token)
        inputs = torch.tensor([tokenizer(text)["input_ids"]], device=network.device)
        _check_length(network, inputs.shape[1], prompt)
        at = (inputs[0] == tokenizer.mask_token_id).nonzero()[:, 0]
        if not len(at):
            raise InputError(
                f"{visible(text)!r}: nothing to fill; write {tokenizer.mask_token} where words are missing"
            )
        logits = network(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits[0, at, : len(tokenizer)]
        top = logits.float().softmax(-1).topk(min(manner.candidates, len(tokenizer)))
        inputs[0, at] = top.indices[:, 0]
        masks = [
            [
                {"token": tokenizer.decode([int(i)]).strip(), "probability": float(p)}
                for i, p in zip(*best, strict=True)
            ]
            for best in zip(top.indices, top.values, strict=True)
        ]
        answers.append({"output": decode(tokenizer, inputs[0]), "masks": masks})
    return answers


def _answer(written: list[Output]) -> Answer:
    best = written[0]
    several = [{"text": o.text, **({} if o.score is None else {"score": o.score})} for o in written]
    return {"output": best.text, **({"outputs": several} if len(written) > 1 or best.score is not None else {})}


def _text(prompt: Prompt) -> str:
    if not isinstance(prompt, str):
        raise InputError("a chat is for causal models; this one wants a text")
    return prompt


def _check_length(network: Any, tokens: int, prompt: Prompt) -> None:
    from lmtrain.model import positions

    limit = positions(network)
    if limit and tokens > limit:
        raise InputError(
            f"{visible(str(prompt), 40)!r}: {tokens} tokens, but the model has {limit} positions; shorten it"
        )
