"""A params file that is wrong is refused at once, naming the file, the key and what would be right."""

import os

import pytest
import yaml
from conftest import ROOT, at

from chexreason.config import ParamsError, load, read

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
        (rename("sft.early_stopping_patience", "endurance"), ["the key 'sft.early_stopping_patience' is missing"]),
        (put("sft.num_train_epochs", "three"), ["sft.num_train_epochs", "integer", "'three'"]),
        (put("sft.num_train_epochs", 3.5), ["sft.num_train_epochs", "integer", "3.5"]),
        (put("sft.num_train_epochs", 0), ["sft.num_train_epochs", "greater than 0"]),
        (put("sft.gradient_checkpointing", "no"), ["sft.gradient_checkpointing", "boolean", "'no'"]),
        (put("curate.floor", 5), ["curate.floor", "less than or equal to 1", "5"]),
        (put("curate.floor", 0.9), ["curate", "floor (0.9) must not be above ceiling"]),
        (put("curate.shares.rl", 0.9), ["curate.shares", "must sum to 1"]),
        (put("sources.b.hospital", "D"), ["sources.b", "'A', 'B' or 'C'", "'D'"]),
        (put("curate.policy", "zeros"), ["curate.policy", "'u_zeros'", "'zeros'"]),
        (put("curate.train", "z"), ["curate.train", "'z'", "choose one of a, away, b, c, home"]),
        (put("tests.c-test.label_sets", ["nih8"]), ["tests.c-test.label_sets", "'nih8'", "nih9"]),
        (put("sft.runs.free_reasoning.model", "medgema"), ["sft.runs.free_reasoning.model", "'medgema'", "medgemma"]),
        (put("prompts.variants", ["reasoning_z"]), ["'reasoning_z'", "reasoning_a"]),
        (put("prompts.model", "gemma"), ["prompts.model", "'gemma'", "medgemma"]),
        (
            put("sft.runs.free_reasoning.full", True),
            ["grpo.runs.hard is not marked full", "its start sft.runs.free_reasoning is", "mark both or neither"],
        ),
        (put("models.medgemma.full", True), ["sft.runs.free_reasoning", "models.medgemma", "mark both"]),
        (put("models.qwen.visual_tokens", [512, 256]), ["models.qwen", "[fewest, most]"]),
        (put("models.qwen.visual_tokens", [256]), ["models.qwen.visual_tokens"]),
        (put("seeds", []), ["seeds", "at least 1 item"]),
        (put("tests", {}), ["tests", "at least 1 item"]),
        (put("curate.views", []), ["curate.views", "at least 1 item"]),
        (put("curate.label_sets", []), ["curate.label_sets", "at least 1 item"]),
        (put("tests.c-test.label_sets", []), ["tests.c-test.label_sets", "at least 1 item"]),
        (put("seeds", [0, 1]), ["more_seeds: 1 is already listed in seeds"]),
        (put("grpo.save_steps", 25), ["grpo", "save_steps (25)", "steps_per_generation (2)"]),
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


def test_every_mistake_is_reported_at_once(tmp_path):
    said = refusal(tmp_path, mini(rename("sft.num_train_epochs", "epocs")))
    assert "unknown key 'sft.epocs'" in said
    assert "the key 'sft.num_train_epochs' is missing" in said


def test_grpo_from_a_checkpoint_that_no_sft_run_makes_is_refused(tmp_path):
    said = refusal(tmp_path, mini(put("grpo.runs.hard.start", "narrative")))
    assert "grpo.runs.hard.start: 'narrative' is not defined in this file; choose one of free_reasoning" in said


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
    file.write_text(yaml.safe_dump(mini(put("compare.n_resamples", 70))), encoding="utf-8")
    assert load(file).hash != same


def test_formats_are_those_that_sft_trains_each_once_in_order(tmp_path):
    def formats(*runs, full=True):
        named = {f"run{number}": {"model": "medgemma", "format": each, "full": more} for number, (each, more) in runs}
        values = mini(put("sft.runs", named))
        values["grpo"]["runs"] = {}
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        return load(file, full=full).formats

    runs = [("reasoning_a", False), ("only_label", True), ("reasoning_a", True), ("free_reasoning", False)]
    assert formats(*enumerate(runs)) == ["reasoning_a", "only_label", "free_reasoning"]
    assert formats(*enumerate(runs), full=False) == ["reasoning_a", "free_reasoning"]
    assert formats() == ["free_reasoning"]


