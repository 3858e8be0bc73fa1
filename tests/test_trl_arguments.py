"""What a params file passes through to trl reaches the trainer, and what the study owns or trl lacks is refused."""

import hashlib
import re
import subprocess
import sys
from dataclasses import MISSING, fields

import pytest
import yaml
from conftest import ROOT
from small import changed, curated, untrained_adapter

from chexreason import config
from chexreason.config import trl_arguments
from chexreason.config.messages import RENAMED
from chexreason.training import common, grpo, sft
from chexreason.workflow import plan


def loaded(tmp_path, name: str = "mini", **sections: dict) -> config.Study:
    """The study of `params/<name>.yaml` with further keys in some sections."""
    values = yaml.safe_load((ROOT / "params" / f"{name}.yaml").read_text(encoding="utf-8"))
    for section, keys in sections.items():
        values[section] |= keys
    file = tmp_path / "params" / "mine.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return config.load(file)


@pytest.mark.parametrize(
    ("section", "old", "new"),
    [(section, old, new) for section, names in RENAMED.items() for old, new in names.items()],
)
def test_an_old_name_is_refused_with_the_new_one_and_nothing_else(tmp_path, section, old, new):
    values = yaml.safe_load((ROOT / "params" / "mini.yaml").read_text(encoding="utf-8"))
    values[section][old] = values[section].pop(new)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(config.ParamsError) as refused:
        config.load(file)
    assert str(refused.value) == f"{file}: {section}.{old} is now {new}"


def test_the_book_lists_every_old_name():
    text = (ROOT / "book" / "running.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)\.(\w+)` \| `(\w+)` \|$", text, re.MULTILINE)
    assert listed == [(section, *names) for section, pairs in RENAMED.items() for names in pairs.items()]


def test_the_keys_of_a_section_are_those_of_its_librarys_class_but_for_our_own():
    from peft import LoraConfig

    ours = {"runs", "trl", "agreement", "keep_checkpoints"}
    for stage, section, own in (
        ("sft", config.Sft, {"evaluations_per_epoch", "early_stopping_patience"}),
        ("grpo", config.Grpo, {"films_per_step", "validation_films", "reward", "collapse"}),
    ):
        known = {field.name for field in fields(trl_arguments.config_class(stage))}
        assert set(section.model_fields) - known == ours | own
    assert set(config.Lora.model_fields) <= {field.name for field in fields(LoraConfig)}


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_every_name_and_value_that_is_listed_is_known_to_trl(stage):
    known = {field.name: field for field in fields(trl_arguments.config_class(stage))}
    either = {field.name for each in ("sft", "grpo") for field in fields(trl_arguments.config_class(each))}
    assert {key for keys in trl_arguments.OWNED.values() for key in keys.split()} <= either
    assert set(trl_arguments.INSTEAD[stage]) <= set(known)
    for key, values in trl_arguments.CHOICES[stage].items():
        named = re.findall(r"[`'\"]+(\w+)[`'\"]+", known[key].metadata["help"])
        assert set(values) <= set(named), key


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_trls_own_defaults_are_values_it_takes(stage):
    owned = " ".join(trl_arguments.OWNED.values()).split()
    for field in fields(trl_arguments.config_class(stage)):
        if field.name not in owned and field.default is not MISSING:
            trl_arguments._check_value(
                field.name, field.default, field.type, trl_arguments.CHOICES[stage].get(field.name)
            )


