"""An encoder and a decoder of their own made into one: BERT reads, another BERT or a GPT-2 writes.

Rothe, Narayan, Severyn: "Leveraging Pre-trained Checkpoints for Sequence Generation Tasks", 2020. What joins the two,
the cross-attention, is in neither and starts at random.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, EncoderDecoderConfig, PretrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from lmtrain.errors import InputError

if TYPE_CHECKING:
    from transformers import EncoderDecoderModel, PreTrainedModel


BETWEEN = ("crossattention", "cross_attn", "encoder_attn")
"""What the layers that look at the encoder are called in decoders."""


def paired_config(encoder: PretrainedConfig, decoder: PretrainedConfig) -> EncoderDecoderConfig:
    """The configuration of both together; the decoder reads from left to right, and the encoder's states."""
    return EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)


def small_config(encoder: str, decoder: str, sizes: dict[str, Any]) -> EncoderDecoderConfig:
    """From architectures, both of the same `sizes` as far as they know them by that name."""
    configs = []
    for name in (encoder, decoder):
        known = {*AutoConfig.for_model(name).to_dict(), *AutoConfig.for_model(name).attribute_map}
        configs.append(AutoConfig.for_model(name, **{size: value for size, value in sizes.items() if size in known}))
    return paired_config(*configs)


def join(encoder: PreTrainedModel, decoder: PreTrainedModel) -> EncoderDecoderModel:
    """Raises InputError for a decoder that cannot look at an encoder."""
    from transformers import EncoderDecoderModel

    try:
        return EncoderDecoderModel(encoder=encoder, decoder=decoder)
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"--decoder: no decoder for another model's states: {error}") from None


def is_between(key: str) -> bool:
    """Whether a weight belongs to the cross-attention."""
    return any(part in key for part in BETWEEN)


def speak(network: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Tell the pair how a text begins and ends, which neither half knows of the other. Raises InputError."""
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
    """Raise InputError where the two halves were trained on other tokens: one tokenizer has to serve both."""
    if encoder.get_vocab() != decoder.get_vocab():
        raise InputError(f"--decoder {name}: has another vocabulary than the encoder; name a decoder that was trained "
                         "with the encoder's tokenizer, or the encoder itself")  # fmt: skip
