"""The sections `eval`, `gates`, `generate` and `probe`: evaluation, pass/fail conditions and generation."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from lmtrain import metrics
from lmtrain.config.assertions import parse_assertions
from lmtrain.config.options import Section, option
from lmtrain.config.values import Every, Length, Strings, as_percent, fraction
from lmtrain.errors import suggestion

LONGEST_ANSWER = 30
"""Tokens of an answer at most, unless --max-answer-length says otherwise."""


class Eval(Section):
    every: Every = option("epoch", flag="eval_every", aliases=("eval_steps", "eval_every"))
    """Steps between evaluations, or 'epoch'."""
    batch_size: int = option(
        8, flag="eval_batch_size", aliases=("per_device_eval_batch_size", "eval_batch_size"), ge=1, hidden="training"
    )
    """Rows per device in evaluation; the metrics do not depend on it."""
    METRICS: ClassVar[tuple[str, ...]] = ("eval_loss", "perplexity", "bits_per_byte", "token_accuracy")
    """The metrics that this objective can have."""

    best_metric: str = option("eval_loss", aliases=("metric_for_best_model",), hidden=True)
    """Metric that selects the model to keep; with named evaluation sets, e.g. dev.perplexity. Default: of the first set."""
    early_stop: int | None = option(None, aliases=("early_stopping_patience",), ge=1)
    """Stop after N evaluations without improvement."""
    samples: int = option(3, ge=0, hidden="training", use="Number of rows to show as text.")
    """Number of rows to generate from at each evaluation, saved to samples.jsonl; the first is printed."""
    predictions: str | None = option(None, hidden="training")
    """File for source, prediction, references and scores of every row. Default in training: predictions.jsonl."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The METRICS that these settings compute."""
        return self.METRICS

    @property
    def other_metrics(self) -> list[str]:
        """Text metrics that are loaded with evaluate."""
        return []

    @property
    def generation(self) -> "PairEval | None":
        """The settings of generation and of its metrics; None where evaluation generates nothing to compare."""
        return None

    @model_validator(mode="after")
    def _metric_is_known(self) -> Self:
        if metrics.base_name(self.best_metric) not in self.metric_names:
            known = ", ".join(self.metric_names)
            raise ValueError(
                f"--best-metric {self.best_metric}: choose from {known}{suggestion(self.best_metric, self.metric_names)}"
            )
        return self


class MaskEval(Eval):
    METRICS = ("eval_loss", "perplexity", "masked_accuracy", "masked_accuracy_top5", "pseudo_perplexity")

    pseudo_perplexity: bool = option(False, hidden="training")
    """Also mask each token in turn, at the cost of one forward pass per token."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        return tuple(name for name in self.METRICS if name != "pseudo_perplexity" or self.pseudo_perplexity)


class ClassEval(Eval):
    METRICS = ("eval_loss", *metrics.LABEL_METRICS, "exact_match", "f1")

    max_answer_length: int = option(LONGEST_ANSWER, ge=1, hidden="training")
    """Of questions: the most tokens that an answer can have."""


class Decoding(Section):
    num_beams: int = option(1, ge=1)
    """Number of beams for generation; 1 is greedy search."""
    max_new_tokens: int | None = option(None, ge=1, hidden="training")
    """Maximum number of tokens to generate. Default: one more than the longest target; without targets 128."""
    length_penalty: float | None = option(None, hidden="training")
    """With beams: values above 0 favor longer outputs. Default: the model's."""
    no_repeat_ngram_size: int | None = option(None, ge=0, hidden="training")
    """Never generate the same N tokens twice in an output. Default: the model's."""


class PairEval(Decoding, Eval):
    METRICS = ("eval_loss", "perplexity", "token_accuracy", *metrics.TEXT_METRICS)

    metric: Strings = option([], hidden="training")
    """Text metric: bleu, chrf, …; all by default. Others are loaded with evaluate: a hub name or metric.py. Repeatable."""
    bleu_tokenize: str | None = option(None, hidden="training")
    """Tokenizer of sacrebleu: 13a, intl, zh, ko-mecab, char, … Default: by the script of the references."""
    rouge_tokenize: Literal["words", "characters", "morphemes"] | None = option(None, hidden="training")
    """Units of ROUGE. Default: by the script of the references."""

    @property
    def generation(self) -> "PairEval":
        return self

    @property
    def other_metrics(self) -> list[str]:
        return [name for name in self.metric if name not in metrics.TEXT_METRICS]

    @property
    def text_metrics(self) -> tuple[str, ...]:
        """The requested text metrics of lmtrain: those that --metric names, otherwise all."""
        named = tuple(name for name in metrics.TEXT_METRICS if name in self.metric)
        return named or metrics.TEXT_METRICS

    @property
    def metric_names(self) -> tuple[str, ...]:
        return tuple(name for name in self.METRICS if name not in metrics.TEXT_METRICS or name in self.text_metrics)


class Gates(Section):
    """Conditions that the results must meet; otherwise the exit code is 4."""

    assertions: Annotated[Strings, AfterValidator(parse_assertions)] = option([], flag="assert", aliases=("assert",))
    """Condition that a metric must meet, e.g. perplexity<25 or train.last_loss<=2, else exit code 4. Repeatable."""
    baseline: str | None = option(None, hidden="training")
    """results.json of an earlier run on the same data: no metric may be worse, see --max-regression."""
    max_regression: Annotated[float, BeforeValidator(fraction), PlainSerializer(as_percent), Field(ge=0)] = option(
        0.01, hidden="training"
    )
    """How much worse than the baseline a metric may be: 5% or 0.05 of its value."""
    junit: str | None = option(None, hidden="training")
    """Write the gates to this file as JUnit XML, also if the run fails."""


class Generate(Decoding):
    do_sample: bool = option(False)
    """Sample instead of always taking the most likely token; implied by the next three options."""
    temperature: float | None = option(None, gt=0)
    """Sampling temperature: below 1 sharpens the distribution, above 1 flattens it."""
    top_k: int | None = option(None, ge=1)
    """Sample from the K most likely tokens."""
    top_p: float | None = option(None, gt=0, le=1)
    """Sample from the most likely tokens that together have this probability."""
    num_return_sequences: int = option(1, aliases=("n_best",), ge=1)
    """Number of outputs per prompt, best first; with beams, each has its score."""
    candidates: int = option(5, ge=1)
    """Number of tokens to show per mask."""
    chat: bool = option(
        True, off="Continue the prompt as plain text. By default a chat model answers it as a user's turn."
    )
    """Treat the prompt as a user's turn if the model has a chat template."""


class Probing(Section):
    fine_tune: bool = option(False)
    """Also train the encoder, with a linear layer on top. Default: a logistic regression on the frozen encoder."""
    l2: float = option(1.0, gt=0)
    """L2 penalty of the logistic regression: the inverse of scikit-learn's C."""
    epochs: int = option(3, aliases=("num_train_epochs",), ge=1)
    """With --fine-tune: number of epochs."""
    learning_rate: float = option(5e-5, aliases=("lr",), gt=0)
    """With --fine-tune: peak learning rate, after warmup over the first tenth of the steps."""
    batch_size: int = option(32, short="b", aliases=("per_device_train_batch_size",), ge=1, le=1_000_000)
    """Rows per batch; the metrics of a frozen encoder do not depend on it."""
    max_length: Length | None = option(None, short="L", aliases=("max_seq_length",))
    """Maximum tokens per row; longer rows are truncated. Default: the model's maximum length, at most 512."""
    seed: int = option(42, ge=0)
    """Seed of the split and, with --fine-tune, of data order and dropout."""
