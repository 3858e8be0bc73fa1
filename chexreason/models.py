"""Base models: load a model and its processor, attach LoRA, load trained adapters."""

import hashlib
import os
import re
from collections.abc import Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from textwrap import shorten
from typing import Any

from chexreason import answers, config, records

STAND_IN = "stand-in:"

LANGUAGE_PROJECTIONS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)$"
"""Attention and feed-forward projections of the language model only (PROTOCOL: SFT); the vision encoder has the same
names."""

TAGS = ("<think>", "</think>", "<solution>", "</solution>")
"""The tags of an answer, which a model must be able to write (PROTOCOL: equation 3)."""

LAYERS = re.compile(r"\.(layers?|h|blocks?)\.\d+\.")
"""Matches the name of everything inside a transformer layer, in language models and encoders."""

NOT_LANGUAGE = re.compile(
    r"vis|image|audio|speech|tower|qformer|perceiver|resampler|connector|projector|merger|aligner"
)
"""Matches the names of the other parts of a multimodal model, in all architectures of transformers."""

READ = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
"""The files that a model and its processor are loaded from: weights, configuration, tokenizer and chat template."""

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
"""The files of a peft adapter.  Weights in a pickle (`adapter_model.bin`) could run code, and are never loaded."""

NO_MATCH = "these adapter weights do not match the base model"


class ModelError(ValueError):
    """A model cannot be loaded; the message names it and the reason."""


@contextmanager
def one_line_errors(place: str | Path):
    """Turn any error in the block into a ModelError of one line that begins with `place`.

    An out-of-memory error is not changed, because the caller knows what to do about it.
    """
    from chexreason.runtime import out_of_memory

    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{place}: cannot be loaded: {shorten(message, 300)}") from error


def folder(path: str) -> str:
    """The place of a model's weights: the package's folder for `stand-in:<name>`, else the path or hub id itself."""
    if not path.startswith(STAND_IN):
        return path
    place = Path(str(files("chexreason"))) / "stand_ins" / path.removeprefix(STAND_IN)
    if not (place / "config.json").exists():
        raise ModelError(f"{path}: no such stand-in in {place.parent.name}/; notebooks/0_stand_ins.ipynb makes them")
    return str(place)


def weights(model: config.Model) -> list[Path]:
    """The files of a folder or stand-in that can change a reply (see `READ`); none for a hub id."""
    place = Path(folder(model.path))
    return sorted(file for pattern in READ for file in place.glob(pattern))


def commit(model: config.Model) -> str:
    """The commit of a hub model: that of `revision`, or of `main` in this machine's cache; "" for a folder.

    The hub is asked only if the model is not in the cache and HF_HUB_OFFLINE is 0; "" if it is not known.
    """
    from huggingface_hub import model_info, try_to_load_from_cache

    if Path(folder(model.path)).is_dir():
        if model.revision:
            raise ModelError(f"{model.path}: revision: a folder has no revisions; leave the key out")
        return ""
    try:
        cached = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
        if isinstance(cached, str):
            return Path(cached).parent.name
        return (
            model_info(model.path, revision=model.revision).sha or "" if os.environ.get("HF_HUB_OFFLINE") == "0" else ""
        )
    except (OSError, ValueError):  # no hub id, no network, no such revision: loading says so
        return ""


def version(model: config.Model) -> str:
    """The version of a model's weights: the commit of a hub model, or `sha256:<16 digits>` of a folder's files."""
    if found := commit(model):
        return found
    sums = [f"{file.name} {_sha256(file, file.stat().st_size, file.stat().st_mtime_ns)}" for file in weights(model)]
    return f"sha256:{hashlib.sha256(chr(10).join(sums).encode()).hexdigest()[:16]}" if sums else ""


def provenance(model: config.Model) -> dict:
    """The entries about the base model in the provenance of a record."""
    return {"model": {"path": model.path, "version": version(model)}}


@cache
def _sha256(file: Path, size: int, changed: int) -> str:
    """The hash of a file's bytes, taken once while size and time of change stay: a model has gigabytes."""
    return records.sha256(file)


def _source(model: config.Model) -> dict:
    """Which repository or folder, and which commit of it, transformers is to load; never code from there."""
    return {
        "pretrained_model_name_or_path": folder(model.path),
        "revision": commit(model) or model.revision or "main",
        "trust_remote_code": False,
    }


