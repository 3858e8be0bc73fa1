"""Check the arguments that a params file passes to trl: `sft.trl` against SFTConfig, `grpo.trl` against GRPOConfig.

trl is imported only if there is something to check, because that takes seconds.
"""

import difflib
import os
from collections.abc import Collection, Iterator
from dataclasses import fields
from enum import Enum
from typing import Any, get_args
from urllib.parse import urlsplit

from pydantic import ConfigDict, TypeAdapter, ValidationError

THIS_MACHINE = ("localhost", "127.0.0.1", "::1", "0.0.0.0")
"""Hosts that are the machine itself; the last is the default of trl's `vllm_server_host`."""

OWNED = {
    "a run lies in the study's folder": "output_dir",
    "a run takes its seed from `seeds`": "seed data_seed",
    "a notebook shows a progress bar of its own": "disable_tqdm",
    "the log of a run needs its own": "logging_strategy logging_steps logging_first_step logging_nan_inf_filter",
    "an interrupted run resumes from checkpoints that the study keeps": "resume_from_checkpoint save_strategy "
    "save_steps save_total_limit save_only_model save_on_each_node ignore_data_skip enable_jit_checkpoint "
    "restore_callback_states_from_checkpoint",
    "sft.evaluations_per_epoch and grpo.validation_films say when a checkpoint is evaluated": "eval_strategy "
    "eval_steps eval_delay eval_on_start load_best_model_at_end metric_for_best_model greater_is_better "
    "prediction_loss_only num_generations_eval do_train do_eval do_predict",
    "the model and its processor are loaded as models.<name> says": "model_init_kwargs trust_remote_code "
    "chat_template_path chat_template_kwargs eos_token pad_token",
    "models.<name>.dtype and the machine decide the precision": "bf16 fp16 bf16_full_eval fp16_full_eval use_cpu tf32",
    "a run is one process on one device": "deepspeed fsdp fsdp_config parallelism_config local_rank accelerator_config",
    "the study prepares the examples, and the loss is on the whole answer and nothing else": "max_length packing "
    "truncation_mode packing_strategy padding_free eval_packing dataset_text_field dataset_kwargs completion_only_loss "
    "assistant_only_loss label_names",
    "the rewards read the columns of the films": "remove_unused_columns",
    "a run has one reward": "reward_weights multi_objective_aggregation",
    "the batch size, and so the result, would depend on the machine": "auto_find_batch_size",
    "a params file holds no secret; run `hf auth login`": "hub_token",
}
"""Arguments that the study sets itself, by reason; they are refused in a params file."""

INSTEAD = {
    "sft": {
        "max_steps": "sft.num_train_epochs",
        "save_steps": "sft.evaluations_per_epoch",
        "eval_steps": "sft.evaluations_per_epoch",
        "activation_checkpointing": "sft.gradient_checkpointing",
    },
    "grpo": {
        "num_train_epochs": "grpo.max_steps",
        "per_device_train_batch_size": "grpo.films_per_step (per_device_train_batch_size / num_generations)",
        "generation_batch_size": "grpo.films_per_step and grpo.steps_per_generation",
        "gradient_accumulation_steps": "grpo.films_per_step (a run resumes at whole rollouts, counted in steps)",
        "activation_checkpointing": "grpo.gradient_checkpointing",
        "generation_kwargs": "grpo.temperature, top_p or max_completion_length, or trl's top_k or min_p",
    },
}
"""Arguments that have another key in a section, and that key."""

CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "sft": {"loss_type": ("nll", "dft")},
    "grpo": {
        "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
        "importance_sampling_level": ("token", "sequence"),
        "vllm_mode": ("server", "colocate"),
        "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    },
}
"""Allowed values of text arguments that trl would check only during training."""


def config_class(stage: str) -> type:
    """The config class of trl's trainer for `sft` or `grpo`."""
    import trl

    return {"sft": trl.SFTConfig, "grpo": trl.GRPOConfig}[stage]


def check(stage: str, values: dict[str, Any], section: Collection[str]) -> None:
    """Raise ValueError unless trl's config class for `stage` accepts `values` and the study does not set them itself.

    `section` has the keys of the params file's section, which must not be given again.
    """
    known = {field.name: field.type for field in fields(config_class(stage))}
    for key, value in values.items():
        if key in INSTEAD[stage] and key in known:
            raise ValueError(f"{key}: {stage} has another key for it; change {INSTEAD[stage][key]}")
        if key in section:
            raise ValueError(f"{key}: {stage} has this key itself; write {stage}.{key}")
        if key not in known:
            near = difflib.get_close_matches(key, [*known, *section], n=1)
            there = [f"{stage}.{name}" if name in section else repr(name) for name in near]
            hint = f"did you mean {there[0]}?" if near else "trl's documentation lists them"
            raise ValueError(f"{key}: {config_class(stage).__name__} has no such argument; {hint}")
        if reason := next((reason for reason, keys in OWNED.items() if key in keys.split()), ""):
            raise ValueError(f"{key}: the study sets it, since {reason}; leave it out")
        _check_value(key, value, known[key], CHOICES[stage].get(key))
    _check_together(stage, values)


