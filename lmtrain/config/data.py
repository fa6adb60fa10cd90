"""The section `data`: which data to read, and how rows become training examples."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from lmtrain.config.evaluation_sets import name_and_source, set_names
from lmtrain.config.options import Section, option
from lmtrain.config.values import Columns, Length, Strings, numbers


class Split(Section):
    """Training and evaluation data."""

    KINDS: ClassVar[tuple[str, ...]]
    """The kinds of rows that this objective can read, see lmtrain/data/selection.py."""

    train: Strings = option(
        ..., flag="data", short="d", aliases=("train_file", "dataset", "dataset_name", "data"), min_length=1
    )
    """File, folder[@split], glob, - (stdin) or hub id org/name[:config][@split]; append #N to use only the first N rows. Repeatable."""
    eval: Strings = option([], flag="eval_data", aliases=("validation_file", "eval_data"), hidden="use")
    """Evaluation data, in the same forms as --data, or NAME=DATA for named sets with metrics of their own, such as dev.perplexity; the first one selects the best model. Default: a part of --data, see --val-split."""
    val_split: float = option(0.05, aliases=("validation_split",), ge=0, lt=1)
    """Without --eval-data: fraction of the rows held out for evaluation, shuffled by --seed. 0 disables evaluation."""
    encoding: str | None = option(None, hidden=True)
    """Encoding of text files. Default: UTF-8, or UTF-16 if the file starts with a byte order mark."""
    columns: Columns = option([], hidden=True)
    """Names of the columns of .csv and .tsv files without a header, e.g. source,target. Further columns are not read."""
    on_bad: Literal["error", "drop"] = option("error")
    """Rows that cannot be read or hold no usable text: stop at the first one, or drop and count them."""
    on_leak: Literal["warn", "drop", "error"] = option("warn", hidden=True)
    """Evaluation rows that also occur in the training data: warn, drop them from training, or stop."""

    @model_validator(mode="after")
    def _sets_are_named(self) -> Self:
        set_names(self.eval)
        if named := [value for value in self.train if name_and_source(value)[0]]:
            raise ValueError(f"--data {named[0]}: no such file; only evaluation data are named, with --eval-data")
        return self

    @property
    def eval_sets(self) -> list[str]:
        """The names of the evaluation sets; empty if they have none."""
        return set_names(self.eval)

    @property
    def unit(self) -> str:
        """What one document of a text file is: a line, sentence, paragraph or the whole file (document)."""
        return "line"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The KINDS that these settings read."""
        return self.KINDS

    @property
    def joint(self) -> str:
        """What is put between columns that belong to one input."""
        return "\n"


class Data(Split):
    weights: Annotated[list[float], BeforeValidator(numbers)] = option([], flag="data_weights", hidden=True)
    """With several --data: proportions of each in an epoch, e.g. 3,1. Default: every row once."""
    streaming: bool = option(False, hidden="use")
    """Read the data during training, if it does not fit in memory; needs --max-steps."""
    shuffle_buffer: int = option(10_000, ge=1, hidden=True)
    """With --streaming: number of rows that are shuffled together."""

    @model_validator(mode="before")
    @classmethod
    def _stream_has_no_split(cls, given: object) -> object:
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
            raise ValueError("--data-weights: every weight must be above 0; to exclude data, remove its --data")
        if self.streaming and self.val_split:
            raise ValueError(
                "--val-split: a stream cannot be split; give --eval-data, or --val-split 0 for no evaluation"
            )
        if self.streaming and self.weights:
            raise ValueError(
                "--data-weights: a stream is read in order; mix the files beforehand, or drop --streaming"
            )
        if self.streaming and self.on_leak != "warn":
            raise ValueError(
                "--on-leak: a stream is not compared with the evaluation data; drop --on-leak or --streaming"
            )
        return self

    @property
    def packs_blocks(self) -> bool:
        """Whether documents are concatenated and cut into blocks, so that attention crosses documents."""
        return False

    @property
    def packs_documents(self) -> bool:
        """Whether whole documents share a row without attending to each other."""
        return False


class TextData(Data):
    KINDS: ClassVar[tuple[str, ...]] = ("text",)

    text_column: str | None = option(None, aliases=("dataset_text_field",))
    """Text column; use dots for nested fields, e.g. doc.body. Default: detected from the column names and reported."""
    sample_by: Literal["line", "paragraph", "document"] | None = option(None)
    """What one document of a .txt file is. Default: the whole file with packing, otherwise each line."""
    max_length: Length | None = option(None, short="L", aliases=("block_size", "max_seq_length"))
    """Maximum tokens per row. Default: the model's maximum length, at most 1024."""
    packing: bool = option(True, off="One document per row. By default documents are packed into full rows.")
    """Pack documents into full rows."""
    packing_strategy: Literal["best-fit", "blocks"] = option("best-fit")
    """best-fit: whole documents that never attend to each other; the loss equals that of --no-packing. blocks: concatenated and cut into blocks, with attention across documents."""
    on_long: Literal["truncate", "split", "drop", "error"] | None = option(None)
    """Texts longer than a row. Default: split; prompts and chats are truncated."""

    @property
    def packs_blocks(self) -> bool:
        return self.packing and self.packing_strategy == "blocks"

    @property
    def packs_documents(self) -> bool:
        return self.packing and self.packing_strategy == "best-fit"

    @property
    def unit(self) -> str:
        return self.sample_by or ("document" if self.packing else "line")


