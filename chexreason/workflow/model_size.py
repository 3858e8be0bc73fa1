"""The published models with their true shape but without weights, on torch's meta device.

The numbers are from the models' config.json. `tests/test_shapes.py` compares the total weights with those on the hub.
"""

import warnings
from collections import Counter
from functools import cache
from typing import Any

from chexreason import config, models

GEMMA_3_4B = {
    "model_type": "gemma3",
    "mm_tokens_per_image": 256,
    "text_config": {
        "model_type": "gemma3_text",
        "vocab_size": 262_208,
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 1024,
        "max_position_embeddings": 131_072,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
"""Gemma 3 4B with SigLIP so400m/14.  Every sixth layer sees the whole text, which is transformers' default too."""

QWEN_2_5_VL_3B = {
    "model_type": "qwen2_5_vl",
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "qwen2_5_vl_text",
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128_000,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}

PUBLISHED: dict[str, dict[str, Any]] = {
    "google/medgemma-4b-it": GEMMA_3_4B,
    "Qwen/Qwen2.5-VL-3B-Instruct": QWEN_2_5_VL_3B,
    "nvidia/NV-Reason-CXR-3B": QWEN_2_5_VL_3B,
}
"""Hub id to architecture."""


def model_config(path: str):
    """The configuration of a model: a published one, or one whose folder or cache is on this machine.

    Raises ModelError otherwise.
    """
    from transformers import AutoConfig

    if path in PUBLISHED:
        return AutoConfig.for_model(**PUBLISHED[path])
    try:
        return AutoConfig.from_pretrained(models.folder(path), local_files_only=True)
    except OSError:
        raise models.ModelError(
            f"{path}: its shape is not known: not on this machine, and none of {', '.join(PUBLISHED)}"
        ) from None


def empty(path: str):
    """The model in bfloat16 on the meta device: all modules and shapes, no memory."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(model_config(path), dtype=torch.bfloat16)


def parts(model) -> dict[str, int]:
    """The number of weights of the vision encoder with its projector, and of the language model with its head."""
    count: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        count["language" if "language_model" in name or "lm_head" in name else "vision"] += weight.numel()
    return dict(count)


def adapted(model, lora: config.Lora, settings: config.Model | None = None) -> dict[str, int]:
    """The modules that LoRA adapts in a model from `empty`, and the number of trained weights in each."""
    from peft import get_peft_model

    count: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads a name that transformers is giving up
        adapter = get_peft_model(model, models.lora_config(lora, settings))
    for name, weight in adapter.named_parameters():
        if weight.requires_grad:
            count[name.removeprefix("base_model.model.").partition(".lora_")[0]] += weight.numel()
    return dict(count)


def image_processor(model: config.Model):
    """The image processor of a model; for a published one, without network access."""
    if model.path not in PUBLISHED:
        return models.load_processor(model).image_processor
    vision = PUBLISHED[model.path]["vision_config"]
    if PUBLISHED[model.path]["model_type"] == "gemma3":
        from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

        return Gemma3ImageProcessorPil(size={"height": vision["image_size"], "width": vision["image_size"]})
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(patch_size=vision["patch_size"], merge_size=vision["spatial_merge_size"])
    if model.visual_tokens:
        models.limit_visual_tokens(processor, model)
    return processor


@cache
def weights(path: str) -> int:
    """The number of weights of a model without LoRA; shared weights count once."""
    return sum(parts(empty(path)).values())


@cache
def trainable(path: str, lora: config.Lora) -> int:
    """The number of weights that LoRA adds to a model."""
    return sum(adapted(empty(path), lora).values())


def key_values(path: str) -> int:
    """The number of key and value entries that a language model keeps per token."""
    text = model_config(path).get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * head_dim


def architecture(path: str) -> tuple:
    """A text that identifies an architecture and its size."""
    settings = model_config(path)
    text, vision = settings.get_text_config(), getattr(settings, "vision_config", None)
    return settings.model_type, text.num_hidden_layers, text.hidden_size, getattr(vision, "hidden_size", 0)
