"""The section `model`: which model, and how it is adapted."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, model_validator

from lmtrain.config.options import Section, option
from lmtrain.config.values import Strings, key_values, names

PAIR = "encoder-decoder"
"""What transformers calls a model of an encoder and a decoder of their own."""


class Model(Section):
    name: str = option(
        ...,
        flag="model",
        short="m",
        aliases=("model_name_or_path", "model"),
        use="Hub id, folder, run folder or LoRA adapter.",
    )
    """Hub id, local folder or, with --from-scratch, an architecture such as gpt2, bert or t5."""
    from_scratch: bool = option(False)
    """Start from random weights; nothing is downloaded for an architecture name."""
    config: Annotated[dict[str, Any], BeforeValidator(key_values)] = option(
        {}, flag="model_config", aliases=("config_overrides", "model_config")
    )
    """With --from-scratch: sizes as name=value,… e.g. n_layer=4,n_embd=256. Repeatable."""
    tokenizer: str | None = option(None, aliases=("tokenizer_name",), use="Hub id or folder. Default: the model's.")
    """Hub id or folder; or trained on the data: bpe:N, wordpiece:N, unigram:N, char, byte. Default: the model's."""
    attn: str | None = option(None, aliases=("attn_implementation",), hidden=True)
    """Attention implementation: sdpa, eager, flash_attention_2. Default: the model's best."""
    trust_remote_code: bool = option(False)
    """Run code that comes with the model. Only for authors whom you trust; only on the command line."""
    allow_pickle: bool = option(False, hidden=True)
    """Also read weights that are pickles, by torch's restricted reader; only on the command line."""
    lora: bool = option(False, aliases=("use_peft",))
    """Train a small LoRA adapter beside the frozen model; see docs/lora.md for --lora-r and its kin."""
    lora_r: int = option(16, ge=1, hidden=True)
    """With --lora: rank of the update of each layer."""
    lora_alpha: float = option(32, gt=0, hidden=True)
    """With --lora: the update is scaled by alpha / r, with --rslora by alpha / √r."""
    lora_dropout: float = option(0.05, ge=0, lt=1, hidden=True)
    """With --lora: dropout of what the adapter reads."""
    lora_targets: Annotated[list[str], BeforeValidator(names)] = option(
        [], aliases=("lora_target_modules",), hidden=True
    )
    """With --lora: names of the layers to adapt, e.g. q_proj,v_proj. Default: all linear layers but the head."""
    lora_dora: bool = option(False, flag="dora", aliases=("use_dora",), hidden=True)
    """With --lora: DoRA, which learns the length and the direction of each update apart."""
    lora_rslora: bool = option(False, flag="rslora", aliases=("use_rslora",), hidden=True)
    """With --lora: scale by alpha / √r, which suits high ranks."""
    encoder: str | None = option(None, hidden=True)
    """seq2seq, instead of --model: the encoder of a new pair, e.g. a BERT; with --from-scratch an architecture."""
    decoder: str | None = option(None, hidden=True)
    """Its decoder, with the same vocabulary, e.g. the same BERT; what joins the two starts at random."""
    load_in_4bit: bool = option(False, hidden=True)
    """With --lora: hold the frozen weights in 4 bits (QLoRA); needs a CUDA GPU and bitsandbytes."""

    @model_validator(mode="before")
    @classmethod
    def _is_named_or_paired(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not (given.get("encoder") or given.get("decoder")):
            return given
        if not (given.get("encoder") and given.get("decoder")):
            raise ValueError("--encoder and --decoder belong together; one is missing")
        if given.get("name", PAIR) != PAIR:
            raise ValueError("--model: a model has its encoder and decoder; give it, or --encoder and --decoder")
        return {**given, "name": PAIR}

    @model_validator(mode="after")
    def _adapts_a_trained_model(self) -> Self:
        if self.lora and self.encoder:
            raise ValueError(
                "--lora: what joins a new pair is random and has to be trained whole; adapt the trained pair"
            )
        if self.lora and self.from_scratch:
            raise ValueError("--lora: adapts a trained model; random weights have to be trained whole, without --lora")
        for name, field in type(self).model_fields.items():
            if not self.lora and name.startswith(("lora_", "load_in")) and getattr(self, name) != field.default:
                flag = (field.json_schema_extra["flag"] or name).replace("_", "-")  # type: ignore[index,call-overload]
                raise ValueError(f"--{flag}: only with --lora")
        return self


class Encoders(Model):
    name: Strings = option(  # type: ignore[assignment]  # one model in Model, several here
        ..., flag="model", short="m", aliases=("model_name_or_path", "model"), min_length=1
    )
    """Hub id, folder, run folder or LoRA adapter. Repeatable: the others are compared with the first."""
