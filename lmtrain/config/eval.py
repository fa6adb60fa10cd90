"""The sections `eval`, `gates`, `generate` and `probe`: how a model is scored, judged and prompted."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lmtrain import metrics
from lmtrain.config.assertions import parse_assertions
from lmtrain.config.options import Section, option
from lmtrain.config.values import Every, Length, Strings, share
from lmtrain.errors import suggestion


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

    @property
    def other_metrics(self) -> list[str]:
        """Metrics of generated text that do not come with lmtrain."""
        return []

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
    def other_metrics(self) -> list[str]:
        return [name for name in self.metric if name not in metrics.TEXT_METRICS]

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

    assertions: Annotated[Strings, AfterValidator(parse_assertions)] = option([], flag="assert", aliases=("assert",))
    """A figure that has to hold, such as perplexity<25 or train.last_loss<=2, else exit code 4. Repeatable."""
    baseline: str | None = option(None, hidden="training")
    """results.json of an earlier run: no figure may be worse, see --max-regression."""
    max_regression: Annotated[float, BeforeValidator(share), Field(ge=0)] = option(0.01, hidden="training")
    """How much worse than the baseline a figure may be: 1% or 0.01 of its value."""
    junit: str | None = option(None, hidden="training")
    """File for the gates as JUnit XML."""


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
