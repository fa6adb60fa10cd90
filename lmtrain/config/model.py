"""The section `model`: which model to load, and LoRA."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, model_validator

from lmtrain.config.options import Section, extra_of, option
from lmtrain.config.values import Strings, key_values, names

PAIR = "encoder-decoder"
"""transformers' model type for a pair of a pretrained encoder and decoder."""


class Model(Section):
    name: str = option(
        ...,
        flag="model",
        short="m",
        aliases=("model_name_or_path", "model"),
        use="Hub id, local folder, run folder or LoRA adapter.",
    )
    """Hub id, local folder or, with --from-scratch, an architecture such as gpt2, bert or t5."""
    from_scratch: bool = option(False)
    """Start from random weights. Nothing is downloaded if --model is an architecture."""
    config: Annotated[dict[str, Any], BeforeValidator(key_values)] = option(
        {}, flag="model_config", aliases=("config_overrides", "model_config")
    )
    """With --from-scratch: model sizes, e.g. n_layer=4,n_embd=256. Repeatable."""
    tokenizer: str | None = option(
        None, aliases=("tokenizer_name",), use="Hub id, folder, tokenizer.json or .model. Default: the model's."
    )
    """Hub id, folder, tokenizer.json, .model, or trained on the data: bpe:N, wordpiece:N, unigram:N, char, byte. Default: the model's."""
    attn: str | None = option(None, aliases=("attn_implementation",), hidden=True)
    """Attention implementation: sdpa, eager, flash_attention_2. Default: the model's best."""
    trust_remote_code: bool = option(False)
    """Run code that comes with the model. Use it only if you trust the author; only on the command line."""
    allow_pickle: bool = option(False, hidden=True)
    """Also load pickled weights, with torch's restricted unpickler; only on the command line."""
    lora: bool = option(False, aliases=("use_peft",))
    """Freeze the model and train a LoRA adapter; docs/lora.md describes its options, such as --lora-r."""
    lora_r: int = option(16, ge=1, hidden=True)
    """With --lora: rank of the adapter matrices."""
    lora_alpha: float = option(32, gt=0, hidden=True)
    """With --lora: updates are scaled by alpha / r, or by alpha / √r with --rslora."""
    lora_dropout: float = option(0.05, ge=0, lt=1, hidden=True)
    """With --lora: dropout on the adapter's inputs."""
    lora_targets: Annotated[list[str], BeforeValidator(names)] = option(
        [], aliases=("lora_target_modules",), hidden=True
    )
    """With --lora: names of the layers to adapt, e.g. q_proj,v_proj. Default: every linear layer except the head."""
    lora_dora: bool = option(False, flag="dora", aliases=("use_dora",), hidden=True)
    """With --lora: use DoRA, which learns the magnitude and the direction of the weights separately."""
    lora_rslora: bool = option(False, flag="rslora", aliases=("use_rslora",), hidden=True)
    """With --lora: scale updates by alpha / √r, which suits high ranks."""
    encoder: str | None = option(None, hidden=True)
    """seq2seq, instead of --model: encoder of a new encoder-decoder model, e.g. a BERT; with --from-scratch an architecture."""
    decoder: str | None = option(None, hidden=True)
    """Decoder of the new model, with the encoder's vocabulary, e.g. the same BERT. Cross-attention weights start at random."""
    load_in_4bit: bool = option(False, hidden=True)
    """With --lora: load the frozen weights in 4 bits (QLoRA); needs a CUDA GPU and bitsandbytes."""

    @model_validator(mode="before")
    @classmethod
    def _model_or_pair(cls, given: object) -> object:
        if not isinstance(given, dict) or not (given.get("encoder") or given.get("decoder")):
            return given
        if not (given.get("encoder") and given.get("decoder")):
            raise ValueError("--encoder and --decoder must be given together; one is missing")
        if given.get("name", PAIR) != PAIR:
            raise ValueError("--model: give either --model, or --encoder and --decoder")
        return {**given, "name": PAIR}

    @model_validator(mode="after")
    def _lora_has_a_trained_model(self) -> Self:
        if self.lora and self.encoder:
            raise ValueError(
                "--lora: the cross-attention of a new pair is random and must be fully trained; adapt the trained pair"
            )
        if self.lora and self.from_scratch:
            raise ValueError("--lora: adapts a trained model; random weights must be fully trained, without --lora")
        for name, field in type(self).model_fields.items():
            if not self.lora and name.startswith(("lora_", "load_in")) and getattr(self, name) != field.default:
                flag = str(extra_of(field)["flag"] or name).replace("_", "-")
                raise ValueError(f"--{flag}: only with --lora")
        return self


class Encoders(Model):
    name: Strings = option(  # type: ignore[assignment]  # one model in Model, several here
        ..., flag="model", short="m", aliases=("model_name_or_path", "model"), min_length=1
    )
    """Hub id, local folder, run folder or LoRA adapter. Repeatable: the other models are compared with the first."""
