"""What lmtrain relies on in other libraries is listed, still there, and called."""

import ast
import importlib
import inspect
import pkgutil
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sacrebleu.metrics
import torch
import transformers
from conftest import lmtrain, scratch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import lmtrain as package
from lmtrain.runtime import upstream
from lmtrain.runtime.reliance import Reliance
from lmtrain.runtime.upstream import assigned, differences, instance_attributes, resolve
from lmtrain.runtime.upstream_names import RELIANCES
from lmtrain.training.checkpointing import CheckpointingTrainer
from lmtrain.training.trainer import ExactTrainer

SOURCES = sorted(Path(package.__file__).parent.rglob("*.py"))
LIBRARIES = {name.partition(".")[0] for listed in RELIANCES for name in [*listed.overridden, *listed.called]}
OVERRIDDEN = {name: parameters for listed in RELIANCES for name, parameters in listed.overridden.items()}
LISTED = {*OVERRIDDEN, *(name for listed in RELIANCES for name in (*listed.called, *listed.attributes))}


def test_the_installed_libraries_have_all_that_is_listed():
    assert differences() == []


# --- what is found ---------------------------------------------------------------------------------------------------
def never(self: Any, model: Any, scale: float, grad_norm: Any = None) -> None:
    """A signature of another release."""


CHANGES = {
    "a removed method": (
        lambda patch: patch.delattr(transformers.Trainer, "_get_grad_norm"),
        "transformers.Trainer._get_grad_norm is gone: a loss or gradient that is not finite would not stop the update",
    ),
    "a new parameter of a method that is overridden": (
        lambda patch: patch.setattr(transformers.Trainer, "_get_grad_norm", never),
        "transformers.Trainer._get_grad_norm now also takes scale: a loss or gradient that is not finite would not stop "
        "the update",
    ),
    "a lost parameter": (
        lambda patch: patch.setattr(transformers.Trainer, "save_model", lambda self, output_dir: None),
        "transformers.Trainer.save_model no longer takes _internal_call: a checkpoint would not be whole or not there, "
        "or would hold a pickle",
    ),
    "another order": (
        lambda patch: patch.setattr(transformers.Trainer, "log", lambda self, start_time, logs: None),
        "transformers.Trainer.log takes its parameters in another order: metrics.jsonl, the live line and the "
        "evaluations of a run would not be complete",
    ),
    "a required parameter of a private function": (
        lambda patch: patch.setattr(
            sacrebleu.metrics.BLEU, "_extract_corpus_statistics", lambda self, hypotheses, references, rows: None
        ),
        "sacrebleu.metrics.BLEU._extract_corpus_statistics now also takes rows: BLEU, chrF and TER would have no "
        "intervals and no comparison",
    ),
    "a missing property": (
        lambda patch: patch.delattr(transformers.PreTrainedTokenizerFast, "backend_tokenizer"),
        "transformers.PreTrainedTokenizerFast.backend_tokenizer is gone: rows would be cut as the file of the tokenizer says, "
        "or tokenised more slowly",
    ),
    "a missing function": (
        lambda patch: patch.delattr("huggingface_hub.utils._http.default_client_factory"),
        "huggingface_hub.utils._http.default_client_factory is gone: a hub that is down would be asked again for more "
        "than a minute",
    ),
    "a missing entry": (
        lambda patch: patch.delitem(type(ALL_ATTENTION_FUNCTIONS)._global_mapping, "sdpa"),
        "transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS[sdpa] is gone: dropout on a CPU would not be faster; "
        "--kernels off",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_one_sentence(change: str, monkeypatch: pytest.MonkeyPatch):
    make, sentence = CHANGES[change]
    make(monkeypatch)
    assert differences() == [sentence]


def test_missing_attributes_of_instances_and_missing_libraries_are_found(monkeypatch: pytest.MonkeyPatch):
    names = ("transformers.Trainer._tr_losses", "transformers.Trainer._tr_loss", "no_such_library.function")
    monkeypatch.setattr(upstream, "RELIANCES", (Reliance("resume would fail", attributes=names),))
    assert differences() == [f"{name} is gone: resume would fail" for name in (names[0], names[2])]


# --- the list is complete --------------------------------------------------------------------------------------------
@cache
def subclasses() -> list[type]:
    """The classes of lmtrain with a base class in another library."""
    modules = (m.name for m in pkgutil.walk_packages(package.__path__, "lmtrain.") if not m.name.endswith("__main__"))
    owned = [
        own
        for module in map(importlib.import_module, modules)
        for own in vars(module).values()
        if inspect.isclass(own) and own.__module__ == module.__name__
    ]
    return [own for own in owned if any(is_upstream(base) for base in own.__mro__)]


def is_upstream(base: type) -> bool:
    made_to_be_overridden = (torch.nn.Module, torch.autograd.Function, torch.autograd.function._SingleLevelFunction)
    return base.__module__.partition(".")[0] in LIBRARIES and base not in made_to_be_overridden


def overrides() -> Iterator[tuple[type, str]]:
    """(class of lmtrain, name of a function that a base class in another library has as well)."""
    for own in subclasses():
        for name, value in vars(own).items():
            upstream = any(name in vars(base) for base in own.__mro__[1:] if is_upstream(base))
            ours = (
                inspect.isfunction(value) and value.__module__ == own.__module__
            )  # `strict` adds a method of its own
            if upstream and ours and (name == "__call__" or not name.startswith("__")):
                yield own, name


def listed_as(own: type, name: str) -> str | None:
    """The entry of an override in the list."""
    entries = (entry for entry in OVERRIDDEN if entry.endswith(f".{name}"))
    return next((entry for entry in entries if resolve(entry.rpartition(".")[0]) in own.__mro__), None)


def test_every_override_is_listed():
    found = [*overrides()]
    assert len(found) > 25
    assert [(own.__name__, name) for own, name in found if listed_as(own, name) is None] == []


def test_every_listed_method_is_overridden_or_replaced():
    found = {listed_as(own, name) for own, name in overrides()}
    replaced = {
        "torch.nn.functional.dropout",
        "transformers.integrations.sdpa_attention.sdpa_attention_forward",
        "transformers.activations.NewGELUActivation.forward",
        "huggingface_hub.utils._http.default_client_factory",
    }
    assert found == {*OVERRIDDEN} - replaced


def test_every_override_takes_what_is_listed():
    for own, name in overrides():
        entry = str(listed_as(own, name))
        parameters = inspect.signature(getattr(own, name)).parameters
        passes_on = any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters.values())
        listed = [parameter for parameter in OVERRIDDEN[entry].split(", ") if parameter]
        assert passes_on == ("..." in listed), entry
        assert passes_on or [*parameters][1 : len(listed) + 1] == listed, entry


def test_every_attribute_that_is_shared_with_trainer_is_listed():
    shared = {
        name
        for own in (ExactTrainer, CheckpointingTrainer)
        for name in assigned(own)
        if name in instance_attributes(transformers.Trainer) or hasattr(transformers.Trainer, name)
    }
    assert {name for name in shared if f"transformers.Trainer.{name}" not in LISTED} == set()


def test_every_private_name_of_another_library_is_listed():
    trees = [ast.parse(source.read_text(encoding="utf-8")) for source in SOURCES]
    own = {name for tree in trees for node in ast.walk(tree) if (name := defined(node))}
    used = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    private = {name for name in used - own if name.startswith("_") and not name.startswith("__")}
    imported = {
        f"{node.module}.{alias.name}"
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and "._" in f".{node.module}"
        for alias in node.names
    }
    last = {entry.rpartition(".")[2] for entry in LISTED}
    assert private - last == {"_exit", "_run_exitfuncs"}, "those of os and atexit are Python's"
    assert imported - {"__future__.annotations"} <= LISTED


def defined(node: ast.AST) -> str | None:
    """The name that a statement of lmtrain defines, or an attribute that it sets."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return node.attr
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    return None


def test_every_assignment_to_another_library_is_listed():
    found = {name for source in SOURCES for name in replacements(ast.parse(source.read_text(encoding="utf-8")))}
    assert found == {"torch.nn.functional.dropout", "transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS[sdpa]"}
    assert found <= LISTED


def replacements(tree: ast.Module) -> Iterator[str]:
    """The dotted names in other libraries that a module assigns to."""
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute | ast.Subscript) or not isinstance(node.ctx, ast.Store):
            continue
        owner = imported.get(ast.unparse(node.value), "")
        if owner.partition(".")[0] in LIBRARIES:
            yield (
                f"{owner}.{node.attr}"
                if isinstance(node, ast.Attribute)
                else f"{owner}[{ast.literal_eval(node.slice)}]"
            )


ELSEWHERE = (
    "lmtrain.commands.bench",
    "lmtrain.commands.chat",
    "lmtrain.modeling.lstm",
    "lmtrain.training.rendezvous",
)
"""Modules whose overrides a training of GPT-2 does not call."""


# --- the overrides are called ----------------------------------------------------------------------------------------
def test_training_evaluation_saving_and_resuming_call_every_override(material: Path, monkeypatch: pytest.MonkeyPatch):
    calls: Counter[str] = Counter()
    expected = {f"{own.__name__}.{name}": (own, name) for own, name in overrides() if own.__module__ not in ELSEWHERE}
    for key, (own, name) in expected.items():
        monkeypatch.setattr(own, name, counted(getattr(own, name), key, calls))
    often = ["--lr", 0.5, "--lr-scheduler", "constant", "--eval-every", 1, "--save-every", 1]
    data = ["--data", material / "text.jsonl", "--val-split", 0.1, "--samples", 1]
    flags = ["clm", *scratch("gpt2"), *data, *often, "--average", "ema:0.9", "-o", "run"]
    for last in (["--max-steps", 2], ["--max-steps", 3, "--resume", "auto"]):
        outcome = lmtrain(*flags, *last)
        assert outcome.code == 0, outcome.err
    assert "keeping the model of step 1, the best" in outcome.err
    # lmtrain loads the best model itself, after the training.
    assert {key for key in expected if not calls[key]} == {"CheckpointingTrainer._load_best_model"}


def test_training_and_generating_with_an_lstm_calls_every_override_of_its_model(
    material: Path, monkeypatch: pytest.MonkeyPatch
):
    calls: Counter[str] = Counter()
    expected = {
        f"{own.__name__}.{name}": (own, name) for own, name in overrides() if own.__module__ == "lmtrain.modeling.lstm"
    }
    assert len(expected) == 6
    for key, (own, name) in expected.items():
        monkeypatch.setattr(own, name, counted(getattr(own, name), key, calls))
    model = ["--model", "lstm", "--from-scratch", "--model-config", "d_model=16", "--tokenizer", "unigram:60"]
    data = ["--data", material / "pairs.jsonl", "--max-steps", 1, "--samples", 1, "--num-beams", 2]
    outcome = lmtrain("seq2seq", *model, *data, "-o", "run")
    assert outcome.code == 0, outcome.err
    network = transformers.AutoModelForSeq2SeqLM.from_pretrained("run")
    network.resize_token_embeddings(80)
    assert {key for key in expected if not calls[key]} == set()
    assert network.model.encoder.embed_tokens.weight is network.lm_head.weight


def counted(function: Any, key: str, calls: Counter[str]) -> Any:
    """The function, which counts the calls that come from another library."""

    def count(*arguments: Any, **options: Any) -> Any:
        caller = sys._getframe(1).f_globals["__name__"]
        calls[key] += caller.partition(".")[0] in LIBRARIES
        return function(*arguments, **options)

    return count