def test_checkpoints_are_listed_in_reading_order():
    study = load(ROOT / "params" / "mini.yaml", full=False)
    assert [each.name for each in study.checkpoints()] == [
        "untuned",
        "sft/free_reasoning",
        "grpo/hard",
        "grpo/hard-best",
    ]


def test_a_short_study_leaves_out_what_is_marked_full_and_says_so():
    whole, short = (load(ROOT / "params" / "mini.yaml", full=full) for full in (True, False))
    assert short.hash == whole.hash and short.folder == whole.folder
    further = len(whole.more_seeds) * 3  # of the format, and of the reward's last and best checkpoint
    left = 1 + 7 + 2  # untuned Qwen, seven formats, one reward
    assert len(whole.checkpoints()) - len(short.checkpoints()) == left + further
    assert short.prompts is None and len(whole.prompts.variants) == 9
    assert whole.left_out == [] and "GRPO run nuanced" in short.left_out


def test_further_seeds_are_of_the_runs_not_marked_full_and_left_to_a_full_study(tmp_path):
    def studies(seeds, more):
        values = mini(put("seeds", seeds)) | {"more_seeds": more}
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        return load(file, full=True), load(file, full=False)

    whole, short = studies([3, 4], [5])
    assert [(each.run, each.seed) for each in whole.runs("grpo")] == [
        *(("hard", seed) for seed in (3, 4, 5)),
        *(("nuanced", seed) for seed in (3, 4)),
    ]
    assert [(each.run, each.seed) for each in short.runs("sft")] == [("free_reasoning", 3), ("free_reasoning", 4)]
    assert {each.seed for each in whole.checkpoints() if each.name == "untuned"} == {3}
    assert {each.seed for each in whole.checkpoints() if each.name == "sft/free_reasoning"} == {3, 4, 5}
    assert short.left_out[-1] == "seed 5" and "seed 5" not in whole.left_out
    assert {whole.start(each) for each in whole.runs("grpo")} <= set(whole.runs("sft"))  # each has where it starts
    assert studies([3, 4], [])[1].left_out == short.left_out[:-1]


def test_only_the_format_that_goes_on_to_grpo_is_asked_about_the_test_sets():
    study = load(ROOT / "params" / "mini.yaml")
    assert study.datasets(at("sft/reasoning_a")) == ["a-validation"]
    for name in ("untuned", "sft/free_reasoning", "grpo/hard-best"):
        assert study.datasets(at(name)) == [
            *("a-validation", "b-test", "c-test", "b-large", "c-large"),
            *("home@A", "home@C", "away@A", "away@C"),
        ]
    asked = {name: study.prompt(at(name)) for name in ("sft/only_label", "grpo/nuanced-best")}
    assert asked == {"sft/only_label": "only_label", "grpo/nuanced-best": "free_reasoning"}


def keys(values) -> object:
    """The structure of a params file: its keys but for the names of runs, without its values."""
    return {key: key == "runs" or keys(value) for key, value in values.items()} if isinstance(values, dict) else None


def test_the_scales_differ_in_values_only():
    files = [ROOT / "params" / f"{name}.yaml" for name in ("mini", "smoke")]
    default, smoke = (keys(read(file)) for file in files)
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
    assert study.validation == f"{study.curate.train}-validation"


# How values are written.  YAML 1.1, which the parser knows, reads many of them as something else.

