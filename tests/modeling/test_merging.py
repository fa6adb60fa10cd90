"""Adapters of other tools, merged: the model gives the logits of the adapter, or the adapter is refused in a sentence."""

import json
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import pytest
import torch
from conftest import lmtrain, trained
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from lmtrain.config.model import Model
from lmtrain.modeling.tokenizer import added_tokens

ENTRIES, ROWS = 60, 72
"""Of the tokenizer, and of the table of embeddings where it is padded."""

SPECIALS = ["<pad>", "</s>", "<unk>", "<s>", "[MASK]"]

BASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (
        AutoModelForCausalLM,
        {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    ),
    "gpt2": (AutoModelForCausalLM, {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}),
    "bert": (
        AutoModelForMaskedLM,
        {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    ),
    "t5": (AutoModelForSeq2SeqLM, {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}),
}
LAYERS = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "bert": ["query", "value"], "t5": ["q", "v"]}
TASKS = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "bert": None, "t5": "SEQ_2_SEQ_LM"}


def words(entries: int) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*SPECIALS, *(f"w{n}" for n in range(entries - len(SPECIALS)))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    roles = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def base(name: str, rows: int = ENTRIES, dtype: torch.dtype = torch.float32, **sizes: Any) -> PreTrainedModel:
    """A tiny network with random weights, saved in the folder `base`."""
    auto, smallest = BASES[name]
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "bos_token_id": 1}
    known = AutoConfig.for_model(name).to_dict()
    given = {
        key: value for key, value in {**smallest, **ids}.items() if key in known or key == "decoder_start_token_id"
    }
    auto.from_config(AutoConfig.for_model(name, vocab_size=rows, **{**given, **sizes})).to(dtype).save_pretrained(
        "base"
    )
    words(ENTRIES).save_pretrained("base")
    return auto.from_pretrained("base", dtype=torch.float32)


def adapt(network: PreTrainedModel, config: PeftConfig, entries: int = ENTRIES, **saving: Any) -> torch.Tensor:
    """Train an adapter, as it were, and save it in the folder `adapter`; its logits."""
    with catch_warnings():
        simplefilter("ignore")
        adapted = get_peft_model(network, config)
        adapted.peft_config["default"].base_model_name_or_path = "base"
        torch.manual_seed(1)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        adapted.save_pretrained("adapter", **saving)
        words(entries).save_pretrained("adapter")
        return logits(adapted)


def logits(network: Any) -> torch.Tensor:
    ids = torch.arange(5, 25)[None]
    more = {"decoder_input_ids": ids} if network.config.is_encoder_decoder else {}
    with torch.no_grad():
        return network.eval().float()(input_ids=ids, **more).logits


def assert_merged(expected: torch.Tensor, name: str) -> PreTrainedModel:
    """Merging succeeds and gives the `expected` logits; the merged network, as it is loaded from its folder."""
    outcome = lmtrain("merge", "adapter", "-o", "merged")
    assert outcome.code == 0, outcome.err
    network = BASES[name][0].from_pretrained("merged")
    assert torch.allclose(logits(network), expected, atol=1e-5, rtol=1e-4)
    return network


def refusal(code: int, *parts: str) -> None:
    outcome = lmtrain("merge", "adapter", "-o", "merged")
    message = " ".join(outcome.err.split())
    assert outcome.code == code and all(part in message for part in parts), message
    assert len(message) < 500 and not Path("merged").exists()


