"""Load a base model and its processor, attach LoRA, and load what a stage trained."""

from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from textwrap import shorten

from chexreason import params

STAND_IN = "stand-in:"

LANGUAGE_PROJECTIONS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)$"
"""Attention and feed-forward projections of the language model only (PROTOCOL: SFT); bare names also hit the vision."""


ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
"""The files of a peft adapter.  Weights in a pickle (`adapter_model.bin`) could run code, and are never loaded."""

ANOTHERS = "its weights are not those of an adapter of"


class ModelError(ValueError):
    """A model cannot be loaded; the message names it and says what is missing."""


@contextmanager
def _told(place: str | Path):
    """Whatever a library raises of the files in `place` becomes a ModelError of one line."""
    from safetensors import SafetensorError

    try:
        yield
    except ModelError:
        raise
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise ModelError(f"{place}: cannot be loaded: {shorten(str(error), 300)}") from error


def folder(path: str) -> str:
    """Where a model's weights are: the package's own folder for `stand-in:<name>`, else the path or hub id itself."""
    if not path.startswith(STAND_IN):
        return path
    place = Path(str(files("chexreason"))) / "stand_ins" / path.removeprefix(STAND_IN)
    if not (place / "config.json").exists():
        raise ModelError(f"{path}: no such stand-in in {place.parent.name}/; notebooks/0_stand_ins.ipynb forges them")
    return str(place)


def weights(model: params.Model) -> list[Path]:
    """The files of a model's weights on this machine; none of a hub model, which is known by its id."""
    return sorted(Path(folder(model.path)).glob("*.safetensors"))


def load_processor(model: params.Model):
    """The processor of a model: image processor, tokenizer and chat template, padding on the left.

    Qwen2.5-VL's processor demands a video processor, which demands torchvision; without torchvision the image-only
    subclass of this module reads the same folder.  Raises ModelError where `visual_tokens` is given to a model whose
    number of tokens is fixed.
    """
    from transformers import AutoConfig, AutoProcessor
    from transformers.utils import is_torchvision_available

    place = folder(model.path)
    with _told(model.path):
        kind = AutoConfig.from_pretrained(place, trust_remote_code=False).model_type
        if kind == "qwen2_5_vl" and not is_torchvision_available():
            processor = image_only_qwen().from_pretrained(place)
        else:
            processor = AutoProcessor.from_pretrained(place, trust_remote_code=False)
    processor.tokenizer.padding_side = "left"
    if model.visual_tokens:
        bound(processor.image_processor, model)
    return processor


def bound(image_processor, model: params.Model) -> None:
    """Have Qwen2.5-VL's image processor make between `model.visual_tokens` tokens of a film, of whatever size it is.

    The processor counts in pixels: a token is a square of `merge_size` x `merge_size` patches, 28 x 28 pixels of the
    published model.
    """
    if "shortest_edge" not in image_processor.size:
        raise ModelError(f"{model.path}: visual_tokens: this model's number of tokens is fixed; leave the key out")
    token = (image_processor.patch_size * image_processor.merge_size) ** 2
    fewest, most = (tokens * token for tokens in model.visual_tokens)
    image_processor.size = {"shortest_edge": fewest, "longest_edge": most}


def image_only_qwen():
    """A Qwen2.5-VL processor class without the video processor, for machines without torchvision."""
    from transformers import Qwen2_5_VLProcessor

    class ImageOnlyQwen(Qwen2_5_VLProcessor):
        def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
            super().__init__(image_processor, tokenizer, None, chat_template=chat_template, **kwargs)

    ImageOnlyQwen.__name__ = "Qwen2_5_VLProcessor"  # so that saved folders name the class every machine has
    return ImageOnlyQwen


def load_base(model: params.Model):
    """The base model in evaluation mode on the fastest device there is; safetensors only, no remote code.

    Raises ModelError where the folder or hub id gives no such model.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    place = folder(model.path)
    with _told(model.path):
        loaded = AutoModelForImageTextToText.from_pretrained(
            place, dtype=getattr(torch, model.dtype), use_safetensors=True, trust_remote_code=False
        )
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def freeze_vision(model):
    """Have the vision encoder of a base model run without autograd; returns the model.

    LoRA does not reach it, and its weights stay as they are.  Yet under gradient checkpointing trl has the output of
    every embedding require a gradient, the encoder's patches included, and all its layers would be run twice and
    differentiated for nothing.
    """
    import torch

    encoder = model.get_encoder("image")
    encoder.forward = torch.no_grad()(encoder.forward)
    return model


def load_trained(model: params.Model, adapter: Path):
    """The base model with an adapter of SFT or GRPO merged into it, for answering."""
    return attach(load_base(model), adapter).merge_and_unload().eval()


def attach(base, adapter: Path, trainable: bool = False):
    """`base` with the LoRA adapter in the folder `adapter` attached, as a peft model; safetensors only.

    Raises ModelError where a file is missing or damaged, or the adapter is one of another model: peft itself passes
    over weights that fit nowhere, and the model would answer as if it had never been tuned.
    """
    from peft import PeftModel
    from safetensors.torch import load_file

    for name in ADAPTER:
        if not (adapter / name).is_file():
            raise ModelError(f"{adapter}: holds no {name}; an adapter is {' and '.join(ADAPTER)}")
    with _told(adapter):
        weights = load_file(adapter / ADAPTER[1])
        try:
            model = PeftModel.from_pretrained(base, str(adapter), is_trainable=trainable, use_safetensors=True)
        except RuntimeError as error:  # weights of another shape
            raise ModelError(f"{adapter}: {ANOTHERS} {base.name_or_path}") from error
    if fault := _fault(model, weights, base.name_or_path):
        raise ModelError(f"{adapter}: {fault}")
    model.peft_config["default"].base_model_name_or_path = base.name_or_path  # where peft looks for it
    return model


def _fault(model, weights: dict, base: str) -> str:
    """What is wrong with the adapter of a peft model that was made from `weights`; "" where nothing is."""
    from peft import get_peft_model_state_dict

    if set(get_peft_model_state_dict(model, save_embedding_layers=False)) != set(weights):  # LoRA reaches none
        return f"{ANOTHERS} {base}"
    if not all(weight.isfinite().all() for weight in weights.values()):
        return "holds weights that are no finite numbers; train it again"
    made_for = model.peft_config["default"].base_model_name_or_path or base
    if Path(made_for.removeprefix(STAND_IN)).name != Path(base).name:  # another model's weights may have its shapes
        return f"its adapter_config.json says that it belongs to {made_for}, not {base}"
    return ""


def lora_config(lora: params.Lora):
    """The published LoRA (PROTOCOL: SFT) as a peft configuration."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=LANGUAGE_PROJECTIONS,
        task_type="CAUSAL_LM",
    )