def load_processor(model: config.Model):
    """The processor of a model (image processor, tokenizer and chat template), which pads on the left.

    Only the chat template adds special tokens, so that SFT, GRPO and prediction give the model the same tokens.
    Qwen2.5-VL is loaded without its video processor, which needs torchvision and is missing in folders that were saved
    without it.
    Raises ModelError if `visual_tokens` is given for a model with a fixed number of tokens, if there is no image
    processor or chat template, or if the tokenizer drops the tags of an answer.
    """
    from transformers import AutoConfig, AutoProcessor

    with one_line_errors(model.path):
        source = _source(model)
        kind = AutoConfig.from_pretrained(**source).model_type
        if kind == "qwen2_5_vl":
            processor = image_only_qwen().from_pretrained(**source)
        else:
            processor = AutoProcessor.from_pretrained(**source)
    if not hasattr(processor, "image_processor"):
        raise ModelError(f"{model.path}: has no image processor, so it cannot look at a film")
    with one_line_errors(model.path):
        _only_template_adds_tokens(processor, model.path)
    if model.visual_tokens:
        limit_visual_tokens(processor.image_processor, model)
    return processor


def _only_template_adds_tokens(processor, path: str) -> None:
    """Make the chat template the only source of special tokens, and check that decoding keeps the tags of an answer.

    If a tokenizer adds <bos> as well, trl's GRPO forward pass has it twice, and the image is marked one token late.  If
    the template of such a tokenizer does not write <bos>, it is added to the template.
    """
    words = processor.tokenizer
    words.padding_side = "left"
    words.pad_token = words.pad_token or words.eos_token
    words.response_schema = words.response_template = None  # trl would reward a parsed reply instead of the whole
    processor.chat_template = processor.chat_template or words.chat_template
    if not isinstance(processor.chat_template, str):
        raise ModelError(f"{path}: has no chat template; add chat_template.jinja to its folder")
    text = "".join(TAGS)
    plain, added = words(text, add_special_tokens=False).input_ids, words(text).input_ids
    if added != plain:
        if words.bos_token_id in added[:1] and not question(processor, "").startswith(words.bos_token):
            processor.chat_template = "{{ bos_token }}" + processor.chat_template
        words.add_bos_token = words.add_eos_token = False
        if words(text).input_ids != plain:
            raise ModelError(f"{path}: its tokenizer adds special tokens to every text; switch that off in its folder")
    if lost := [tag for tag in TAGS if tag not in words.decode(plain, skip_special_tokens=True)]:
        raise ModelError(
            f"{path}: its tokenizer drops {', '.join(lost)} from replies; in tokenizer.json, make it no special token"
        )


def question(processor, prompt: str) -> str:
    """The whole input text for one film and `prompt`, up to the beginning of the reply."""
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def inputs(processor, images: Sequence, prompt: str):
    """The input tensors for `prompt` and each of `images` (PIL), padded on the left to one length."""
    return processor(
        images=[[image.convert("RGB")] for image in images],
        text=[question(processor, prompt)] * len(images),
        return_tensors="pt",
        padding=True,
        add_special_tokens=False,
    )


def template_opening(processor) -> str:
    """The part of every reply that the chat template writes: "<think>\\n" if it opens the thought, else "".

    It is part of the reply wherever a reply is rewarded, read or recorded.
    """
    mark = "What is on this film?"
    end = question(processor, mark).rpartition(mark)[2]
    tags = [*re.finditer(rf"<({'|'.join(answers.THOUGHTS + answers.LABELS)})>", end)]
    return end[tags[-1].start() :] if tags and f"</{tags[-1][1]}>" not in end[tags[-1].end() :] else ""


def assistant_message(answer: str, opening: str) -> str:
    """The assistant's message that teaches `answer` to a model whose template writes `opening`.

    If the answer has no thought, the thought that the template opens is closed at once.
    """
    if not opening:
        return answer
    return opening + (answer.removeprefix("<think>") if answer.startswith("<think>") else f"</think>\n{answer}")


def end_tokens(model, processor) -> list[int]:
    """The tokens that end a reply, by the model's generation config, the tokenizer or the chat template."""
    mark, words = "Nothing.", processor.tokenizer
    turns = [{"role": role, "content": [{"type": "text", "text": mark}]} for role in ("user", "assistant")]
    after = words(processor.apply_chat_template(turns).rpartition(mark)[2], add_special_tokens=False).input_ids
    special = {token for token, added in words.added_tokens_decoder.items() if added.special}
    of_template = next((token for token in after if token in special), None)
    known = model.generation_config.eos_token_id
    known = known if isinstance(known, list) else [known]
    return list(dict.fromkeys(token for token in (*known, words.eos_token_id, of_template) if token is not None))


def plain_generation(model, processor):
    """Remove a model's own generation defaults, and let it stop at every token of `end_tokens`; returns the model.

    A published generation_config.json may have a repetition penalty or the like, which would change greedy decoding for
    this model only.  No token that stands for an image is written (`image_tokens`).
    """
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        bos_token_id=model.generation_config.bos_token_id,
        eos_token_id=end_tokens(model, processor),
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=image_tokens(model),
    )
    return model


