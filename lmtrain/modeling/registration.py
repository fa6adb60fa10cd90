"""The model types that lmtrain adds to transformers.

`import lmtrain` does not import transformers, which takes seconds. So a finder waits for the module that holds transformers'
table of configurations, and fills it as soon as that is loaded. The models follow with the first configuration, so that a
command that needs none does not import them.
"""

import sys
from collections.abc import Callable
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

CONFIGURATIONS = "transformers.models.auto.configuration_auto"


def register_when_imported() -> None:
    """Register the configurations with transformers: at once if it is there, otherwise when it is imported."""
    if module := sys.modules.get(CONFIGURATIONS):
        _register_configurations(module)
    else:
        sys.meta_path.insert(0, _Waiting(CONFIGURATIONS, _register_configurations))


def _register_configurations(auto: ModuleType) -> None:
    from lmtrain.modeling.lstm_config import LSTMConfig

    auto.AutoConfig.register(LSTMConfig.model_type, LSTMConfig, exist_ok=True)


@cache
def register_models() -> None:
    """Register the models of these configurations, once."""
    from transformers import AutoModel, AutoModelForSeq2SeqLM

    from lmtrain.modeling.lstm import LSTMForConditionalGeneration, LSTMModel
    from lmtrain.modeling.lstm_config import LSTMConfig

    AutoModel.register(LSTMConfig, LSTMModel, exist_ok=True)
    AutoModelForSeq2SeqLM.register(LSTMConfig, LSTMForConditionalGeneration, exist_ok=True)


class _Waiting(MetaPathFinder):
    """Finds one module as Python would, and calls `then` with it when it is loaded."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]):
        self.name, self.then = name, then

    def find_spec(self, fullname: str, *_: Any) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec and spec.loader:
            spec.loader = _Then(spec.loader, self.then)
        return spec


class _Then(Loader):
    def __init__(self, loader: Loader, then: Callable[[ModuleType], None]):
        self.loader, self.then = loader, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        if module.__spec__:
            module.__spec__.loader = self.loader
        self.then(module)
