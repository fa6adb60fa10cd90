"""The recipe classes, which declare every option once: its name, type, default and help.

Flags, `LMTRAIN_*` variables, recipe keys, help texts and the reference are generated from these classes. A recipe is
frozen once it is built from default < recipe file < environment < `--set` < flag.
"""

from collections.abc import Mapping
from functools import cache
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from lmtrain import metrics
from lmtrain.config.assertions import check_assertions
from lmtrain.config.data import ClmData, Data, MlmData, PairData, Prompts
from lmtrain.config.eval import ClassEval, Eval, Gates, Generate, MaskEval, PairEval, Probing
from lmtrain.config.labelled_data import ClassData, LabelledData
from lmtrain.config.model import Encoders, Model
from lmtrain.config.options import ONLY_TYPED, SECTIONS, Leaf, Section, leaves, option
from lmtrain.config.train import SHARDABLE, Run, Train
from lmtrain.config.values import Document


class Recipe(Section):
    """The settings of a run. The three subclasses differ in their sections `data` and `eval`."""

    objective: Literal["clm", "mlm", "seq2seq", "classify"] = option(..., aliases=("task",))
    """Training objective: clm, mlm, seq2seq or classify."""
    model: Model
    data: Data
    train: Train = Field(default_factory=Train)
    eval: Eval = Field(default_factory=Eval)
    gates: Gates = Field(default_factory=Gates)
    run: Run = Field(default_factory=Run)

    UNSAVED: ClassVar[set[str]] = {
        "output_dir",
        "resume",
        "overwrite",
        "stop_at",
        "allow_drift",
        "cache_dir",
        "node_rank",
    }
    """Keys of `run` that a saved recipe omits, so that it can be run again elsewhere."""
    SAMPLING_HINT: ClassVar[str] = ""
    """What to add to the suggestion to try `generate`."""
    TAKES_ENCODER_AND_DECODER: ClassVar[bool] = False
    """Whether this objective accepts --encoder and --decoder."""

    @property
    def evaluates(self) -> bool:
        """Whether there is evaluation data, given or held out."""
        return bool(self.data.eval or self.data.val_split)

    def saved(self, lengths: Mapping[str, int]) -> Document:
        """The recipe to save: with the resolved maximum `lengths`, without the settings of this run only."""
        document = self.model_dump(mode="json", exclude_none=True)
        document["data"] |= lengths
        for section, name in ONLY_TYPED:
            document[section].pop(name, None)
        document["run"] = {key: value for key, value in document["run"].items() if key not in self.UNSAVED}
        return document

    @model_validator(mode="after")
    def _batches_are_possible(self) -> Self:
        if self.data.streaming and not self.train.max_steps:
            raise ValueError("--streaming: needs --max-steps above 0, because the length of a stream is unknown")
        if self.data.streaming and (self.train.batch_tokens or self.train.group_by_length):
            raise ValueError("--streaming: cannot group rows by length; drop --batch-tokens and --group-by-length")
        return self

    @model_validator(mode="after")
    def _hosts_can_meet(self) -> Self:
        if (self.run.nodes or 1) > 1 and not self.run.rendezvous:
            raise ValueError("--nodes: needs --rendezvous HOST:PORT, where the hosts meet; HOST is host 0")
        if self.run.node_rank is not None and self.run.node_rank >= (self.run.nodes or 1):
            raise ValueError(f"--node-rank {self.run.node_rank}: hosts are numbered from 0 to --nodes minus 1")
        return self

    @model_validator(mode="after")
    def _can_be_sharded(self) -> Self:
        if self.run.shard != "none":
            if self.train.optim not in SHARDABLE:
                names = ", ".join(SHARDABLE)
                raise ValueError(f"--shard: the state of --optim {self.train.optim} cannot be sharded; choose {names}")
            if self.run.shard != "fsdp2" and self.train.on_nonfinite != "stop":
                raise ValueError(
                    f"--shard {self.run.shard}: DeepSpeed updates at once, so --on-nonfinite can only be stop"
                )
            if self.run.shard == "zero3" and self.objective == "seq2seq":
                raise ValueError("--shard zero3: does not work with encoder-decoders; use fsdp2 or zero2")
            if self.train.compile:
                raise ValueError("--shard: does not work with --compile; leave out one of them")
        if self.train.average and (self.run.shard != "none" or (self.run.nodes or 1) > 1):
            raise ValueError("--average: needs whole weights on one host; leave out --shard and --nodes")
        if self.train.average and self.train.average_keep == "better" and not self.evaluates:
            raise ValueError("--average: needs evaluation data to be judged by; or --average-keep always")
        if self.run.async_save and self.run.shard != "fsdp2":
            raise ValueError("--async-save: only with --shard fsdp2")
        if self.run.shard_offload and self.run.shard == "none":
            raise ValueError("--shard-offload: only with --shard")
        return self

    @model_validator(mode="after")
    def _gates_are_known(self) -> Self:
        # A metric loaded with evaluate may return values under any name.
        known = None if self.eval.other_metrics else self.eval.metric_names
        check_assertions(self.gates.assertions, known, self.evaluates)
        if self.gates.baseline and not self.evaluates:
            raise ValueError("--baseline: needs evaluation data: --eval-data or --val-split")
        return self

    @model_validator(mode="after")
    def _best_metric_has_a_set(self) -> Self:
        name, dot, _ = self.eval.best_metric.rpartition(".")
        if dot and name not in self.data.eval_sets:
            known = f"are {', '.join(self.data.eval_sets)}" if self.data.eval_sets else "have no names"
            raise ValueError(f"--best-metric {self.eval.best_metric}: the evaluation sets {known}")
        return self

    @model_validator(mode="after")
    def _pairs_are_for_seq2seq(self) -> Self:
        if self.model.encoder and not self.TAKES_ENCODER_AND_DECODER:
            raise ValueError("--encoder and --decoder: only for seq2seq")
        return self