def image_tokens(model) -> list[int] | None:
    """The tokens in whose place a model reads an image or a video; None if it has none.

    A reply that had one could not be read again: there is no image for it.
    """
    names = ("image_token_id", "image_token_index", "video_token_id")
    found = {token for name in names if (token := getattr(model.config, name, None)) is not None}
    return sorted(found) or None


def limit_visual_tokens(image_processor, model: config.Model) -> None:
    """Limit the number of tokens per film in Qwen2.5-VL's image processor to the range `model.visual_tokens`.

    The processor's limits are in pixels.  A token is a square of `merge_size` x `merge_size` patches: 28 x 28 pixels in
    the published model.
    """
    if "shortest_edge" not in image_processor.size:
        raise ModelError(f"{model.path}: visual_tokens: this model's number of tokens is fixed; leave the key out")
    token = (image_processor.patch_size * image_processor.merge_size) ** 2
    fewest, most = (tokens * token for tokens in model.visual_tokens or ())
    image_processor.size = {"shortest_edge": fewest, "longest_edge": most}


def image_only_qwen():
    """A Qwen2.5-VL processor class without the video processor."""
    from transformers import Qwen2_5_VLProcessor

    class ImageOnlyQwen(Qwen2_5_VLProcessor):
        def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
            super().__init__(image_processor, tokenizer, None, chat_template=chat_template, **kwargs)

    ImageOnlyQwen.__name__ = "Qwen2_5_VLProcessor"  # so that saved folders name the class every machine has
    return ImageOnlyQwen


def load_base(model: config.Model):
    """The base model in evaluation mode, on the GPU if there is one; safetensors only, no remote code.

    Raises ModelError if the folder or hub id has no such model.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    with one_line_errors(model.path):
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            **_source(model), dtype=getattr(torch, model.dtype), use_safetensors=True
        )
    loaded.commit = commit(model)
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def freeze_vision(model):
    """Run the vision encoder of a base model without autograd; returns the model.

    LoRA does not adapt the encoder, so its weights stay the same.  Without this, gradient checkpointing in trl would
    run all its layers twice and compute gradients that nobody needs.
    """
    import torch

    if (encoder := image_encoder(model)) is not None:
        encoder.forward = torch.no_grad()(encoder.forward)
    return model


def look_once(encoder) -> None:
    """Let a frozen vision encoder compute each film once: `encoder.forward` remembers its hidden states.

    GRPO shows the same film to the encoder for every reply and every pass. Films are told apart by the bytes of their
    pixels. `encoder.forward.cache_clear()` forgets them. An encoder that is not called with one image per row
    (`pixel_values` alone, as Gemma 3's is) is left as it was.
    """
    import torch

    plain, seen = encoder.forward, {}

    def look(*args, **inputs):
        pixels = inputs.get("pixel_values")
        if args or not {"pixel_values"} <= {*inputs} <= {"pixel_values", "return_dict"} or pixels.ndim != 4:
            return plain(*args, **inputs)
        keys = [hashlib.blake2b(film.cpu().view(torch.uint8).numpy(), digest_size=16).digest() for film in pixels]
        new = {key: place for place, key in enumerate(keys) if key not in seen}
        if new:
            output = plain(pixel_values=pixels[list(new.values())])
            seen.update(zip(new, output.last_hidden_state, strict=True))
            seen[None] = type(output)
        return seen[None](last_hidden_state=torch.stack([seen[key] for key in keys]))

    look.cache_clear = seen.clear  # type: ignore[attr-defined]
    encoder.forward = look


def image_encoder(model):
    """The vision encoder of a base model; None if it is not separate from the language model."""
    encoder = model.get_encoder("image")
    if encoder is None or set(map(id, encoder.modules())) & {id(model), id(model.base_model)}:
        return None
    return encoder


def load_trained(model: config.Model, adapter: Path):
    """The base model with an adapter of SFT or GRPO merged into it, for prediction."""
    return attach(load_base(model), adapter).merge_and_unload().eval()


def attach(base, adapter: Path, trainable: bool = False):
    """`base` with the LoRA adapter in the folder `adapter` attached, as a peft model; safetensors only.

    Raises ModelError if a file is missing or damaged, or if the adapter belongs to another model.  (peft ignores
    weights that do not fit, and the model would answer like the untuned one.)
    """
    from peft import PeftModel
    from safetensors.torch import load_file

    for name in ADAPTER:
        if not (adapter / name).is_file():
            raise ModelError(f"{adapter}: holds no {name}; an adapter is {' and '.join(ADAPTER)}")
    with one_line_errors(adapter):
        weights = load_file(adapter / ADAPTER[1])
        try:
            model = PeftModel.from_pretrained(base, str(adapter), is_trainable=trainable, use_safetensors=True)
        except RuntimeError as error:  # weights of another shape
            raise ModelError(f"{adapter}: {NO_MATCH} {base.name_or_path}") from error
    if fault := _fault(model, weights, base.name_or_path):
        raise ModelError(f"{adapter}: {fault}")
    model.peft_config["default"].base_model_name_or_path = base.name_or_path  # where peft looks for it
    return model


def _fault(model, weights: dict, base: str) -> str:
    """What is wrong with the adapter of a peft model that was loaded from `weights`; "" if it is right."""
    from peft import get_peft_model_state_dict

    if set(get_peft_model_state_dict(model, save_embedding_layers=False)) != set(weights):  # LoRA reaches none
        return f"{NO_MATCH} {base}"
    if not all(weight.isfinite().all() for weight in weights.values()):
        return "has weights that are not finite numbers; train it again"
    made_for = model.peft_config["default"].base_model_name_or_path or base
    if Path(made_for.removeprefix(STAND_IN)).name != Path(base).name:  # another model's weights may have its shapes
        return f"its adapter_config.json says that it belongs to {made_for}, not {base}"
    trained_on, loaded = model.peft_config["default"].revision, getattr(model.get_base_model(), "commit", "")
    if trained_on and loaded and trained_on != loaded:
        return (
            f"it was trained on the commit {trained_on} of {base}, not {loaded}; give models: revision, or train again"
        )
    return ""


def lora_config(lora: config.Lora, model: config.Model | None = None):
    """The published LoRA (PROTOCOL: SFT) as a peft configuration, with the target modules that `model` names."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=(model and model.target_modules) or LANGUAGE_PROJECTIONS,
        exclude_modules=list(model.exclude_modules) if model and model.exclude_modules else None,
        task_type="CAUSAL_LM",
    )


