"""`lmtrain generate`: answer prompts with a saved model."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer, set_seed

from lmtrain.config.eval import Generate
from lmtrain.config.labelled_data import PAIR_SEPARATOR
from lmtrain.config.recipe import GenerateRequest
from lmtrain.data.chats import Chat, chat_notes
from lmtrain.data.prompts import Prompt
from lmtrain.errors import UsageError
from lmtrain.modeling.configuration import load_config
from lmtrain.modeling.network import load_network
from lmtrain.modeling.tokenizer import load_tokenizer
from lmtrain.objectives.generation import ROWS_AT_ONCE, Decoder, GenerationSettings, end_ids
from lmtrain.objectives.objective import OBJECTIVES, Objective
from lmtrain.objectives.prompting import Answer, PromptingOptions
from lmtrain.preprocessing import lost_text
from lmtrain.preprocessing.languages import set_languages
from lmtrain.runs.saved_run import noted_labels
from lmtrain.runtime.console import Console
from lmtrain.runtime.device import precision

NEW_TOKENS = 128


@dataclass(frozen=True)
class LoadedForPrompts:
    """A model that answers prompts, on its device."""

    objective: Objective
    network: Any
    tokenizer: PreTrainedTokenizerBase
    precision: str

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.network.device.type, dtype)


def load_for_prompts(request: GenerateRequest, objective_name: str, console: Console) -> LoadedForPrompts:
    """Load the model of a request, report on it and seed the draws. Raises an LmtrainError."""
    config = load_config(request.model, objective_name)
    labels, kind = noted_labels(request.model.name)
    objective = OBJECTIVES[objective_name].fitted(config, kind, labels)
    dtype = precision(request.train.precision, config.model_type)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    with console.working("loading tokenizer and model"):
        tokenizer, tokenizer_notes, warnings = load_tokenizer(request.model)
        set_languages(tokenizer, request.data.source_lang, request.data.target_lang)
        network, notes = load_network(request.model, config, tokenizer, objective.auto_model, head=objective.head)
    for line in [*tokenizer_notes, *notes]:
        console.note(line)
    for line in warnings:
        console.warn(line)
    network.to(device).eval()  # type: ignore[arg-type]  # transformers wraps `to` without its types
    set_seed(request.train.seed)
    return LoadedForPrompts(objective, network, tokenizer, dtype)


def generate(
    request: GenerateRequest, objective_name: str, prompts: list[Prompt], kind: str | None, console: Console
) -> list[Answer]:
    """Print and return the answer to each prompt; on a terminal a single completion appears as it is written.

    `kind` is the kind of rows that the model was trained on, where that is known. Raises an LmtrainError for whatever
    the user can put right.
    """
    settings = generation_settings(request.generate)
    if settings.num_beams > request.generate.num_beams:
        console.note(
            f"searching with {settings.num_beams} beams to return as many outputs; --do-sample samples them instead"
        )
    loaded = load_for_prompts(request, objective_name, console)
    objective, network, tokenizer = loaded.objective, loaded.network, loaded.tokenizer
    for line in _chat_notes(prompts):
        console.note(line)
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    for line in lost_text.on_texts(tokenizer, texts, "the prompts") if objective.writes else []:
        console.warn(line)
    single = len(prompts) == settings.num_beams == settings.num_return_sequences == 1
    streamed = objective.streams_answers and single and console.out.is_terminal and not console.as_json
    streamer = TextStreamer(Decoder(tokenizer, end_ids(network)), skip_prompt=True) if streamed else None  # type: ignore[arg-type]
    section = request.generate
    options = PromptingOptions(settings, kind, section.chat, request.data.source_prefix, section.candidates, streamer)
    found: list[Answer] = []
    for start in range(0, len(prompts), ROWS_AT_ONCE):
        batch = prompts[start : start + ROWS_AT_ONCE]
        with torch.no_grad(), loaded.autocast():
            answers = objective.answer(network, tokenizer, batch, options)
        for prompt, answer in zip(batch, answers, strict=True):
            asked = prompt.question().messages if isinstance(prompt, Chat) else _shown(prompt)
            found.append({"input": asked, **answer})
            console.answer(found[-1], streamed=streamed)
        if console.reader_left:
            break
    return found


def _shown(prompt: str) -> str | list[str]:
    """The prompt; both texts of a pair."""
    return prompt.split(PAIR_SEPARATOR) if PAIR_SEPARATOR in prompt else prompt


def _chat_notes(prompts: list[Prompt]) -> list[str]:
    """Notes on how the chats among the prompts were read."""
    chats = [prompt for prompt in prompts if isinstance(prompt, Chat)]
    answered = sum(chat.ends_with_answer for chat in chats)
    hidden = (
        f"{answered:,} of {len(chats):,} chats end with an answer, which the model is not shown (--json: reference)"
    )
    return [*chat_notes(chats), *([hidden] if answered else [])]


def generation_settings(section: Generate) -> GenerationSettings:
    """Raises UsageError if more outputs are requested than the search returns."""
    sampling = section.do_sample or any(v is not None for v in (section.temperature, section.top_k, section.top_p))
    wanted = section.num_return_sequences
    beams = section.num_beams if "num_beams" in section.model_fields_set or sampling else wanted
    if wanted > beams and (beams > 1 or not sampling):
        raise UsageError(f"--num-return-sequences {wanted}: needs --num-beams {wanted} or more, or --do-sample alone")
    return GenerationSettings(
        beams,
        section.max_new_tokens or NEW_TOKENS,
        section.length_penalty,
        section.no_repeat_ngram_size,
        sampling,
        section.temperature,
        section.top_k,
        section.top_p,
        wanted,
    )
