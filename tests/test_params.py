"""A params file that is wrong is refused at once, naming the file, the key and what would be right."""

import os

import pytest
import yaml
from conftest import ROOT

from chexreason.config import ParamsError, load

MINI = (ROOT / "params" / "mini.yaml").read_text(encoding="utf-8")


def refusal(tmp_path, values) -> str:
    """What `load` says about a params file that holds `values` (or, given a text, that text)."""
    file = tmp_path / "mine.yaml"
    file.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(ParamsError) as caught:
        load(file)
    assert "mine.yaml" in str(caught.value)
    return str(caught.value)


def mini(change) -> dict:
    """The values of mini.yaml after `change` was applied to them."""
    values = yaml.safe_load(MINI)
    change(values)
    return values


def put(where: str, value):
    """A change that puts `value` at the key with the dotted path `where`; numbers count entries of a list."""
    *path, key = where.split(".")

    def change(values):
        for step in path:
            values = values[int(step) if isinstance(values, list) else step]
        values[key] = value

    return change


def rename(where: str, new: str):
    """A change that gives the key at the dotted path `where` another name."""
    *path, key = where.split(".")

    def change(values):
        for step in path:
            values = values[step]
        values[new] = values.pop(key)

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (rename("sft.learning_rate", "learning_rte"), ["sft.learning_rte", "did you mean 'learning_rate'?"]),
        (rename("teacher", "techer"), ["techer", "did you mean 'teacher'?"]),
        (rename("sources.b.hospital", "hospitel"), ["hospitel", "did you mean 'hospital'?"]),
        (rename("grpo.reward.min_length", "min_lenght"), ["grpo.reward.min_lenght", "did you mean 'min_length'?"]),
        (rename("sft.patience", "endurance"), ["the key 'sft.patience' is missing"]),
        (put("sft.epochs", "three"), ["sft.epochs", "integer", "'three'"]),
        (put("sft.epochs", 3.5), ["sft.epochs", "integer", "3.5"]),
        (put("sft.epochs", 0), ["sft.epochs", "greater than 0"]),
        (put("sft.checkpointing", "no"), ["sft.checkpointing", "boolean", "'no'"]),
        (put("curate.floor", 5), ["curate.floor", "less than or equal to 1", "5"]),
        (put("curate.floor", 0.9), ["curate", "floor (0.9) must not be above ceiling"]),
        (put("curate.shares.rl", 0.9), ["curate.shares", "must sum to 1"]),
        (put("sources.b.hospital", "D"), ["sources.b", "'A', 'B' or 'C'", "'D'"]),
        (put("curate.policy", "zeros"), ["curate.policy", "'u_zeros'", "'zeros'"]),
        (put("curate.train", "z"), ["curate.train", "'z'", "choose one of a, b, c"]),
        (put("tests.c-test.label_sets", ["nih8"]), ["tests.c-test.label_sets", "'nih8'", "nih9"]),
        (put("sft.runs.0.model", "medgema"), ["model", "'medgema'", "medgemma"]),
        (put("prompts.variants", ["reasoning_z"]), ["'reasoning_z'", "reasoning_a"]),
        (put("prompts.model", "gemma"), ["prompts.model", "'gemma'", "medgemma"]),
        (
            put("sft.runs.0.full", True),
            ["grpo.runs: medgemma, hard reward", "sft.runs: medgemma, free_reasoning", "mark both or neither"],
        ),
        (put("models.medgemma.full", True), ["sft.runs", "medgemma", "models.medgemma", "mark both"]),
        (put("models.qwen.visual_tokens", [512, 256]), ["models.qwen", "[fewest, most]"]),
        (put("models.qwen.visual_tokens", [256]), ["models.qwen.visual_tokens"]),
        (put("seeds", []), ["seeds", "at least 1 item"]),
        (put("curate.views", []), ["curate.views", "at least 1 item"]),
        (put("curate.label_sets", []), ["curate.label_sets", "at least 1 item"]),
        (put("tests.c-test.label_sets", []), ["tests.c-test.label_sets", "at least 1 item"]),
        (put("seeds", [0, 1]), ["more_seeds: 1 stands under seeds already"]),
        (put("grpo.save_every", 25), ["grpo", "save_every (25)", "updates_per_rollout (2)"]),
        (put("grpo.reward.nuanced.frequency", {"Oedema": 0.1}), ["frequency", "Oedema"]),
        (put("curate.label_sets", ["nih8"]), ["curate.label_sets", "'nih8'", "nih9"]),
        (put("sources.c", {"kind": "nih", "root": "x"}), ["the key 'sources.c.splits' is missing"]),
        (put("sources.c", {"kind": "nih", "root": "x", "splits": ["valid"]}), ["sources.c.splits.0", "'valid'"]),
        (put("sources.c", {"kind": "nih", "rot": "x", "splits": []}), ["sources.c.rot", "did you mean 'root'?"]),
        (put("sources.c", {"kind": "nhi", "root": "x"}), ["sources.c", "'nih'", "'nhi'"]),
        (put("sources.c", {"kind": "own", "root": "x"}), ["sources.c", "either table", "or read"]),
        (put("sources.a", {"kind": "mimic", "root": "x", "splits": ["test"]}), ["MIMIC's own test split"]),
        (put("teacher", {"kind": "oracle", "seed": 0}), ["teacher", "'rules'", "'openai'"]),
        (
            put("teacher", {"kind": "gemini", "model": "m", "seed": 0, "prompts": {"reasoning_z": "a"}}),
            ["teacher.prompts", "'reasoning_z'", "choose one of", "free_reasoning"],
        ),
        (
            put("teacher", {"kind": "gemini", "model": "m", "seed": 0, "prompt": "a"}),
            ["teacher.prompt", "did you mean 'prompts'?"],
        ),
    ],
)
def test_a_wrong_key_or_value_is_refused_with_its_name_and_the_right_one(tmp_path, change, told):
    said = refusal(tmp_path, mini(change))
    for words in told:
        assert words in said, said


