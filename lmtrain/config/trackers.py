"""Experiment trackers: the library that each needs, checked before any work."""

from collections.abc import Iterable
from importlib.util import find_spec

from lmtrain.errors import UsageError

LIBRARIES = {
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub",),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Tracker -> the modules of which it needs one. Names that are not here are left to transformers."""


def check_trackers(names: Iterable[str]) -> None:
    """Raise UsageError for a tracker of --report-to whose library is not installed."""
    for name in names:
        modules = LIBRARIES.get(name, ())
        if modules and not any(find_spec(module) for module in modules):
            raise UsageError(
                f"--report-to {name}: {' or '.join(modules)} is not installed; install it with pip, or drop --report-to"
            )
