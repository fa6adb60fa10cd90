"""What the three kinds of model make of a prompt: go on with it, fill its masks, turn it into another text."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from lmtrain.data.prompts import Prompt
from lmtrain.errors import InputError, visible
from lmtrain.objectives import generation
from lmtrain.objectives.generation import GenerationSettings, Output

Answer = dict[str, Any]
"""`output`, the text; with several, `outputs` as {text, score}; of masks, `masks` with the best tokens of each."""


@dataclass(frozen=True)
class PromptingOptions:
    """How to ask: what is generated, whether as a chat, after which prefix, how many words are shown for a mask.

    `kind` is the kind of rows that the model was trained on, None where that is not known.
    """

    settings: GenerationSettings
    kind: str | None
    chat: bool
    prefix: str
    candidates: int
    streamer: Any = None


def write_one(network: Any, tokenizer: PreTrainedTokenizerBase, ids: list[int], manner: PromptingOptions) -> Answer:
    """What follows from one source. Beams want the logits of all steps for their scores: not of many sources at once."""
    more = {"streamer": manner.streamer} if manner.streamer else {}
    beams = manner.settings.num_beams > 1
    (written,) = generation.generate_texts(network, tokenizer, [ids], manner.settings, output_scores=beams, **more)
    return answer_of(written)


def answer_of(written: list[Output]) -> Answer:
    best = written[0]
    several = [{"text": o.text, **({} if o.score is None else {"score": o.score})} for o in written]
    return {"output": best.text, **({"outputs": several} if len(written) > 1 or best.score is not None else {})}


def text_of(prompt: Prompt) -> str:
    if not isinstance(prompt, str):
        raise InputError("a chat is for causal models; this one wants a text")
    return prompt


def check_length(network: Any, tokens: int, prompt: Prompt) -> None:
    from lmtrain.modeling.network import positions

    limit = positions(network)
    if limit and tokens > limit:
        raise InputError(
            f"{visible(str(prompt), 40)!r}: {tokens} tokens, but the model has {limit} positions; shorten it"
        )