@pytest.mark.parametrize(
    ("stage", "values", "told"),
    [
        ("grpo", {"los_type": "dapo"}, "GRPOConfig has no such argument; did you mean 'loss_type'?"),
        ("grpo", {"epsilonhigh": 0.3}, "did you mean grpo.epsilon_high?"),
        ("sft", {"use_vllm": True}, "SFTConfig has no such argument"),
        ("grpo", {"beta": 0.1}, "grpo has this key itself; write grpo.beta"),
        ("sft", {"learning_rate": 1e-4}, "write sft.learning_rate"),
        ("grpo", {"per_device_train_batch_size": 8}, "grpo.films_per_step"),
        ("grpo", {"gradient_accumulation_steps": 2}, "grpo.films_per_step"),
        ("sft", {"max_steps": 10}, "sft.num_train_epochs"),
        ("sft", {"save_steps": 10}, "sft.evaluations_per_epoch"),
        ("grpo", {"generation_kwargs": {"temperature": 2.0}}, "grpo.temperature"),
        ("sft", {"output_dir": "/tmp"}, "a run lies in the study's folder"),
        ("grpo", {"seed": 3}, "a run takes its seed from `seeds`"),
        ("grpo", {"logging_steps": 10}, "the log of a run needs its own"),
        ("grpo", {"remove_unused_columns": True}, "the rewards read the columns"),
        ("sft", {"max_length": 512}, "the loss is on the whole answer"),
        ("sft", {"hub_token": "secret"}, "a params file holds no secret"),
        ("grpo", {"loss_type": "grop"}, "did you mean 'grpo'?"),
        ("sft", {"lr_scheduler_type": "liner"}, "did you mean 'linear'?"),
        ("sft", {"lr_scheduler_type": "cosine_with_min_lr"}, "cannot be made"),
        ("sft", {"lr_scheduler_kwargs": {"num_cycle": 1}}, "cannot be made"),
        ("grpo", {"lr_scheduler_type": "reduce_lr_on_plateau"}, "GRPO has none"),
        ("sft", {"optim": "adamw_torc"}, "is not one of trl's values; did you mean 'adamw_torch'?"),
        ("grpo", {"mask_truncated_completions": "yes"}, "valid boolean, got 'yes'"),
        ("grpo", {"top_k": 0.5}, "valid integer, got 0.5"),
        ("grpo", {"delta": float("inf")}, "finite number"),
        ("grpo", {"num_iterations": 3}, "steps_per_generation (2) x num_iterations (3)"),
        ("grpo", {"sync_ref_model": True}, "trl cannot update the reference of a LoRA run"),
        ("grpo", {"report_to": "wandd"}, "transformers does not know 'wandd'"),
        ("grpo", {"report_to": "all"}, "transformers does not know 'all'"),
        ("sft", {"report_to": ["tensorboard"]}, "a study logs for TensorBoard already"),
        ("sft", {"push_to_hub": True}, "name it under trl.hub_model_id"),
        ("grpo", {"vllm_server_base_url": "http://me:pass@localhost:8000"}, "no user or password"),
    ],
)
def test_an_argument_that_cannot_pass_through_is_refused_when_the_file_is_loaded(tmp_path, stage, values, told):
    with pytest.raises(config.ParamsError) as refused:
        loaded(tmp_path, **{stage: {"trl": values}})
    assert told in str(refused.value) and f"mine.yaml: {stage}" in str(refused.value)


def test_what_trls_documentation_shows_passes_through_and_is_in_the_hash(tmp_path):
    plain = loaded(tmp_path)
    recipe = {"use_vllm": True, "report_to": "wandb", "log_completions": True, "loss_type": "dapo", "top_k": 50}
    study = loaded(tmp_path, grpo={"trl": recipe}, sft={"trl": {"optim": "adamw_torch", "neftune_noise_alpha": 5}})
    assert study.grpo.trl == recipe
    assert study.hash != plain.hash
    assert study.hash != loaded(tmp_path, grpo={"trl": recipe | {"top_k": 40}}).hash


SERVICES = [
    {"report_to": "wandb"},
    {"report_to": ["none", "trackio"]},
    {"report_to": "comet_ml", "log_completions": True, "num_completions_to_print": 0},
    {"push_to_hub": True, "hub_model_id": "me/mine"},
    {"log_completions": True, "num_completions_to_print": 0, "log_completions_hub_repo": "me/mine"},
    {"use_vllm": True, "vllm_mode": "server", "vllm_server_host": "gpu.example.org"},
    {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "http://10.0.0.1:8000"},
]


