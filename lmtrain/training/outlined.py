"""A training's data and batches beside the outline of its network, without weights: for `preview` and `plan`."""

from dataclasses import dataclass

from transformers import PretrainedConfig

from lmtrain.config.recipe import Recipe
from lmtrain.data.corpus import Corpus
from lmtrain.modeling.configuration import load_config
from lmtrain.modeling.document_mask import Packing, assume_packing
from lmtrain.modeling.padding_free import is_applicable, row_width
from lmtrain.objectives.objective import OBJECTIVES, Objective
from lmtrain.preprocessing.batch import Collator
from lmtrain.preprocessing.sampler import BatchSampler
from lmtrain.preprocessing.stream import Stream
from lmtrain.runs.saved_run import check_labels
from lmtrain.runtime.console import Console
from lmtrain.training.datasets import PreparedData, prepare_data, training_batches
from lmtrain.training.loaded_model import LoadedModel, load_model


@dataclass(frozen=True)
class Outlined:
    """What training would work on.

    What training tries out on weights is assumed: that the model separates texts which share rows, that its batches can be
    padding-free, and that it does not depend on padding (ProphetNet does: it is trained on rows of full length).
    """

    objective: Objective
    config: PretrainedConfig
    model: LoadedModel
    packing: Packing
    collator: Collator
    data: PreparedData
    width: int | None
    """Tokens in a row of padding-free batches; None where they are padded."""
    batches: BatchSampler | Stream


def outline_training(recipe: Recipe, corpus: Corpus, processes: int, console: Console) -> Outlined:
    """Make the batches of the first of some `processes` as training makes them. Raises as training does."""
    config = load_config(recipe.model, recipe.objective)
    objective = OBJECTIVES[recipe.objective].fitted(
        config, corpus.kind, check_labels(recipe.model.name, corpus.kind, corpus.labels)
    )
    model = load_model(recipe, config, objective, corpus, console, weights=False)
    packing = assume_packing(recipe.data, corpus.kind)
    collator = objective.collator(model.tokenizer, recipe.data, recipe.train.seed)
    with console.working("tokenising the data"):
        data = prepare_data(corpus, objective, model.tokenizer, collator, packing.data, model.limits)
    padding_free = is_applicable(recipe, packing.data, corpus.kind)
    width = row_width(model.network) if padding_free else None
    batches = training_batches(
        recipe, corpus, objective, model.tokenizer, packing, data, collator, (0, processes), width
    )
    return Outlined(objective, config, model, packing, collator, data, width, batches)
