"""TODO."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import set_seed

from lmtrain.commands.probe.encoder import Encoder, Ids
from lmtrain.runtime.console import Console

GRADIENT = 1e-5
"""Where no derivative of the mean loss is larger, the regression has converged."""
ROUNDS, STEPS = 100, 10
"""Of L-BFGS: rounds of so many steps at most."""
ROUNDING = 1e-6
"""Relative: smaller differences between features in float32 say nothing."""
WARMUP = 0.1
"""The share of fine-tuning's steps in which the learning rate rises."""


def train_on_frozen(
    encoder: Encoder, train: Ids, targets: np.ndarray, held: Ids, classes: int, section: Any, console: Console
) -> tuple[np.ndarray, dict[str, Any]]:
    """(the classes of the held-out vectors by a logistic regression on the frozen encoder's features, its settings)."""
    seen = encoder.features(train, section.batch_size, console, "encoding the training data")
    new = encoder.features(held, section.batch_size, console, "encoding the evaluation data")
    mean, deviation = seen.mean(0), seen.std(0)
    deviation[deviation <= ROUNDING * np.abs(seen).max(0)] = 1.0  # it does not vary, but for rounding
    for vectors in (seen, new):
        vectors -= mean
        vectors /= deviation
    weight, bias = regression(torch.from_numpy(seen), torch.from_numpy(targets), classes, section.l2, console)
    return (torch.from_numpy(new) @ weight + bias).argmax(1).numpy(), {"l2": section.l2}


def regression(
    vectors: torch.Tensor, targets: torch.Tensor, classes: int, l2: float, console: Console
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights [d, classes], biases [classes]) of the multinomial logistic regression on `vectors` [n, d] float64.

    They minimise the mean negative log-likelihood + l2 / 2n · |weights|²; the biases are not held down. From zero by L-BFGS
    on all rows at once, so that nothing is left to chance.
    """
    weight = torch.zeros(vectors.shape[1], classes, dtype=vectors.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=vectors.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, tolerance_grad=GRADIENT, tolerance_change=0.0,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(vectors @ weight + bias, targets) + l2 / (2 * len(vectors)) * weight.square().sum()
        value.backward()
        return value

    for _ in console.track(range(ROUNDS), "fitting the regression"):
        optimizer.step(loss)  # type: ignore[arg-type]
        loss()
        if max(float(part.grad.abs().max()) for part in (weight, bias)) <= GRADIENT:  # type: ignore[union-attr]
            break
    else:
        console.warn(f"the regression has not converged in {ROUNDS * STEPS:,} steps; a larger --l2 makes it easier")
    return weight.detach(), bias.detach()


def fine_tune(
    encoder: Encoder, train: Ids, targets: np.ndarray, held: Ids, classes: int, section: Any, console: Console
) -> tuple[np.ndarray, dict[str, Any]]:
    """(the classes of the held-out vectors by encoder and linear layer, trained together, their settings)."""
    set_seed(section.seed)
    network = encoder.network.train()
    width = encoder.vectors(train.ids[:1], None).shape[1]
    head = torch.nn.Linear(width, classes).to(encoder.device)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    parameters = [*network.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=section.learning_rate)
    orders = [
        np.random.default_rng((section.seed, epoch)).permutation(len(train.ids)) for epoch in range(section.epochs)
    ]
    batches = [batch for order in orders for batch in encoder.batches_of(order, section.batch_size)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step, len(batches)))
    for rows in console.track(batches, "fine-tuning"):
        numbers = train.numbers(rows)
        if not len(numbers):
            continue
        wanted = torch.from_numpy(targets[numbers]).to(encoder.device)
        F.cross_entropy(head(encoder.vectors(*train.of(rows))), wanted).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    new = encoder.features(held, section.batch_size, console, "encoding the evaluation data")
    weight, bias = (part.detach().double().cpu() for part in (head.weight, head.bias))
    guesses = (torch.from_numpy(new) @ weight.T + bias).argmax(1).numpy()
    settings = {
        "epochs": section.epochs,
        "lr": section.learning_rate,
        "batch": section.batch_size,
        "seed": section.seed,
    }
    return guesses, settings


def _share_of_rate(step: int, steps: int) -> float:
    """Of the peak learning rate: it rises, and falls to 0, in straight lines."""
    rise = WARMUP * steps
    return (step + 1) / (rise + 1) if step < rise else (steps - step) / max(steps - rise, 1)
