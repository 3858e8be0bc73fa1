"""Weights that move under one id are noticed, and LoRA leaves no layer out unsaid."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, changed_study
from small import stand_in

from chexreason import config, models
from chexreason.inference import predict
from chexreason.training import common, model_card
from chexreason.workflow import plan

HUB = "someone/other"


def model(path=HUB, **keys) -> config.Model:
    return config.Model(name="other", path=str(path), dtype="float32", **keys)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache, and a function that puts a commit of `someone/other` into it, as `main`."""
    import huggingface_hub.constants
    import transformers.utils.hub

    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.file_download.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(transformers.utils.hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = cache / "models--someone--other"

    def commit(digit: str, change=lambda weights: weights) -> str:
        from safetensors.torch import load_file, save_file

        place = stand_in(repository / "snapshots" / (digit * 40))
        save_file(
            change(load_file(place / "model.safetensors")), place / "model.safetensors", metadata={"format": "pt"}
        )
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(digit * 40)
        return digit * 40

    return commit


def test_weights_that_move_under_one_hub_id_change_what_is_made_of_them(hub):
    study = config.load(ROOT / "params" / "smoke.yaml").model_copy(update={"models": {"medgemma": model()}})

    def made() -> tuple:
        reader = predict.load(model(), None, 1)
        scores = model_card.Scores("a-validation", "", {})
        text = model_card.text(study, "medgemma", "sft", "", {}, scores)
        place = common.work_folder(Path("place"), "sft", model())
        return reader.key, models.provenance(model())["model"]["version"], place, text

    first = hub("a")
    before = made()
    second = hub("b", lambda weights: {name: -weight for name, weight in weights.items()})
    after = made()
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert (before[1], after[1]) == (first, second) and f'revision="{second}"' in after[3]
    pinned = models.load_base(model(revision=first))
    moved = models.load_base(model())
    assert (pinned.commit, moved.commit) == (first, second)
    assert not torch.equal(next(pinned.parameters()), next(moved.parameters()))
    assert (
        models.commit(model(revision=first)) == first and predict.load(model(revision=first), None, 1).key == before[0]
    )


def test_an_adapter_of_another_commit_is_refused(hub, tmp_path):
    import json

    from peft import get_peft_model

    first, place = hub("a"), tmp_path / "adapter"
    lora = models.lora_config(config.Lora(r=2, lora_alpha=2, lora_dropout=0.0), model())
    get_peft_model(models.load_base(model()), lora).save_pretrained(str(place), save_embedding_layers=False)
    settings = json.loads((place / "adapter_config.json").read_text()) | {"revision": first}
    (place / "adapter_config.json").write_text(json.dumps(settings))
    assert models.load_trained(model(), place)
    second = hub("b")
    with pytest.raises(models.ModelError, match=f"commit {first} of {HUB}, not {second}; give models: revision"):
        models.load_trained(model(), place)
    assert models.load_trained(model(revision=first), place)


def test_a_revision_that_is_not_there_is_refused_in_a_line(hub, tmp_path):
    hub("a")
    with pytest.raises(models.ModelError, match=r"someone/other: cannot be loaded: [^\n]*$"):
        models.load_base(model(revision="v2"))
    with pytest.raises(models.ModelError, match="revision: a folder has no revisions"):
        models.load_base(model(stand_in(tmp_path / "other"), revision="main"))
    assert plan.access(HUB) == "" and "--revision v2" in plan.access(HUB, "v2")


@pytest.mark.parametrize(
    "file", ["chat_template.jinja", "tokenizer.json", "generation_config.json", "model.safetensors"]
)
def test_every_file_that_a_reply_can_follow_from_changes_a_folders_version(tmp_path, file):
    place = stand_in(tmp_path / "other")
    before = models.version(model(place))
    (place / file).write_bytes((place / file).read_bytes() + b" ")
    assert models.version(model(place)) != before
    shutil.copytree(models.folder("stand-in:medgemma"), tmp_path / "again")
    assert models.version(model(tmp_path / "again")) == before  # what it is called does not matter


# What LoRA reaches.


def empty(kind: str, **text):
    """A model of another architecture, without weights."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.for_model(kind)
    for key, value in {"num_hidden_layers": 2, "num_experts": 2, **text}.items():
        setattr(config.text_config, key, value)
    if getattr(config.text_config, "layer_types", None):
        config.text_config.layer_types = config.text_config.layer_types[-2:]
    for key in ("depth", "num_hidden_layers"):
        if hasattr(config.vision_config, key):
            setattr(config.vision_config, key, 2)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize("kind", ["gemma3", "qwen2_5_vl", "qwen3_vl", "llava", "internvl"])
def test_lora_reaches_all_of_the_architectures_it_was_made_for(kind):
    models.refuse_unreached(empty(kind), model())


@pytest.mark.parametrize(
    ("kind", "left"),
    [
        ("glm4v", "gate_up_proj"),
        ("lfm2_vl", "out_proj, w1, w2, w3"),
        ("qwen3_vl_moe", "experts.down_proj, experts.gate_up_proj, gate"),  # fused experts are no linear modules
        ("idefics3", "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"),
    ],
)
def test_layers_that_lora_leaves_out_are_listed_and_refused_unless_named(kind, left):
    built = empty(kind)
    with pytest.raises(models.ModelError, match=f"language model out: {left.replace('.', '[.]')}; name them"):
        models.refuse_unreached(built, model())
    own = r".*(language_model|text_model)\.layers\.\d+\..*(proj|w[123])"
    if kind != "qwen3_vl_moe":
        models.refuse_unreached(built, model(target_modules=own))
    if kind != "idefics3":
        models.refuse_unreached(built, model(exclude_modules=left.split(", ")))
    with pytest.raises(models.ModelError, match="exclude_modules: it has no layer attic"):
        models.refuse_unreached(built, model(exclude_modules=["attic"]))


def test_lora_in_the_frozen_vision_encoder_is_refused():
    with pytest.raises(models.ModelError, match="reaches the frozen vision encoder"):
        models.refuse_unreached(empty("gemma3"), model(target_modules=r".*\.(q|k|v|o|gate|up|down)_proj"))


def test_excluded_modules_get_no_adapter():
    from peft import get_peft_model

    kept = model("stand-in:medgemma", exclude_modules=["o_proj"])
    base = models.load_base(kept)
    models.refuse_unreached(base, kept)
    adapted = get_peft_model(base, models.lora_config(config.Lora(r=2, lora_alpha=2, lora_dropout=0.0), kept))
    trained = {name.split(".")[-4] for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert trained == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}


def test_a_model_without_an_encoder_of_its_own_is_not_frozen_whole():
    built = empty("gemma3")
    assert models.image_encoder(built) is not None
    built.get_encoder = lambda _: built
    assert models.image_encoder(built) is None
    before = built.forward
    assert models.freeze_vision(built).forward == before


TEXT = '{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 64}'
SMALL = f'{{"model_type": "idefics3", "text_config": {TEXT}, "vision_config": {{"num_hidden_layers": 1}}}}'


@pytest.mark.parametrize("config", [SMALL, '{"model_type": "nobodys"}', "{"])
def test_the_plan_goes_on_past_a_model_of_any_kind(tmp_path, config):
    place = tmp_path / "odd"
    place.mkdir()
    (place / "config.json").write_text(config)
    study = changed_study(tmp_path, "smoke", {"models.medgemma.path": str(place)})
    found = plan.plan(study)
    odd = [run for run in found["runs"] if run["model"] == "medgemma"]
    assert odd and all(run["hours"] is None and "\n" not in run["how"] for run in odd)
    assert any(run["hours"] for run in found["runs"] if run["model"] == "qwen")
