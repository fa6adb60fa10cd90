"""The names of other libraries that lmtrain overrides, replaces or relies on although they are private.

A release that renames one of them would often not fail: an override is never called, an attribute is set and never read.
`upstream.differences` compares this table with the installed libraries. Public functions that lmtrain merely calls are not
listed, because an import or a call of them fails by itself.
"""

from lmtrain.runtime.reliance import Reliance

TRAINER = "transformers.Trainer"
CALLBACK = "transformers.TrainerCallback"
MODEL = "transformers.PreTrainedModel"
GENERATION = "transformers.GenerationMixin"
RENDEZVOUS = "torch.distributed.elastic.rendezvous.dynamic_rendezvous.DynamicRendezvousHandler"
EVENT = "args, state, control, ..."

RELIANCES = (
    Reliance(
        "the loss of a step would not be the mean over its supervised tokens",
        overridden={
            f"{TRAINER}.compute_loss": "model, inputs, return_outputs, num_items_in_batch",
            f"{TRAINER}.training_step": "model, inputs, num_items_in_batch",
            f"{TRAINER}.get_batch_samples": "...",
        },
        attributes=(f"{TRAINER}.model_accepts_loss_kwargs", "transformers.TrainingArguments._n_gpu"),
    ),
    Reliance(
        "the order of the rows would not be a function of seed and epoch",
        overridden={f"{TRAINER}.get_train_dataloader": ""},
    ),
    Reliance(
        "a loss or gradient that is not finite would not stop the update",
        overridden={
            f"{TRAINER}._get_grad_norm": "model, grad_norm",
            f"{CALLBACK}.on_pre_optimizer_step": EVENT,
        },
        attributes=("accelerate.Accelerator.scaler",),
    ),
    Reliance(
        "a training that cannot work, or an optimiser without its library, would not be noticed before the first steps",
        overridden={f"{CALLBACK}.on_optimizer_step": EVENT},
        called={f"{TRAINER}.get_optimizer_cls_and_kwargs": "args"},
    ),
    Reliance(
        "evaluation would be a mean of batch means instead of the exact sum over rows",
        overridden={f"{TRAINER}.evaluate": "eval_dataset, ignore_keys, metric_key_prefix"},
    ),
    Reliance(
        "metrics.jsonl, the live line and the evaluations of a run would not be complete",
        overridden={
            f"{TRAINER}.log": "logs, start_time",
            **{
                f"{CALLBACK}.on_{event}": EVENT
                for event in ("train_begin", "step_end", "epoch_end", "evaluate", "log", "train_end")
            },
        },
        attributes=(
            f"{TRAINER}.control",
            *(f"transformers.TrainerControl.should_{what}" for what in ("evaluate", "log", "save", "training_stop")),
        ),
    ),
    Reliance(
        "a checkpoint would not be whole or not there, or would hold a pickle",
        overridden={
            f"{TRAINER}._save_checkpoint": "model, trial",
            f"{TRAINER}._save": "output_dir, state_dict",
        },
        called={
            f"{TRAINER}.save_model": "output_dir, _internal_call",
            f"{TRAINER}.store_flos": "",
            f"{TRAINER}._push_from_checkpoint": "checkpoint_folder",
            "transformers.trainer_callback.ExportableState.state": "",
        },
        attributes=(
            f"{TRAINER}.is_deepspeed_enabled",
            f"{TRAINER}.model",
            f"{TRAINER}.model_wrapped",
            f"{TRAINER}.optimizer",
            f"{TRAINER}.lr_scheduler",
            f"{TRAINER}.data_collator",
            f"{TRAINER}.processing_class",
            "transformers.TrainerState.stateful_callbacks",
        ),
    ),
    Reliance(
        "a resumed run would not continue bit for bit",
        overridden={
            f"{TRAINER}._load_from_checkpoint": "resume_from_checkpoint, model",
            f"{TRAINER}._load_optimizer_and_scheduler": "checkpoint",
            f"{TRAINER}._load_scaler": "checkpoint",
            f"{TRAINER}._load_rng_state": "checkpoint",
            f"{TRAINER}._maybe_log_save_evaluate": (
                "tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, ..."
            ),
        },
        attributes=(f"{TRAINER}._tr_loss", f"{TRAINER}._globalstep_last_logged"),
    ),
    Reliance(
        "a run would not keep its best model",
        overridden={f"{TRAINER}._load_best_model": ""},
        attributes=tuple(
            f"transformers.TrainerState.best_{what}" for what in ("global_step", "metric", "model_checkpoint")
        ),
    ),
    Reliance(
        "dropout on a CPU would not be faster; --kernels off",
        overridden={
            "torch.nn.functional.dropout": "input, p, training, inplace",
            "transformers.integrations.sdpa_attention.sdpa_attention_forward": (
                "module, query, key, value, attention_mask, dropout, scaling, is_causal, position_bias, ..."
            ),
        },
        called={"transformers.integrations.sdpa_attention.repeat_kv": "hidden_states, n_rep"},
        attributes=("transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS[sdpa]",),
    ),
    Reliance(
        "GPT-2's GELU would not run in one pass; --kernels off",
        overridden={"transformers.activations.NewGELUActivation.forward": "input"},
    ),
    Reliance(
        "documents that share a row might attend to each other",
        attributes=("transformers.PreTrainedConfig._attn_implementation",),
    ),
    Reliance(
        "the exact loss would leave out the bias that BART adds after its head",
        attributes=("transformers.models.bart.modeling_bart.BartForConditionalGeneration.final_logits_bias",),
    ),
    Reliance(
        "the decoder of a T5 or BART would not see the labels shifted by its own rule",
        called={
            f"transformers.models.{name}.prepare_decoder_input_ids_from_labels": "labels"
            for name in (
                "t5.modeling_t5.T5ForConditionalGeneration",
                "bart.modeling_bart.BartForConditionalGeneration",
            )
        },
    ),
    Reliance(
        "the LSTM would start from other weights, or generate without its state",
        overridden={
            f"{MODEL}._init_weights": "module",
            f"{MODEL}.get_encoder": "...",
            f"{MODEL}.get_input_embeddings": "",
            f"{MODEL}.set_input_embeddings": "value",
            f"{GENERATION}.prepare_inputs_for_generation": "input_ids, ...",
            f"{GENERATION}._update_model_kwargs_for_generation": "outputs, model_kwargs, ...",
        },
        attributes=(f"{GENERATION}._supports_default_dynamic_cache",),
    ),
    Reliance(
        "rows could be longer than the positions of a model",
        attributes=(
            "transformers.models.gpt2.modeling_gpt2.GPT2Model.wpe",
            "transformers.models.bert.modeling_bert.BertEmbeddings.position_embeddings",
            "transformers.models.bart.modeling_bart.BartDecoder.embed_positions",
            "transformers.models.bart.modeling_bart.BartLearnedPositionalEmbedding.offset",
        ),
    ),
    Reliance(
        "a pair of --encoder and --decoder would be refused for its new cross-attention",
        attributes=(
            "transformers.models.bert.modeling_bert.BertLayer.crossattention",
            "transformers.models.gpt2.modeling_gpt2.GPT2Block.crossattention",
        ),
    ),
    Reliance(
        "keys of a recipe and names of models could not be checked before torch loads",
        attributes=(
            "transformers.training_args.TrainingArguments",
            *(
                f"transformers.models.auto.modeling_auto.MODEL_FOR_{head}_MAPPING_NAMES"
                for head in ("CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM")
            ),
        ),
    ),
    Reliance(
        "Ctrl-C would wait for the end of a generation",
        overridden={"transformers.StoppingCriteria.__call__": "input_ids, scores, ..."},
    ),
    Reliance(
        "lmtrain chat would not show an answer as it is written",
        overridden={"transformers.TextStreamer.on_finalized_text": "text, stream_end"},
    ),
    Reliance(
        "trackers would have figures, but neither recipe nor samples",
        attributes=tuple(
            f"transformers.integrations.{name}"
            for name in (
                "TensorBoardCallback.tb_writer",
                "WandbCallback._wandb",
                "TrackioCallback._trackio",
                "MLflowCallback._ml_flow",
            )
        ),
    ),
    Reliance(
        "lmtrain plan would count a saved tensor twice, or stop where a mask asks for the content of a tensor",
        attributes=(
            "torch.UntypedStorage._cdata",
            "torch.ops.aten._local_scalar_dense",
            "torch.utils._python_dispatch.TorchDispatchMode",
        ),
    ),
    Reliance(
        "rows would be cut as the file of the tokenizer says, or tokenised more slowly",
        called={"tokenizers.Tokenizer.encode_batch_fast": "input, add_special_tokens"},
        attributes=("transformers.PreTrainedTokenizerFast.backend_tokenizer",),
    ),
    Reliance(
        "adapters could not be trained, saved or merged",
        called={
            "peft.inject_adapter_in_model": "peft_config, model",
            "peft.get_peft_model_state_dict": "model, state_dict, save_embedding_layers",
            "peft.set_peft_model_state_dict": "model, peft_model_state_dict",
            "peft.tuners.tuners_utils.BaseTuner.merge_and_unload": "",
            "peft.tuners.tuners_utils.BaseTunerLayer.get_base_layer": "",
        },
        attributes=("peft.tuners.tuners_utils.BaseTuner.peft_config", "peft.PEFT_TYPE_TO_TUNER_MAPPING"),
    ),
    Reliance(
        "running out of memory would end a run instead of halving its batch",
        called={
            "accelerate.utils.memory.should_reduce_batch_size": "exception",
            "accelerate.utils.memory.clear_device_cache": "garbage_collection",
        },
    ),
    Reliance(
        "the model inside of DistributedDataParallel would not be found",
        called={"accelerate.utils.extract_model_from_parallel": "model"},
    ),
    Reliance(
        "--num-processes could not start processes, or would lose their exit code",
        called={
            "torch.distributed.run.get_args_parser": "",
            "torch.distributed.run.run": "args",
            "torch.distributed.elastic.multiprocessing.errors.ChildFailedError.get_first_failure": "",
        },
        attributes=("torch.distributed.elastic.multiprocessing.api.SignalException.sigval",),
    ),
    Reliance(
        "hosts would not keep their numbers, or their processes would not meet",
        overridden={
            f"{RENDEZVOUS}.next_rendezvous": "",
            f"{RENDEZVOUS}.get_backend": "",
        },
        called={
            f"{RENDEZVOUS}.from_backend": (
                "run_id, store, backend, min_nodes, max_nodes, local_addr, timeout, keep_alive_interval, ..."
            ),
            "torch.distributed.elastic.rendezvous.c10d_rendezvous_backend.create_backend": "params",
        },
    ),
    Reliance(
        "a model could not be sharded, or would be sharded twice",
        overridden={f"{TRAINER}._move_model_to_device": "model, device"},
        called={
            "torch.distributed.fsdp.FSDPModule.set_reshard_after_forward": "reshard_after_forward, recurse",
            "torch.distributed.fsdp.FSDPModule.unshard": "",
            "torch.distributed.fsdp.FSDPModule.reshard": "",
        },
        attributes=(f"{TRAINER}.is_distributed_loading_by_transformers",),
    ),
    Reliance(
        "the parts of a sharded checkpoint could not be written or read",
        called={
            "torch.distributed.checkpoint.hf_storage.HuggingFaceStorageWriter": "path, save_distributed",
            "torch.distributed.checkpoint.hf_storage.HuggingFaceStorageReader": "path",
        },
    ),
    Reliance(
        "a hub that is down would be asked again for more than a minute",
        overridden={"huggingface_hub.utils._http.default_client_factory": ""},
        called={"huggingface_hub.set_client_factory": "client_factory"},
        attributes=(
            "huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT",
            "huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT",
        ),
    ),
    Reliance(
        "BLEU, chrF and TER would have no intervals and no comparison",
        called={
            f"sacrebleu.metrics.{metric}.{function}": parameters
            for metric in ("BLEU", "CHRF", "TER")
            for function, parameters in (
                ("_extract_corpus_statistics", "hypotheses, references"),
                ("_compute_score_from_stats", "stats"),
                ("get_signature", ""),
            )
        }
        | {"sacrebleu.metrics.BLEU._preprocess_segment": "sent"},
    ),
    Reliance(
        "commands would have no flags, or an error would end them with a traceback",
        overridden={
            "typer.core.TyperGroup.resolve_command": "ctx, args",
            "typer.core.TyperGroup.main": "args, ...",
        },
        called={"typer.main.get_command": "typer_instance", "typer.Context.get_parameter_source": "name"},
    ),
)