def test_every_mistake_is_told_at_once(tmp_path):
    said = refusal(tmp_path, mini(rename("sft.epochs", "epocs")))
    assert "unknown key 'sft.epocs'" in said
    assert "the key 'sft.epochs' is missing" in said


def test_grpo_from_a_checkpoint_that_no_sft_run_makes_is_refused(tmp_path):
    said = refusal(tmp_path, mini(put("grpo.runs.0.format", "narrative")))
    assert "narrative" in said


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError, match=r"params/mni\.yaml: no such params file"):
        load("params/mni.yaml")


@pytest.mark.parametrize("text", ["study: [unclosed", "- a list", "", "just words"])
def test_a_file_that_is_not_a_mapping_in_yaml_is_refused(tmp_path, text):
    refusal(tmp_path, text)


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
    file.write_text(yaml.safe_dump(mini(put("compare.draws", 70))), encoding="utf-8")
    assert load(file).hash != same


def test_formats_are_those_that_sft_trains_each_once_in_order(tmp_path):
    def formats(*runs, full=True):
        values = mini(put("sft.runs", [{"model": "medgemma", "format": each, "full": more} for each, more in runs]))
        values["grpo"]["runs"] = []
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        return load(file, full).formats

    runs = [("reasoning_a", False), ("only_label", True), ("reasoning_a", True), ("free_reasoning", False)]
    assert formats(*runs) == ["reasoning_a", "only_label", "free_reasoning"]
    assert formats(*runs, full=False) == ["reasoning_a", "free_reasoning"]
    assert formats() == ["free_reasoning"]


def test_checkpoints_are_listed_in_reading_order():
    study = load(ROOT / "params" / "mini.yaml", full=False)
    assert [checkpoint for _, checkpoint, _ in study.checkpoints()] == [
        "untuned",
        "sft/free_reasoning",
        "grpo/hard",
        "grpo/hard-best",
    ]