@pytest.mark.parametrize("values", SERVICES, ids=lambda values: " ".join(values))
def test_credentialed_films_are_sent_to_a_service_under_an_agreement_only(tmp_path, values):
    with pytest.raises(config.ParamsError, match="sends data to another machine"):
        loaded(tmp_path, "paper", grpo={"trl": values})
    with pytest.raises(config.ParamsError, match="at least 10 characters"):
        loaded(tmp_path, "paper", grpo={"trl": values, "agreement": "yes"})
    assert loaded(tmp_path, "paper", grpo={"trl": values, "agreement": "Data use agreement 123"}).grpo.trl == values
    assert loaded(tmp_path, "mini", grpo={"trl": values}).grpo.trl == values


def test_sfts_services_need_an_agreement_of_their_own(tmp_path):
    with pytest.raises(config.ParamsError, match=r"sft\.trl: films of 'mimic' are credentialed and report_to: wandb"):
        loaded(tmp_path, "paper", sft={"trl": {"report_to": "wandb"}}, grpo={"agreement": "Data use agreement 123"})


def test_a_server_on_this_machine_is_no_service(tmp_path):
    for values in ({"vllm_server_host": "127.0.0.1"}, {"vllm_server_base_url": "http://localhost:8000"}, {}):
        assert loaded(tmp_path, "paper", grpo={"trl": {"use_vllm": True, "vllm_mode": "server"} | values})


@pytest.mark.parametrize(
    ("address", "local"),
    [("", True), ("sqlite:///runs.db", True), ("http://localhost:5000", True), ("http://ml.example.org", False),
     ("databricks", False)],
)  # fmt: skip
def test_mlflow_is_a_service_when_its_address_is_elsewhere(monkeypatch, address, local):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert list(trl_arguments.services({"report_to": "mlflow"})) == ([] if local else ["report_to: mlflow"])


def test_answers_about_credentialed_films_are_not_printed_into_a_page_of_the_book(tmp_path):
    told = "add num_completions_to_print: 0"
    for keys in ({}, {"agreement": "Data use agreement 123"}):
        with pytest.raises(config.ParamsError, match=told):
            loaded(tmp_path, "paper", grpo={"trl": {"log_completions": True}} | keys)
    assert loaded(tmp_path, "paper", grpo={"trl": {"log_completions": True, "num_completions_to_print": 0}})


def test_a_package_that_the_pass_through_needs_is_missed_before_anything_runs(tmp_path, monkeypatch):
    study = loaded(tmp_path, grpo={"trl": {"use_vllm": True, "report_to": ["wandb", "none"]}})
    monkeypatch.setattr(plan, "find_spec", lambda name: None)
    assert list(plan._packages(study)) == [
        f"grpo.trl: install the package {name} with .venv/bin/pip" for name in ("vllm", "wandb")
    ]
    assert not list(plan._packages(loaded(tmp_path)))


def test_a_params_file_without_trl_imports_neither_trl_nor_torch():
    code = "import sys; from chexreason import config; config.load('params/mini.yaml'); "
    code += "print({'trl', 'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Two steps of real training.


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> config.Study:
    """The small study with an adapter that GRPO can start from."""
    study = curated(tmp_path_factory.mktemp("passed-through"))
    study = changed(study, grpo={"warmup_steps": 0.0}, sft={"warmup_steps": 0.0, "gradient_accumulation_steps": 1})
    untrained_adapter(study)
    return study


def passed(study: config.Study, stage: str, **values) -> config.Study:
    """The study with a checked `trl` in one section."""
    section = getattr(study, stage)
    checked = type(section).model_validate(section.model_dump() | {"trl": values})
    return changed(study, **{stage: {"trl": checked.trl}})


def sft_weights(study: config.Study) -> tuple:
    """The trainer after two steps of SFT, and the hash of its LoRA weights."""
    runner = sft.trainer(study, "free_reasoning", 0)
    runner.train()
    return runner, digest(runner.model)


