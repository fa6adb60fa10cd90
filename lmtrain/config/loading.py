"""Recipe files, environment variables and `--set`, merged into a frozen recipe."""

import os
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from lmtrain.config.options import ONLY_TYPED, Section, leaves
from lmtrain.config.recipe import DECLARED, RECIPES, Clm
from lmtrain.config.training_arguments import OURS, training_arguments
from lmtrain.config.values import Document, Every, parse_yaml, yaml_format
from lmtrain.errors import InputError, UsageError, suggestion, visible
from lmtrain.runtime.processes import FSDP
from lmtrain.runtime.redaction import is_secret_name

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Built = TypeVar("Built", bound=Section)


def read_yaml(path: Path) -> Document:
    """Read a recipe file.

    Raises InputError, with the line, for a file that is not YAML, repeats a key or does not hold a mapping.
    """
    from ruamel.yaml.error import YAMLError

    try:
        document = yaml_format().load(path.read_text(encoding="utf-8-sig"))
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
    stream = StringIO()
    yaml = yaml_format()
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 1000
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared as None
    yaml.dump(document, stream)
    return stream.getvalue()


def objective_of(document: Document, where: str) -> str:
    """The objective of a recipe document. Raises UsageError if it is missing or unknown."""
    objective = document.get("objective", document.get("task"))
    if objective not in RECIPES:
        got = "it is missing" if objective is None else f"got {objective!r}"
        raise UsageError(f"{where}: objective must be clm, mlm, seq2seq or classify; {got}")
    return str(objective)


def in_sections(document: Document, recipe_class: type[Section], where: str) -> Document:
    """Move every key to its section, under the name of its field.

    A key may be in its section, or at the top level under the name of its flag. Raises UsageError, naming all of them,
    for keys that are unknown or given twice under two names. `where` names the document in messages.
    """
    result: Document = {}
    problems = []
    for section, key, value in _entries(document, {leaf.section for leaf in leaves(recipe_class)}):
        try:
            if key in ("objective", "task") and section is None:
                result["objective"] = value
                continue
            target, name = _locate(recipe_class, section, key, value)
            if (target, name) in ONLY_TYPED and value:
                raise UsageError("can only be given as a flag on the command line")
            if name in result.setdefault(target, {}):
                raise UsageError("given twice, under two names")
            result[target][name] = value
        except UsageError as error:
            problems.append(f"{where}: {f'{section}.' if section else ''}{key}: {error}")
    if problems:
        raise UsageError("\n".join(problems))
    return result


def _entries(document: Document, sections: set[str]) -> Iterator[tuple[str | None, str, object]]:
    """(section or None for the top level, key, value) of every entry."""
    for key, value in document.items():
        if key == "gates" and isinstance(value, list | str):  # short form: `gates: [perplexity<25]`
            yield "gates", "assert", value
        elif key in sections and (isinstance(value, dict) or value is None):
            yield from ((key, str(name).replace("-", "_"), inner) for name, inner in (value or {}).items())
        else:
            yield None, str(key).replace("-", "_"), value


def _locate(recipe_class: type[Section], section: str | None, key: str, value: object) -> tuple[str, str]:
    """The (section, field) that a key names."""
    if is_secret_name(key):
        raise UsageError(
            "a secret has no place in a recipe, which is kept with the run; use `hf auth login` or HF_TOKEN"
        )
    candidates = [leaf for leaf in leaves(recipe_class) if section in (None, leaf.section)]
    for leaf in candidates:
        # At the top level, `batch_size` is the flag --batch-size and not eval.batch_size, whose flag has another name.
        if key in ((leaf.flag, *leaf.aliases) if section is None else leaf.names):
            return leaf.section, leaf.name
    if section == "train":
        _check_training_argument(key, value)
        return section, key
    elsewhere = [name for name, other in RECIPES.items() if key in {leaf.flag for leaf in leaves(other)}]
    if section is None and elsewhere:
        raise UsageError(f"an option of {' and '.join(elsewhere)} only")
    known = {name for leaf in candidates for name in leaf.names} | (set() if section else {"objective"})
    raise UsageError(f"no such key{suggestion(key, known)}")