def test_a_short_study_leaves_out_what_is_marked_full_and_says_so():
    whole, short = (load(ROOT / "params" / "mini.yaml", full) for full in (True, False))
    assert short.hash == whole.hash and short.folder == whole.folder
    further = len(whole.more_seeds) * 3  # of the format, and of the reward's last and best checkpoint
    left = 1 + 7 + 2  # untuned Qwen, seven formats, one reward
    assert len(whole.checkpoints()) - len(short.checkpoints()) == left + further
    assert short.prompts is None and len(whole.prompts.variants) == 9
    assert whole.left_out == [] and "GRPO of medgemma, nuanced reward" in short.left_out


def test_further_seeds_are_of_the_runs_not_marked_full_and_left_to_a_full_study(tmp_path):
    def studies(seeds, more):
        values = mini(put("seeds", seeds)) | {"more_seeds": more}
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        return load(file, full=True), load(file, full=False)

    whole, short = studies([3, 4], [5])
    assert [(run.reward, seed) for run, seed in whole.runs("grpo")] == [
        *(("hard", seed) for seed in (3, 4, 5)),
        *(("nuanced", seed) for seed in (3, 4)),
    ]
    assert [(run.format, seed) for run, seed in short.runs("sft")] == [("free_reasoning", 3), ("free_reasoning", 4)]
    assert {seed for _, checkpoint, seed in whole.checkpoints() if checkpoint == "untuned"} == {3}
    assert {seed for _, checkpoint, seed in whole.checkpoints() if checkpoint == "sft/free_reasoning"} == {3, 4, 5}
    assert short.left_out[-1] == "seed 5" and "seed 5" not in whole.left_out
    trained = {(run.model, run.format, seed) for run, seed in whole.runs("sft")}
    assert {(run.model, run.format, seed) for run, seed in whole.runs("grpo")} <= trained  # each has where it starts
    assert studies([3, 4], [])[1].left_out == short.left_out[:-1]


def test_only_the_format_that_goes_on_to_grpo_is_asked_about_the_test_sets():
    study = load(ROOT / "params" / "mini.yaml")
    assert study.datasets("sft/reasoning_a") == ["a-validation"]
    for checkpoint in ("untuned", "sft/free_reasoning", "grpo/hard-best"):
        assert study.datasets(checkpoint) == ["a-validation", "b-test", "c-test", "b-large", "c-large"]
    asked = {checkpoint: study.prompt("medgemma", checkpoint) for checkpoint in ("sft/only_label", "grpo/nuanced-best")}
    assert asked == {"sft/only_label": "only_label", "grpo/nuanced-best": "free_reasoning"}


def keys(values) -> object:
    """The structure of a params file: its keys, without its values."""
    return {key: keys(value) for key, value in values.items()} if isinstance(values, dict) else None


def test_the_scales_differ_in_values_only():
    files = [ROOT / "params" / f"{name}.yaml" for name in ("mini", "smoke")]
    default, smoke = (keys(yaml.safe_load(file.read_text(encoding="utf-8"))) for file in files)
    assert default == smoke
    assert all(load(file).study == os.path.splitext(file.name)[0] for file in files)


HOSTED = {"kind": "openai", "base_url": "https://models.example.org/v1", "model": "m", "seed": 0}
MIMIC = {"kind": "mimic", "root": "$MIMIC_CXR_JPG"}


def test_a_teacher_on_another_machine_gets_credentialed_films_only_under_a_stated_agreement(tmp_path):
    def study(source, teacher):
        values = mini(put("sources.a", source))
        values["teacher"] = teacher
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        return load(file)

    for teacher in (HOSTED, {"kind": "gemini", "model": "m", "seed": 0}):
        with pytest.raises(ParamsError, match=r"films of 'a' are credentialed.*teacher\.agreement"):
            study(MIMIC, teacher)
        assert study(MIMIC, teacher | {"agreement": "PhysioNet, responsible use of hosted models"}).teacher.agreement
    for address in ("http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:8000/v1"):
        assert study(MIMIC, HOSTED | {"base_url": address}).teacher.local
    with pytest.raises(ParamsError, match="credentialed"):
        study(MIMIC, HOSTED | {"base_url": "http://localhost.example.org/v1"})
    assert study(yaml.safe_load(MINI)["sources"]["a"], HOSTED)