def grpo_weights(study: config.Study) -> tuple:
    """The trainer after two steps of GRPO, and the hash of its LoRA weights."""
    runner = grpo.trainer(study, "hard", 0)
    runner.train()
    return runner, digest(runner.model)


def digest(model) -> str:
    """A hash of a model's trainable weights."""
    weights = [
        weight.detach().numpy().tobytes() for _, weight in sorted(model.named_parameters()) if weight.requires_grad
    ]
    return hashlib.sha256(b"".join(weights)).hexdigest()


def test_sft_follows_a_schedule_that_is_passed_through(small):
    study = changed(small, sft={"num_train_epochs": 2})
    plain, before = sft_weights(study)
    other, after = sft_weights(passed(study, "sft", lr_scheduler_type="linear"))
    assert (plain.args.lr_scheduler_type, other.args.lr_scheduler_type) == ("cosine", "linear")
    steps = other.state.max_steps
    assert steps == plain.state.max_steps >= 2
    rates = [entry["learning_rate"] for entry in other.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([study.sft.learning_rate * (1 - step / steps) for step in range(steps)])
    assert after != before


def test_grpo_trains_with_the_loss_that_is_passed_through(small, monkeypatch):
    monkeypatch.setattr(grpo.rewards, "hard", lambda text, *_: len(text) % 7 / 7)  # a reward that tells answers apart
    plain, before = grpo_weights(small)
    other, after = grpo_weights(passed(small, "grpo", loss_type="grpo"))
    assert (plain.args.loss_type, other.args.loss_type) == ("dr_grpo", "grpo")
    assert after != before


def test_truncated_completions_teach_nothing_when_they_are_masked(small, monkeypatch):
    """Every answer here runs into the limit of 4 tokens: with all of them masked, and no KL term, no weight moves."""
    monkeypatch.setattr(grpo.rewards, "hard", lambda text, *_: sum(map(ord, text)) % 7 / 7)
    study = changed(small, grpo={"beta": 0.0, "max_completion_length": 4})
    runner, after = grpo_weights(passed(study, "grpo", mask_truncated_completions=True))
    logged = [entry["completions/clipped_ratio"] for entry in runner.state.log_history if "reward" in entry]
    assert set(logged) == {1.0}
    start = grpo.trainer(study, "hard", 0)
    assert after == digest(start.model)
    assert grpo_weights(study)[1] != after


def test_the_study_sets_what_it_set_before_without_trl(small):
    """The values that were written out under their old names, by hand."""
    arguments = grpo.trainer(small, "hard", 0).args
    settings = small.grpo
    assert arguments.per_device_train_batch_size == settings.films_per_step * settings.num_generations
    shared = set(type(settings).model_fields) & {field.name for field in fields(type(arguments))}
    assert shared == {
        *("learning_rate", "warmup_steps", "max_grad_norm", "gradient_checkpointing", "max_steps", "num_generations"),
        *("steps_per_generation", "temperature", "top_p", "beta", "use_bias_correction_kl", "epsilon", "epsilon_high"),
        *("scale_rewards", "max_completion_length", "save_steps"),
    }
    assert all(getattr(arguments, key) == getattr(settings, key) for key in shared)
    assert (arguments.loss_type, arguments.lr_scheduler_type, arguments.report_to) == ("dr_grpo", "cosine", [])


@pytest.mark.parametrize(("value", "steps"), [(0.05, 5), (0.0, 0), (1, 1), (30, 30)])
def test_warmup_steps_below_one_are_a_share_and_others_a_number(tmp_path, value, steps):
    settings = loaded(tmp_path, sft={"warmup_steps": value}).sft
    arguments = common.arguments(trl_arguments.config_class("sft"), settings, output_dir=str(tmp_path), use_cpu=True)
    assert arguments.get_warmup_steps(100) == steps


def test_a_number_of_warm_up_steps_with_a_fraction_is_refused(tmp_path):
    with pytest.raises(config.ParamsError, match=r"a share below 1 or a whole number of steps, not 1\.5"):
        loaded(tmp_path, sft={"warmup_steps": 1.5})
