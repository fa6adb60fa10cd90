"""One model of a separate encoder and decoder: BERT reads, another BERT or a GPT-2 writes.

Rothe, Narayan, Severyn: "Leveraging Pre-trained Checkpoints for Sequence Generation Tasks", 2020. Neither of the two has
cross-attention, so that starts at random.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, EncoderDecoderConfig, PretrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from lmtrain.errors import InputError

if TYPE_CHECKING:
    from transformers import EncoderDecoderModel, PreTrainedModel


CROSS_ATTENTION = ("crossattention", "cross_attn", "encoder_attn")
"""Names of the cross-attention layers in decoders."""


def paired_config(encoder: PretrainedConfig, decoder: PretrainedConfig) -> PretrainedConfig:
    """The configuration of the pair; its decoder is causal and has cross-attention."""
    return EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)


def small_config(encoder: str, decoder: str, sizes: dict[str, Any]) -> PretrainedConfig:
    """The configuration of a pair of architectures, both with those of the `sizes` that they have."""
    configs = []
    for name in (encoder, decoder):
        known = {*AutoConfig.for_model(name).to_dict(), *AutoConfig.for_model(name).attribute_map}
        configs.append(AutoConfig.for_model(name, **{size: value for size, value in sizes.items() if size in known}))
    return paired_config(*configs)


def join(encoder: PreTrainedModel, decoder: PreTrainedModel) -> EncoderDecoderModel:
    """The network of the pair. Raises InputError for a decoder that cannot have cross-attention."""
    from transformers import EncoderDecoderModel

    try:
        return EncoderDecoderModel(encoder=encoder, decoder=decoder)
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"--decoder: cannot have cross-attention: {error}") from None


def is_cross_attention(key: str) -> bool:
    """Whether a weight belongs to the cross-attention."""
    return any(part in key for part in CROSS_ATTENTION)


def set_special_tokens(network: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Set the ids that start, end and pad an output, which neither half defines. Raises InputError."""
    begin = next(
        (i for i in (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id) if i is not None), None
    )
    end = next((i for i in (tokenizer.eos_token_id, tokenizer.sep_token_id) if i is not None), None)
    if end is None:
        raise InputError("the tokenizer has neither an end token nor a separator, so a model could never stop")
    ids = {
        "decoder_start_token_id": begin,
        "bos_token_id": begin,
        "eos_token_id": end,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for name, value in ids.items():
        setattr(network.config, name, value)
        setattr(network.generation_config, name, value)
    network.config.vocab_size = network.config.decoder.vocab_size


def check_vocabularies(encoder: Tokenizer, decoder: Tokenizer, name: str) -> None:
    """Raise InputError where the two halves have different vocabularies: one tokenizer has to serve both."""
    if encoder.get_vocab() != decoder.get_vocab():
        raise InputError(
            f"--decoder {name}: has another vocabulary than the encoder; name a decoder that was trained with the "
            "encoder's tokenizer, or the encoder itself"
        )