@pytest.mark.parametrize("file", sorted((ROOT / "params").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_params_file_here_is_whole(file):
    study = load(file)
    assert study.folder.name == study.study
    assert study.home == f"{study.curate.train}-validation"


# How values are written.  YAML 1.1, which the parser knows, reads many of them as something else.

LINES = {
    "rate": ("learning_rate: 2.0e-3", lambda study: study.sft.learning_rate),
    "count": ("sft: 2000", lambda study: study.curate.sft),
    "name": ("study: mini", lambda study: study.study),
    "flag": ("  checkpointing: false         # ours: it", lambda study: study.sft.checkpointing),
    "text": ("title: Three phantom hospitals", lambda study: study.title),
    "optional": ("lora: {r", lambda study: study.curate.frozen),
}


def written(tmp_path, kind: str, text: str):
    """The value of one key of mini.yaml, written as `text`."""
    line, value = LINES[kind]
    assert MINI.count(line) == 1
    new = f"{line.partition(':')[0]}: {text}" + ("  # it" if kind == "flag" else "")
    if kind == "optional":
        line, new = "  policy: u_zeros", f"  frozen: {text}\n  policy: u_zeros"
    (tmp_path / "mine.yaml").write_text(MINI.replace(line, new), encoding="utf-8")
    return value(load(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("kind", "text", "meant"),
    [
        *(("rate", text, 0.001) for text in ("1e-3", "+1e-3", "1.e-3", "1E-3", "10e-4", ".001", "0.001", "+.1e-2")),
        *(("rate", text, 5.0) for text in ("5", "5.", "+5", "5e0", "0.5e1")),
        *(("count", text, 1000) for text in ("1000", "1e3", "1_000", "+1000", "1.0e3", "10e2")),
        ("count", "1.5e3", 1500),
        *(("name", text, text) for text in ("001", "010", "no", "on", "Yes", "0x10", "0o10", "2024_01", "12e")),
        *(("text", text, text) for text in ("12:30", "=", "no", "1,000", "2024-1-1", "0b11", "1__0", "5 %")),
        *(("text", f'"{text}"', text) for text in ("1e-3", "2024-01-01", "null", "true", "")),
        *(("flag", text, True) for text in ("true", "True", "TRUE")),
        *(("optional", text, None) for text in ("null", "~", "None", "")),
    ],
)
def test_a_value_means_what_its_writer_meant(tmp_path, kind, text, meant):
    value = written(tmp_path, kind, text)
    assert (value, type(value)) == (meant, type(meant))


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        *(("count", text, f"got '{text}'; write a whole number") for text in ("010", "0o10", "0x10", "1,000", "12:30")),
        *(("count", text, "write a whole number") for text in ("1_00", '"8"', "1k", "2.0", "null", "true", "1e-1")),
        *(("rate", text, f"got '{text}'; write a number") for text in ("1:30", "1e", "1,5", "01.5", "1/1000", "5e–5")),
        ("rate", "1e999", "finite number"),
        ("rate", "1e-999", "greater than 0"),
        *(("flag", text, f"got '{text}'; write true or false") for text in ("no", "off", "yes", "y", "On")),
        *(("flag", text, "write true or false") for text in ("0", '"false"', "null")),
        *(("name", text, "write text in quotes") for text in ("1e3", "123", "1_000", "1.10", "true", "2024-01-01")),
        *(("name", text, "got nothing (null); write") for text in ("null", "~", "", "None")),
        ("name", "my study", "a name is made of letters, digits"),
        *(
            ("name", text, "are not allowed; write the value alone")
            for text in ("!!set {a}", "!!timestamp x", "!!null x")
        ),
        ("flag", "!!bool maybe", "tags (tag:yaml.org,2002:bool) are not allowed; write the value alone"),
    ],
)
def test_a_value_that_may_mean_two_things_is_refused_with_what_to_write(tmp_path, kind, text, told):
    with pytest.raises(ParamsError, match=r"mine\.yaml: ") as refused:
        written(tmp_path, kind, text)
    assert told in str(refused.value)


def test_a_file_of_windows_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"\xef\xbb\xbf" + MINI.replace("\n", "\r\n").encode())
    assert load(tmp_path / "mine.yaml").hash == load(ROOT / "params" / "mini.yaml").hash


