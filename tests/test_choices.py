"""Every value of a study is marked as the paper's or as ours, and the book's page shows it as it stands in the file."""

import json

import pytest
import yaml
from conftest import ROOT, study_folder
from markdown_it import MarkdownIt

from chexreason import config
from chexreason.workflow import book, choices

PAPER, MINI = (ROOT / "params" / f"{name}.yaml" for name in ("paper", "mini"))
FILES = sorted((ROOT / "params").glob("*.yaml"))

# The specification's facts, each with whether the paper states it (S) or not (N), written out here once more.
STATED = {
    "curate.views": ["PA", "AP"],
    "curate.sft": 2000,
    "curate.rl": 1000,
    "curate.validation": 500,
    "curate.holdout": 0.1,
    "curate.floor": 0.05,
    "tests.chexpert-test.films": 518,
    "tests.nih-test.films": 488,
    "models.qwen.visual_tokens": [256, 512],
    "lora": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.1},
    "sft.num_train_epochs": 6,
    "sft.early_stopping_patience": 2,
    "sft.learning_rate": 5e-5,
    "sft.warmup_steps": 0.05,
    "sft.weight_decay": 0.01,
    "sft.max_grad_norm": 5.0,
    "sft.per_device_train_batch_size": 1,
    "sft.gradient_accumulation_steps": 8,
    "sft.gradient_checkpointing": True,
    "grpo.num_generations": 4,
    "grpo.temperature": 0.8,
    "grpo.top_p": 0.95,
    "grpo.beta": 0.15,
    "grpo.epsilon": 0.15,
    "grpo.epsilon_high": 0.22,
    "grpo.reward.min_length": 250,
    "grpo.reward.nuanced.match": 100,
    "grpo.reward.nuanced.recall": 30,
    "grpo.reward.nuanced.precision": 20,
    "grpo.reward.nuanced.window": 100,
    "grpo.reward.nuanced.dominance": 0.7,
    "grpo.reward.nuanced.repetition": 30,
    "grpo.reward.nuanced.collapse": 50,
    "grpo.reward.nuanced.invalid": 100,
    "grpo.reward.nuanced.duplicate": 25,
}
NOT_STATED = [
    *("seeds", "curate.shares", "curate.ceiling", "curate.penalty", "teacher.prompts", "sources.nih.fibrosis"),
    *(
        "tests.nih-test.draw",
        "grpo.learning_rate",
        "grpo.max_steps",
        "grpo.films_per_step",
        "grpo.max_completion_length",
    ),
    *("grpo.scale_rewards", "grpo.reward.length_penalty", "grpo.reward.length_unit", "grpo.reward.nuanced.outside"),
    *("grpo.reward.nuanced.false_positive", "grpo.reward.nuanced.frequency", "compare"),
]


def value(file, key: str):
    """The value at a dotted key of a params file."""
    found = yaml.safe_load(file.read_text(encoding="utf-8"))
    for each in key.split("."):
        found = found[each]
    return found


def mark(key: str) -> choices.Choice:
    """The mark that holds for a key of paper.yaml: its own, or that of a key above it."""
    (found,) = [choice for choice in choices.read(PAPER) if f"{key}.".startswith(f"{choice.key}.")]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_value_is_marked(file):
    named = {"study", "title", "notice"}
    kept = ("name", "path", "root")  # what a model is called, and where things lie, is no choice of method
    assert [key for key in choices.unmarked(file) if key not in named and not key.endswith(kept)] == []


@pytest.mark.parametrize("file", [PAPER, MINI], ids=["paper", "mini"])
def test_every_mark_is_read_once_and_shows_the_value_of_its_key(file):
    found = choices.read(file)
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if "# paper" in line or "# ours" in line]
    assert len(lines) == len(found) == len({choice.key for choice in found})
    for choice in found:
        stands = value(file, choice.key)
        folded = " ".join(stands.split()) if isinstance(stands, str) else stands
        assert yaml.safe_load(choice.value) == folded


@pytest.mark.parametrize("key", STATED)
def test_what_the_paper_states_is_set_so_and_marked_with_where(key):
    assert value(PAPER, key) == STATED[key]
    assert mark(key).whose == "paper" and mark(key).words


@pytest.mark.parametrize("key", NOT_STATED)
def test_what_the_paper_leaves_open_is_marked_as_ours_with_a_reason(key):
    assert mark(key).whose == "ours" and mark(key).words


