"""The LSTM encoder-decoder that sequence-to-sequence learning began with, as a model of transformers.

Sutskever, Vinyals, Le: "Sequence to Sequence Learning with Neural Networks", 2014. The encoder's last states start the
decoder. With `attention` the decoder also reads all states of the encoder: "luong" after each step (Luong, Pham, Manning 2015,
section 3.1 with the general score), so that all steps run at once; "bahdanau" before it (Bahdanau, Cho, Bengio 2015, appendix
A.1.2), so that each step waits for the one before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

from lmtrain.modeling.lstm_config import LSTMConfig
from lmtrain.preprocessing.batch import IGNORED

State = torch.Tensor
"""[rows, 2 · layers, d_model]: h of each layer, then c of each. Rows come first, so that beams can be chosen."""


@dataclass
class EncoderOutput(BaseModelOutput):
    """`last_hidden_state` [rows, length, d_model], and `final_state` after the last token of each row."""

    final_state: State | None = None


@dataclass
class DecoderOutput(ModelOutput):
    """`loss` (if there are labels), `logits` [rows, length, vocabulary], and the `state` after the last token."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    state: State | None = None
    encoder_last_hidden_state: torch.Tensor | None = None


class LSTMPreTrainedModel(PreTrainedModel):
    """What all parts share: the configuration and how weights start."""

    config_class = LSTMConfig
    base_model_prefix = "model"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """All weights are uniform, as in Sutskever et al. 2014, section 3.4."""
        for parameter in module.parameters(recurse=False):
            init.uniform_(parameter, -self.config.init_range, self.config.init_range)


class LSTMEncoder(LSTMPreTrainedModel):
    """Reads the source, packed: padding is never seen, so that the last state is that of the last token."""

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        self.directions = 2 if config.bidirectional else 1
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.dropout = nn.Dropout(config.dropout)
        self.lstm = nn.LSTM(
            config.d_model,
            config.d_model // self.directions,
            config.num_layers,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
            bidirectional=config.bidirectional,
            batch_first=True,
        )
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> EncoderOutput:
        """`input_ids` and `attention_mask` [rows, length], padded at the end."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        lengths = mask.sum(1)
        if self.config.reverse_source:
            input_ids = _reversed(input_ids, lengths)
        embedded = self.dropout(self.embed_tokens(input_ids) * self.config.embedding_scale)
        if embedded.is_meta:  # shapes alone: nothing can be packed
            states, last = self.lstm(embedded)
        else:
            packed = pack_padded_sequence(embedded, lengths.cpu(), batch_first=True, enforce_sorted=False)
            packed_states, last = self.lstm(packed)
            states = pad_packed_sequence(packed_states, batch_first=True, total_length=input_ids.shape[1])[0]
        states = _reversed(states, lengths) if self.config.reverse_source else states
        # h and c are [layers · directions, rows, width]; the directions of a layer are put side by side.
        h, c = (part.unflatten(0, (-1, self.directions)).transpose(1, 2).flatten(2) for part in last)
        return EncoderOutput(last_hidden_state=states, final_state=torch.cat([h, c]).transpose(0, 1))


class LSTMDecoder(LSTMPreTrainedModel):
    """Writes the target from the state of the encoder and, with attention, from all its states."""

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        width = config.d_model
        self.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.dropout = nn.Dropout(config.dropout)
        self.lstm = nn.LSTM(
            2 * width if config.attention == "bahdanau" else width,
            width,
            config.num_layers,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
            batch_first=True,
        )
        if config.attention != "none":
            self.query = nn.Linear(width, width, bias=False)
            self.combine = nn.Linear(2 * width, width, bias=False)
        if config.attention == "bahdanau":
            self.key = nn.Linear(width, width, bias=False)
            self.score = nn.Linear(width, 1, bias=False)
        self.post_init()

    def forward(
        self, decoder_input_ids: torch.Tensor, state: State, memory: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, State]:
        """(what the output layer reads [rows, target length, d_model], the state after the last token).

        `memory` [rows, source length, d_model] are the states of the encoder, `mask` [rows, source length] its real ones.
        """
        embedded = self.dropout(self.embed_tokens(decoder_input_ids) * self.config.embedding_scale)
        h, c = (part.contiguous() for part in state.transpose(0, 1).chunk(2))
        if self.config.attention == "bahdanau":
            states, context, h, c = self._step_by_step(embedded, h, c, memory, mask)
        else:
            states, (h, c) = self.lstm(embedded, (h, c))
        if self.config.attention == "luong":
            context = _weighted(self.query(states) @ memory.transpose(1, 2), memory, mask)
        if self.config.attention != "none":
            states = torch.tanh(self.combine(torch.cat([context, states], dim=-1)))
        return self.dropout(states), torch.cat([h, c]).transpose(0, 1)

    def _step_by_step(
        self, embedded: torch.Tensor, h: torch.Tensor, c: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(states, contexts, h, c): each context is chosen by the state before, and the step reads it."""
        keys, states, contexts = self.key(memory), [], []
        for token in embedded.split(1, dim=1):
            scores = self.score(torch.tanh(self.query(h[-1])[:, None] + keys)).transpose(1, 2)
            contexts.append(_weighted(scores, memory, mask))
            step, (h, c) = self.lstm(torch.cat([token, contexts[-1]], dim=-1), (h, c))
            states.append(step)
        return torch.cat(states, dim=1), torch.cat(contexts, dim=1), h, c