class Clm(Recipe):
    """Predict the next token: GPT-2, Llama, Qwen and similar models. For text generation and chat."""

    SAMPLING_HINT = " (--temperature 0.8 draws)"

    objective: Literal["clm"] = "clm"
    data: ClmData


class Mlm(Recipe):
    """Predict masked tokens from both sides: BERT, RoBERTa, ModernBERT. For text encoders."""

    objective: Literal["mlm"] = "mlm"
    data: MlmData
    eval: MaskEval = Field(default_factory=MaskEval)


class Seq2seq(Recipe):
    """Generate one text from another: T5, BART, Marian, Pegasus. For translation, summarization and answers."""

    TAKES_ENCODER_AND_DECODER = True

    objective: Literal["seq2seq"] = "seq2seq"
    data: PairData
    eval: PairEval = Field(default_factory=PairEval)


class Classify(Recipe):
    """Give texts, pairs of texts or words their labels: BERT, RoBERTa, ModernBERT. For classifiers and taggers."""

    objective: Literal["classify"] = "classify"
    data: ClassData
    eval: ClassEval = Field(default_factory=ClassEval)


class GenerateRequest(Section):
    """Try a model: continue a text (clm), fill its masks (mlm) or transform it (seq2seq)."""

    model: Model
    data: Prompts = Field(default_factory=Prompts)
    generate: Generate = Field(default_factory=Generate)
    train: Train = Field(default_factory=Train)
    run: Run = Field(default_factory=Run)


class ProbeRequest(Section):
    """Measure how well an encoder's hidden states predict the labels of sentences or words."""

    model: Encoders
    data: LabelledData
    probe: Probing = Field(default_factory=Probing)
    gates: Gates = Field(default_factory=Gates)
    run: Run = Field(default_factory=Run)

    @model_validator(mode="after")
    def _gates_are_known(self) -> Self:
        check_assertions(self.gates.assertions, metrics.PROBE_METRICS, evaluates=True)
        return self

    def encoders(self) -> list[Model]:
        """The section `model` of each encoder."""
        settings = self.model.model_dump(include=WITHOUT_TRAINING["model"])
        return [Model(**{**settings, "name": name}) for name in self.model.name]


RECIPES: dict[str, type[Recipe]] = {"clm": Clm, "mlm": Mlm, "seq2seq": Seq2seq, "classify": Classify}

DECLARED: tuple[type[Section], ...] = (*RECIPES.values(), GenerateRequest, ProbeRequest)
"""All classes that declare options."""


WITHOUT_TRAINING = {
    "model": {"name", "tokenizer", "attn", "trust_remote_code", "allow_pickle"},
    "train": {"seed", "precision", "kernels"},
    "run": {"offline"},
}
"""Options of these sections that `lmtrain eval`, `generate` and `probe` have too."""

LAUNCHING = ("num_processes", "accelerate_config")
"""Options of `run` with which `lmtrain eval` starts several processes."""

TRAINING_ALONE = {
    "val_split",
    "every",
    "best_metric",
    "early_stop",
    "on_leak",
    "weights",
    "streaming",
    "shuffle_buffer",
}
"""Options of the other sections that only the training commands have."""


@cache
def untrained_leaves(*classes: type[Section]) -> tuple[Leaf, ...]:
    """The options of `lmtrain eval`, given all recipe classes, or of `generate`, given GenerateRequest."""
    found: dict[tuple[str, str], Leaf] = {}
    scores = GenerateRequest not in classes
    for leaf in (leaf for own in classes for leaf in leaves(own)):
        scoring = scores and leaf.name in (*LAUNCHING, "allow_drift")
        if scoring or leaf.name in WITHOUT_TRAINING.get(leaf.section, {leaf.name} - TRAINING_ALONE):
            found.setdefault((leaf.section, leaf.name), leaf)
    return tuple(sorted(found.values(), key=lambda leaf: list(SECTIONS).index(leaf.section)))


NOT_IN_CHATS = {"name", "data", "prompt", "column", "candidates", "num_beams", "num_return_sequences", "source_prefix"}
"""Options of `generate` that do not fit a conversation."""


def chat_leaves() -> tuple[Leaf, ...]:
    """The options of `lmtrain chat`: those of `generate` about the model and how it writes."""
    known = untrained_leaves(GenerateRequest)
    return tuple(leaf for leaf in known if leaf.section != "data" and leaf.name not in NOT_IN_CHATS)


def probe_leaves() -> tuple[Leaf, ...]:
    """The options of `lmtrain probe`."""
    known = {**WITHOUT_TRAINING, "run": {"offline", "allow_drift"}}
    return tuple(leaf for leaf in leaves(ProbeRequest) if leaf.name in known.get(leaf.section, {leaf.name}))
