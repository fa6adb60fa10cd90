"""`lmtrain generate`: answer prompts with a saved model."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import TextStreamer, set_seed

from lmtrain.config.eval import Generate
from lmtrain.config.recipe import GenerateRequest
from lmtrain.data.chats import Chat, chat_notes
from lmtrain.data.prompts import Prompt
from lmtrain.errors import UsageError
from lmtrain.modeling.configuration import load_config
from lmtrain.modeling.network import load_network
from lmtrain.modeling.tokenizer import load_tokenizer
from lmtrain.objectives.generation import ROWS_AT_ONCE, Decoder, GenerationSettings, end_ids
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.objectives.prompting import Answer, PromptingOptions
from lmtrain.preprocessing import lost_text
from lmtrain.preprocessing.languages import set_languages
from lmtrain.runtime.console import Console
from lmtrain.runtime.device import precision

NEW_TOKENS = 128


def generate(
    request: GenerateRequest, objective_name: str, prompts: list[Prompt], kind: str | None, console: Console
) -> list[Answer]:
    """Print and return the answer to each prompt; on a terminal a single completion appears as it is written.

    `kind` is the kind of rows that the model was trained on, where that is known. Raises an LmtrainError for whatever
    the user can put right.
    """
    settings = _settings(request.generate)
    if settings.num_beams > request.generate.num_beams:
        console.note(
            f"searching with {settings.num_beams} beams to return as many outputs; --do-sample samples them instead"
        )
    objective = OBJECTIVES[objective_name]
    config = load_config(request.model, objective_name)
    dtype = precision(request.train.precision, config.model_type)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    with console.working("loading tokenizer and model"):
        tokenizer, tokenizer_notes, warnings = load_tokenizer(request.model)
        set_languages(tokenizer, request.data.source_lang, request.data.target_lang)
        network, notes = load_network(request.model, config, tokenizer, objective.auto_model)
    for line in [*tokenizer_notes, *notes, *_chat_notes(prompts)]:
        console.note(line)
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    lost = lost_text.on_texts(tokenizer, texts, "the prompts") if objective.writes else []
    for line in [*warnings, *lost]:
        console.warn(line)
    network.to(device).eval()  # type: ignore[arg-type]  # transformers wraps `to` without its types
    set_seed(request.train.seed)
    single = len(prompts) == settings.num_beams == settings.num_return_sequences == 1
    streamed = objective.streams_answers and single and console.out.is_terminal and not console.as_json
    streamer = TextStreamer(Decoder(tokenizer, end_ids(network)), skip_prompt=True) if streamed else None  # type: ignore[arg-type]
    section = request.generate
    options = PromptingOptions(settings, kind, section.chat, request.data.source_prefix, section.candidates, streamer)
    found: list[Answer] = []
    for start in range(0, len(prompts), ROWS_AT_ONCE):
        batch = prompts[start : start + ROWS_AT_ONCE]
        with torch.no_grad(), _autocast(dtype, device):
            answers = objective.answer(network, tokenizer, batch, options)
        for prompt, answer in zip(batch, answers, strict=True):
            asked = prompt.question().messages if isinstance(prompt, Chat) else prompt
            found.append({"input": asked, **answer})
            console.answer(found[-1], streamed=streamed)
        if console.reader_left:
            break
    return found


def _chat_notes(prompts: list[Prompt]) -> list[str]:
    """Notes on how the chats among the prompts were read."""
    chats = [prompt for prompt in prompts if isinstance(prompt, Chat)]
    answered = sum(chat.ends_with_answer for chat in chats)
    hidden = (
        f"{answered:,} of {len(chats):,} chats end with an answer, which the model is not shown (--json: reference)"
    )
    return [*chat_notes(chats), *([hidden] if answered else [])]


def _settings(section: Generate) -> GenerationSettings:
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


def _autocast(dtype: str, device: torch.device) -> AbstractContextManager[Any]:
    if dtype == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if dtype == "bf16" else torch.float16)
