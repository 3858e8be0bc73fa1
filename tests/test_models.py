"""Both stand-ins load as hub models do, and LoRA reaches what the paper says it reaches."""

import pytest

from chexreason import models, params, sft
from chexreason.params import Lora


@pytest.fixture(params=["medgemma", "qwen"], scope="module")
def stand_in(request) -> params.Model:
    return params.Model(name=request.param, path=f"stand-in:{request.param}", dtype="float32")


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

    model = get_peft_model(models.load_base(stand_in), models.lora_config(Lora(r=16, alpha=32, dropout=0.1)))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    layers = model.config.text_config.num_hidden_layers
    assert len(trained) == 2 * len(projections) * layers  # LoRA's two matrices for each
    assert all("language_model" in name and "lora_" in name for name in trained)
    assert {name.split(".")[-4] for name in trained} == projections


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