class ClmData(TextData):
    KINDS = ("messages", "prompt", "text")

    prompt_column: str | None = option(None)
    """Prompt column, for use with --completion-column; the loss covers only the completion."""
    completion_column: str | None = option(None)
    """Column of the text to generate after the prompt, followed by an end token."""
    messages_column: str | None = option(None)
    """Column of chats, [{role, content}, …] or ShareGPT; the loss covers only the assistant's turns."""
    train_on_prompt: bool = option(False, hidden="use")
    """The loss also covers prompts, and every turn of a chat."""
    stride: int | None = option(None, ge=1, hidden="training")
    """Evaluate each text separately, with a window of --max-length tokens that moves by N tokens."""


class MlmData(TextData):
    mask_probability: float = option(0.15, aliases=("mlm_probability",), gt=0, lt=1)
    """Fraction of the tokens to predict."""
    mask_split: str = option("80/10/10", pattern=r"^\d+/\d+/\d+$")
    """Percentages of the selected tokens to mask / to replace by a random token / to keep."""
    masking: Literal["token", "word", "span"] = option("token")
    """What to mask: single tokens, whole words, or spans of words."""
    mask_schedule: str | None = option(None, pattern=r"^0?\.\d+:0?\.\d+$", hidden=True)
    """FIRST:LAST, e.g. 0.3:0.15: change the mask probability linearly during training. Evaluation uses --mask-probability."""

    @model_validator(mode="after")
    def _mask_split_adds_up(self) -> Self:
        if sum(map(int, self.mask_split.split("/"))) != 100:
            raise ValueError("--mask-split: the three parts must add up to 100")
        if self.schedule and min(self.schedule) <= 0:
            raise ValueError("--mask-schedule: both fractions must be above 0")
        return self

    @property
    def schedule(self) -> tuple[float, float] | None:
        """(mask probability at the first step, after the last step); None without --mask-schedule."""
        if self.mask_schedule is None:
            return None
        first, last = map(float, self.mask_schedule.split(":"))
        return first, last


class Direction(Section):
    source_prefix: str = option("")
    """Text prepended to every input, e.g. 'summarize: ' for T5."""
    source_lang: str | None = option(None)
    """Input language, in the code of a multilingual tokenizer. With a path STEM as --data, the inputs are the lines of STEM.<lang>, e.g. STEM.en for en or en_XX."""
    target_lang: str | None = option(None)
    """Output language, in the same way; also the language that mBART, M2M100 or NLLB generate."""


