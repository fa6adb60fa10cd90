"""Functions of a model in less time: still the same functions."""

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import NewGELUActivation

from lmtrain.kernels import TORCH_ATTENTION, TORCH_DROPOUT, _attention, fuse, quick_dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_that_share_scales_the_rest_and_lets_gradients_through_where_it_kept(rate: float):
    torch.manual_seed(0)
    states = torch.randn(1000, 1001).abs().add(1).requires_grad_()
    with quick_dropout():
        dropped = F.dropout(states, rate, training=True)
        assert F.dropout(states, rate, training=False) is states
    kept = dropped != 0
    assert (~kept).float().mean().item() == pytest.approx(
        rate, abs=4 * (rate * (1 - rate) / states.numel()) ** 0.5 + 1e-5
    )
    assert torch.allclose(dropped[kept], states[kept] / (1 - rate), rtol=1e-3)
    dropped.sum().backward()
    assert torch.equal(states.grad != 0, kept)
    # Neither rows nor columns are alike.
    assert (~kept).float().mean(0).std() < 0.05 and (~kept).float().mean(1).std() < 0.05


def test_dropout_is_a_function_of_torchs_seed_and_ends_with_its_block():
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with quick_dropout():
            drawn.append((F.dropout(torch.ones(100)), F.dropout(torch.ones(100))))
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not torch.equal(drawn[0][0], drawn[2][0]) and not torch.equal(*drawn[0])
    assert F.dropout is TORCH_DROPOUT


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("mask", ["causal", "bool", "float", "none"])
def test_attention_with_next_to_no_dropout_is_that_of_torch(mask: str, heads: int):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, n, 7, 8) for n in (4, heads, heads))
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = mask == "causal", 4 // heads
    allowed = torch.rand(2, 1, 7, 7) > 0.3
    allowed |= torch.eye(7, dtype=torch.bool)
    given = {"bool": allowed, "float": torch.randn(2, 1, 7, 7)}.get(mask)
    expected, _ = TORCH_ATTENTION(module, query, key, value, given)
    found, _ = _attention(module, query, key, value, given, dropout=1e-9)
    assert torch.allclose(found, expected, atol=1e-6)


def test_gelu_in_one_pass_is_gelu_new():
    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50)).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = network(ids).logits
        fuse(network)
        assert not any(isinstance(module, NewGELUActivation) for module in network.modules())
        assert torch.allclose(network(ids).logits, before, atol=1e-6)
