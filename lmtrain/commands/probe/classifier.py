"""Classifiers on the vectors of an encoder: a logistic regression on frozen features, or fine-tuning."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import set_seed

from lmtrain.commands.probe.encoder import EncodedRows, Encoder, batches_of
from lmtrain.config.eval import Probing
from lmtrain.runtime.console import Console

GRADIENT_TOLERANCE = 1e-5
"""The regression has converged if no partial derivative of its mean loss is larger."""
LBFGS_ROUNDS, LBFGS_STEPS = 100, 10
"""L-BFGS runs at most so many rounds of so many steps; convergence is checked after each round."""
ROUNDING = 1e-6
"""A feature whose standard deviation is smaller, relative to its largest value, is constant up to float32 rounding."""
WARMUP = 0.1
"""Share of the fine-tuning steps in which the learning rate rises."""


def train_on_frozen(
    encoder: Encoder,
    train: EncodedRows,
    targets: np.ndarray,
    held_out: EncodedRows,
    classes: int,
    section: Probing,
    console: Console,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Fit a logistic regression on standardized features of the frozen encoder; `targets` [vectors] are class indices.

    Returns the predicted class of each vector of `held_out` and the settings for the signature.
    """
    features = encoder.features(train, section.batch_size, console, "encoding the training data")
    new = encoder.features(held_out, section.batch_size, console, "encoding the evaluation data")
    mean, deviation = features.mean(0), features.std(0)
    deviation[deviation <= ROUNDING * np.abs(features).max(0)] = 1.0
    for vectors in (features, new):
        vectors -= mean
        vectors /= deviation
    weight, bias = regression(torch.from_numpy(features), torch.from_numpy(targets), classes, section.l2, console)
    return (torch.from_numpy(new) @ weight + bias).argmax(1).numpy(), {"l2": section.l2}


def regression(
    vectors: torch.Tensor, targets: torch.Tensor, classes: int, l2: float, console: Console
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights [d, classes], biases [classes]) of a multinomial logistic regression on `vectors` [n, d] float64.

    Minimizes mean negative log-likelihood + l2 / 2n · ‖weights‖², with unpenalized biases, by full-batch L-BFGS from
    zero; nothing is random.
    """
    weight = torch.zeros(vectors.shape[1], classes, dtype=vectors.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=vectors.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=LBFGS_STEPS,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(vectors @ weight + bias, targets) + l2 / (2 * len(vectors)) * weight.square().sum()
        value.backward()
        return value

    for _ in console.track(range(LBFGS_ROUNDS), "fitting the regression"):
        optimizer.step(loss)
        loss()
        if max(float(part.grad.abs().max()) for part in (weight, bias)) <= GRADIENT_TOLERANCE:  # type: ignore[union-attr]
            break
    else:
        steps = LBFGS_ROUNDS * LBFGS_STEPS
        console.warn(f"the regression did not converge in {steps:,} steps; a larger --l2 makes it easier")
    return weight.detach(), bias.detach()


def fine_tune(
    encoder: Encoder,
    train: EncodedRows,
    targets: np.ndarray,
    held_out: EncodedRows,
    classes: int,
    section: Probing,
    console: Console,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Train the encoder together with a linear layer by AdamW; `targets` [vectors] are class indices.

    Returns the predicted class of each vector of `held_out` and the settings for the signature.
    """
    set_seed(section.seed)
    network = encoder.network.train()
    width = encoder.vectors(train.ids[:1], None).shape[1]
    head = torch.nn.Linear(width, classes).to(encoder.device)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    parameters = [*network.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=section.learning_rate)
    batches = _shuffled_batches(len(train.ids), section)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, len(batches)))
    for rows in console.track(batches, "fine-tuning"):
        indices = train.vector_indices(rows)
        if not len(indices):
            continue
        own_targets = torch.from_numpy(targets[indices]).to(encoder.device)
        F.cross_entropy(head(encoder.vectors(*train.batch(rows))), own_targets).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    features = encoder.features(held_out, section.batch_size, console, "encoding the evaluation data")
    weight, bias = (part.detach().double().cpu() for part in (head.weight, head.bias))
    predictions = (torch.from_numpy(features) @ weight.T + bias).argmax(1).numpy()
    settings = {
        "epochs": section.epochs,
        "lr": section.learning_rate,
        "batch": section.batch_size,
        "seed": section.seed,
    }
    return predictions, settings


def _shuffled_batches(rows: int, section: Probing) -> list[list[int]]:
    """The batches of all epochs, each epoch in an order of its own."""
    orders = [np.random.default_rng((section.seed, epoch)).permutation(rows) for epoch in range(section.epochs)]
    return [batch for order in orders for batch in batches_of(order, section.batch_size)]


def _learning_rate_factor(step: int, steps: int) -> float:
    """Linear warmup to 1, then linear decay to 0."""
    warmup = WARMUP * steps
    return (step + 1) / (warmup + 1) if step < warmup else (steps - step) / max(steps - warmup, 1)
