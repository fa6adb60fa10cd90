"""The cross entropy without the logits of a batch matches torch's in float64."""

import pytest
import torch
import torch.nn.functional as F

from lmtrain.modeling import linear_cross_entropy


@pytest.fixture(autouse=True)
def few_rows_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(linear_cross_entropy.CELLS, "cpu", 1)
    monkeypatch.setattr(linear_cross_entropy, "FEWEST", 64)
    monkeypatch.setattr(linear_cross_entropy, "WIDTH", 16)


@pytest.mark.parametrize("rows", [1, 64, 200])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("bias", "later"), [(False, False), (True, False), (False, True), (True, True)])
def test_loss_and_gradients_match_whole_logits(bias: bool, later: bool, smoothing: float, rows: int):
    torch.manual_seed(0)
    head, states = torch.nn.Linear(16, 37, bias=bias), torch.randn(rows, 16, requires_grad=True)
    labels, scale = torch.randint(37, (rows,)), torch.tensor(1 / 123)
    more = torch.randn(37) if later else None
    loss = linear_cross_entropy.cross_entropy(states, head, labels, scale, smoothing, more)
    (3 * loss).backward()
    found = [states.grad, *(p.grad for p in head.parameters())]

    weights = [t.detach().double().requires_grad_() for t in (states, *head.parameters())]
    logits = F.linear(*weights) + (0 if more is None else more.double())
    expected = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing) * scale.double()
    (3 * expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for own, other in zip(found, weights, strict=True):
        assert torch.allclose(own.double(), other.grad, rtol=1e-4, atol=1e-6)


def test_frozen_head_gets_no_gradient_and_no_rows_give_no_loss():
    head, states = torch.nn.Linear(16, 37).requires_grad_(False), torch.randn(5, 16, requires_grad=True)
    linear_cross_entropy.cross_entropy(states, head, torch.arange(5), torch.tensor(1.0)).backward()
    assert head.weight.grad is None and states.grad.abs().sum() > 0
    head.requires_grad_(True)
    loss = linear_cross_entropy.cross_entropy(states[:0], head, torch.arange(0), torch.tensor(1.0))
    loss.backward()
    assert loss == 0 and not head.weight.grad.any()