LINES = {
    "rate": ("learning_rate: 2.0e-3", lambda study: study.sft.learning_rate),
    "count": ("sft: 2000", lambda study: study.curate.sft),
    "name": ("study: mini", lambda study: study.study),
    "flag": ("  gradient_checkpointing: false # ours: it", lambda study: study.sft.gradient_checkpointing),
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


@pytest.mark.parametrize(
    ("n_resamples", "right"), [(39, "greater than or equal to 40"), (10**6 + 1, "less than or equal")]
)
def test_resamples_are_enough_for_an_interval_and_fit_in_memory(tmp_path, n_resamples, right):
    assert f"compare.n_resamples: Input should be {right}" in refusal(
        tmp_path, mini(put("compare.n_resamples", n_resamples))
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put("seeds", [0, 0]), "seeds: 0 is listed twice"),
        (put("more_seeds", [1, 2, 1]), "more_seeds: 1 is listed twice"),
        (put("curate.views", ["PA", "PA"]), "curate.views: 'PA' is listed twice"),
        (put("tests.c-test.label_sets", ["nih9", "nih9"]), "tests.c-test.label_sets: 'nih9' is listed twice"),
        (put("models.qwen.name", "stand-in-medgemma"), "models: name: 'stand-in-medgemma' is listed twice"),
        (put("sft.runs.free_reasoning.seeds", [0, 0]), "sft.runs.free_reasoning.seeds: 0 is listed twice"),
        (put("grpo.runs.hard.films", ["a", "a"]), "grpo.runs.hard.films: 'a' is listed twice"),
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


# A file that extends another states what differs.


def extending(tmp_path, text: str, **others: str):
    """A folder with mini.yaml, mine.yaml, which extends it and holds `text`, and `others`; returns mine.yaml."""
    files = {"mini": MINI, "mine": f"extends: mini.yaml\nstudy: mine\n{text}"} | others
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(content, encoding="utf-8")
    return tmp_path / "mine.yaml"


def test_a_file_that_extends_another_is_that_one_but_for_what_it_states(tmp_path):
    text = "grpo: {beta: 0.1, reward: {nuanced: {match: 90}}}\nseeds: [5, 6]\ntests: {b-test: {films: 7}}\n"
    study = load(extending(tmp_path, text))
    values = mini(put("grpo.beta", 0.1)) | {"study": "mine", "seeds": [5, 6]}
    values["grpo"]["reward"]["nuanced"]["match"], values["tests"]["b-test"]["films"] = 90, 7
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    whole = load(tmp_path / "whole.yaml")
    assert study.model_dump() == whole.model_dump() and study.hash == whole.hash
    assert list(study.tests) == list(whole.tests)  # in the order of the extended file


def test_files_may_extend_each_other_in_a_chain_through_folders(tmp_path):
    (tmp_path / "far").mkdir()
    file = extending(tmp_path, "")
    (tmp_path / "far" / "third.yaml").write_text("extends: ../mine.yaml\nstudy: third\ncompare: {seed: 1}\n")
    third, first = load(tmp_path / "far" / "third.yaml"), load(file)
    assert third.model_dump() == first.model_dump() | {"study": "third", "compare": {"n_resamples": 10000, "seed": 1}}
    assert third.file == tmp_path / "far" / "third.yaml"


def test_keys_of_the_extended_file_can_be_left_out_and_given_anew(tmp_path):
    own = "tests: {mine: {source: c, films: 3, label_sets: [nih9]}}\n"
    study = load(
        extending(tmp_path, "without: [tests, sources.b, prompts, layers, grpo.reward.nuanced.frequency.Edema]\n" + own)
    )
    assert list(study.tests) == ["mine"] and list(study.sources) == ["a", "c", "home", "away"] and study.prompts is None
    assert "Edema" not in study.grpo.reward.nuanced.frequency and len(study.grpo.reward.nuanced.frequency) == 13


def test_a_section_of_another_kind_takes_nothing_of_the_first(tmp_path):
    text = 'sources: {c: {kind: nih, root: "x", splits: [test]}}\nteacher: {kind: gemini, model: m, seed: 3}\n'
    study = load(extending(tmp_path, text))
    assert study.sources["c"] == load(extending(tmp_path, "without: [sources.c]\n" + text)).sources["c"]
    assert study.teacher.kind == "gemini" and study.teacher.seed == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "extends: mini.yaml\nsft: {num_train_epocs: 3}",
            r"mine\.yaml: unknown key 'sft\.num_train_epocs'; did you mean 'num_train_epochs'\?",
        ),
        ("extends: mini.yaml\nsft: {num_train_epochs: three}", r"mine\.yaml: sft\.num_train_epochs: .*'three'"),
        ("extends: broken.yaml", r"broken\.yaml: sft\.num_train_epochs: .*'three'"),
        ("extends: broken.yaml\nsft: {num_train_epochs: 0}", r"mine\.yaml: sft\.num_train_epochs: .*greater than 0"),
        ("extends: mini.yaml", r"mine\.yaml: study: give this study a name of its own; 'mini' is"),
        ("extends: gone.yaml", r"mine\.yaml: extends: gone\.yaml: no such params file"),
        ("extends: mine.yaml", r"mine\.yaml: extends: a file cannot extend itself: .*mine\.yaml extends .*mine\.yaml"),
        ("extends: back.yaml", r"back\.yaml: extends: a file cannot extend itself: .*mine.* extends .*back.* extends"),
        ("extends: [mini.yaml]", r"mine\.yaml: extends: give the name of one params file, got \['mini\.yaml'\]"),
        ("extends: list.yaml", r"list\.yaml: not a params file: it must hold"),
        ("extends: twice.yaml", r"twice\.yaml: not a YAML file: the key 'a' is given twice"),
        (
            "extends: mini.yaml\nwithout: [sft.num_train_epocs]",
            r"mine\.yaml: without: .*no key 'sft\.num_train_epocs'; did you mean 'sft\.num_train_epo",
        ),
        ("extends: mini.yaml\nwithout: tests", r"mine\.yaml: without: give a list of keys"),
        (
            "extends: mini.yaml\nwithout: [sft.num_train_epochs]",
            r"mine\.yaml: the key 'sft\.num_train_epochs' is missing",
        ),
        ("without: [tests]", r"mine\.yaml: without: this file extends no other"),
        ("extends: mini.yaml\nsft: 3", r"mine\.yaml: sft: .*got 3"),
    ],
)
def test_what_is_wrong_with_an_extended_study_names_the_file_in_which_it_stands(tmp_path, text, told):
    broken = MINI.replace("  num_train_epochs: 1 ", "  num_train_epochs: three ")
    others = {"broken": broken, "back": "extends: mine.yaml\n", "list": "[a]\n", "twice": "a: 1\na: 2\n"}
    with pytest.raises(ParamsError, match=told):
        load(extending(tmp_path, "", mine=text + "\n", **others))


