"""Both stand-ins load as hub models do, and LoRA reaches what the paper says it reaches."""

import pytest

from chexreason import config, models
from chexreason.config import Lora
from chexreason.training import sft
from chexreason.workflow import model_size


@pytest.fixture(params=["medgemma", "qwen"], scope="module")
def stand_in(request) -> config.Model:
    return config.Model(name=request.param, path=f"stand-in:{request.param}", dtype="float32")


def test_shipped_weights_are_safetensors_of_at_most_8_megabytes(stand_in):
    from pathlib import Path

    files = list(Path(models.folder(stand_in.path)).iterdir())
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".jinja"}
    assert sum(file.stat().st_size for file in files if file.suffix == ".safetensors") <= 8_000_000


def test_stand_ins_are_the_real_architectures(stand_in):
    expected = {"medgemma": "Gemma3ForConditionalGeneration", "qwen": "Qwen2_5_VLForConditionalGeneration"}
    assert type(models.load_base(stand_in)).__name__ == expected[stand_in.name]


def test_lora_trains_the_language_models_projections_and_nothing_else(stand_in):
    from peft import get_peft_model

    model = get_peft_model(models.load_base(stand_in), models.lora_config(Lora(r=16, lora_alpha=32, lora_dropout=0.1)))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    layers = model.config.text_config.num_hidden_layers
    assert len(trained) == 2 * len(projections) * layers  # LoRA's two matrices for each
    assert all("language_model" in name and "lora_" in name for name in trained)
    assert {name.split(".")[-4] for name in trained} == projections


def film(width: int, height: int):
    from PIL import Image

    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def asked(processor, picture):
    """What a model is given when it is asked about a picture."""
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is there?"}]}]
    text = processor.apply_chat_template(message, add_generation_prompt=True)
    return processor(images=[[picture]], text=[text], return_tensors="pt", add_special_tokens=False)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_frozen_vision_encoder_is_run_once_and_leaves_the_gradients_as_they_are(stand_in, checkpointing):
    import torch
    from peft import get_peft_model

    def step(base):
        """One step as trl makes it: the adapter's gradients, and how often the encoder's first projection was run."""
        torch.manual_seed(0)
        model, runs = get_peft_model(base, models.lora_config(Lora(r=4, lora_alpha=8, lora_dropout=0.0))).train(), []
        if checkpointing:
            model.enable_input_require_grads()
            model.activation_checkpointing_enable()
        first = next(module for module in base.get_encoder("image").modules() if isinstance(module, torch.nn.Linear))
        first.register_forward_pre_hook(lambda *_: runs.append(1))
        inputs = asked(models.load_processor(stand_in), film(128, 128))
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients = [weight.grad for weight in model.parameters() if weight.requires_grad]
        return torch.cat([gradient.flatten() for gradient in gradients]), len(runs)

    expected, _ = step(models.load_base(stand_in))
    gradients, runs = step(models.freeze_vision(models.load_base(stand_in)))
    assert runs == 1
    assert expected.abs().sum() > 0
    torch.testing.assert_close(gradients, expected)


@pytest.fixture(scope="module")
def published_qwen(tmp_path_factory) -> str:
    """A folder that is laid out like Qwen2.5-VL-3B's on the hub: its true shape and pixels, and no weights."""
    from transformers import AutoConfig
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    place = str(tmp_path_factory.mktemp("qwen"))
    processor = models.load_processor(config.Model(name="qwen", path="stand-in:qwen", dtype="float32"))
    processor.image_processor = Qwen2VLImageProcessorPil(min_pixels=4 * 28 * 28, max_pixels=16_384 * 28 * 28)
    processor.save_pretrained(place)
    AutoConfig.for_model(**model_size.QWEN_2_5_VL_3B).save_pretrained(place)
    return place


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        ((512, 512), 324),  # 504 x 504 pixels, the nearest multiples of 28: 18 x 18 squares
        ((200, 200), 256),  # enlarged to 448 x 448
        ((896, 734), 500),  # 32 x 26 squares are too many: 1.28 times smaller, and down to 25 x 20
        ((2500, 3050), 480),  # 4.36 times smaller, and down to 20 x 24
        ((3050, 2500), 480),
        ((390, 2520), 456),  # 1.56 times smaller, and down to 8 x 57
    ],
)
def test_qwen_sees_a_film_of_any_size_as_256_to_512_tokens(published_qwen, size, tokens):
    model = config.Model(name="qwen", path=published_qwen, dtype="bfloat16", visual_tokens=(256, 512))
    processor = models.load_processor(model)
    inputs = asked(processor, film(*size))
    found = int((inputs["input_ids"] == processor.image_token_id).sum())
    assert found == tokens == len(inputs["pixel_values"]) // 4
    assert 256 <= found <= 512


def test_without_bounds_qwen_sees_a_large_film_as_thousands_of_tokens(published_qwen):
    """Why the bounds matter: 2500 x 3050 pixels are 89 x 109 squares."""
    model = config.Model(name="qwen", path=published_qwen, dtype="bfloat16")
    inputs = models.load_processor(model).image_processor(film(2500, 3050), return_tensors="pt")
    assert len(inputs["pixel_values"]) == 4 * 89 * 109


def test_the_bounds_of_a_model_with_a_fixed_number_of_tokens_are_refused():
    model = config.Model(name="gemma", path="stand-in:medgemma", dtype="float32", visual_tokens=(256, 512))
    with pytest.raises(models.ModelError, match=r"stand-in:medgemma: visual_tokens: .* fixed; leave the key out"):
        models.load_processor(model)


def test_tokenizer_loses_nothing(stand_in):
    tokenizer = models.load_processor(stand_in).tokenizer
    text = "<think>Ünusual: 3 µm <b>bold</b>\n\tيمين 🫁</think>\n<solution>Edema,  Fracture</solution>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_stand_in_that_is_not_there_is_refused_by_name():
    with pytest.raises(models.ModelError, match="stand-in:gemini"):
        models.folder("stand-in:gemini")


def test_trainable_counts_both_matrices_of_every_projection(smoke):
    table = sft.trainable(smoke, "medgemma")
    lora, text = smoke.lora, models.load_base(smoke.models["medgemma"]).config.text_config
    layers, inner, hidden = text.num_hidden_layers, text.intermediate_size, text.hidden_size
    assert table.loc[("language_model", "up_proj"), "weights"] == layers * lora.r * (hidden + inner)
    assert (table["matrices"] == 2 * layers).all()
