"""Train causal, masked and sequence-to-sequence language models, from the command line or from Python, with an exact loss."""

from typing import TYPE_CHECKING, Any

from lmtrain.modeling.registration import register_when_imported
from lmtrain.version import __version__

if TYPE_CHECKING:
    from lmtrain.api import Results, evaluate, generate, load_recipe, train
    from lmtrain.config.recipe import Recipe

__all__ = ["Recipe", "Results", "__version__", "evaluate", "generate", "load_recipe", "train"]

register_when_imported()


def __getattr__(name: str) -> Any:
    """Import the API when it is first used: `import lmtrain` takes no time."""
    if name not in __all__:
        raise AttributeError(f"module 'lmtrain' has no attribute {name!r}")
    from lmtrain import api

    return getattr(api, name)
