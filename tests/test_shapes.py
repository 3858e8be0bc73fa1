"""The published architectures, written out here, are those on the hub, and LoRA reaches the right parts of them."""

import re

import pytest
from conftest import ROOT

from chexreason import config, models
from chexreason.config import Lora
from chexreason.workflow import model_size

MEDGEMMA, QWEN, NV_REASON = model_size.PUBLISHED
LORA = Lora(r=16, lora_alpha=32, lora_dropout=0.1)
MODELS = {model.path: model for model in config.load(ROOT / "params" / "paper.yaml").models.values()}


@pytest.fixture(scope="module", params=[MEDGEMMA, QWEN])
def path(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def built(path):
    """The model on the meta device, and what LoRA adapts in a second one."""
    return model_size.empty(path), model_size.adapted(model_size.empty(path), LORA)


def test_weights_add_up_to_what_the_hub_says(path, built):
    """The totals are of the safetensors metadata of google/medgemma-4b-it and Qwen/Qwen2.5-VL-3B-Instruct, the vision
    encoders' from printed summaries of the loaded models; Gemma's projector is one matrix and one norm."""
    vision, total = {MEDGEMMA: (416_866_032 + 1152 * 2560 + 1152, 4_300_079_472), QWEN: (668_684_288, 3_754_622_976)}[
        path
    ]
    assert model_size.parts(built[0]) == {"vision": vision, "language": total - vision}


def test_nothing_is_held_in_memory(built):
    assert {weight.device.type for weight in built[0].parameters()} == {"meta"}


def test_nv_reason_has_qwens_architecture():
    assert model_size.PUBLISHED[NV_REASON] == model_size.PUBLISHED[QWEN]


def test_every_sixth_layer_of_gemma_sees_the_whole_text():
    kinds = model_size.model_config(MEDGEMMA).text_config.layer_types
    assert [number for number, kind in enumerate(kinds, 1) if kind == "full_attention"] == [6, 12, 18, 24, 30]


def test_lora_adapts_the_language_models_projections_and_nothing_else(path, built):
    _, adapted = built
    found = [re.fullmatch(r"model\.language_model\.layers\.(\d+)\.(self_attn|mlp)\.(\w+)", name) for name in adapted]
    assert all(found), [name for name, match in zip(adapted, found, strict=True) if not match]
    projections = {f"self_attn.{each}_proj" for each in "qkvo"} | {
        f"mlp.{each}_proj" for each in ("gate", "up", "down")
    }
    layers = range({MEDGEMMA: 34, QWEN: 36}[path])
    assert {(int(match[1]), f"{match[2]}.{match[3]}") for match in found} == {
        (n, p) for n in layers for p in projections
    }


def test_bare_projection_names_would_have_hit_the_vision_encoder(built):
    """Why the expression names the language model: both vision encoders have modules of the same names."""
    vision = [name for name, _ in built[0].named_modules() if re.match(r"model\.(vision_tower|visual)\.", name)]
    projections = {name.rpartition(".")[2] for name in vision if name.endswith("_proj")}
    assert projections & {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}


def test_trainable_weights_at_rank_16_by_hand(path, built):
    """Each projection gets r x (inputs + outputs) weights."""
    hidden, inner, queries, values, layers = {
        MEDGEMMA: (2560, 10_240, 8 * 256, 4 * 256, 34),
        QWEN: (2048, 11_008, 16 * 128, 2 * 128, 36),
    }[path]
    layer = 2 * (hidden + queries) + 2 * (hidden + values) + 3 * (hidden + inner)
    assert sum(built[1].values()) == 16 * layer * layers == {MEDGEMMA: 29_802_496, QWEN: 29_933_568}[path]


@pytest.mark.parametrize("size", [(734, 896), (896, 896), (1024, 1280), (2500, 3050)])
def test_a_film_is_256_tokens_for_medgemma_and_256_to_512_for_qwen(size):
    from PIL import Image

    film = Image.new("RGB", size)
    gemma, qwen = (model_size.image_processor(MODELS[path])(film, return_tensors="pt") for path in (MEDGEMMA, QWEN))
    assert gemma["pixel_values"].shape == (1, 3, 896, 896)
    assert 256 <= int(qwen["image_grid_thw"].prod()) / 4 <= 512


def test_medgemmas_projector_makes_256_features_of_a_film():
    import torch

    pixels = torch.empty(1, 3, 896, 896, device="meta", dtype=torch.bfloat16)
    features = model_size.empty(MEDGEMMA).get_image_features(pixels, return_dict=True).pooler_output
    assert features.shape == (1, 256, 2560)


def test_a_stand_in_has_weights_too():
    stand_in = models.Path(models.folder("stand-in:medgemma")) / "model.safetensors"
    assert model_size.weights("stand-in:medgemma") == pytest.approx(stand_in.stat().st_size / 4, rel=0.02)  # a header


def test_keys_and_values_by_hand():
    """Gemma 3 4B has 34 layers with 4 heads of 256 numbers, Qwen2.5-VL-3B 36 with 2 of 128."""
    assert model_size.key_values(MEDGEMMA) == 2 * 34 * 4 * 256
    assert model_size.key_values(QWEN) == 2 * 36 * 2 * 128


def test_architectures_are_distinguished_by_kind_and_size():
    assert model_size.architecture(NV_REASON) == model_size.architecture(QWEN)
    kinds = [model_size.architecture(path) for path in (MEDGEMMA, QWEN, "stand-in:medgemma", "stand-in:qwen")]
    assert len(set(kinds)) == 4


def test_an_unknown_model_is_refused_by_name():
    with pytest.raises(models.ModelError, match=r"someone/else-4b: .* none of google/medgemma-4b-it"):
        model_size.model_config("someone/else-4b")
