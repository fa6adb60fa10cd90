"""THE declaration of every option: its name, type, default and help stand here and nowhere else.

Flags, `LMTRAIN_*` variables, recipe keys, help texts and the reference are made from these classes. A recipe is
frozen: nobody writes into it after `load` has merged default < recipe file < environment < `--set` < flag.
"""

import ast
import importlib.util
import os
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from lmtrain import gates, metrics
from lmtrain.errors import InputError, UsageError, suggestion, visible
from lmtrain.redaction import is_secret_name

Document = dict[str, Any]
Built = typing.TypeVar("Built", bound=BaseModel)


def option(default: Any = None, flag: str | None = None, aliases: tuple[str, ...] = (), **constraints: Any) -> Any:
    """A pydantic field that also is a flag.

    `flag` is its spelling on the command line where that is not the field's name; `aliases` are further names, good
    as flags and as recipe keys; `hidden=True` leaves it out of `--help`, "training" and "use" only out of that of the
    commands that train and that use a model; `use` is its help in the latter; `shortcuts` are flags that stand for
    one value, such as `--bf16` for `--precision bf16`.
    """
    extra = {name: constraints.pop(name) for name in ("hidden", "short", "shortcuts", "use") if name in constraints}
    return Field(default, json_schema_extra={"flag": flag, "aliases": list(aliases), **extra}, **constraints)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _names(value: Any) -> Any:
    """`"q_proj,v_proj"` -> ["q_proj", "v_proj"]; of a list each."""
    if not isinstance(value, str | list):
        return value
    parts = [value] if isinstance(value, str) else value
    return [name.strip() for part in parts for name in str(part).split(",") if name.strip()]


def _key_values(value: Any) -> Any:
    """`"n_layer=2,hidden_size=64"` -> `{"n_layer": 2, "hidden_size": 64}`, values read as YAML; of several strings the later
    ones win.
    """
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return {name: number for part in value for name, number in _key_values(part).items()}
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in _split_outside_brackets(value) if part.strip()]
    if any(not equals for _, equals, _ in pairs):
        raise ValueError("write it as name=value,name=value")
    return {name.strip(): parse_yaml(text) for name, _, text in pairs}


