"""Functions of a model in less time: still the same functions."""

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import NewGELUActivation

from lmtrain.modeling.cpu_kernels import TORCH_ATTENTION, TORCH_DROPOUT, _attention, _texts, fast_dropout, fuse_gelu


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_that_share_scales_the_rest_and_lets_gradients_through_where_it_kept(rate: float):
    torch.manual_seed(0)
    states = torch.randn(1000, 1001).abs().add(1).requires_grad_()
    with fast_dropout():
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
        with fast_dropout():
            drawn.append((F.dropout(torch.ones(100)), F.dropout(torch.ones(100))))
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not torch.equal(drawn[0][0], drawn[2][0]) and not torch.equal(*drawn[0])
    assert F.dropout is TORCH_DROPOUT


LONG = 150
"""More than is treated at once."""
DOCUMENTS = torch.stack([torch.arange(LONG) // 20, (torch.arange(LONG) + 7) // 16])
SAME = (DOCUMENTS[:, :, None] == DOCUMENTS[:, None, :])[:, None]
CLOSE = torch.ones(2, 1, LONG, LONG, dtype=torch.bool).tril().triu(-9)
MASKS = {
    "causal": None,
    "none": None,
    "bool": torch.rand(2, 1, LONG, LONG, generator=torch.Generator().manual_seed(1)) + torch.eye(LONG) > 0.3,
    "padding": (torch.arange(LONG) < torch.tensor([[90], [LONG]]))[:, None, None],
    "documents": SAME,
    "documents, causal": SAME.tril(),
    "documents, one row for all": SAME[:1],
    "documents, a key that none sees": SAME & (torch.arange(LONG) != 100),
    "documents, a window": SAME & CLOSE,
    "window": CLOSE,
    "the one before": CLOSE & torch.ones(LONG, LONG, dtype=torch.bool).triu(-1),
    "float": torch.randn(2, 1, LONG, LONG, generator=torch.Generator().manual_seed(2)),
}


@pytest.mark.parametrize("dropout", [0.0, 1e-9])
@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("mask", MASKS)
def test_attention_with_next_to_no_dropout_is_that_of_torch_and_so_are_its_gradients(
    mask: str, heads: int, dropout: float
):
    torch.manual_seed(0)
    states = [torch.randn(2, n, LONG, 8, requires_grad=True) for n in (4, heads, heads)]
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = mask == "causal", 4 // heads
    outer = torch.randn(2, LONG, 4, 8)
    expected, _ = TORCH_ATTENTION(module, *states, MASKS[mask])
    found, _ = _attention(module, *states, MASKS[mask], dropout=dropout)
    assert torch.allclose(found, expected, atol=1e-6)
    gradients = [torch.autograd.grad(out, states, outer) for out in (expected, found)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_texts_that_share_rows_are_found_where_each_attends_to_a_stretch_of_its_own():
    found = {name: _texts(mask) for name, mask in MASKS.items() if mask is not None}
    apart = {name for name, texts in found.items() if texts}
    assert apart == {"documents", "documents, causal", "documents, one row for all", "documents, a key that none sees"}
    assert found["documents"].mask.shape == (8 + 10, 1, 20, 20)


@pytest.mark.parametrize("masked", [True, False])
def test_the_gradient_of_attention_with_dropout_is_that_of_what_it_computes(masked: bool):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 70, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bias = torch.randn(1, 2, 70, 70, dtype=torch.float64, requires_grad=True)
    module = torch.nn.Module()
    module.is_causal = True

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return _attention(module, query, key, value, None, dropout=0.3, position_bias=None if masked else bias)[0]

    inputs = (query, key, value, bias)
    assert torch.autograd.gradcheck(attention, inputs, fast_mode=True)


def test_attention_drops_that_share_of_what_is_looked_at():
    """Of values that are all one, what comes out is the sum of the weights that are kept, over what is kept on average."""
    torch.manual_seed(0)
    query, key = torch.randn(8, 4, LONG, 8), torch.randn(8, 4, LONG, 8)
    module = torch.nn.Module()
    module.is_causal = True
    out, _ = _attention(module, query, key, torch.ones(8, 4, LONG, 8), None, dropout=0.25)
    assert out.mean().item() == pytest.approx(1, abs=0.01) and out.std() > 0.05
    first = out[:, 0]  # the first query sees one key
    assert first.unique().tolist() == pytest.approx([0, 4 / 3])


def test_gelu_in_one_pass_is_gelu_new():
    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50)).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = network(ids).logits
        fuse_gelu(network)
        assert not any(isinstance(module, NewGELUActivation) for module in network.modules())
        assert torch.allclose(network(ids).logits, before, atol=1e-6)