NOISE = {"span-corruption": (0.15, 3.0), "infilling": (0.3, 3.0), "gap-sentences": (0.3, 0.0)}
"""--denoise -> (noise density, mean span length in tokens), as in the papers."""


class PairData(Direction, Data):
    KINDS = ("pairs", "text")

    source_column: str | None = option(None)
    """Input column; use dots for nested fields, e.g. translation.en. Or a template: 'question: {question} context: {context}'. Of two files STEM.en and STEM.ko: en."""
    target_column: str | None = option(None, aliases=("summary_column",))
    """Target column. A list holds several references, of which training uses the first."""
    max_source_length: Length | None = option(None)
    """Maximum tokens per input. Default: fits 99% of the data."""
    max_target_length: Length | None = option(None)
    """Maximum tokens per target. Default: fits 99% of the data."""
    on_long: Literal["truncate", "split", "drop", "error"] | None = option(None)
    """Pairs longer than the maximum lengths. Default: truncate; with --denoise, texts are split."""
    denoise: Literal["none", "span-corruption", "infilling", "gap-sentences"] = option("none")
    """Pre-train on plain text by restoring what was removed from it, as T5, BART and Pegasus do."""
    noise_density: float | None = option(None, gt=0, lt=1, hidden=True)
    """With --denoise: fraction of the text to remove. Default: 0.15; 0.3 for infilling and gap-sentences."""
    mean_span_length: float | None = option(None, ge=1, hidden=True)
    """With --denoise: mean number of tokens in a removed span. Default: 3."""
    text_column: str | None = option(None, aliases=("dataset_text_field",), hidden=True)
    """With --denoise: text column; use dots for nested fields, e.g. doc.body. Default: detected from the column names and reported."""
    sample_by: Literal["line", "paragraph", "document"] | None = option(None, hidden=True)
    """With --denoise: what one document of a .txt file is. Default: the whole file."""

    @model_validator(mode="after")
    def _noise_or_pairs(self) -> Self:
        of_noise = ("noise_density", "mean_span_length", "text_column", "sample_by")
        of_pairs = ("source_column", "target_column", "source_prefix")
        unfit = of_noise if self.denoise == "none" else of_pairs
        given = [f"--{name.replace('_', '-')}" for name in unfit if getattr(self, name)]
        if given:
            if self.denoise == "none":
                raise ValueError(f"{given[0]}: only with --denoise")
            raise ValueError(
                f"{given[0]}: for data with pairs, but --denoise makes pairs from text; drop one of the two"
            )
        if self.denoise == "none" and self.on_long == "split":
            raise ValueError("--on-long split: only for plain text; for pairs use truncate, drop or error")
        if self.denoise == "gap-sentences" and self.mean_span_length:
            raise ValueError("--mean-span-length: gap-sentences removes whole sentences; drop one of the two")
        return self

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("pairs",) if self.denoise == "none" else ("text",)

    @property
    def unit(self) -> str:
        return "line" if self.denoise == "none" else self.sample_by or "document"

    @property
    def noise(self) -> tuple[float, float]:
        """(noise density, mean span length in tokens)."""
        density, mean = NOISE[self.denoise]
        return self.noise_density or density, self.mean_span_length or mean


class Prompts(Direction):
    source_lang: str | None = option(None)
    """Input language, for multilingual tokenizers."""
    target_lang: str | None = option(None)
    """Output language, e.g. for mBART, M2M100 or NLLB."""
    prompt: Strings = option([], short="p")
    """Text to continue, to fill in or to transform. Repeatable."""
    data: Strings = option([], short="d")
    """File of prompts, in any format that training reads; a text file holds one per line. Default: standard input."""
    column: str | None = option(None)
    """Prompt column, or a template of several columns. Default: that of the run, or detected from the column names."""
    encoding: str | None = option(None, hidden=True)
    """Encoding of text files. Default: UTF-8, or UTF-16 if the file starts with a byte order mark."""
    columns: Columns = option([], hidden=True)
    """Names of the columns of .csv and .tsv files without a header, e.g. id,question."""
