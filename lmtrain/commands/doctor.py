"""`lmtrain doctor`: tests on this machine that loss and resume are exact, through the code that training runs."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from lmtrain.commands.exactness import FAMILIES, TOLERANCE, assembled, difference, losses, recipe_for, write_rows
from lmtrain.runs import checkpoint
from lmtrain.runs.checkpoint import ResumePoint
from lmtrain.runs.run_folder import RunFolder
from lmtrain.runtime.console import Console, format_number
from lmtrain.runtime.device import environment
from lmtrain.runtime.upstream import differences
from lmtrain.training.run import stepping

RESUMED = {"clm": "gpt2", "mlm": "bert", "seq2seq": "t5"}
"""Objective -> the family whose resume is tested."""


def resumes() -> dict[str, bool]:
    """Objective -> whether six steps, interrupted after three, end in the same weights as six steps at once."""
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder))
        return {objective: _resumes(family, Path(folder)) for objective, family in RESUMED.items()}


def _resumes(family: str, folder: Path) -> bool:
    run = folder / family
    run.mkdir()
    whole = _six_steps(family, folder, run, ResumePoint())
    resumed = _six_steps(family, folder, run, ResumePoint(checkpoint.path_of(RunFolder(run).checkpoints, 3)))
    return all(torch.equal(whole[name], resumed[name]) for name in whole)


def _six_steps(family: str, folder: Path, run: Path, continued: ResumePoint) -> dict[str, torch.Tensor]:
    recipe = recipe_for(family, folder, batch_size=4, max_steps=6, save_every=3, learning_rate=1e-2)
    trainer = assembled(recipe, run, continued).trainer
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    if continued.checkpoint:
        trainer.recall(continued.checkpoint)
    with stepping(trainer, recipe):
        trainer.train(str(continued.checkpoint) if continued.checkpoint else None)
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def report(processes: int, console: Console) -> dict[str, Any]:
    """Everything that doctor reports, as one document. `processes` share the step in the layouts of several processes."""
    console.note(f"Loss and gradient of {len(FAMILIES)} families in five layouts, then resume: about a minute.")
    table = losses(processes)
    resumed = resumes()
    families = {
        family: {"difference": difference(found), "exact": difference(found) <= TOLERANCE, "figures": found}
        for family, found in table.items()
    }
    return {
        "environment": environment(),
        "loss": families,
        "resume": resumed,
        "upstream": differences(),
        "exact": all(entry["exact"] for entry in families.values()) and all(resumed.values()),
    }


def show(document: dict[str, Any], console: Console) -> None:
    rows = [(name, str(value)) for name, value in document["environment"].items()]
    for family, entry in document["loss"].items():
        loss, norm = entry["figures"]["float64"]
        verdict = "exact" if entry["exact"] else "NOT EXACT"
        layouts = ", ".join(layout for layout in entry["figures"] if layout != "float64")
        agreement = f"{layouts} and float64 differ by {entry['difference']:.0e}: {verdict}"
        rows.append((f"loss, {family}", f"{format_number(loss)}, gradient {format_number(norm)}: {agreement}"))
    for objective, exact in document["resume"].items():
        rows.append((f"resume, {objective}", "bit for bit" if exact else "NOT EXACT"))
    rows += [
        ("upstream", sentence) for sentence in document["upstream"] or ["every name that lmtrain relies on is there"]
    ]
    console.result(document, rows, title="lmtrain doctor")