def test_paths_are_seen_from_the_file_that_states_them(tmp_path):
    read = '{kind: own, root: "x", read: "code/own.py:read", credentialed: false}'
    teacher = "{kind: gemini, model: m, seed: 0, prompts: {free_reasoning: mine.txt, only_label: only_label}}"
    text = f"without: [curate.frozen]\nsources: {{b: {read}}}\nteacher: {teacher}\n"
    base = extending(tmp_path, text.partition("\n")[2] + "curate: {frozen: earlier/manifest.parquet}\n")
    for file in ("code/own.py", "mine.txt", "earlier/manifest.parquet"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "other.yaml").write_text("extends: ../mine.yaml\nstudy: other\n")
    assert load(base).curate.frozen == "earlier/manifest.parquet"
    study = load(tmp_path / "deep" / "other.yaml")
    assert study.curate.frozen == "../earlier/manifest.parquet" and study.sources["b"].read == "../code/own.py:read"
    assert study.teacher.prompts == {"free_reasoning": "../mine.txt", "only_label": "only_label"}
    assert (study.file.parent / study.curate.frozen).is_file()


# Values to try, in a notebook.


SFT, GRPO = "sft/medgemma/free_reasoning/seed0", "grpo/medgemma/hard/seed0"


def project(tmp_path):
    """mini.yaml in a folder of its own, with records of a finished curation, SFT and GRPO."""
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "mini.yaml").write_text(MINI, encoding="utf-8")
    study = load(tmp_path / "params" / "mini.yaml")
    for name in ("curate/manifest.parquet", "curate/films/a.png", f"{SFT}/adapter/weights", f"{GRPO}/log"):
        (study.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (study.folder / name).write_text("the graph's")
    (study.folder / SFT / "checkpoints").mkdir()
    return study


def shared(study) -> set[str]:
    """The files in a study's folder."""
    return {str(file.relative_to(study.folder)) for file in study.folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"grpo.beta": 0.1}, {"curate", "sft"}),
        ({"grpo.runs.hard.beta": 0.1}, {"curate", "sft"}),
        ({"grpo.runs.nuanced.beta": 0.1}, {"curate", "sft", "grpo"}),
        ({"sft.runs.only_label.num_train_epochs": 2}, {"curate", "sft", "grpo"}),
        ({"sft.runs.free_reasoning.num_train_epochs": 2}, {"curate"}),
        ({"compare.n_resamples": 50, "title": "x"}, {"curate", "sft", "grpo"}),
        ({"sft.num_train_epochs": 2, "grpo.beta": 0.1}, {"curate"}),
        ({"lora": {"r": 2, "lora_alpha": 4, "lora_dropout": 0.0}}, {"curate"}),
        ({"curate.rl": 20}, set()),
        (
            {"sft.runs": {"short": {"model": "medgemma", "format": "only_label"}}, "grpo.runs": {}},
            set(),
        ),  # other traces
    ],
)
def test_changed_values_are_tried_in_a_scratch_folder_with_the_stages_they_do_not_concern(tmp_path, changes, stages):
    study = project(tmp_path)
    before = {file: (study.folder / file).read_text() for file in shared(study)}
    tried = load(study.file, changes)
    assert tried.folder == study.folder / "scratch" / tried.hash and tried.hash != study.hash
    assert {file.partition("/")[0] for file in shared(tried)} == stages
    for file in shared(tried):
        (tried.folder / file).unlink()
        (tried.folder / file).write_text("tried")
    again = load(study.file, changes)
    assert again.folder == tried.folder and {(again.folder / file).read_text() for file in shared(again)} <= {"tried"}
    assert {file: (study.folder / file).read_text() for file in before} == before