def _split_outside_brackets(text: str) -> list[str]:
    """Split at commas, but not at those of a list such as `[0, 2]`."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _numbers(value: Any) -> Any:
    """`"3,1"` -> [3, 1]."""
    if not isinstance(value, str):
        return value
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise ValueError("write it as 3,1") from None


def _share(value: Any) -> Any:
    """`"1%"` or `"0.01"` -> 0.01."""
    if not isinstance(value, str):
        return value
    try:
        return float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError:
        raise ValueError("write it as 1% or 0.01") from None


def _duration(value: Any) -> Any:
    """`"90"`, `"90s"`, `"30m"`, `"1.5h"` or `"2d"` -> seconds."""
    if not isinstance(value, str):
        return value
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, scale = (value[:-1], unit[value[-1]]) if value[-1:] in unit else (value, 1)
    try:
        return float(number) * scale
    except ValueError:
        raise ValueError("write it as 90s, 30m, 1.5h or 2d") from None


Strings = Annotated[list[str], BeforeValidator(_as_list)]
SKIPS = 10
"""Updates that `--on-nonfinite skip` leaves out at most."""

Every = Annotated[int, Field(gt=0)] | Literal["epoch"]
Length = Annotated[int, Field(ge=2, le=10_000_000)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        defer_build=True,  # `--help` reads fields, not validators
    )


PAIR = "encoder-decoder"
"""What transformers calls a model of an encoder and a decoder of their own."""


class Model(Section):
    name: str = option(
        ...,
        flag="model",
        short="m",
        aliases=("model_name_or_path", "model"),
        use="Hub id, folder, run folder or LoRA adapter.",
    )
    """Hub id, local folder or, with --from-scratch, an architecture such as gpt2, bert or t5."""
    from_scratch: bool = option(False)
    """Start from random weights; nothing is downloaded for an architecture name."""
    config: Annotated[dict[str, Any], BeforeValidator(_key_values)] = option(
        {}, flag="model_config", aliases=("config_overrides", "model_config")
    )
    """With --from-scratch: sizes as name=value,… e.g. n_layer=4,n_embd=256. Repeatable."""
    tokenizer: str | None = option(None, aliases=("tokenizer_name",), use="Hub id or folder. Default: the model's.")
    """Hub id or folder; or trained on the data: bpe:N, wordpiece:N, unigram:N, char, byte. Default: the model's."""
    attn: str | None = option(None, aliases=("attn_implementation",), hidden=True)
    """Attention implementation: sdpa, eager, flash_attention_2. Default: the model's best."""
    trust_remote_code: bool = option(False)
    """Run code that comes with the model. Only for authors whom you trust; only on the command line."""
    allow_pickle: bool = option(False, hidden=True)
    """Also read weights that are pickles, by torch's restricted reader; only on the command line."""
    lora: bool = option(False, aliases=("use_peft",))
    """Train a small LoRA adapter beside the frozen model; see docs/lora.md for --lora-r and its kin."""
    lora_r: int = option(16, ge=1, hidden=True)
    """With --lora: rank of the update of each layer."""
    lora_alpha: float = option(32, gt=0, hidden=True)
    """With --lora: the update is scaled by alpha / r, with --rslora by alpha / √r."""
    lora_dropout: float = option(0.05, ge=0, lt=1, hidden=True)
    """With --lora: dropout of what the adapter reads."""
    lora_targets: Annotated[list[str], BeforeValidator(_names)] = option(
        [], aliases=("lora_target_modules",), hidden=True
    )
    """With --lora: names of the layers to adapt, e.g. q_proj,v_proj. Default: all linear layers but the head."""
    lora_dora: bool = option(False, flag="dora", aliases=("use_dora",), hidden=True)
    """With --lora: DoRA, which learns the length and the direction of each update apart."""
    lora_rslora: bool = option(False, flag="rslora", aliases=("use_rslora",), hidden=True)
    """With --lora: scale by alpha / √r, which suits high ranks."""
    encoder: str | None = option(None, hidden=True)
    """seq2seq, instead of --model: the encoder of a new pair, e.g. a BERT; with --from-scratch an architecture."""
    decoder: str | None = option(None, hidden=True)
    """Its decoder, with the same vocabulary, e.g. the same BERT; what joins the two starts at random."""
    load_in_4bit: bool = option(False, hidden=True)
    """With --lora: hold the frozen weights in 4 bits (QLoRA); needs a CUDA GPU and bitsandbytes."""

    @model_validator(mode="before")
    @classmethod
    def _is_named_or_paired(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not (given.get("encoder") or given.get("decoder")):
            return given
        if not (given.get("encoder") and given.get("decoder")):
            raise ValueError("--encoder and --decoder belong together; one is missing")
        if given.get("name", PAIR) != PAIR:
            raise ValueError("--model: a model has its encoder and decoder; give it, or --encoder and --decoder")
        return {**given, "name": PAIR}

    @model_validator(mode="after")
    def _adapts_a_trained_model(self) -> Self:
        if self.lora and self.encoder:
            raise ValueError(
                "--lora: what joins a new pair is random and has to be trained whole; adapt the trained pair"
            )
        if self.lora and self.from_scratch:
            raise ValueError("--lora: adapts a trained model; random weights have to be trained whole, without --lora")
        for name, field in type(self).model_fields.items():
            if not self.lora and name.startswith(("lora_", "load_in")) and getattr(self, name) != field.default:
                flag = (field.json_schema_extra["flag"] or name).replace("_", "-")  # type: ignore[index,call-overload]
                raise ValueError(f"--{flag}: only with --lora")
        return self


class Split(Section):
    """What is trained and evaluated on."""

    KINDS: ClassVar[tuple[str, ...]]
    """The kinds of rows that this objective can read, see columns.py."""

    train: Strings = option(
        ..., flag="data", short="d", aliases=("train_file", "dataset", "dataset_name", "data"), min_length=1
    )
    """File, folder, glob, - (stdin) or hub id org/name[:config][@split]; #N at the end takes N rows. Repeatable."""
    eval: Strings = option([], flag="eval_data", aliases=("validation_file", "eval_data"), hidden="use")
    """What to evaluate on, in the same forms. Default: a part of --data, see --val-split."""
    val_split: float = option(0.05, aliases=("validation_split",), ge=0, lt=1)
    """Without --eval-data: the share of the rows held out, shuffled by --seed. 0 evaluates nothing."""
    encoding: str | None = option(None, hidden=True)
    """Encoding of text files. Default: UTF-8, or UTF-16 where the file starts with its mark."""
    on_bad: Literal["error", "drop"] = option("error")
    """A row without usable text: stop and name it, or leave it out and count it."""
    on_leak: Literal["warn", "drop", "error"] = option("warn", hidden=True)
    """Evaluation rows that also are training rows: say so, leave them out of training, or stop."""

    @property
    def unit(self) -> str:
        """What one document of a text file is: line, sentence, paragraph or document."""
        return "line"

    @property
    def kinds(self) -> tuple[str, ...]:
        """Those of the KINDS that these settings read."""
        return self.KINDS


class Data(Split):
    weights: Annotated[list[float], BeforeValidator(_numbers)] = option([], flag="data_weights", hidden=True)
    """With several --data: the share of each in an epoch, e.g. 3,1. Default: every row once."""
    streaming: bool = option(False, hidden="use")
    """Read the data while training, for more than memory holds; needs --max-steps."""
    shuffle_buffer: int = option(10_000, ge=1, hidden=True)
    """With --streaming: rows that are read and shuffled together."""

    @model_validator(mode="before")
    @classmethod
    def _a_stream_holds_nothing_out(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("streaming") in (True, "true"):
            return {"val_split": 0.0, **given}
        return given

    @model_validator(mode="after")
    def _mixture_fits(self) -> Self:
        if self.weights and len(self.weights) != len(self.train):
            raise ValueError(
                f"--data-weights: {len(self.weights)} numbers for {len(self.train)} --data; give one for each"
            )
        if self.weights and min(self.weights) <= 0:
            raise ValueError("--data-weights: every weight must be above 0; leave out the --data that you do not want")
        if self.streaming and self.val_split:
            raise ValueError(
                "--val-split: a stream cannot be split; give --eval-data, or --val-split 0 and nothing is evaluated"
            )
        if self.streaming and self.weights:
            raise ValueError(
                "--data-weights: a stream is read in order; mix the files beforehand, or drop --streaming"
            )
        if self.streaming and self.on_leak != "warn":
            raise ValueError("--on-leak: a stream is not compared with the evaluation data; drop one of the two")
        return self

    @property
    def blocks(self) -> bool:
        """Whether documents are joined and cut anew, so that a row may hold the end of one and the start of another."""
        return False

    @property
    def shares(self) -> bool:
        """Whether whole documents share a row, kept apart."""
        return False


class TextData(Data):
    KINDS = ("text",)

    text_column: str | None = option(None, aliases=("dataset_text_field",))
    """Column of the text; dots reach inside: doc.body. Default: found by name, and said."""
    sample_by: Literal["line", "paragraph", "document"] | None = option(None)
    """What one document of a .txt file is. Default: the whole file with packing, else each line."""
    max_length: Length | None = option(None, short="L", aliases=("block_size", "max_seq_length"))
    """Tokens in one row at most. Default: the model's positions, 1024 at most."""
    packing: bool = option(True)
    """Documents share full rows, nothing lost; --no-packing: a row is a document."""
    packing_strategy: Literal["best-fit", "blocks"] = option("best-fit")
    """best-fit: whole and kept apart, the loss is that of --no-packing. blocks: joined, cut anew, not kept apart."""
    on_long: Literal["truncate", "split", "drop", "error"] | None = option(None)
    """A text longer than a row. Default: split; for prompts and chats truncate."""

    @property
    def blocks(self) -> bool:
        return self.packing and self.packing_strategy == "blocks"

    @property
    def shares(self) -> bool:
        return self.packing and self.packing_strategy == "best-fit"

    @property
    def unit(self) -> str:
        return self.sample_by or ("document" if self.packing else "line")


class ClmData(TextData):
    KINDS = ("messages", "prompt", "text")

    prompt_column: str | None = option(None)
    """With --completion-column: the loss is on the completion alone."""
    completion_column: str | None = option(None)
    """What the model learns to answer, its end included."""
    messages_column: str | None = option(None)
    """Column of chats [{role, content}, …]; the loss is on the assistant's turns alone."""
    train_on_prompt: bool = option(False, hidden="use")
    """The loss is on prompts and on all turns of a chat too."""
    stride: int | None = option(None, ge=1, hidden="training")
    """Evaluate each text by itself, through a window of --max-length that moves on by N tokens."""


class MlmData(TextData):
    mask_probability: float = option(0.15, aliases=("mlm_probability",), gt=0, lt=1)
    """Share of the tokens to predict."""
    mask_split: str = option("80/10/10", pattern=r"^\d+/\d+/\d+$")
    """Of these: % masked / % replaced by a random token / % kept."""
    masking: Literal["token", "word", "span"] = option("token")
    """What is masked: single tokens, whole words, or spans of words."""
    mask_schedule: str | None = option(None, pattern=r"^0?\.\d+:0?\.\d+$", hidden=True)
    """First:last, e.g. 0.3:0.15: the share falls linearly over the steps. Evaluation keeps to --mask-probability."""

    @model_validator(mode="after")
    def _mask_split_adds_up(self) -> Self:
        if sum(map(int, self.mask_split.split("/"))) != 100:
            raise ValueError("--mask-split: the three parts must add up to 100")
        if self.schedule and min(self.schedule) <= 0:
            raise ValueError("--mask-schedule: both shares must be above 0")
        return self

    @property
    def schedule(self) -> tuple[float, float] | None:
        """The share of the tokens to predict at the first step and after the last one, where it changes."""
        if self.mask_schedule is None:
            return None
        first, last = map(float, self.mask_schedule.split(":"))
        return first, last


class Direction(Section):
    source_prefix: str = option("")
    """Put before every input, e.g. 'summarize: ' for T5."""
    source_lang: str | None = option(None)
    """With a path STEM as --data: read STEM.<lang> as input, line by line. Also for multilingual tokenizers."""
    target_lang: str | None = option(None)
    """The same for the output; also what language mBART, M2M100 or NLLB write."""


NOISE = {"span-corruption": (0.15, 3.0), "infilling": (0.3, 3.0), "gap-sentences": (0.3, 0.0)}
"""--denoise -> (the share that is missing, the tokens of a span on average), as in the papers."""


class PairData(Direction, Data):
    KINDS = ("pairs", "text")

    source_column: str | None = option(None)
    """Column of the input; dots reach inside: translation.en. Or several: 'question: {question} context: {context}'."""
    target_column: str | None = option(None, aliases=("summary_column",))
    """Column of the output to learn; a list holds several references, of which the first is learnt."""
    max_source_length: Length | None = option(None)
    """Tokens of an input at most. Default: what 99 % of the data need."""
    max_target_length: Length | None = option(None)
    """Tokens of an output at most. Default: what 99 % of the data need."""
    on_long: Literal["truncate", "split", "drop", "error"] | None = option(None)
    """A pair longer than that. Default: truncate; with --denoise a text is split."""
    denoise: Literal["none", "span-corruption", "infilling", "gap-sentences"] = option("none")
    """Pre-train on plain text: restore what is taken out of it, as T5, BART and Pegasus do."""
    noise_density: float | None = option(None, gt=0, lt=1, hidden=True)
    """With --denoise: the share taken out. Default: 0.15, of infilling and of gap sentences 0.3."""
    mean_span_length: float | None = option(None, ge=1, hidden=True)
    """With --denoise: tokens of a span on average. Default: 3."""
    text_column: str | None = option(None, aliases=("dataset_text_field",), hidden=True)
    """With --denoise: column of the text; dots reach inside: doc.body. Default: found by name, and said."""
    sample_by: Literal["line", "paragraph", "document"] | None = option(None, hidden=True)
    """With --denoise: what one document of a .txt file is. Default: the whole file."""

    @model_validator(mode="after")
    def _noise_or_pairs(self) -> Self:
        of_noise = ("noise_density", "mean_span_length", "text_column", "sample_by")
        of_pairs = ("source_column", "target_column", "source_prefix")
        unfit = of_noise if self.denoise == "none" else of_pairs
        given = [f"--{name.replace('_', '-')}" for name in unfit if getattr(self, name)]
        if given:
            told = "is for --denoise" if self.denoise == "none" else "is for pairs, --denoise makes its own of a text"
            raise ValueError(f"{given[0]}: {told}; drop one of the two")
        if self.denoise == "none" and self.on_long == "split":
            raise ValueError("--on-long split: is for plain text; a pair is cut with truncate, drop or error")
        if self.denoise == "gap-sentences" and self.mean_span_length:
            raise ValueError("--mean-span-length: whole sentences are taken out; drop one of the two")
        return self

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("pairs",) if self.denoise == "none" else ("text",)

    @property
    def unit(self) -> str:
        return "line" if self.denoise == "none" else self.sample_by or "document"

    @property
    def noise(self) -> tuple[float, float]:
        """(share that is missing, tokens of a span on average)."""
        density, mean = NOISE[self.denoise]
        return self.noise_density or density, self.mean_span_length or mean


class Train(Section):
    """Also takes any other field of transformers' TrainingArguments under its own name."""

    model_config = ConfigDict(extra="allow")

    epochs: float = option(3.0, aliases=("num_train_epochs",), gt=0)
    """Times through the data."""
    max_steps: int | None = option(None, ge=0)
    """Optimiser steps, whatever --epochs says; 0 only evaluates."""
    max_time: Annotated[float, BeforeValidator(_duration), Field(gt=0)] | None = option(None)
    """Stop after this long: 90s, 30m, 2h."""
    learning_rate: float | None = option(None, aliases=("lr",), gt=0)
    """Peak learning rate. Default: 5e-5, with --lora 2e-4, from scratch 5e-4; for T5's family 1e-4, 1e-3 and 1e-3."""
    batch_size: int = option(8, short="b", aliases=("per_device_train_batch_size",), ge=1, le=1_000_000)
    """Rows per device and micro-batch."""
    batch_tokens: int | None = option(None, ge=1)
    """Rows vary so that a batch has about N tokens; rows that have to be padded are of like length. Instead of --batch-size."""
    group_by_length: bool = option(False, hidden=True)
    """Batches of rows of like length: less padding, but a step teaches less."""
    grad_accum: int = option(1, aliases=("gradient_accumulation_steps",), ge=1)
    """Micro-batches per optimiser step; the loss does not depend on it."""
    warmup_steps: float = option(0.0, ge=0, hidden=True)
    """Steps of rising learning rate; below 1: a share of all steps."""
    lr_scheduler: str = option("linear", aliases=("lr_scheduler_type",), hidden=True)
    """linear, cosine, constant, constant_with_warmup, …"""
    weight_decay: float = option(0.0, ge=0, hidden=True)
    """AdamW's weight decay."""
    optim: str = option("adamw_torch_fused", hidden=True)
    """Optimiser, by transformers' names."""
    max_grad_norm: float = option(1.0, ge=0, hidden=True)
    """Clip the gradient's norm; 0: never."""
    label_smoothing: float = option(0.0, aliases=("label_smoothing_factor",), ge=0, lt=1, hidden=True)
    """Label smoothing of the training loss; evaluation is never smoothed."""
    seed: int = option(42, ge=0, use="Decides masks and what is drawn.")
    """Decides the split, the order, the weights and the masks."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", shortcuts={"bf16": "bf16", "fp16": "fp16"})
    """auto: bf16 on GPUs that have it, else fp32."""
    compile: bool = option(False, aliases=("torch_compile",), hidden=True)
    """Compile the model with torch.compile."""
    gradient_checkpointing: bool = option(False)
    """Less memory for about a third more time."""
    log_every: int = option(10, aliases=("logging_steps",), ge=1, hidden=True)
    """Steps between two lines of the log."""
    save_every: Every = option("epoch", aliases=("save_steps",), hidden=True)
    """Steps between two checkpoints, or 'epoch'."""
    keep: int = option(2, aliases=("save_total_limit",), ge=1, hidden=True)
    """Checkpoints to keep, the best one among them."""
    on_nonfinite: str = option("stop", pattern=r"^(stop|skip([ :=]\d+)?)$", hidden=True)
    """A loss or gradient that is no finite number: stop before the update, or 'skip N': leave out up to N updates."""
    report_to: Strings = option(["none"], hidden=True)
    """Trackers: tensorboard, wandb, trackio, … or none. Repeatable."""

    @property
    def skips(self) -> int:
        """Updates that may be left out because their loss or gradient is not finite."""
        number = self.on_nonfinite.removeprefix("skip").strip(" :=")
        return 0 if self.on_nonfinite == "stop" else int(number or SKIPS)


class Eval(Section):
    every: Every = option("epoch", flag="eval_every", aliases=("eval_steps", "eval_every"))
    """Steps between two evaluations, or 'epoch'."""
    batch_size: int = option(
        8, flag="eval_batch_size", aliases=("per_device_eval_batch_size", "eval_batch_size"), ge=1, hidden="training"
    )
    """Rows per device; the figures do not depend on it."""
    METRICS: ClassVar[tuple[str, ...]] = ("eval_loss", "perplexity", "bits_per_byte", "token_accuracy")
    """The figures that this objective can have."""

    best_metric: str = option("eval_loss", aliases=("metric_for_best_model",), hidden=True)
    """The model with the best value of this is the one that is kept."""
    early_stop: int | None = option(None, aliases=("early_stopping_patience",), ge=1)
    """Stop after this many evaluations without a better one."""
    samples: int = option(3, ge=0, hidden="training", use="Rows to show in words.")
    """Rows on which the model writes at each evaluation, into samples.jsonl; the first is shown."""
    predictions: str | None = option(None, hidden="training")
    """File for source, prediction, references and scores of every row. Default in training: predictions.jsonl."""

    @property
    def figures(self) -> tuple[str, ...]:
        """Those of the METRICS that these settings give."""
        return self.METRICS

    @model_validator(mode="after")
    def _metric_is_known(self) -> Self:
        if self.best_metric not in self.figures:
            raise ValueError(
                f"--best-metric {self.best_metric}: there are {', '.join(self.figures)}{suggestion(self.best_metric, self.figures)}"
            )
        return self


class MaskEval(Eval):
    METRICS = ("eval_loss", "perplexity", "masked_accuracy", "masked_accuracy_top5", "pseudo_perplexity")

    pseudo_perplexity: bool = option(False, hidden="training")
    """Also mask each token in turn: one forward pass per token."""

    @property
    def figures(self) -> tuple[str, ...]:
        return tuple(name for name in self.METRICS if name != "pseudo_perplexity" or self.pseudo_perplexity)


class Decoding(Section):
    num_beams: int = option(1, ge=1)
    """Beams when generating; 1 is greedy."""
    max_new_tokens: int | None = option(None, ge=1, hidden="training")
    """Tokens to generate at most. Default: one more than the longest target has; without targets 128."""
    length_penalty: float | None = option(None, hidden="training")
    """With beams: above 0 favours longer outputs. Default: the model's."""
    no_repeat_ngram_size: int | None = option(None, ge=0, hidden="training")
    """No sequence of N tokens twice in an output. Default: the model's."""


class PairEval(Decoding, Eval):
    METRICS = ("eval_loss", "perplexity", "token_accuracy", *metrics.TEXT_METRICS)

    metric: Strings = option([], hidden="training")
    """Text metrics, all by default: bleu, chrf, … Others through evaluate: a hub name or metric.py. Repeatable."""
    bleu_tokenize: str | None = option(None, hidden="training")
    """sacrebleu's tokenizer: 13a, intl, zh, ko-mecab, char, … Default: by the script of the references."""
    rouge_tokenize: Literal["words", "characters", "morphemes"] | None = option(None, hidden="training")
    """Units of ROUGE. Default: by the script of the references."""

    @property
    def text_metrics(self) -> tuple[str, ...]:
        """Our metrics of generated text that are wanted: those that are named, or all where none is."""
        named = tuple(name for name in metrics.TEXT_METRICS if name in self.metric)
        return named or metrics.TEXT_METRICS

    @property
    def figures(self) -> tuple[str, ...]:
        return tuple(name for name in self.METRICS if name not in metrics.TEXT_METRICS or name in self.text_metrics)


class Gates(Section):
    """What has to hold, else the exit code is 4."""

    assertions: Annotated[Strings, AfterValidator(gates.parsed)] = option([], flag="assert", aliases=("assert",))
    """A figure that has to hold, such as perplexity<25 or train.last_loss<=2, else exit code 4. Repeatable."""
    baseline: str | None = option(None, hidden="training")
    """results.json of an earlier run: no figure may be worse, see --max-regression."""
    max_regression: Annotated[float, BeforeValidator(_share), Field(ge=0)] = option(0.01, hidden="training")
    """How much worse than the baseline a figure may be: 1% or 0.01 of its value."""
    junit: str | None = option(None, hidden="training")
    """File for the gates as JUnit XML."""


class Run(Section):
    output_dir: str | None = option(None, short="o")
    """Run folder. Default: runs/<objective>-<model>-<time>."""
    resume: str | None = option(None, aliases=("resume_from_checkpoint",))
    """Go on from a checkpoint: auto (the newest in --output-dir) or a path."""
    overwrite: bool = option(False)
    """Replace the run that is in --output-dir."""
    allow_drift: Strings = option([], hidden=True)
    """With --resume: go on though this has changed, e.g. train.learning_rate. Repeatable."""
    preflight: bool | None = option(None, hidden=True)
    """Before training try the largest batch, evaluation, generation, saving and loading. Default: from 1,000 steps on."""
    num_processes: int | None = option(None, ge=1)
    """Start this many processes, one per GPU (or on the CPU)."""
    accelerate_config: str | None = option(None, hidden=True)
    """Launch as this file of `accelerate config` says."""
    offline: bool = option(False)
    """Never ask the hub; use what is on this machine."""
    cache: bool = option(True, hidden=True)
    """Keep tokenised data for the next run on them; --no-cache: tokenise anew, keep nothing."""
    cache_dir: str | None = option(None, hidden=True)
    """Where. Default: $XDG_CACHE_HOME/lmtrain or ~/.cache/lmtrain."""
    num_proc: int | None = option(None, ge=1, aliases=("preprocessing_num_workers",), hidden=True)
    """Threads that tokenise. Default: one a core."""


class Recipe(Section):
    objective: Literal["clm", "mlm", "seq2seq"] = option(..., aliases=("task",))
    """What is learned: clm, mlm or seq2seq."""

    # Where the run comes from and goes to is no part of what is done, so a saved recipe can be run again.
    UNSAVED: ClassVar[set[str]] = {"output_dir", "resume", "overwrite", "allow_drift", "cache_dir"}

    @model_validator(mode="after")
    def _batches_are_possible(self) -> Self:
        train, data = self.train, self.data  # type: ignore[attr-defined]
        if data.streaming and not train.max_steps:
            raise ValueError("--streaming: needs --max-steps above 0, because nobody knows how long a stream is")
        if data.streaming and (train.batch_tokens or train.group_by_length):
            raise ValueError("--streaming: batches of like length need all rows at hand; drop --batch-tokens and "
                             "--group-by-length")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _gates_are_known(self) -> Self:
        data, evaluation, asked = self.data, self.eval, self.gates  # type: ignore[attr-defined]
        evaluates = bool(data.eval or data.val_split)
        others = set(getattr(evaluation, "metric", [])) - set(metrics.TEXT_METRICS)
        # What metrics that are not ours are going to give, only the results can tell.
        gates.check_names(asked.assertions, None if others else evaluation.figures, evaluates)
        if asked.baseline and not evaluates:
            raise ValueError("--baseline: needs evaluation data: --eval-data or --val-split")
        return self

    def saved(self, lengths: Mapping[str, int]) -> Document:
        """The recipe as a document with the `lengths` that were resolved, without what only this one run needs or may do."""
        document = self.model_dump(mode="json", exclude_none=True)
        document["data"] |= lengths
        for section, name in ONLY_TYPED:
            document[section].pop(name, None)
        document["run"] = {key: value for key, value in document["run"].items() if key not in self.UNSAVED}
        return document

    @model_validator(mode="after")
    def _pairs_are_for_seq2seq(self) -> Self:
        if self.model.encoder and self.objective != "seq2seq":  # type: ignore[attr-defined]
            raise ValueError("--encoder and --decoder: only for seq2seq")
        return self


class Clm(Recipe):
    """Predict the next token: GPT-2, Llama, Qwen and their like. For text generation and chat."""

    objective: Literal["clm"] = "clm"
    model: Model
    data: ClmData
    train: Train = Field(default_factory=Train)
    eval: Eval = Field(default_factory=Eval)
    gates: Gates = Field(default_factory=Gates)
    run: Run = Field(default_factory=Run)


class Mlm(Recipe):
    """Fill masked tokens from both sides: BERT, RoBERTa, ModernBERT. For encoders that understand text."""

    objective: Literal["mlm"] = "mlm"
    model: Model
    data: MlmData
    train: Train = Field(default_factory=Train)
    eval: MaskEval = Field(default_factory=MaskEval)
    gates: Gates = Field(default_factory=Gates)
    run: Run = Field(default_factory=Run)


class Seq2seq(Recipe):
    """Turn one text into another: T5, BART, Marian, Pegasus. For translation, summaries and answers."""

    objective: Literal["seq2seq"] = "seq2seq"
    model: Model
    data: PairData
    train: Train = Field(default_factory=Train)
    eval: PairEval = Field(default_factory=PairEval)
    gates: Gates = Field(default_factory=Gates)
    run: Run = Field(default_factory=Run)


class Prompts(Direction):
    prompt: Strings = option([], short="p")
    """A text to go on with, to fill or to transform. Repeatable."""
    data: Strings = option([], short="d")
    """A file of prompts, in any form that training reads; of text every line. Default: standard input."""
    column: str | None = option(None)
    """Column of the prompts. Default: found by name."""
    encoding: str | None = option(None, hidden=True)
    """Encoding of text files. Default: UTF-8, or UTF-16 where the file starts with its mark."""


class Generate(Decoding):
    do_sample: bool = option(False)
    """Draw from the distribution instead of taking the best; follows from the next three."""
    temperature: float | None = option(None, gt=0)
    """Below 1 sharpens the distribution, above 1 flattens it."""
    top_k: int | None = option(None, ge=1)
    """Draw from the K most probable tokens."""
    top_p: float | None = option(None, gt=0, le=1)
    """Draw from the most probable tokens that together have this probability."""
    num_return_sequences: int = option(1, aliases=("n_best",), ge=1)
    """Outputs for each prompt, the best first; with beams each with its score."""
    candidates: int = option(5, ge=1)
    """Tokens to show for each mask."""
    chat: bool = option(True)
    """A prompt is the turn of a user where the model has a chat template; --no-chat: a text to go on with."""


class Request(Section):
    """Try a model: go on with a text (clm), fill its masks (mlm), transform it (seq2seq)."""

    model: Model
    data: Prompts = Field(default_factory=Prompts)
    generate: Generate = Field(default_factory=Generate)
    train: Train = Field(default_factory=Train)
    run: Run = Field(default_factory=Run)


class Encoders(Model):
    name: Strings = option(..., flag="model", short="m", aliases=("model_name_or_path", "model"), min_length=1)
    """Hub id, folder, run folder or LoRA adapter. Repeatable: the others are compared with the first."""


class LabelledData(Split):
    KINDS = ("labelled", "tagged")

    eval: Strings = option([], flag="eval_data", aliases=("validation_file", "eval_data"))
    val_split: float = option(0.2, aliases=("validation_split",), gt=0, lt=1)
    """Without --eval-data: the share of the rows held out, shuffled by --seed as for training."""
    text_column: str | None = option(None, aliases=("dataset_text_field",))
    """Column of the texts to classify. Default: found by name, and said."""
    label_column: str | None = option(None)
    """Column of their labels: text, numbers or true and false."""
    tokens_column: str | None = option(None)
    """For tagging: column of the words, a list or a string that is split at white space."""
    tags_column: str | None = option(None)
    """Column of their tags, one a word. A text file is read as CoNLL: a word a line, its tag last."""

    @property
    def unit(self) -> str:
        return "sentence"


class Probing(Section):
    fine_tune: bool = option(False)
    """Train the encoder too, with a linear layer on top. Default: it is frozen, a logistic regression on top."""
    l2: float = option(1.0, gt=0)
    """Weight of the L2 penalty of the logistic regression: the inverse of scikit-learn's C. Default: 1."""
    epochs: int = option(3, aliases=("num_train_epochs",), ge=1)
    """With --fine-tune: times through the data."""
    learning_rate: float = option(5e-5, aliases=("lr",), gt=0)
    """With --fine-tune: peak learning rate, after a rise over a tenth of the steps."""
    batch_size: int = option(32, short="b", aliases=("per_device_train_batch_size",), ge=1, le=1_000_000)
    """Rows at once; the figures of a frozen encoder do not depend on it."""
    max_length: Length | None = option(None, short="L", aliases=("max_seq_length",))
    """Tokens of a row at most, longer ones are cut. Default: the model's positions, 512 at most."""
    seed: int = option(42, ge=0)
    """Decides the split and, with --fine-tune, order and dropout."""


class Probe(Section):
    """See what an encoder is good for: how well its states tell the labels of sentences or words apart."""

    model: Encoders
    data: LabelledData
    probe: Probing = Field(default_factory=Probing)
    gates: Gates = Field(default_factory=Gates)
    run: Run = Field(default_factory=Run)

    @model_validator(mode="after")
    def _gates_are_known(self) -> Self:
        gates.check_names(self.gates.assertions, metrics.PROBE_METRICS, evaluates=True)
        return self

    def encoders(self) -> list[Model]:
        """Each of the models by itself."""
        settings = self.model.model_dump(include=WITHOUT_TRAINING["model"])
        return [Model(**{**settings, "name": name}) for name in self.model.name]


def _describe_fields() -> None:
    """Make the string under a field its description.

    pydantic's use_attribute_docstrings does the same, but tokenises the source once for every class, which is a
    quarter of the time that `--help` takes.
    """
    texts = {
        (definition.name, field.target.id): text.value.value
        for definition in ast.parse(Path(__file__).read_text(encoding="utf-8")).body
        if isinstance(definition, ast.ClassDef)
        for field, text in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }
    for section in _all_subclasses(Section):
        for name, field in section.model_fields.items():
            field.description = next(
                (texts[c.__name__, name] for c in section.__mro__ if (c.__name__, name) in texts), None
            )


def _all_subclasses(root: type[Section]) -> Iterator[type[Section]]:
    for child in root.__subclasses__():
        yield child
        yield from _all_subclasses(child)


_describe_fields()

SECTIONS = ("model", "data", "generate", "probe", "train", "eval", "gates", "run")

RECIPES: dict[str, type[Recipe]] = {"clm": Clm, "mlm": Mlm, "seq2seq": Seq2seq}

DECLARED: tuple[type[Section], ...] = (*RECIPES.values(), Request, Probe)
"""All that declare options."""


# --- the leaves of a recipe class, from which flags and documentation are made ---------------------------------------


@dataclass(frozen=True)
class Leaf:
    section: str
    name: str
    field: FieldInfo

    @property
    def extra(self) -> Mapping[str, Any]:
        return typing.cast(Mapping[str, Any], self.field.json_schema_extra or {})

    @property
    def flag(self) -> str:
        """Its spelling on the command line, with underscores and without the leading dashes."""
        return self.extra.get("flag") or self.name

    @property
    def aliases(self) -> list[str]:
        return [alias for alias in self.extra["aliases"] if alias != self.flag]

    def read(self, text: str) -> Any:
        """A value written outside of a recipe: YAML, but for a field of text the text as it stands."""
        value = parse_yaml(text)
        several = isinstance(value, list) and all(isinstance(item, str) for item in value)
        is_list = self.field.annotation == list[str]
        plain = self.field.annotation in (str, str | None) or (is_list and not several)
        return text if plain else value

    @property
    def default(self) -> Any:
        return None if self.field.is_required() else self.field.default


@cache
def leaves(recipe_class: type[Section]) -> tuple[Leaf, ...]:
    sections = {name: field.annotation for name, field in recipe_class.model_fields.items() if name != "objective"}
    return tuple(
        Leaf(section, name, field)
        for section, section_class in sections.items()
        for name, field in section_class.model_fields.items()
    )


WITHOUT_TRAINING = {
    "model": {"name", "tokenizer", "attn", "trust_remote_code", "allow_pickle"},
    "train": {"seed", "precision"},
    "run": {"offline"},
}
"""What a model is scored or asked by, of the sections that are there for its training."""

TRAINING_ALONE = {
    "val_split", "every", "best_metric", "early_stop", "on_leak", "weights", "streaming", "shuffle_buffer",
}  # fmt: skip


@cache
def untrained_leaves(*classes: type[Section]) -> tuple[Leaf, ...]:
    """The options of `lmtrain eval` (given all recipe classes) or `generate` (given Request), each once."""
    found: dict[tuple[str, str], Leaf] = {}
    scores = Request not in classes
    for leaf in (leaf for own in classes for leaf in leaves(own)):
        launches = scores and leaf.name in ("num_processes", "accelerate_config")
        if launches or leaf.name in WITHOUT_TRAINING.get(leaf.section, {leaf.name} - TRAINING_ALONE):
            found.setdefault((leaf.section, leaf.name), leaf)
    return tuple(sorted(found.values(), key=lambda leaf: list(SECTIONS).index(leaf.section)))


def probe_leaves() -> tuple[Leaf, ...]:
    """The options of `lmtrain probe`."""
    return tuple(leaf for leaf in leaves(Probe) if leaf.name in WITHOUT_TRAINING.get(leaf.section, {leaf.name}))


def names_of(leaf: Leaf) -> Iterator[str]:
    yield from (leaf.flag, leaf.name, *leaf.extra["aliases"])


# --- reading and merging ---------------------------------------------------------------------------------------------


def parse_yaml(text: str) -> Any:
    """Read one YAML 1.2 value: `5e-5` is a number, `no` is a word. Not YAML at all: the text itself."""
    from ruamel.yaml import YAML, YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return text


def read_yaml(path: Path) -> Document:
    """The mapping in a recipe file.

    Raises InputError, with the line, for what is not YAML, holds a key twice or is no mapping.
    """
    from ruamel.yaml import YAML, YAMLError

    try:
        document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8-sig"))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error).split("\n")[0]
        raise InputError(f"{path}{line}: {problem}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a UTF-8 text; a recipe is a YAML file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: a recipe is a mapping of sections; see `lmtrain recipes show clm-quickstart`")
    return document


def to_yaml(document: Document) -> str:
    from ruamel.yaml import YAML

    stream = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 1000
    yaml.sort_base_mapping_type_on_output = False
    yaml.dump(document, stream)
    return stream.getvalue()


def objective_of(document: Document, where: str) -> str:
    """The objective that a recipe document names. Raises UsageError."""
    objective = document.get("objective", document.get("task"))
    if objective not in RECIPES:
        got = "it is missing" if objective is None else f"got {objective!r}"
        raise UsageError(f"{where}: objective must be clm, mlm or seq2seq; {got}")
    return objective


def in_sections(document: Document, recipe_class: type[Section], where: str) -> Document:
    """Put every key under its section and its first name.

    A key may stand in its section or, by the name of its flag, at the top. Raises UsageError for keys that are
    unknown, or given twice under two names: all of them at once.
    """
    result: Document = {}
    problems = []
    for section, key, value in _entries(document, {leaf.section for leaf in leaves(recipe_class)}):
        try:
            if key in ("objective", "task") and section is None:
                result["objective"] = value
                continue
            place, name = _locate(recipe_class, section, key, value)
            if (place, name) in ONLY_TYPED and value:
                raise UsageError("a file or a variable cannot decide this; type the flag on the command line")
            if name in result.setdefault(place, {}):
                raise UsageError("given twice, under two names")
            result[place][name] = value
        except UsageError as error:
            problems.append(f"{where}: {f'{section}.' if section else ''}{key}: {error}")
    if problems:
        raise UsageError("\n".join(problems))
    return result


def _entries(document: Document, sections: set[str]) -> Iterator[tuple[str | None, str, Any]]:
    for key, value in document.items():
        if key == "gates" and isinstance(value, list | str):  # `gates: [perplexity<25]` is all that most recipes need
            yield "gates", "assert", value
        elif key in sections and (isinstance(value, dict) or value is None):
            yield from ((key, str(name).replace("-", "_"), inner) for name, inner in (value or {}).items())
        else:
            yield None, str(key).replace("-", "_"), value


def _locate(recipe_class: type[Section], section: str | None, key: str, value: Any) -> tuple[str, str]:
    """The (section, field) that a key stands for."""
    if is_secret_name(key):
        raise UsageError(
            "a secret has no place in a recipe, which is kept with the run; use `hf auth login` or HF_TOKEN"
        )
    candidates = [leaf for leaf in leaves(recipe_class) if section in (None, leaf.section)]
    for leaf in candidates:
        # `batch_size` at the top is the flag --batch-size, not eval.batch_size whose flag is another.
        if key in ((leaf.flag, *leaf.aliases) if section is None else names_of(leaf)):
            return leaf.section, leaf.name
    if section == "train":
        _check_training_argument(key, value)
        return section, key
    elsewhere = [name for name, other in RECIPES.items() if key in {leaf.flag for leaf in leaves(other)}]
    if section is None and elsewhere:
        raise UsageError(f"an option of {' and '.join(elsewhere)} only")
    known = {name for leaf in candidates for name in names_of(leaf)} | (set() if section else {"objective"})
    raise UsageError(f"no such key{suggestion(key, known)}")


ONLY_TYPED = {("model", "trust_remote_code"), ("model", "allow_pickle")}
"""What lets somebody else's code run."""


# --- TrainingArguments, known without importing transformers ----------------------------------------------------------

OURS = {
    "output_dir": "--output-dir",
    "do_train": "the command",
    "do_eval": "the command",
    "do_predict": "the command",
    "eval_strategy": "--eval-every",
    "save_strategy": "--save-every",
    "logging_strategy": "--log-every",
    "load_best_model_at_end": "--best-metric",
    "run_name": "--output-dir",
    "remove_unused_columns": "the objective",
    "label_names": "the objective",
    "average_tokens_across_devices": "the exact loss",
    "auto_find_batch_size": "--batch-size",
    "train_sampling_strategy": "the exact order of the data",
    "dataloader_drop_last": "the promise that no row is lost",
    "bf16": "--precision",
    "fp16": "--precision",
    "eval_on_start": "the command",
    "eval_steps": "--eval-every",
    "eval_delay": "--eval-every",
    "per_device_eval_batch_size": "--eval-batch-size",
    "metric_for_best_model": "--best-metric",
    "greater_is_better": "--best-metric",
    "data_seed": "--seed",
    "use_cpu": "the devices that there are",
    "disable_tqdm": "--quiet",
    "logging_first_step": "--log-every",
    "logging_nan_inf_filter": "the promise that no NaN is hidden",
    "save_only_model": "the promise that a run can be resumed",
    "prediction_loss_only": "the exact evaluation",
    "eval_accumulation_steps": "the exact evaluation",
    "batch_eval_metrics": "the exact evaluation",
    "include_for_metrics": "the exact evaluation",
    "eval_do_concat_batches": "the exact evaluation",
    "restore_callback_states_from_checkpoint": "--resume",
    "activation_checkpointing": "--gradient-checkpointing",
    "bf16_full_eval": "--precision",
    "fp16_full_eval": "--precision",
    "resume_from_checkpoint": "--resume",
    "ignore_data_skip": "the promise that a resumed run is exact",
    "enable_jit_checkpoint": "the promise that a signal leaves a checkpoint",
}
"""Fields of TrainingArguments that lmtrain sets itself, and what decides them."""


def transformers_source(*parts: str) -> Path:
    """A file or folder of the installed transformers, found without importing it. Raises InputError."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise InputError("transformers is not installed; pip install lmtrain brings it")
    return Path(spec.origin).parent.joinpath(*parts)


@cache
def training_arguments() -> dict[str, str]:
    """Every field of the installed transformers' TrainingArguments with its annotation.

    Read from the source, because importing transformers takes seconds and a misspelt key should not.
    """
    tree = ast.parse(transformers_source("training_args.py").read_text(encoding="utf-8"))
    (definition,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "TrainingArguments")
    return {
        statement.target.id: ast.unparse(statement.annotation)
        for statement in definition.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


def _check_training_argument(key: str, value: Any) -> None:
    own = {name for leaf in leaves(Clm) if leaf.section == "train" for name in names_of(leaf)}
    if key in OURS:
        raise UsageError(f"lmtrain sets this itself; it follows from {OURS[key]}")
    if key not in training_arguments():
        raise UsageError(f"no such key{suggestion(key, own | (set(training_arguments()) - set(OURS)))}")
    expected = {"int": int, "float": (int, float), "bool": bool, "str": str}.get(training_arguments()[key])
    if expected and not isinstance(value, expected):
        raise UsageError(f"should be {training_arguments()[key]}, got {value!r}")


# --- the order of truth ----------------------------------------------------------------------------------------------


def merge(*documents: Document) -> Document:
    """Later documents win, leaf by leaf; all are in sections already."""
    result: Document = {}
    for document in documents:
        for section, content in document.items():
            result[section] = {**result.get(section, {}), **content} if isinstance(content, dict) else content
    return result


def from_environment(recipe_class: type[Section], environment: Mapping[str, str] = os.environ) -> Document:
    """What `LMTRAIN_<FLAG>` variables say, for the flags that this objective has. Raises UsageError."""
    own = {name.upper(): leaf for leaf in leaves(recipe_class) for name in (leaf.flag, *leaf.aliases)}
    everywhere = {name.upper() for other in DECLARED for leaf in leaves(other) for name in (leaf.flag, *leaf.aliases)}
    document = {}
    for variable, text in environment.items():
        name = variable.removeprefix("LMTRAIN_")
        if name == variable:
            continue
        if name not in everywhere and name not in own:
            raise UsageError(f"{variable}: no such option{suggestion(name, everywhere)} in the environment")
        if name in own:
            document[own[name].flag] = own[name].read(text)
    return in_sections(document, recipe_class, "environment")


def from_assignments(assignments: list[str], recipe_class: type[Section]) -> Document:
    """What `--set section.key=value` says; the value is read as YAML. Raises UsageError."""
    result: Document = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        section, dot, key = path.strip().partition(".")
        if not equals or not dot:
            raise UsageError(f"--set {visible(assignment)}: write it as section.key=value, e.g. train.adam_beta2=0.98")
        if section not in {leaf.section for leaf in leaves(recipe_class)}:
            sections = ", ".join(dict.fromkeys(leaf.section for leaf in leaves(recipe_class)))
            raise UsageError(f"--set {path}: no section {section!r}; there are {sections}")
        leaf = next((x for x in leaves(recipe_class) if x.section == section and key in names_of(x)), None)
        value = leaf.read(text) if leaf else parse_yaml(text)
        result = merge(result, in_sections({section: {key: value}}, recipe_class, "--set"))
    return result


def build(recipe_class: type[Built], document: Document, where: str) -> Built:
    """The frozen recipe of a merged document. Raises UsageError naming every bad value at once."""
    document = {**document, "model": document.get("model", {}), "data": document.get("data", {})}
    try:
        return recipe_class.model_validate(document)
    except ValidationError as error:
        lines = list(dict.fromkeys(_problem(recipe_class, problem) for problem in error.errors()))
        raise UsageError("\n".join(f"{where}: {line}" for line in lines)) from None


def _problem(recipe_class: type[Section], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    path = ".".join(location[:2])
    leaf = next((x for x in leaves(recipe_class) if [x.section, x.name] == location[:2]), None)
    flag = f" (--{leaf.flag.replace('_', '-')})" if leaf else ""
    if problem["type"] == "missing":
        return f"{path}{flag} is required"
    if leaf and leaf.field.annotation == Every:
        return f"{path}{flag}: should be a number of steps above 0 or 'epoch', got {problem['input']!r}"
    message = problem["msg"].removeprefix("Value error, ")
    if len(location) <= 1:  # a check of ours over a whole section or recipe, which says it all
        return message
    return f"{path}{flag}: {message[0].lower()}{message[1:]}, got {problem['input']!r}"
