"""Parameters without a gradient are found before training, in the graph of a step."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    GPT2Config,
    MixtralConfig,
    T5Config,
)

from lmtrain.modeling.loss import TokenLoss
from lmtrain.modeling.unused_parameters import may_leave_unused

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 30}
T5 = T5Config(d_model=8, d_kv=8, d_ff=8, num_layers=1, num_heads=1, vocab_size=30, decoder_start_token_id=0)
BART = {
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "vocab_size": 30,
}
BART |= {"encoder_attention_heads": 1, "decoder_attention_heads": 1, "pad_token_id": 0}
GPT2 = GPT2Config(n_embd=8, n_layer=2, n_head=1, vocab_size=30, n_positions=16)


def batch() -> dict[str, torch.Tensor]:
    ids = torch.arange(5, 13)[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


@pytest.mark.parametrize(
    ("auto", "config", "expected"),
    [
        (AutoModelForCausalLM, GPT2, False),
        (AutoModelForMaskedLM, BertConfig(**SMALL), False),
        (AutoModelForSeq2SeqLM, T5, False),
        (AutoModelForSeq2SeqLM, BartConfig(**BART), False),
        (AutoModelForSeq2SeqLM, BartConfig(**BART, decoder_layerdrop=0.1), True),
        (AutoModelForCausalLM, MixtralConfig(**SMALL, num_key_value_heads=1, num_local_experts=2), True),
    ],
)
def test_only_models_with_parameters_that_may_be_unused_need_the_search(auto: type, config: object, expected: bool):
    network = auto.from_config(config)
    state, weights = torch.random.get_rng_state(), [p.clone() for p in network.parameters()]
    assert may_leave_unused(network, TokenLoss(1 if auto is AutoModelForCausalLM else 0), batch()) == expected
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(*pair) for pair in zip(weights, network.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_parameter_outside_the_graph_is_found_unless_it_is_frozen():
    network = AutoModelForCausalLM.from_config(GPT2)
    network.extra = torch.nn.Parameter(torch.ones(2))
    assert may_leave_unused(network, TokenLoss(1), batch())
    network.extra.requires_grad_(False)
    assert not may_leave_unused(network, TokenLoss(1), batch())