def test_a_copied_record_can_be_written_without_the_graphs_own_being_changed(tmp_path):
    study = project(tmp_path)
    tried = load(study.file, {"grpo.beta": 0.1})
    (tried.folder / f"{SFT}/adapter/weights").write_text("in place")
    assert (study.folder / f"{SFT}/adapter/weights").read_text() == "the graph's"


def test_changes_are_checked_like_the_file_and_lead_to_the_same_study(tmp_path):
    study = load(project(tmp_path).file, {"grpo.beta": 0.1, "tests.b-test.films": 7}, full=False)
    values = mini(put("grpo.beta", 0.1))
    values["tests"]["b-test"]["films"] = 7
    (tmp_path / "params" / "other.yaml").write_text(yaml.safe_dump(values | {"study": "other"}), encoding="utf-8")
    other = load(tmp_path / "params" / "other.yaml", full=False)
    assert study.model_dump() == other.model_dump() | {"study": "mini"} and study.prompts is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"grpo.bta": 0.1}, r"changes of .*mini\.yaml: unknown key 'grpo\.bta'; did you mean 'beta'\?"),
        ({"gpro.beta": 0.1}, r"changes of .*mini\.yaml: unknown key 'gpro'; did you mean 'grpo'\?"),
        ({"grpo.beta": "0.1"}, r"changes of .*mini\.yaml: grpo\.beta: .*got '0\.1'"),
        ({"sources.b.films": 0}, r"changes of .*mini\.yaml: sources\.b\.films: .*greater than 0"),
        ({"seeds.0": 3}, r"changes: seeds\.0: seeds holds \[0\], no keys; change it as a whole"),
        ({"curate.train": "z"}, r"changes of .*mini\.yaml: curate\.train: 'z' is not defined"),
        ({"study": "other"}, r"changes: study cannot be changed here"),
        (
            {"grpo.runs.hard.bta": 0.1},
            r"changes of .*mini\.yaml: grpo: runs\.hard\.set: unknown key 'bta'; did you mean",
        ),
        ({"grpo.save_steps": 25}, r"changes of .*mini\.yaml: grpo: save_steps \(25\) must be a multiple"),
    ],
)
def test_a_change_that_is_wrong_is_refused_with_the_right_key(tmp_path, changes, told):
    file = project(tmp_path).file
    with pytest.raises(ParamsError, match=told):
        load(file, changes)
    assert not (tmp_path / "runs" / "mini" / "scratch").exists()
    with pytest.raises(TypeError, match="give a dict of values by dotted key, not False"):
        load(file, False)


# Label sets of one's own.


def test_a_label_set_can_be_defined_in_the_file(tmp_path):
    values = mini(put("tests.b-test.label_sets", ["mine", "chexpert14"])) | {
        "label_sets": {"mine": ["Edema", "Fracture"]}
    }
    values["curate"]["label_sets"] = ["mine"]
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    study = load(file)
    assert study.labels("mine") == ("Edema", "Fracture") and len(study.labels("chexpert14")) == 14


@pytest.mark.parametrize(
    ("label_sets", "told"),
    [
        ({"nih9": ["Edema"]}, "label_sets: 'nih9' is a built-in label set; give yours another name"),
        ({"mine": ["Oedema"]}, "label_sets.mine.0"),
        ({"mine": []}, "label_sets.mine: List should have at least 1 item"),
        ({"mine": ["Edema", "Edema"]}, "label_sets.mine: 'Edema' is listed twice"),
        ({"other": ["Edema"]}, "curate.label_sets: 'mine' is not defined in this file; choose one of chexpert14"),
    ],
)
def test_a_label_set_that_is_wrong_is_refused(tmp_path, label_sets, told):
    values = mini(put("curate.label_sets", ["mine"])) | {"label_sets": label_sets}
    assert told in refusal(tmp_path, values)
