"""`lmtrain push`: share a run on the Hugging Face Hub, without its data and without what names this machine."""

import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from lmtrain.config.architectures import ADAPTER, HUB_NAME
from lmtrain.config.loading import read_yaml, to_yaml
from lmtrain.errors import InputError, StorageError, UsageError
from lmtrain.runs.file_names import CARD, METRICS, RECIPE, RESULTS
from lmtrain.runs.report import read_lines
from lmtrain.runs.saved_run import read_run
from lmtrain.runtime.console import Console, to_json
from lmtrain.runtime.redaction import redact, redact_document

MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*config.json",
    "labels.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
)
"""The files that load the model; of the others only the card, the recipe, the results and the log are shared."""

NAMES_OF_MODELS = ("_name_or_path", "name_or_path", "base_model_name_or_path")
"""Keys of configurations that may hold a path."""

PATH = re.compile(r"(?<![^\s'\"=,:\[(])/(?:[^\s'\",:/]+/)+([^\s'\",:/]+)")
"""An absolute path in a text; its group is its last part."""


def push(run: str, repository: str, private: bool, console: Console) -> dict[str, Any]:
    """Upload a completed run and return {repository, url, files}. A second call uploads only what is missing.

    Raises UsageError, InputError for what cannot be shared, StorageError where the hub does not take it.
    """
    if not HUB_NAME.fullmatch(repository) or "/" not in repository:
        raise UsageError(f"{repository}: name the repository as org/name")
    folder = Path(run)
    saved = read_run(run)
    if not folder.is_dir() or saved.results.get("status") != "completed":
        raise InputError(f"{run}: not the folder of a completed run")
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"{run}: holds no weights")
    _warn_of_base(folder, console)
    with shared_files(folder) as shared:
        files = sorted(path.name for path in shared.iterdir())
        size = sum(path.stat().st_size for path in shared.iterdir())
        console.note(f"{len(files)} files, {size / 1e6:,.1f} MB: {', '.join(files)}")
        url = _upload(shared, repository, private, console)
    return {"repository": repository, "url": url, "files": files}


def _warn_of_base(folder: Path, console: Console) -> None:
    """Warn where the base of an adapter is on this machine alone."""
    if (folder / ADAPTER).is_file():
        base = str(json.loads((folder / ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
        if base and Path(base).exists():
            console.warn(
                f"the base of this adapter, {base}, is a local folder, so others cannot load it: push the base, too, or merge"
            )


@contextmanager
def shared_files(folder: Path) -> Iterator[Path]:
    """A temporary folder with what is shared: model, card, recipe, results and log, without paths of this machine."""
    with tempfile.TemporaryDirectory(prefix="lmtrain-push-") as made:
        shared = Path(made)
        for file in {file for pattern in MODEL_FILES for file in folder.glob(pattern) if file.is_file()}:
            _place(file, shared / file.name)
        for name in (CARD, RECIPE, RESULTS, METRICS):
            if (folder / name).is_file():
                (shared / name).write_text(_cleaned_text(folder / name), encoding="utf-8")
        yield shared


def _place(file: Path, place: Path) -> None:
    """Link a file of the model; a configuration is written anew, without local paths."""
    if file.name.endswith("config.json"):
        document = _without_local_models(json.loads(file.read_text(encoding="utf-8")))
        place.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    try:
        os.link(file, place)
    except OSError:  # another file system
        shutil.copyfile(file, place)


def _without_local_models(value: Any) -> Any:
    """A configuration in which models and files that are on this machine are named by their last parts."""
    if isinstance(value, list):
        return [_without_local_models(inner) for inner in value]
    if not isinstance(value, dict):
        return PurePath(value).name if isinstance(value, str) and _is_absolute(value) else value
    return {
        key: PurePath(inner).name
        if key in NAMES_OF_MODELS and isinstance(inner, str) and inner and Path(inner).exists()
        else inner
        if key == "chat_template"
        else _without_local_models(inner)
        for key, inner in value.items()
    }


def _is_absolute(text: str) -> bool:
    return "\n" not in text and text.count("/") > 1 and PurePath(text.removeprefix("file://")).is_absolute()


def _cleaned_text(file: Path) -> str:
    """The text of a file with the last parts of absolute paths only, and without secrets."""
    if file.name == RECIPE:
        return to_yaml(without_paths(redact_document(read_yaml(file))))
    if file.name == RESULTS:
        results = redact_document(json.loads(file.read_text(encoding="utf-8")))
        if command := results.get("command"):
            results["command"] = _cleaned_command(command)
        return to_json(without_paths(results), indent=2) + "\n"
    if file.name == METRICS:  # a step that was not finite names rows of the data
        events = ({k: v for k, v in event.items() if k != "rows"} for event in read_lines(file))
        return "".join(to_json(without_paths(redact_document(event))) + "\n" for event in events)
    return without_paths(redact(file.read_text(encoding="utf-8")))


def _cleaned_command(command: str) -> str:
    """A command line whose words that are absolute paths are file names."""
    try:
        words = shlex.split(command)
    except ValueError:
        return "lmtrain"
    return shlex.join(without_paths(word) for word in words)


def without_paths(value: Any) -> Any:
    """A document in which every absolute path is shortened to its last part."""
    if isinstance(value, str):
        return PurePath(value).name if _is_absolute(value) else PATH.sub(r"\1", value)
    if isinstance(value, dict):
        return {key: without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(inner) for inner in value]
    return value


def _upload(folder: Path, repository: str, private: bool, console: Console) -> str:
    """Create the repository if it is missing and upload the folder; the address. Raises StorageError, UsageError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    try:
        with console.working(f"uploading to {repository}"):
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload by lmtrain push")
    except LocalTokenNotFoundError:
        raise UsageError("the hub needs a token: `hf auth login`, or the variable HF_TOKEN") from None
    except OfflineModeIsEnabled:
        raise UsageError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise UsageError(
                f"{repository}: the hub refuses the token ({status}); does it have write access to this name?"
            ) from None
        raise StorageError(
            f"{repository}: the hub answers {redact(str(error).splitlines()[0])}; the same command goes on"
        ) from None
    except RuntimeError as error:  # a file was not sent; the client says why in the cause
        why = redact(str(error.__cause__ or error).splitlines()[0])
        raise StorageError(f"{repository}: {error} {why}; the same command goes on") from None
    except OSError as error:
        raise StorageError(
            f"{repository}: the hub cannot be reached ({redact(str(error))}); the same command goes on"
        ) from None
    return str(commit.commit_url if hasattr(commit, "commit_url") else commit)
