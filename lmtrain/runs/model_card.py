"""The model card: README.md of a run folder, with the metadata that the Hugging Face Hub reads."""

import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path, PurePath
from typing import Any

from lmtrain.config.architectures import HUB_NAME
from lmtrain.config.evaluation_sets import source_of
from lmtrain.config.heads import HEADS
from lmtrain.errors import visible
from lmtrain.metrics import base_name, distinct
from lmtrain.runs.file_names import RECIPE
from lmtrain.runs.markdown import markdown_table
from lmtrain.runtime.console import format_number

HUB_DATA = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::[\w.-]+)?(?:@[\w.-]+)?(?:#\d+)?")
"""A dataset of the Hub as --data names it: `org/name:config@split#rows`."""

AUTO_CLASSES = {
    "clm": "AutoModelForCausalLM",
    "mlm": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    **{kind: head.auto_class for kind, head in HEADS.items()},
}
"""Objective, or kind of its rows -> the class that loads its models."""

PIPELINE_TAGS = {
    "clm": "text-generation",
    "mlm": "fill-mask",
    **{kind: head.pipeline_tag for kind, head in HEADS.items()},
}
"""Objective -> the task of its models on the Hub; encoder-decoders have one where the languages are known."""

HYPERPARAMETERS = (
    "train.learning_rate",
    "train.lr_scheduler",
    "train.warmup_steps",
    "train.optim",
    "train.weight_decay",
    "train.batch_size",
    "train.batch_tokens",
    "train.grad_accum",
    "run.num_processes",
    "train.precision",
    "train.seed",
    "data.max_length",
    "data.max_source_length",
    "data.max_target_length",
    "model.lora_r",
    "model.lora_alpha",
)
"""The settings that a reader of the card looks for; recipe.yaml has all."""


def card(results: Mapping[str, Any], name: str) -> str:
    """The text of the model card; `name` is that of the run folder. No path of this machine is in it."""
    settings = results["settings"]
    base, labels = base_model(settings), len(results["data"].get("labels", ()))
    title = f"{shown_name(results['model'])}, trained with lmtrain {results['objective']}"
    parts = [
        f"# {title}",
        "Trained from random weights." if settings["model.from_scratch"] else f"Trained from {base_text(settings)}.",
        f"## Evaluation\n\n{_metrics(results)}",
        f"## How to load it\n\n```python\n{_loading(_by_kind(AUTO_CLASSES, results), settings, base, labels)}\n```",
        f"## Training data\n\n{_data(results)}",
        f"## Training\n\n{_training(results)}",
        f"## Repeat the run\n\nThe file `{RECIPE}` has every setting:\n\n```\nlmtrain run {RECIPE}\n```",
    ]
    return f"---\n{_metadata(results, name, base)}\n---\n\n" + "\n\n".join(parts) + "\n"


def shown_name(name: str) -> str:
    """A hub id or an architecture as it is; the last part of a path."""
    return name if _on_hub(name) else visible(PurePath(name).name, 100)


def base_model(settings: Mapping[str, Any]) -> str | None:
    """The hub id of the model that training started from; None for a local folder and for random weights."""
    name = str(settings["model.name"])
    return name if not settings["model.from_scratch"] and _on_hub(name) else None


def base_text(settings: Mapping[str, Any]) -> str:
    name = str(settings["model.name"])
    return f"[{name}](https://huggingface.co/{name})" if _on_hub(name) else f"the local model `{shown_name(name)}`"


def datasets(settings: Mapping[str, Any]) -> list[str]:
    """The hub ids of the data."""
    found = (_dataset(given) for given in _sources(settings, "train"))
    return list(dict.fromkeys(name for name in found if name))


def _dataset(given: str) -> str | None:
    """The hub id of a source of data; None for a file, a folder or an example."""
    match = None if Path(given).exists() else HUB_DATA.fullmatch(given)
    return match["name"] if match else None


def _on_hub(name: str) -> bool:
    return HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def _sources(settings: Mapping[str, Any], split: str) -> list[str]:
    return [source_of(value) for value in settings.get(f"data.{split}") or ()]


def _metadata(results: Mapping[str, Any], name: str, base: str | None) -> str:
    """The YAML between the two lines of dashes."""
    from huggingface_hub import ModelCardData

    settings, objective = results["settings"], results["objective"]
    languages = [settings.get("data.source_lang"), settings.get("data.target_lang")]
    translates = all(languages)
    data = ModelCardData(
        base_model=base,
        datasets=datasets(settings) or None,
        language=settings.get("run.language")
        or ([re.split("[_-]", code)[0] for code in languages] if translates else None),
        library_name="peft" if settings["model.lora"] else "transformers",
        license=settings.get("run.license"),
        model_name=name,
        pipeline_tag="translation" if translates else _by_kind(PIPELINE_TAGS, results),
        tags=["lmtrain", objective, *(["lora"] if settings["model.lora"] else [])],
        eval_results=_eval_results(results) or None,
    )
    return data.to_yaml(line_break="\n").strip()


def _eval_results(results: Mapping[str, Any]) -> list[Any]:
    """One EvalResult for each metric that is a number."""
    from huggingface_hub import EvalResult

    settings = results["settings"]
    named = _sources(settings, "eval") or _sources(settings, "train")
    dataset = _dataset(named[0]) if len(named) == 1 else None
    shown = ", ".join(shown_name(part) for part in named[:3]) or "held-out rows"
    task = _by_kind(PIPELINE_TAGS, results) or "text2text-generation"
    return [
        EvalResult(
            task_type=task,
            dataset_type=dataset or "local",
            dataset_name=shown,
            dataset_split="validation" if _sources(settings, "eval") else "train",
            metric_type=HUB_METRICS.get(base_name(metric), base_name(metric)),
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in distinct(results["metrics"]).items()
        if isinstance(value, int | float)
    ]


HUB_METRICS = {
    "eval_loss": "loss",
    "token_accuracy": "accuracy",
    "masked_accuracy": "accuracy",
    "rouge1": "rouge",
    "rouge2": "rouge",
    "rougeL": "rouge",
    "rougeLsum": "rouge",
    "chrfpp": "chrf",
}
"""Our names -> the Hub's, where they differ."""


def _metrics(results: Mapping[str, Any]) -> str:
    """The table of metrics with their intervals."""
    intervals = results.get("intervals", {})
    if not results["metrics"]:
        return "There were no evaluation data."
    rows = []
    for name, value in distinct(results["metrics"]).items():
        interval = " to ".join(format_number(bound) for bound in intervals.get(name, ()))
        rows.append((name, format_number(value), interval))
    return markdown_table(("metric", "value", "95 % interval"), rows)


def _by_kind(table: Mapping[str, str], results: Mapping[str, Any]) -> str | None:
    """The entry of the kind of rows, else that of the objective."""
    return table.get(results["data"].get("kind", "")) or table.get(results["objective"])


def _loading(auto: str | None, settings: Mapping[str, Any], base: str | None, labels: int) -> str:
    """Code that loads the model from the folder that the reader has."""
    if settings["model.lora"]:
        origin = base or shown_name(str(settings["model.name"]))
        classes = f", num_labels={labels}" if labels else ""
        return (
            f"from peft import PeftModel\nfrom transformers import {auto}, AutoTokenizer\n\n"
            'folder = "."  # this folder, or its name on the Hub\n'
            f'model = PeftModel.from_pretrained({auto}.from_pretrained("{origin}"{classes}), folder)\n'
            "tokenizer = AutoTokenizer.from_pretrained(folder)"
        )
    return (
        f"from transformers import {auto}, AutoTokenizer\n\n"
        'folder = "."  # this folder, or its name on the Hub\n'
        f"model = {auto}.from_pretrained(folder)\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)"
    )


def _data(results: Mapping[str, Any]) -> str:
    """Which data, and how much of it was used."""
    rows = []
    for split, title in (("train", "training"), ("eval", "evaluation")):
        if ledger := results["data"].get(split):
            sources = ", ".join(shown_name(part) for part in _sources(results["settings"], split)) or "held out"
            counts = (f"{ledger['rows_used']:,}", f"{ledger['tokens_used']:,}", f"`{ledger['fingerprint'][:16]}`")
            rows.append((title, sources, *counts))
    return markdown_table(("", "source", "rows", "tokens", "fingerprint"), rows)


def _training(results: Mapping[str, Any]) -> str:
    """What was trained, with which settings and on what."""
    train, settings, environment = results["train"], results["settings"], results["environment"]
    done = (
        f"{train['steps']:,} steps, {train['epochs']:.4g} epochs: {train['tokens_seen']:,} tokens read, "
        f"{train['tokens_trained']:,} of them predicted, in {train['seconds']:,.0f} s."
    )
    known = ((name.partition(".")[2], settings.get(name)) for name in HYPERPARAMETERS)
    hardware = ((name, environment[name]) for name in environment if name != "seed")
    rows = ((name.replace("_", " "), shown(value)) for name, value in chain(known, hardware) if value is not None)
    return f"{done}\n\n{markdown_table(('setting', 'value'), rows)}"


def shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else visible(str(value), 200)
