"""The section `data`: what is read, and how rows become examples."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from lmtrain.config.options import Section, option
from lmtrain.config.values import Length, Strings, numbers


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
    weights: Annotated[list[float], BeforeValidator(numbers)] = option([], flag="data_weights", hidden=True)
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


class Prompts(Direction):
    prompt: Strings = option([], short="p")
    """A text to go on with, to fill or to transform. Repeatable."""
    data: Strings = option([], short="d")
    """A file of prompts, in any form that training reads; of text every line. Default: standard input."""
    column: str | None = option(None)
    """Column of the prompts. Default: found by name."""
    encoding: str | None = option(None, hidden=True)
    """Encoding of text files. Default: UTF-8, or UTF-16 where the file starts with its mark."""


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