def test_a_mark_holds_for_all_under_its_key_and_an_unmarked_key_is_reported(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("a: {b: 1, c: [2]}  # ours: because\nd:\n  e: 3  # paper: SFT\n  f: 4\n", encoding="utf-8")
    assert choices.read(file) == [
        choices.Choice("a", "{b: 1, c: [2]}", "ours", "because"),
        choices.Choice("d.e", "3", "paper", "SFT"),
    ]
    assert choices.unmarked(file) == ["d.f"]


def extended(tmp_path, base: str, own: str):
    """A params file that holds `own` and extends one that holds `base`."""
    (tmp_path / "base.yaml").write_text(base, encoding="utf-8")
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: base.yaml\n{own}", encoding="utf-8")
    return file


def test_a_value_is_shown_with_the_mark_of_the_file_that_states_it(tmp_path):
    base = "a: {b: 1, c: [2]}  # ours: because\nd:\n  e: 3  # paper: SFT\n  f: 4  # ours: four\n  g: 5  # ours: five\n"
    own = "d:  # ours: all of these\n  e: 30\n  f: 40  # ours: forty\na: {b: 10}\nh: {i: 6}  # ours: new\n"
    file = extended(tmp_path, base, own)
    assert choices.read(file) == [
        choices.Choice("a", "{c: [2]}", "ours", "because"),
        choices.Choice("d", "{e: 30}", "ours", "all of these"),
        choices.Choice("d.f", "40", "ours", "forty"),
        choices.Choice("d.g", "5", "ours", "five"),
        choices.Choice("h", "{i: 6}", "ours", "new"),
    ]
    assert choices.unmarked(file) == ["a.b"]


def test_a_changed_value_without_a_mark_is_not_attributed_to_the_paper(tmp_path):
    file = extended(tmp_path, "beta: 0.15  # paper: GRPO\nsteps: 9  # paper: GRPO\n", "study: x\nbeta: 0.1\n")
    tables = choices.tables(file)
    assert cells(tables["paper"])[1:] == [["steps", "9", "GRPO"]]
    assert cells(tables["ours"])[1:] == [["beta", "0.1", "mine.yaml states this value and gives no reason"]]


def leaves(values, key: str = "") -> list[tuple[str, object]]:
    """Every value that is no mapping, with its dotted key."""
    if not isinstance(values, dict) or not values:
        return [(key, values)]
    return [found for name, part in values.items() for found in leaves(part, f"{key}.{name}" if key else name)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_value_of_a_study_is_shown_once(file):
    shown = [found for each in choices.read(file) for found in leaves(yaml.safe_load(each.value), each.key)]
    unmarked = choices.unmarked(file)
    wanted = [(key, value) for key, value in leaves(config.read(file)) if key not in unmarked]
    assert sorted(shown, key=str) == sorted(wanted, key=str)


def cells(text: str) -> list[list[str]]:
    """The text of every cell of a table of the page as a reader sees it, by an independent Markdown reader."""
    assert text.startswith("```{table}\n:class: choices\n\n") and text.endswith("\n```")
    text = text.partition("\n\n")[2].removesuffix("\n```")
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    shown = ["".join(part.content for part in token.children) for token in tokens if token.type == "inline"]
    assert {part.type for token in tokens for part in token.children or []} <= {"text", "text_special", "code_inline"}
    return [shown[start : start + 3] for start in range(0, len(shown), 3)]


@pytest.mark.parametrize("words", ["a|b", "<b>x</b>", "$x$ {{ y }}", "[z](w) *s* _t_", "`code` \\ # 1. &amp;", "~~s~~"])
def test_marks_and_values_are_shown_as_text(tmp_path, words):
    file = tmp_path / "mine.yaml"
    file.write_text(f"key: {json.dumps(words)}  # ours: {words}\n", encoding="utf-8")
    assert cells(choices.tables(file)["ours"]) == [["key", "value", "why"], ["key", words, words]]


def test_a_params_file_without_marks_says_so(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("study: mine\n", encoding="utf-8")
    assert set(choices.tables(file).values()) == {choices.NONE}


def test_the_book_shows_the_marks_of_its_own_study_and_what_the_papers_grid_costs(tmp_path):
    folder = study_folder(tmp_path)
    file = folder / "params" / "smoke.yaml"
    file.write_text(
        file.read_text(encoding="utf-8").replace("  rl: 24\n", "  rl: 24  # ours: a mark\n"), encoding="utf-8"
    )
    made = book.assemble(config.load(file), ROOT / "book", [], tmp_path / "book")
    assert "| `curate.rl` | `24` | a mark |" in (made / "choices.md").read_text(encoding="utf-8")
    costs = (made / "costs.md").read_text(encoding="utf-8")
    for words in ("with random weights", r"| sft | qwen | qwen\-reasoning\_a | 0 |", "NVIDIA H200"):
        assert words in costs
    assert not [page for page in ("choices.md", "costs.md") if "<!--" in (made / page).read_text(encoding="utf-8")]