class LSTMModel(LSTMPreTrainedModel):
    """Encoder and decoder with one table of embeddings."""

    _tied_weights_keys = dict.fromkeys(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), "shared.weight")

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.encoder = LSTMEncoder(config)
        self.decoder = LSTMDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.shared

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.shared = self.encoder.embed_tokens = self.decoder.embed_tokens = cast(nn.Embedding, value)


class LSTMForConditionalGeneration(LSTMPreTrainedModel, GenerationMixin):
    """The model with its output layer, which is the table of embeddings again."""

    _tied_weights_keys = {"lm_head.weight": "model.shared.weight"}  # noqa: RUF012 - transformers reads it from the class

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        self.model = LSTMModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def get_encoder(self, *_: Any, **__: Any) -> LSTMEncoder:
        return self.model.encoder

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels one position later, behind the start token."""
        start = torch.full_like(labels[:, :1], self.config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == IGNORED, self.config.pad_token_id)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_outputs: EncoderOutput | None = None,
        state: State | None = None,
        labels: torch.Tensor | None = None,
        **_: Any,
    ) -> DecoderOutput:
        """Ids and masks [rows, length]; `state` continues a decoder after the tokens that it has read."""
        if encoder_outputs is None:
            encoder_outputs = self.model.encoder(input_ids, attention_mask)
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        memory = cast(torch.Tensor, encoder_outputs.last_hidden_state)
        mask = torch.ones(memory.shape[:2], device=memory.device) if attention_mask is None else attention_mask
        state = encoder_outputs.final_state if state is None else state
        states, state = self.model.decoder(decoder_input_ids, state, memory, mask)
        logits, loss = self.lm_head(states), None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)
        return DecoderOutput(loss=loss, logits=logits, state=state, encoder_last_hidden_state=memory)

    # --- generation: the state takes the place of a cache of keys and values

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, state: State | None = None, **more: Any
    ) -> dict[str, Any]:
        """The last token alone, once there is a state."""
        kept = {name: more.get(name) for name in ("attention_mask", "encoder_outputs")}
        return {"decoder_input_ids": input_ids if state is None else input_ids[:, -1:], "state": state, **kept}

    def _update_model_kwargs_for_generation(
        self, outputs: ModelOutput, model_kwargs: dict[str, Any], *arguments: Any, **more: Any
    ) -> dict[str, Any]:
        updated: dict[str, Any] = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *arguments, **more
        )
        return {**updated, "state": outputs["state"]} if updated.get("use_cache", True) else updated

    def _reorder_cache(self, state: State, beam_idx: torch.Tensor) -> State:
        return state.index_select(0, beam_idx.to(state.device))


def _reversed(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """[rows, length, …] with the real positions of each row from the last to the first; padding stays at the end."""
    at = torch.arange(values.shape[1], device=values.device)
    at = torch.where(at < lengths[:, None], lengths[:, None] - 1 - at, at)
    return values.gather(1, at if values.dim() == 2 else at[..., None].expand_as(values))


def _weighted(scores: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of `memory` by the softmax of `scores` [rows, target length, source length]; padding has no weight."""
    scores = scores.masked_fill(mask[:, None] == 0, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ memory
