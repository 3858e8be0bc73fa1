"""A params file that is wrong is refused at once, naming the file, the key and what would be right."""

import os

import pytest
import yaml
from conftest import ROOT

from chexreason.params import ParamsError, load

MINI = (ROOT / "params" / "mini.yaml").read_text(encoding="utf-8")


def refusal(tmp_path, old: str = "", new: str = "", text: str = MINI) -> str:
    """What `load` says about mini.yaml with `old` replaced by `new`."""
    assert old in text
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ParamsError) as caught:
        load(file)
    assert "mine.yaml" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("learning_rate: 2.0e-3", "learning_rte: 2.0e-3", ["sft.learning_rte", "did you mean 'learning_rate'?"]),
        ("teacher:", "techer:", ["techer", "did you mean 'teacher'?"]),
        ("hospital: B,", "hospitel: B,", ["hospitel", "did you mean 'hospital'?"]),
        ("min_length:", "min_lenght:", ["grpo.reward.min_lenght", "did you mean 'min_length'?"]),
        ("  epochs: 2", "  epochs: three", ["sft.epochs", "integer", "'three'"]),
        ("  epochs: 2", "  epochs: 3.5", ["sft.epochs", "integer", "3.5"]),
        ("  epochs: 2", "  epochs: 0", ["sft.epochs", "greater than 0"]),
        ("  floor: 0.05", "  floor: 5", ["curate.floor", "less than or equal to 1", "5"]),
        ("  patience: 2", "", ["sft.patience", "missing"]),
        ("hospital: B,", "hospital: D,", ["sources.b", "'A', 'B' or 'C'", "'D'"]),
        ("policy: u_zeros", "policy: zeros", ["curate.policy", "'u_zeros'", "'zeros'"]),
        ("train: a", "train: z", ["curate.train", "'z'", "choose one of a, b, c"]),
        ("label_sets: [nih9]", "label_sets: [nih8]", ["tests.c-test.label_sets", "'nih8'", "nih9"]),
        ("{model: medgemma, format", "{model: medgema, format", ["model", "'medgema'", "medgemma"]),
    ],
)
def test_a_wrong_key_or_value_is_refused_with_its_name_and_the_right_one(tmp_path, old, new, told):
    said = refusal(tmp_path, old, new)
    for words in told:
        assert words in said, said


def test_every_mistake_is_told_at_once(tmp_path):
    said = refusal(tmp_path, "  epochs: 2", "  epocs: 3")
    assert "sft.epocs" in said
    assert "'sft.epochs' is missing" in said


def test_grpo_from_a_checkpoint_that_no_sft_run_makes_is_refused(tmp_path):
    said = refusal(tmp_path, "format: free_reasoning, reward", "format: narrative, reward")
    assert "narrative" in said


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError, match=r"params/mni\.yaml: no such params file"):
        load("params/mni.yaml")


@pytest.mark.parametrize("text", ["study: [unclosed", "- a list", "", "just words"])
def test_a_file_that_is_not_a_mapping_in_yaml_is_refused(tmp_path, text):
    refusal(tmp_path, text=text)


def test_a_notebook_opened_in_its_own_folder_finds_the_params_one_above(tmp_path, monkeypatch):
    (tmp_path / "params").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "params" / "mini.yaml").write_text(MINI, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "notebooks")
    study = load("params/mini.yaml")
    assert study.file == tmp_path / "params" / "mini.yaml"
    assert study.folder == tmp_path / "runs" / "mini"


def test_the_hash_follows_values_and_not_comments(tmp_path):
    file = tmp_path / "mini.yaml"
    file.write_text(MINI, encoding="utf-8")
    same = load(file).hash
    file.write_text("# a comment\n" + MINI, encoding="utf-8")
    assert load(file).hash == same
    file.write_text(MINI.replace("draws: 2000", "draws: 2001"), encoding="utf-8")
    assert load(file).hash != same


def test_checkpoints_are_listed_in_reading_order():
    study = load(ROOT / "params" / "mini.yaml")
    assert [checkpoint for _, checkpoint, _ in study.checkpoints()] == ["untuned", "sft/free_reasoning", "grpo/hard"]


def keys(values) -> object:
    """The structure of a params file: its keys, without its values."""
    return {key: keys(value) for key, value in values.items()} if isinstance(values, dict) else None


def test_the_scales_differ_in_values_only():
    files = [ROOT / "params" / f"{name}.yaml" for name in ("mini", "smoke")]
    mini, smoke = (keys(yaml.safe_load(file.read_text(encoding="utf-8"))) for file in files)
    assert mini == smoke
    assert all(load(file).study == os.path.splitext(file.name)[0] for file in files)
