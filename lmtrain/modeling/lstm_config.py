"""The configuration of the LSTM encoder-decoder."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

ATTENTIONS = ("none", "luong", "bahdanau")
"""What the decoder reads besides the last states of the encoder, see lstm.py."""


@strict
class LSTMConfig(PretrainedConfig):
    """Sizes of an LSTM encoder-decoder; `d_model` is the width of embeddings and states.

    `num_layers` are those of the encoder, and those of the decoder. `reverse_source` reads the source from its end, as
    Sutskever et al. 2014 do. A `bidirectional` encoder has half the width in each direction. Dropout is on embeddings,
    between layers and before the output, never on the recurrence (Zaremba et al. 2014).
    """

    model_type = "lstm"
    attribute_map: ClassVar = {"hidden_size": "d_model", "num_hidden_layers": "num_layers"}

    vocab_size: int = 32000
    d_model: int = 512
    num_layers: int = 2
    attention: str = "none"
    reverse_source: bool = False
    bidirectional: bool = False
    dropout: float | int = 0.2
    init_range: float | int = 0.08
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | None = 2
    decoder_start_token_id: int | None = 1

    def __post_init__(self, **settings: Any) -> None:
        """Let transformers know the models now, because they are only asked for with a configuration."""
        from lmtrain.modeling.registration import register_models

        super().__post_init__(**settings)
        register_models()

    @property
    def embedding_scale(self) -> float:
        """What embeddings are multiplied by where they are read: small ones, as the output layer needs, would hide the text.

        As in Vaswani et al. 2017, section 3.4.
        """
        return float(self.d_model**0.5)

    def validate_attention(self) -> None:
        """Raise ValueError for an attention that there is not, and for a width that has no half."""
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention {self.attention}: there are {', '.join(ATTENTIONS)}")
        if self.bidirectional and self.d_model % 2:
            raise ValueError(f"d_model {self.d_model}: a bidirectional encoder needs an even number")
