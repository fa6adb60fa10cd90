"""Answers to prompts, in the form that `generate` reports them."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from lmtrain.data.prompts import Prompt
from lmtrain.errors import InputError, visible
from lmtrain.objectives import generation
from lmtrain.objectives.generation import GenerationSettings, Output

Answer = dict[str, Any]
"""`output`: the text; `outputs`: {text, score} of several; `masks`: the best tokens for each mask (masked models)."""


@dataclass(frozen=True)
class PromptingOptions:
    """How prompts are answered."""

    settings: GenerationSettings
    kind: str | None
    """The kind of rows that the model was trained on; None if unknown."""
    chat: bool
    """Whether a text prompt is sent as the user's message of a chat."""
    prefix: str
    """Text in front of each source."""
    candidates: int
    """Number of tokens reported for each mask."""
    streamer: BaseStreamer | None = None
    """Receives the tokens as they are generated."""


def write_one(network: Any, tokenizer: PreTrainedTokenizerBase, ids: list[int], options: PromptingOptions) -> Answer:
    """The answer to one source. Scores of beam search keep the logits of all steps, so only one source at a time."""
    more = {"streamer": options.streamer} if options.streamer else {}
    beams = options.settings.num_beams > 1
    (outputs,) = generation.generate_texts(network, tokenizer, [ids], options.settings, output_scores=beams, **more)
    return answer_of(outputs)


def answer_of(outputs: list[Output]) -> Answer:
    """The answer made of a prompt's `outputs`, best first."""
    best = outputs[0]
    several = [{"text": o.text, **({} if o.score is None else {"score": o.score})} for o in outputs]
    return {"output": best.text, **({"outputs": several} if len(outputs) > 1 or best.score is not None else {})}


def text_of(prompt: Prompt) -> str:
    """The prompt, which must be a text. Raises InputError for a chat."""
    if not isinstance(prompt, str):
        raise InputError("chat prompts are for causal models; this model needs a text")
    return prompt


def check_length(network: Any, tokens: int, prompt: Prompt) -> None:
    """Raise InputError if a prompt of `tokens` tokens is longer than the model's positions."""
    from lmtrain.modeling.network import positions

    limit = positions(network)
    if limit and tokens > limit:
        raise InputError(
            f"{visible(str(prompt), 40)!r}: {tokens} tokens, but the model has {limit} positions; shorten it"
        )