def _check_value(key: str, value: Any, annotation: Any, choices: tuple[str, ...] | None) -> None:
    """Raise ValueError unless a value has the type of trl's field and is one of its allowed values."""
    try:
        TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        wanted = error.errors()[0]["msg"]
        raise ValueError(f"{key}: {wanted}, got {value!r}") from None
    kinds = [kind for kind in get_args(annotation) if isinstance(kind, type) and issubclass(kind, Enum)]
    choices = choices or tuple(str(each.value) for kind in kinds for each in kind)
    if choices and value is not None and value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(choices)}"
        raise ValueError(f"{key}: {value!r} is not one of trl's values; {hint}")


def _check_together(stage: str, values: dict[str, Any]) -> None:
    """Raise ValueError for combinations of arguments that trl or the study cannot use."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for service in reporters(values):
        if service == "tensorboard":
            raise ValueError("report_to: a study logs for TensorBoard already; leave tensorboard out")
        if service != "none" and service not in INTEGRATION_TO_CALLBACK:
            names = ", ".join(sorted(set(INTEGRATION_TO_CALLBACK) - {"tensorboard"}))
            raise ValueError(f"report_to: transformers does not know {service!r}; name one of {names}")
    if values.get("sync_ref_model"):
        raise ValueError("sync_ref_model: trl cannot update the reference of a LoRA run; leave it out")
    if values.get("push_to_hub") and not values.get("hub_model_id"):
        raise ValueError("push_to_hub: the repository would be named after a hash; name it under trl.hub_model_id")
    if values.get("log_completions_hub_repo") and not values.get("log_completions"):
        raise ValueError("log_completions_hub_repo: it needs trl.log_completions: true")
    if "@" in urlsplit(str(values.get("vllm_server_base_url", ""))).netloc:
        raise ValueError("vllm_server_base_url: it must hold no user or password; leave them out")
    _check_schedule(stage, values)


def _check_schedule(stage: str, values: dict[str, Any]) -> None:
    """Raise ValueError for an invalid learning rate schedule, by making it for one weight."""
    name, settings = values.get("lr_scheduler_type", "cosine"), values.get("lr_scheduler_kwargs") or {}
    if name in ("reduce_lr_on_plateau", "greedy"):
        if stage == "grpo":
            raise ValueError(f"lr_scheduler_type: {name} follows an evaluation loss, and GRPO has none")
        return
    if isinstance(settings, str):
        raise ValueError("lr_scheduler_kwargs: write a mapping, not a text")
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    try:
        get_scheduler(name, optimizer, 1, 10, scheduler_specific_kwargs=dict(settings))
    except (TypeError, ValueError) as error:
        raise ValueError(f"lr_scheduler_type: {name} cannot be made with {settings}: {error}") from None


def reporters(values: dict[str, Any]) -> list[str]:
    """The names under `report_to`."""
    given = values.get("report_to") or []
    return [given] if isinstance(given, str) else given


def services(values: dict[str, Any]) -> Iterator[str]:
    """The entries of `values` that send films, answers or weights to another machine, as `key: value`."""
    for name in reporters(values):
        if name != "none" and not (name == "mlflow" and _is_local(os.environ.get("MLFLOW_TRACKING_URI", ""))):
            yield f"report_to: {name}"
    for key in ("push_to_hub", "log_completions_hub_repo"):
        if values.get(key):
            yield key
    url, host = values.get("vllm_server_base_url"), values.get("vllm_server_host")
    if url and urlsplit(url).hostname not in THIS_MACHINE:
        yield f"vllm_server_base_url: {url}"
    if host and host not in THIS_MACHINE:
        yield f"vllm_server_host: {host}"


def _is_local(address: str) -> bool:
    """Whether an address of mlflow is a folder, a database file or a server on this machine."""
    parts = urlsplit(address)
    return parts.hostname in THIS_MACHINE or (parts.hostname is None and "databricks" not in address)


def refuse_sending(stage: str, source: str, values: dict[str, Any], agreement: str | None) -> None:
    """Raise ValueError if `values` would send credentialed films of `source` elsewhere, or print answers about them.

    `agreement` is the user's statement which agreement allows sending them.
    """
    if not agreement and (sent := ", ".join(services(values))):
        raise ValueError(
            f"{stage}.trl: films of {source!r} are credentialed and {sent} sends data to another machine; remove it, "
            f"or state under {stage}.agreement which agreement covers sending it there"
        )
    if values.get("log_completions") and values.get("num_completions_to_print") != 0:
        raise ValueError(
            f"{stage}.trl.log_completions: films of {source!r} are credentialed and the notebook, a page of the book, "
            "would show answers about them; add num_completions_to_print: 0, or remove it"
        )
