"""The journeys of CONTRIBUTING.md, walked as it says: a reward, a model, a source of films."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, study_folder

from chexreason import config, rewards
from chexreason.training import grpo

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(heading: str, language: str) -> str:
    """The first block of code in a language below a heading."""
    section = CONTRIBUTING.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)[1]


def test_a_reward_is_one_function_and_one_line(tmp_path):
    function, line = block("A new reward", "python"), block("A new reward", "yaml").strip()
    folder = study_folder(tmp_path, **{f"    {line}\n    hard: {{start": "    hard: {start"})
    (folder / "params" / "my_rewards.py").write_text(function, encoding="utf-8")
    study = config.load(folder / "params" / "smoke.yaml")
    assert [each.run for each in study.runs("grpo")] == ["recall", "hard"]
    run, logged = study.grpo.runs["recall"], {}
    reward = rewards.make_reward(run.reward, study.file.parent, run.reward_args, study.grpo.reward)
    texts = ["<think>Wet.</think><solution>Edema</solution>", "<think>Dry.</think><solution>No Finding</solution>"]
    values = grpo.reward_function(reward, "recall")(
        completions=[[{"content": text}] for text in texts],
        completion_ids=[[1], [1]],
        truth=[["Edema", "Fracture"], ["Edema"]],
        log_metric=lambda name, value: logged.setdefault(name, value),
    )
    assert values == [2.0 * 1 / 2, 0.0]
    assert logged["metrics/labels_named"] == 1.0


def test_a_model_is_one_entry(tmp_path):
    entry = '  second: {name: second, path: "stand-in:qwen", dtype: float32}\n'
    run = "    second: {model: second, format: free_reasoning}\n"
    changes = {
        f"{entry}  medgemma: {{name": "  medgemma: {name",
        f"{run}    free_reasoning: {{": "    free_reasoning: {",
    }
    study = config.load(study_folder(tmp_path, **changes) / "params" / "smoke.yaml", full=False)
    names = [f"{each.model}/{each.name}" for each in study.checkpoints()]
    assert {"second/untuned", "second/sft/second"} <= set(names)


MODULE = '''
"""VinDr, as a small folder: findings.csv with a column per finding."""

from pathlib import Path

from chexreason.data import film_table


def read(root: Path, only: str = ""):
    """The films of findings.csv, without those whose name does not begin with `only`."""
    rows = film_table.read_csv(root / "findings.csv", ["image", "person"], ["heart"])
    labels = film_table.label_values(rows, {"Cardiomegaly": "heart"}, root / "findings.csv")
    about = {"path": rows["image"], "patient": rows["person"], "study": rows["image"], "view": "PA", "split": "train"}
    table = labels.assign(film=rows["image"].str.removesuffix(".png"), **about)
    return film_table.checked_films(table[table["film"].str.startswith(only)], root, unknown=["Edema"])
'''
SECTION = '''
class Vindr(Folder):
    """VinDr (`data/vindr.py`)."""

    kind: Literal["vindr"]
    only: str = ""
    credentialed: Literal[False] = False


Source = Annotated[Phantom | Vindr |'''
LOOK = """
from chexreason import config
from chexreason.data import curate

study = config.load("params/smoke.yaml")
films = curate.candidates(study, "vindr").films
print(list(films["film"]), list(films["Cardiomegaly"]), list(films["patient"]))
"""


@pytest.fixture
def package(tmp_path):
    """A copy of the package that can be changed; what is large in it is a link."""
    folder = tmp_path / "chexreason"
    folder.mkdir()
    for place in (ROOT / "chexreason").iterdir():
        if place.name in ("data", "config"):
            shutil.copytree(place, folder / place.name)
        else:
            (folder / place.name).symlink_to(place)
    return folder


def test_a_source_is_one_module_and_one_entry(tmp_path, package):
    (package / "data" / "vindr.py").write_text(MODULE, encoding="utf-8")
    schema = package / "config" / "schema.py"
    text = schema.read_text(encoding="utf-8")
    schema.write_text(text.replace("\nSource = Annotated[Phantom |", SECTION), encoding="utf-8")
    (tmp_path / "findings.csv").write_text("image,person,heart\nv1.png,p1,1\nv2.png,p2,0\nw3.png,p3,1\n")
    source = "sources:\n  vindr: {kind: vindr, root: $VINDR, only: v}\n"
    study_folder(tmp_path, **{source: "sources:                 # ours: small hospitals\n"})
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "VINDR": str(tmp_path)}
    call = [sys.executable, "-c", LOOK]
    ran = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.stdout == "['vindr-v1', 'vindr-v2'] [1.0, 0.0] ['vindr-p1', 'vindr-p2']\n", ran.stderr[-2000:]
