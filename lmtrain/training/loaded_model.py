"""The tokenizer and the network of a run, loaded as its recipe says."""

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from lmtrain.config.model import Model
from lmtrain.config.recipe import Recipe
from lmtrain.data.corpus import Corpus
from lmtrain.errors import InputError
from lmtrain.modeling.classifier_head import set_head
from lmtrain.modeling.configuration import LOADING, sized_config
from lmtrain.modeling.network import check_vocabulary, load_network, positions
from lmtrain.modeling.tokenizer import load_tokenizer
from lmtrain.objectives.objective import Objective
from lmtrain.preprocessing import chat
from lmtrain.preprocessing.dataset import Limits
from lmtrain.runtime.console import Console
from lmtrain.training.datasets import learn_tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A model with its configuration and tokenizer."""

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    network: PreTrainedModel
    notes: list[str]
    warnings: list[str]

    @property
    def limits(self) -> Limits:
        """The number of positions of the model, before any length is resolved."""
        return Limits(positions(self.network))


def load_model(
    recipe: Recipe,
    config: PretrainedConfig,
    objective: Objective,
    corpus: Corpus | None,
    console: Console,
    kind: str | None = None,
    weights: bool = True,
) -> LoadedModel:
    """Load the tokenizer, or train it on the `corpus`, and the network; without `weights`, on the meta device.

    `kind` is the kind of the rows where there is no corpus. Raises InputError, UsageError.
    """
    set_seed(recipe.train.seed)

    def learn(specification: str) -> PreTrainedTokenizerBase:
        assert corpus, "only training trains a tokenizer"
        return learn_tokenizer(specification, corpus, objective.special_tokens_for(recipe.data))

    kind = corpus.kind if corpus else kind
    with console.working("loading the tokenizer"):
        tokenizer, tokenizer_notes, warnings = load_tokenizer(recipe.model, kind, learn)
    if corpus:
        objective.check_tokenizer(tokenizer, recipe.data)
    with console.working("loading the model"):
        if weights:
            network, notes = load_network(
                recipe.model,
                config,
                tokenizer,
                objective.auto_model,
                objective.task_type if corpus else None,
                kernels=recipe.train.fast_kernels,
                head=objective.head,
            )
        else:
            network, notes = outline(recipe.model, config, tokenizer, objective), []
    if corpus and weights and kind == "messages":
        network.generation_config.eos_token_id = chat.end_ids(tokenizer)  # an answer ends where its turn does
    return LoadedModel(config, tokenizer, network, [*tokenizer_notes, *notes], warnings)


def outline(
    model: Model, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, objective: Objective
) -> PreTrainedModel:
    """The network on the meta device, without weights. Raises InputError as loading it would."""
    config = sized_config(config, model, tokenizer) if model.from_scratch else config
    set_head(config, objective.head)
    try:
        with torch.device("meta"):
            network: PreTrainedModel = objective.auto_model.from_config(
                config, trust_remote_code=model.trust_remote_code
            )
    except LOADING as error:
        raise InputError(f"{model.name}: no {config.model_type} can be built like this: {error}") from None
    check_vocabulary(network, tokenizer, model.name)
    return network
