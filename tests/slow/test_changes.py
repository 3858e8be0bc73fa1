"""What is trained and asked again after a change to a finished study, counted in steps and films."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soak
from conftest import ROOT
from killing import logged

COPIED = ("Snakefile", "environment.yml", "README.md", "book", "chexreason", "notebooks", "params", "profiles")
EVERY = {"untuned", "sft/free_reasoning", "grpo/hard", "grpo/hard-best"}
FILMS = {"a-validation": 16, "b-test": 12, "c-test": 12, "b-large": 20, "c-large": 20}
ALL = sum(FILMS.values())


class Copy:
    """A checkout with a finished smoke study, in a folder where both may be changed."""

    def __init__(self, folder: Path):
        self.folder, self.study = folder, folder / "runs" / "smoke"

    def run(self, target: str = "compare") -> str:
        """Run the study without its last chapters; returns what it printed on standard error."""
        call = [sys.executable, "-m", "chexreason.cli", "run", "params/smoke.yaml", target, "prompts", "predict"]
        environment = os.environ | {"PYTHONPATH": str(self.folder)}
        run = subprocess.run(call, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-6000:]
        return run.stderr

    def edit(self, name: str, old: str, new: str) -> None:
        file = self.folder / name
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new, 1), encoding="utf-8")

    def trained(self, before: dict) -> dict[str, int]:
        """The steps of each training run in TensorBoard's files that are not among those of `before`."""
        steps: dict[str, int] = {}
        for file, each in logged(self.folder).items():
            if file not in before:
                name = "/".join(file.relative_to(self.study).parts[:3:2])
                steps[name] = steps.get(name, 0) + len(each)
        return steps

    def asked(self) -> dict[str, int]:
        """The films that each checkpoint, and the prompts, have ever been asked about."""
        films: dict[str, int] = {}
        for file in self.study.glob("**/asked/*.json"):
            parts = file.relative_to(self.study).parts
            name = "prompts" if parts[0] == "prompts" else "/".join(parts[2:-3])
            films[name] = films.get(name, 0) + len(json.loads(file.read_text()))
        return films

    def after(self) -> tuple[dict, dict]:
        """Run the study again: the steps that each run was trained, and the films that each checkpoint was asked."""
        logs, films = logged(self.folder), self.asked()
        self.run()
        asked = {name: count - films.get(name, 0) for name, count in self.asked().items()}
        return self.trained(logs), {name: count for name, count in asked.items() if count}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Copy:
    folder = tmp_path_factory.mktemp("changes")
    for name in COPIED:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy2)(ROOT / name, folder / name)
    (folder / "params" / "mine.py").write_text(REWARD)
    study = Copy(folder)
    study.edit("params/smoke.yaml", "    hard: {", '    own: {start: free_reasoning, reward: "mine.py:f"}\n    hard: {')
    study.run()
    return study


REWARD = """def f(completions):
    return [len(each[0]["content"]) / 1000 for each in completions]
"""


def words(copy: Copy) -> None:
    """Everything that is for readers alone."""
    copy.edit("chexreason/training/grpo.py", '"""Group-relative policy', '"""The group-relative policy')
    copy.edit("chexreason/data/phantom/drawing.py", '"""', '"""In other words.  ')
    copy.edit("README.md", "#", "# ")
    executed = copy.study / "notebooks" / "4_grpo-medgemma-hard-seed0.ipynb"
    executed.write_text(json.dumps(json.loads(executed.read_text()), indent=2))  # as JupyterLab saves it
    for name in ("Snakefile", "chexreason/models.py", "runs/smoke/curate/manifest.parquet"):
        (copy.folder / name).touch()
    copy.edit("chexreason/display/figures.py", "def formats(", "TITLE = 'Other'\n\n\ndef formats(")


def files(copy: Copy) -> None:
    """What a study could use, and this one does not."""
    (copy.folder / "chexreason" / "prompts" / "mine.txt").write_text("What is on this film?")
    (copy.folder / "chexreason" / "data" / "vindr.py").write_text('"""Films of another collection."""\n')
    shutil.copy(copy.folder / "notebooks" / "8_reanalysis.ipynb", copy.folder / "notebooks" / "10_mine.ipynb")