def _check_training_argument(key: str, value: object) -> None:
    """Raise UsageError unless `key` is a field of TrainingArguments that accepts `value`."""
    own = {name for leaf in leaves(Clm) if leaf.section == "train" for name in leaf.names}
    if key in OURS:
        raise UsageError(f"lmtrain sets this itself, from {OURS[key]}")
    if key not in training_arguments():
        raise UsageError(f"no such key{suggestion(key, own | (set(training_arguments()) - set(OURS)))}")
    expected = {"int": int, "float": int | float, "bool": bool, "str": str}.get(training_arguments()[key])
    if expected and not isinstance(value, expected):
        raise UsageError(f"should be {training_arguments()[key]}, got {value!r}")


def merge(*documents: Document) -> Document:
    """Merge documents whose keys are in sections; each value of a later one overrides that of an earlier one."""
    result: Document = {}
    for document in documents:
        for section, content in document.items():
            result[section] = {**result.get(section, {}), **content} if isinstance(content, dict) else content
    return result


def from_environment(recipe_class: type[Section], environment: Mapping[str, str] = os.environ) -> Document:
    """The options that `LMTRAIN_<FLAG>` variables set, if the objective has them. Raises UsageError for unknown ones."""
    own = {name.upper(): leaf for leaf in leaves(recipe_class) for name in (leaf.flag, *leaf.aliases)}
    everywhere = {name.upper() for other in DECLARED for leaf in leaves(other) for name in (leaf.flag, *leaf.aliases)}
    document = {name: value for name, value in _from_accelerate(environment).items() if name.upper() in own}
    for variable, text in environment.items():
        name = variable.removeprefix("LMTRAIN_")
        if name == variable:
            continue
        if name not in everywhere and name not in own:
            raise UsageError(f"{variable}: no such option{suggestion(name, everywhere)} in the environment")
        if name in own:
            document[own[name].flag] = own[name].read(text)
    return in_sections(document, recipe_class, "environment")


def _from_accelerate(environment: Mapping[str, str]) -> Document:
    """The options that say what accelerate's launcher was configured to do."""
    fsdp, offload = (environment.get(name, "").lower() == "true" for name in (FSDP, "FSDP_OFFLOAD_PARAMS"))
    return {"shard": "fsdp2", "shard_offload": offload} if fsdp else {}


def from_assignments(assignments: list[str], recipe_class: type[Section]) -> Document:
    """The options that `--set section.key=value` sets; values are read as YAML. Raises UsageError."""
    result: Document = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        section, dot, key = path.strip().partition(".")
        if not equals or not dot:
            raise UsageError(f"--set {visible(assignment)}: write it as section.key=value, e.g. train.adam_beta2=0.98")
        if section not in {leaf.section for leaf in leaves(recipe_class)}:
            sections = ", ".join(dict.fromkeys(leaf.section for leaf in leaves(recipe_class)))
            raise UsageError(f"--set {path}: no section {section!r}; there are {sections}")
        leaf = next((x for x in leaves(recipe_class) if x.section == section and key in x.names), None)
        value = leaf.read(text) if leaf else parse_yaml(text)
        result = merge(result, in_sections({section: {key: value}}, recipe_class, "--set"))
    return result


def build(recipe_class: type[Built], document: Document, where: str) -> Built:
    """The recipe of a merged document. Raises UsageError, naming every invalid value."""
    document = {**document, "model": document.get("model", {}), "data": document.get("data", {})}
    try:
        return recipe_class.model_validate(document)
    except ValidationError as error:
        lines = list(dict.fromkeys(_problem(recipe_class, problem) for problem in error.errors()))
        raise UsageError("\n".join(f"{where}: {line}" for line in lines)) from None


def _problem(recipe_class: type[Section], problem: "ErrorDetails") -> str:
    """A sentence about one error of pydantic."""
    location = [str(part) for part in problem["loc"]]
    path = ".".join(location[:2])
    leaf = next((x for x in leaves(recipe_class) if [x.section, x.name] == location[:2]), None)
    flag = f" (--{leaf.flag.replace('_', '-')})" if leaf else ""
    if problem["type"] == "missing":
        return f"{path}{flag} is required"
    if leaf and leaf.field.annotation == Every:
        return f"{path}{flag}: should be a number of steps above 0 or 'epoch', got {problem['input']!r}"
    message = problem["msg"].removeprefix("Value error, ")
    if len(location) <= 1:  # from one of our own validators, which name the flag
        return message
    return f"{path}{flag}: {message[0].lower()}{message[1:]}, got {problem['input']!r}"