def refuse_unreached(base, model: config.Model) -> None:
    """Raise ModelError if LoRA does not adapt a linear layer of the language model, unless params leave it out.

    Also if LoRA adapts no layer, or the vision encoder, which is frozen.  `base` may be on the meta device.
    """
    pattern, left_out = model.target_modules or LANGUAGE_PROJECTIONS, model.exclude_modules
    names = {name for name, _ in base.named_modules()}
    excluded = {short: {name for name in names | matrices(base) if _ends_in(name, short)} for short in left_out}
    reached = {name for name in names if re.fullmatch(pattern, name)} - set().union(*excluded.values())
    keys = "models: target_modules (a regular expression of what to adapt) or exclude_modules (what to leave out)"
    if unknown := [short for short, found in excluded.items() if not found]:
        raise ModelError(f"{model.path}: exclude_modules: it has no layer {', '.join(unknown)}")
    if not reached and not matrices(base):
        raise ModelError(f"{model.path}: LoRA reaches no layer of it; name its layers in {keys}")
    encoder = image_encoder(base)
    frozen = {id(module) for module in encoder.modules()} if encoder is not None else set()
    if seen := [name for name, module in base.named_modules() if name in reached and id(module) in frozen]:
        raise ModelError(f"{model.path}: LoRA reaches the frozen vision encoder ({seen[0]}); change {keys}")
    if left := matrices(base) - reached - set().union(*excluded.values()):
        shown = ", ".join(sorted({_short(name) for name in left}))
        raise ModelError(
            f"{model.path}: LoRA leaves linear layers of the language model out: {shown}; name them in {keys}"
        )


def matrices(base) -> set[str]:
    """The names of all weight matrices in the language model's layers: linear layers, routers and fused experts.

    Embeddings and convolutions do not count.
    """
    import torch

    encoder = image_encoder(base)
    frozen = {id(weight) for weight in encoder.parameters()} if encoder is not None else set()
    others = (torch.nn.Embedding, torch.nn.modules.conv._ConvNd)
    return {
        name if own == "weight" else f"{name}.{own}"
        for name, module in base.named_modules()
        if LAYERS.search(f"{name}.") and not NOT_LANGUAGE.search(name) and not isinstance(module, others)
        for own, weight in module.named_parameters(recurse=False)
        if weight.ndim > 1 and id(weight) not in frozen
    }


def _ends_in(name: str, short: str) -> bool:
    """Whether a module's name ends in the parts `short`; peft matches such lists in this way."""
    return f".{name}".endswith(f".{short}")


def _short(name: str) -> str:
    """The last part of a layer's name, with `experts.` before it if it is one of many experts."""
    last = name.split(".")
    return ".".join(last[-2:]) if last[-2] == "experts" else last[-1]