def one_more_test_set(copy: Copy) -> None:
    copy.edit(
        "params/smoke.yaml",
        "  b-test: {films: 12}",
        "  more: {source: c, films: 6, label_sets: [nih9]}\n  b-test: {films: 12}",
    )


def sft_format(copy: Copy) -> None:
    copy.edit(
        "params/smoke.yaml",
        "    free_reasoning: {",
        "    short: {model: medgemma, format: only_label}\n    free_reasoning: {",
    )


def values(copy: Copy) -> None:
    copy.edit("params/smoke.yaml", "predict: {batch: 64}", "predict: {batch: 48}")
    copy.edit("params/smoke.yaml", "compare: {n_resamples: 50}", "compare: {n_resamples: 60}")


def beta(copy: Copy) -> None:
    copy.edit(
        "params/smoke.yaml",
        "    hard: {",
        "    hard-beta0: {start: free_reasoning, reward: hard, set: {beta: 0.0}}\n    hard: {",
    )


def grpo_rate(copy: Copy) -> None:
    copy.edit("params/smoke.yaml", "set: {beta: 0.0}", "set: {beta: 0.0, learning_rate: 1.0e-4}")


def reward(copy: Copy) -> None:
    copy.edit("params/mine.py", "/ 1000", "/ 2000")


def version(copy: Copy) -> None:
    """As if another version of peft had been installed: SFT, GRPO and prediction compute with it."""
    copy.edit(
        "chexreason/fingerprint.py", 'partition("+")[0]', 'partition("+")[0] + ("x" if library == "peft" else "")'
    )


def sft_rate(copy: Copy) -> None:
    run = "    free_reasoning: {model: medgemma, format: free_reasoning"
    copy.edit("params/smoke.yaml", run, f"{run}, set: {{learning_rate: 1.0e-3}}")


SFT_STEPS, GRPO_STEPS = 10, 4
RUNS = ("grpo/hard", "grpo/hard-beta0", "grpo/own")
RETRAINED = {"sft/free_reasoning": SFT_STEPS, **dict.fromkeys(RUNS, GRPO_STEPS)}
REASKED = ["sft/free_reasoning", *(run + which for run in RUNS for which in ("", "-best"))]
UNTRAINED = {"untuned": ALL + 6, "sft/short": FILMS["a-validation"], "prompts": 16}
OWN = {"grpo/own": ALL + 6, "grpo/own-best": ALL + 6}
CHANGES = [
    (words, {}, {}),
    (files, {}, {}),
    (values, {}, {}),
    (one_more_test_set, {}, dict.fromkeys(EVERY | {"grpo/own", "grpo/own-best"}, 6)),
    (sft_format, {"sft/short": SFT_STEPS}, {"sft/short": FILMS["a-validation"]}),
    (beta, {"grpo/hard-beta0": GRPO_STEPS}, {"grpo/hard-beta0": ALL + 6, "grpo/hard-beta0-best": ALL + 6}),
    (grpo_rate, {"grpo/hard-beta0": GRPO_STEPS}, {"grpo/hard-beta0": ALL + 6, "grpo/hard-beta0-best": ALL + 6}),
    (reward, {"grpo/own": GRPO_STEPS}, OWN),
    (sft_rate, RETRAINED, dict.fromkeys(REASKED, ALL + 6)),
    (version, {**RETRAINED, "sft/short": SFT_STEPS}, {**dict.fromkeys(REASKED, ALL + 6), **UNTRAINED}),
]


@pytest.mark.soak
@pytest.mark.parametrize(("change", "trains", "asks"), CHANGES, ids=[change[0].__name__ for change in CHANGES])
def test_a_change_trains_and_asks_what_follows_from_it_and_nothing_else(copy, change, trains, asks):
    change(copy)
    assert copy.after() == (trains, asks)
    soak.row("a change to a finished study, steps and questions counted", 1, 1)