@pytest.mark.parametrize("nothing", ["no", "none", "n/a", "          "])
def test_an_agreement_that_names_nothing_lets_no_film_out(tmp_path, nothing):
    values = mini(put("sources.a", MIMIC)) | {"teacher": HOSTED | {"agreement": nothing}}
    assert "teacher.agreement: String should have at least 10 characters" in refusal(tmp_path, values)


@pytest.mark.parametrize("name", ["sft", "rl", "SFT-holdout", "pool", "a-validation"])
def test_a_test_set_cannot_have_the_name_of_other_films(tmp_path, name):
    assert f"tests: {name!r} cannot name a test set" in refusal(tmp_path, mini(rename("tests.b-test", name)))


@pytest.mark.parametrize(("draws", "right"), [(39, "greater than or equal to 40"), (10**6 + 1, "less than or equal")])
def test_resamples_are_enough_for_an_interval_and_fit_in_memory(tmp_path, draws, right):
    assert f"compare.draws: Input should be {right}" in refusal(tmp_path, mini(put("compare.draws", draws)))


def again(stage: str):
    """A change that lists the first run of a stage once more."""
    return lambda values: values[stage]["runs"].append(dict(values[stage]["runs"][0]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put("seeds", [0, 0]), "seeds: 0 is listed twice"),
        (put("more_seeds", [1, 2, 1]), "more_seeds: 1 is listed twice"),
        (put("curate.views", ["PA", "PA"]), "curate.views: 'PA' is listed twice"),
        (put("tests.c-test.label_sets", ["nih9", "nih9"]), "tests.c-test.label_sets: 'nih9' is listed twice"),
        (put("models.qwen.name", "stand-in-medgemma"), "models: name: 'stand-in-medgemma' is listed twice"),
        (again("sft"), "sft.runs: model and format: ('medgemma', 'free_reasoning') is listed twice"),
        (put("grpo.runs.1.reward", "hard"), "grpo.runs: model and reward: ('medgemma', 'hard') is listed twice"),
    ],
)
def test_what_is_listed_twice_is_refused(tmp_path, change, told):
    assert told in refusal(tmp_path, mini(change))


# Whose folder it is.


def copied(tmp_path):
    """A folder `project` with params/mini.yaml, whose study has its folder, and a copy of the file."""
    (tmp_path / "project" / "params").mkdir(parents=True)
    file = tmp_path / "project" / "params" / "mini.yaml"
    file.write_text(MINI, encoding="utf-8")
    load(file).claim()
    file.with_name("mine.yaml").write_text(MINI, encoding="utf-8")
    return file


def test_a_copied_file_does_not_take_the_folder_of_the_first(tmp_path):
    file = copied(tmp_path)
    with pytest.raises(ParamsError, match=r"mine\.yaml: study: mini: the folder runs/mini belongs to params/mini"):
        load(file.with_name("mine.yaml"))
    elsewhere = file.parents[1] / "other" / "mini.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(MINI, encoding="utf-8")
    with pytest.raises(ParamsError, match=r"other/mini\.yaml: study: mini: the folder runs/mini belongs to"):
        load(elsewhere)
    file.with_name("mine.yaml").write_text(MINI.replace("study: mini", "study: mine"), encoding="utf-8")
    assert load(file.with_name("mine.yaml")).folder.name == "mine"
    assert load(file).folder.name == "mini"


def test_a_project_may_be_moved_and_a_params_file_renamed(tmp_path):
    file = copied(tmp_path)
    file.with_name("mine.yaml").unlink()
    moved = file.parents[1].rename(tmp_path / "another place")
    study = load(moved / "params" / "mini.yaml")
    study.file.rename(study.file.with_name("renamed.yaml"))
    load(moved / "params" / "renamed.yaml").claim()
    study.file.write_text(MINI, encoding="utf-8")
    with pytest.raises(ParamsError, match=r"belongs to params/renamed\.yaml"):
        load(study.file)
