"""`lmtrain generate`, from top to bottom: a model that is there, asked something."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import TextStreamer, set_seed

from lmtrain.data.prompts import Prompt
from lmtrain.errors import UsageError
from lmtrain.modeling.configuration import load_config
from lmtrain.modeling.network import load_network
from lmtrain.modeling.tokenizer import load_tokenizer
from lmtrain.objectives.generation import ROWS_AT_ONCE, GenerationSettings
from lmtrain.objectives.objective import OBJECTIVES
from lmtrain.objectives.prompting import PromptingOptions
from lmtrain.preprocessing import languages
from lmtrain.runtime.console import Console
from lmtrain.runtime.device import precision

NEW_TOKENS = 128


def generate(request: Any, objective: str, prompts: list[Prompt], kind: str | None, console: Console) -> None:
    """Print the answer to each prompt; a single completion appears on a terminal as it is written.

    `kind` is the kind of rows that the model was trained on, where that is known. Raises an LmtrainError for whatever
    the user can put right.
    """
    settings = _settings(request.generate)
    if settings.num_beams > request.generate.num_beams:
        console.note(f"searching with {settings.num_beams} beams for as many outputs; --do-sample draws them instead")
    config = load_config(request.model, objective)
    floats = precision(request.train.precision, config.model_type)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    with console.working("loading tokenizer and model"):
        tokenizer, told = load_tokenizer(request.model)
        languages.set_languages(tokenizer, request.data.source_lang, request.data.target_lang)
        network, notes = load_network(request.model, config, tokenizer, OBJECTIVES[objective].auto_model)
    for line in [*told, *notes]:
        console.note(line)
    network = network.to(device).eval()
    set_seed(request.train.seed)
    one = objective == "clm" and len(prompts) == settings.num_beams == settings.num_return_sequences == 1
    stream = one and console.out.is_terminal and not console.as_json
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
    section = request.generate
    manner = PromptingOptions(settings, kind, section.chat, request.data.source_prefix, section.candidates, streamer)
    batches = [prompts[start : start + ROWS_AT_ONCE] for start in range(0, len(prompts), ROWS_AT_ONCE)]
    for batch in batches:
        with torch.no_grad(), _autocast(floats, device):
            answers = OBJECTIVES[objective].answer(network, tokenizer, batch, manner)
        for prompt, answer in zip(batch, answers, strict=True):
            console.answer({"input": prompt, **answer}, streamed=stream)


def _settings(section: Any) -> GenerationSettings:
    """Raises UsageError where more outputs are asked for than the search can give."""
    sampling = section.do_sample or any(v is not None for v in (section.temperature, section.top_k, section.top_p))
    wanted = section.num_return_sequences
    beams = section.num_beams if "num_beams" in section.model_fields_set or sampling else wanted
    if wanted > beams and (beams > 1 or not sampling):
        raise UsageError(f"--num-return-sequences {wanted}: needs --num-beams {wanted} or more, or --do-sample alone")
    return GenerationSettings(
        beams, section.max_new_tokens or NEW_TOKENS, section.length_penalty, section.no_repeat_ngram_size, sampling,
        section.temperature, section.top_k, section.top_p, wanted,
    )  # fmt: skip


def _autocast(floats: str, device: torch.device) -> AbstractContextManager[Any]:
    if floats == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if floats == "bf16" else torch.float16)