def lora(name: str, **more: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": LAYERS[name], "task_type": TASKS[name], **more})


KINDS = {
    "lora": lora,
    "dora": lambda name: lora(name, use_dora=True),
    "rslora": lambda name: lora(name, use_rslora=True),
    "loha": lambda name: LoHaConfig(r=4, target_modules=LAYERS[name], task_type=TASKS[name]),
    "lokr": lambda name: LoKrConfig(r=4, target_modules=LAYERS[name], task_type=TASKS[name]),
    "ia3": lambda name: IA3Config(target_modules=LAYERS[name], feedforward_modules=[], task_type=TASKS[name]),
    "adalora": lambda name: AdaLoraConfig(total_step=10, target_modules=LAYERS[name], task_type=TASKS[name]),
    "oft": lambda name: OFTConfig(r=0, oft_block_size=4, target_modules=LAYERS[name], task_type=TASKS[name]),
    "vera": lambda name: VeraConfig(r=4, target_modules=LAYERS[name], task_type=TASKS[name]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_every_kind_of_adapter_that_changes_weights_is_merged(name: str, kind: str):
    expected = adapt(base(name), KINDS[kind](name))
    assert_merged(expected, name)


EMBEDDINGS = {"llama": ["embed_tokens", "lm_head"], "gpt2": ["wte", "lm_head"], "t5": ["lm_head"]}


@pytest.mark.parametrize("field", ["modules_to_save", "target_modules"])
@pytest.mark.parametrize(
    ("name", "changed"),
    [
        (name, part)
        for name, parts in EMBEDDINGS.items()
        for part in ([parts] if len(parts) > 1 else []) + [[p] for p in parts]
    ],
)
def test_an_adapter_that_changes_tied_embeddings_unties_them(name: str, changed: list[str], field: str):
    network = base(name, tie_word_embeddings=True)
    before = logits(network)
    expected = adapt(network, lora(name, **{field: changed + (LAYERS[name] if field == "target_modules" else [])}))
    merged = assert_merged(expected, name)
    assert not torch.allclose(expected, before, atol=1e-3)
    assert not torch.equal(merged.get_output_embeddings().weight, merged.get_input_embeddings().weight)
    # A T5 is tied by its configuration, and untied by its weights.
    assert json.loads(Path("merged/config.json").read_text())["tie_word_embeddings"] is (name == "t5")


@pytest.mark.parametrize("field", ["modules_to_save", "target_modules"])
def test_embeddings_that_no_file_can_untie_are_refused(field: str):
    adapt(base("t5"), lora("t5", **{field: ["shared", *(LAYERS["t5"] if field == "target_modules" else [])]}))
    refusal(3, "embeddings that t5 keeps tied")


def test_embeddings_that_stay_tied_are_saved_once():
    expected = adapt(
        base("llama", tie_word_embeddings=True),
        lora("llama", target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True),
    )
    merged = assert_merged(expected, "llama")
    assert merged.config.tie_word_embeddings and merged.lm_head.weight is merged.model.embed_tokens.weight


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("size", [ENTRIES, ROWS + 8])
def test_the_base_is_cut_or_grown_to_the_table_of_the_adapter(name: str, size: int):
    network = base(name, ROWS)
    network.resize_token_embeddings(size)
    expected = adapt(network, lora(name), save_embedding_layers=True)
    outcome = lmtrain("merge", "adapter", "-o", "merged")
    assert outcome.code == 0, outcome.err
    assert f"the base has {ROWS} embeddings and the adapter {size}" in outcome.err.replace("\n", " ")
    merged = BASES[name][0].from_pretrained("merged")
    assert torch.allclose(logits(merged), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "more",
    [{"modules_to_save": ["embed_tokens", "lm_head"]}, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}],
)
def test_adapters_on_the_embeddings_of_a_cut_base_are_merged(more: dict[str, Any]):
    network = base("llama", ROWS)
    network.resize_token_embeddings(ENTRIES)
    assert_merged(adapt(network, lora("llama", **more), save_embedding_layers=False), "llama")


def test_embeddings_that_nobody_saved_are_missed_with_both_sizes():
    network = base("llama")
    network.resize_token_embeddings(ROWS)
    adapt(network, lora("llama", target_modules=["q_proj", "lm_head"]), save_embedding_layers=False)
    refusal(3, f"with {ROWS} embeddings", f"its base has {ENTRIES}", "base_model_name_or_path")


def test_a_tokenizer_with_more_entries_than_the_adapter_has_embeddings_is_refused():
    network = base("llama", ROWS)
    network.resize_token_embeddings(ENTRIES)
    adapt(network, lora("llama"), entries=ENTRIES + 3, save_embedding_layers=True)
    refusal(3, f"{ENTRIES} embeddings", f"reach {ENTRIES + 2}")


PROMPTS = {
    "PROMPT_TUNING": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "PREFIX_TUNING": PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "P_TUNING": PromptEncoderConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_virtual_tokens_are_no_weights(kind: str):
    adapt(base("llama"), PROMPTS[kind])
    refusal(3, f"an adapter of kind {kind}", "cannot be merged")


def edited(**changes: Any) -> None:
    path = Path("adapter/adapter_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"peft_type": "NOVEL"}, ["peft_type is NOVEL, which peft", "does not know"]),
        ({"peft_type": None}, ["peft_type is None"]),
        ({"task_type": "SEQ_CLS"}, ["an adapter for SEQ_CLS"]),
        ({"base_model_name_or_path": "../gone"}, ["../gone", "no such folder", "base_model_name_or_path"]),
        ({"base_model_name_or_path": "gone"}, ["gone", "no such folder", "base_model_name_or_path"]),
        ({"base_model_name_or_path": None}, ["base_model_name_or_path is missing"]),
        ({"r": 8}, ["does not fit its base", "size mismatch"]),
        ({"target_modules": ["c_attn"]}, ["does not fit its base", "c_attn"]),
        ({"alora_invocation_tokens": [7]}, ["cannot merge this adapter", "aLoRA"]),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_in_a_sentence(changes: dict[str, Any], parts: list[str]):
    adapt(base("llama"), lora("llama"))
    edited(**changes)
    refusal(3, *parts)


def test_a_quantised_base_is_refused():
    adapt(base("llama"), lora("llama"))
    path = Path("base/config.json")
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": quantised}))
    refusal(3, "quantised", "base_model_name_or_path")


def test_settings_that_peft_does_not_know_are_named():
    expected = adapt(base("llama"), lora("llama"))
    edited(fancy_rank=7, nothing_new=None)
    outcome = lmtrain("merge", "adapter", "-o", "merged")
    assert outcome.code == 0 and "does not know fancy_rank: ignored" in outcome.err.replace("\n", " ")
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained("merged")), expected, atol=1e-5)


def test_an_adapter_in_a_folder_of_adapters_is_found_by_name():
    adapt(base("llama"), lora("llama"))
    Path("outer").mkdir()
    Path("adapter").rename("outer/first")
    outcome = lmtrain("merge", "outer", "-o", "merged")
    assert outcome.code == 3 and "outer/first" in outcome.err
    assert lmtrain("merge", "nowhere", "-o", "merged").code == 3


@pytest.mark.parametrize("said", [None, "float32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_merged_model_has_the_type_of_its_base(dtype: torch.dtype, said: str | None):
    network = base("llama", dtype=dtype)
    if said:  # whatever config.json says
        config = json.loads(Path("base/config.json").read_text())
        Path("base/config.json").write_text(json.dumps({**config, "dtype": said}))
    adapt(network, lora("llama"))
    outcome = lmtrain("merge", "adapter", "-o", "merged")
    assert outcome.code == 0, outcome.err
    name = str(dtype).removeprefix("torch.")
    assert (f"written in {name}, as its base" in outcome.err) == (dtype != torch.float32)
    assert {tensor.dtype for tensor in load_file("merged/model.safetensors").values()} == {dtype}
    assert json.loads(Path("merged/config.json").read_text())["dtype"] == name


# --- tokens that were added to a table with room -----------------------------------------------------------------------
def longer(*added: str) -> PreTrainedTokenizerFast:
    tokenizer = words(ENTRIES)
    tokenizer.add_tokens(list(added), special_tokens=True)
    tokenizer.save_pretrained("longer")
    return tokenizer


@pytest.mark.slow
@pytest.mark.parametrize(("tied", "room"), [(True, 0), (True, 1), (True, 12), (False, 12)])
def test_added_tokens_are_trained_wherever_the_table_ends(tied: bool, room: int):
    """With room for none, for one and for all of them."""
    base("llama", ENTRIES + room, tie_word_embeddings=tied)
    longer("<a>", "<b>")
    Path("data.jsonl").write_text('{"text": "<a> w1 <b> w2"}\n' * 20)
    flags = [
        "--tokenizer",
        "longer",
        "--data",
        "data.jsonl",
        "--val-split",
        0,
        "--lora",
        "--max-steps",
        2,
        "--lr",
        0.1,
    ]
    outcome = lmtrain("clm", "--model", "base", *flags, "-o", "run")
    assert outcome.code == 0, outcome.err
    assert "2 tokens were added to the tokenizer (<a>, <b>)" in outcome.err.replace("\n", " ")
    saved = load_file("run/adapter_model.safetensors")
    rows = [tensor for key, tensor in saved.items() if "trainable_tokens" in key]
    assert [len(row) for row in rows] == [2] * (1 if tied else 2)
    table = AutoModelForCausalLM.from_pretrained("base").get_input_embeddings().weight
    if room == 12:
        assert not any(torch.allclose(row, table[ENTRIES : ENTRIES + 2], atol=1e-3) for row in rows)
    scored = [lmtrain("eval", "--model", "run", "--data", "data.jsonl", "--json").json["metrics"]["eval_loss"]]
    assert lmtrain("merge", "run", "-o", "merged").code == 0
    scored += [lmtrain("eval", "--model", "merged", "--data", "data.jsonl", "--json").json["metrics"]["eval_loss"]]
    assert scored[0] == pytest.approx(scored[1], rel=1e-5)


def test_only_tokens_that_the_own_tokenizer_lacks_are_added():
    base("llama", ROWS)
    assert added_tokens(Model(name="base", tokenizer="longer"), longer("<a>", "<b>")) == [ENTRIES, ENTRIES + 1]
    assert added_tokens(Model(name="base", tokenizer="base"), words(ENTRIES)) == []
    assert added_tokens(Model(name="base"), longer("<a>")) == []
    other = words(ENTRIES - 10)
    other.add_tokens(["<a>"])
    assert added_tokens(Model(name="base", tokenizer="longer"), other) == [], "a tokenizer of another model"


def test_an_adapter_cannot_continue_with_tokens_that_it_does_not_know():
    adapt(base("llama", ROWS), lora("llama"))
    longer("<a>")
    Path("data.jsonl").write_text('{"text": "<a> w1 w2"}\n' * 20)
    flags = ["--tokenizer", "longer", "--data", "data.jsonl", "--val-split", 0, "--max-steps", 1, "-o", "run"]
    outcome = lmtrain("clm", "--model", "adapter", *flags, "--lora")
    assert outcome.code == 3 and "lmtrain merge" in outcome.err.replace("\n", " "), outcome.err


def test_an_adapter_with_whole_weights_is_continued_after_merging():
    network = base("llama", ROWS)
    network.resize_token_embeddings(ENTRIES)
    adapt(network, lora("llama"), save_embedding_layers=True)
    Path("data.jsonl").write_text('{"text": "w1 w2"}\n' * 20)
    flags = ["--data", "data.jsonl", "--val-split", 0, "--max-steps", 1, "-o", "run"]
    outcome = lmtrain("clm", "--model", "adapter", *flags, "--lora")
    message = outcome.err.replace("\n", " ")
    assert outcome.code == 3 and "holds whole weights" in message and "lmtrain merge" in message


# --- what a model has to be asked like ---------------------------------------------------------------------------------
RUNS = {
    "text": ("clm", "gpt2", "text.jsonl", [], "the dog"),
    "prompts": (
        "clm",
        "gpt2",
        "prompts.jsonl",
        ["--prompt-column", "question", "--completion-column", "answer"],
        "What?",
    ),
    "chats": ("clm", "gpt2", "chats.jsonl", [], "Tell me of the cat."),
    "masks": ("mlm", "bert", "text.jsonl", [], "the [MASK] sees the dog"),
    "pairs": ("seq2seq", "t5", "pairs.jsonl", ["--source-prefix", "reverse: ", "--num-beams", 2], "the dog sees"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_a_merged_model_answers_as_its_run_does(kind: str, material: Path, request: pytest.FixtureRequest):
    objective, name, data, flags, prompt = RUNS[kind]
    more = ["--lora", "--max-steps", 6, "--lr", 3e-2, "--val-split", 0.1]
    model = request.getfixturevalue(name)
    trained(objective, "--model", model, "--data", material / data, *flags, *more, "-o", "run")
    assert lmtrain("merge", "run", "-o", "merged").code == 0
    run, merged = (
        lmtrain("generate", "--model", folder, "--prompt", prompt, "--json").json for folder in ("run", "merged")
    )
    assert _rounded(run) == _rounded(merged)
    scored = [lmtrain("eval", "--model", folder, "--json").json for folder in ("run", "merged")]
    assert scored[0]["metrics"] == pytest.approx(scored[1]["metrics"], rel=1e-4)
    assert scored[0]["data"]["kind"] == scored[1]["data"]["kind"]


def _rounded(answer: Any) -> Any:
    if isinstance(answer, dict):
        return {key: _rounded(value) for key, value in answer.items()}
    if isinstance(answer, list):
        return [_rounded(value) for value in answer]
    return round(answer, 3) if isinstance(answer, float) else answer
