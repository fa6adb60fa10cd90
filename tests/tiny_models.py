"""The tiny models of the tests, in one table: sizes by architecture, a tokenizer for each objective, the flags for both."""

from typing import Any

MODELS = {"clm": "gpt2", "mlm": "bert", "seq2seq": "t5"}
"""Objective -> the architecture that stands for it."""

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BART = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "bert": {**BERT, "max_position_embeddings": 128},
    "roberta": {**BERT, "max_position_embeddings": 130},
    "modernbert": BERT,
    "electra": {**BERT, "embedding_size": 16},
    "convbert": {**BERT, "embedding_size": 16},
    "deberta-v2": BERT,
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
    "bart": {**BART, "max_position_embeddings": 64},
    "pegasus": {**BART, "max_position_embeddings": 64},
    "mbart": BART,
    "m2m_100": BART,
    "blenderbot": BART,
}
"""Architecture -> sizes, with the dropout that it has by default."""

SMALLEST: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 64},
    "t5": {"d_model": 8, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 1},
}
"""Architecture -> sizes where only the handling of inputs is tested."""

TOKENIZERS = {"clm": "bpe:300", "mlm": "wordpiece:200", "seq2seq": "unigram:60"}
"""Objective -> the tokenizer to train."""

T5_1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
"""What T5 v1.1 changes, and so Flan-T5."""

FAMILIES: dict[str, dict[str, tuple[str, dict[str, Any], str | None]]] = {
    "clm": {
        name: (name, {}, None) for name in ("gpt2", "gpt_neo", "opt", "llama", "mistral", "qwen3", "gemma", "phi")
    },
    "mlm": {
        name: (name, {}, None)
        for name in ("bert", "roberta", "xlm-roberta", "distilbert", "albert", "electra", "deberta-v2", "modernbert")
    },
    "seq2seq": {
        "t5": ("t5", {}, None),
        "mt5": ("mt5", {}, None),
        "byt5": ("t5", {}, "byte"),
        "flan-t5": ("t5", T5_1_1, None),
        **{name: (name, {}, None) for name in ("bart", "mbart", "marian", "m2m_100", "pegasus", "prophetnet")},
        "led": ("led", {"attention_window": 8}, None),
        "lstm": ("lstm", {"d_model": 32, "num_layers": 2, "attention": "luong"}, None),
        "bert2bert": ("bert+bert", {}, None),
        "bert2gpt2": ("bert+gpt2", {}, None),
    },
}
"""Objective -> family -> (architecture or encoder+decoder, further sizes, tokenizer if not the usual one)."""


def as_option(sizes: dict[str, Any]) -> str:
    """The sizes as the value of --model-config."""
    values = (f"{name}={value}" for name, value in sizes.items())
    return ",".join(values).replace("'", '"').replace("False", "false")


TINY = {model: as_option(sizes) for model, sizes in SIZES.items()}
"""Architecture -> its sizes as the value of --model-config."""


def scratch(model: str) -> list[str]:
    """The flags that train a tiny gpt2, bert or t5, and its tokenizer, from random weights."""
    objective = next(objective for objective, name in MODELS.items() if name == model)
    sizes, tokenizer = TINY[model], TOKENIZERS[objective]
    return ["--model", model, "--from-scratch", "--model-config", sizes, "--tokenizer", tokenizer]


# Configurations without dropout, so that a loss and its gradient can be compared.

_BART_EXACT = {
    **BART,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
}
_BERT_EXACT = {**BERT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_LLAMA = {**BERT, "num_key_value_heads": 2}
_T5_EXACT = {**SIZES["t5"], "dropout_rate": 0.0}
WITHOUT_DROPOUT: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "clm",
        {"n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "llama": ("clm", _LLAMA),
    "qwen3": ("clm", {**_LLAMA, "head_dim": 16}),
    "mistral": (
        "clm",
        {
            **BERT,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "sliding_window": 8,
        },
    ),
    "gpt_neo": (  # holds a causal mask no larger than its positions
        "clm",
        {
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 64,
            "resid_dropout": 0.0,
            "embed_dropout": 0.0,
            "attention_dropout": 0.0,
        },
    ),
    "opt": (
        "clm",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 64,
            "word_embed_proj_dim": 32,
            "dropout": 0.0,
        },
    ),
    "bloom": (  # makes its positions from an attention mask of ones and zeros
        "clm",
        {"hidden_size": 64, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    ),
    "bert": ("mlm", _BERT_EXACT),
    "roberta": ("mlm", _BERT_EXACT),
    "electra": ("mlm", {**_BERT_EXACT, "embedding_size": 32}),
    "modernbert": ("mlm", {**BERT, "layer_types": ["full_attention", "sliding_attention"], "local_attention": 8}),
    "xlm": ("mlm", {"emb_dim": 32, "n_layers": 2, "n_heads": 2}),  # asserts the shape of its attention mask
    "t5": ("seq2seq", _T5_EXACT),
    "mt5": ("seq2seq", _T5_EXACT),
    **{family: ("seq2seq", _BART_EXACT) for family in ("bart", "marian", "pegasus", "mbart", "m2m_100", "blenderbot")},
    "prophetnet": (
        "seq2seq",
        {
            "hidden_size": 32,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 2,
            "num_decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "ngram": 2,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "activation_dropout": 0.0,
        },
    ),
}
"""Architecture -> (objective, configuration)."""
