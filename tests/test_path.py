"""The controlled experiment in small: runs that keep checkpoints, the answers along their paths, and its tables."""

import numpy as np
import pytest
import torch
from conftest import at
from PIL import Image

from chexreason import config, models, records
from chexreason.data import curate
from chexreason.evaluation import dose, release, released
from chexreason.inference import path, predict, remedies
from chexreason.inference.protocol import Protocol
from chexreason.labels import CHEXPERT14, NIH9
from chexreason.training import grpo, sft


@pytest.fixture(scope="module")
def experiment(smoke) -> config.Study:
    """One SFT run and two rewards, trained with all checkpoints kept, and asked along their paths."""
    run = {"start": "free_reasoning", "reward": "format"}
    changes = {"sft.keep_checkpoints": True, "grpo.keep_checkpoints": True, "grpo.beta": 0.0, "grpo.runs.format": run}
    study = config.load(smoke.file, changes | {"path": {"tests": ["b-test", "c-test"], "kl_films": 4}})
    sft.train(study, "free_reasoning", 0)
    for name in study.grpo.runs:
        grpo.train(study, name, 0)
    for checkpoint in [*study.runs("sft"), *study.runs("grpo")]:
        path.predict_path(study, checkpoint)
    return study


def test_every_checkpoint_of_a_path_answers_every_film(experiment):
    films = sum(len(curate.dataset(experiment, name)) for name in experiment.path.tests)
    for run, steps in (("grpo/hard", [2, 4]), ("grpo/format", [2, 4]), ("sft/free_reasoning", [0, 5, 10])):
        table = records.load(experiment.paths.path(at(run)))
        counted = table.groupby("step").size()
        assert list(counted.index) == steps and set(counted) == {films}
        assert table["chosen"].any() and not table.query("step == 0")["chosen"].any()


def test_answers_along_a_path_are_those_that_prediction_gives(experiment):
    last = at("grpo/hard")
    table = records.load(experiment.paths.path(last)).query("step == 4 and dataset == 'c-test'")
    films = curate.dataset(experiment, "c-test")
    reader = predict.load(experiment.models["medgemma"], experiment.paths.adapter(last), 64)
    protocol = Protocol.of(experiment, "free_reasoning", "c-test")
    given = predict.reply_to_films(reader, films["image"], protocol, experiment.folder / "asked-again")
    read = predict.read(experiment, "c-test", films, given, reader.processor, protocol)
    told = [
        {name for name, there in zip(CHEXPERT14, row, strict=True) if there} for row in dose.unpack(table["labels"])
    ]
    assert told == [set(labels) for labels in read["labels"]]


def test_the_divergence_is_0_at_the_start_and_above_it_later(experiment):
    measured = records.load(experiment.paths.path(at("sft/free_reasoning"))).dropna(subset=["kl"])
    by_step = measured.groupby("step")["kl"].agg(["mean", "size"])
    assert by_step.loc[0, "mean"] == 0 and (by_step["mean"].iloc[1:] > 0).all()
    assert set(by_step["size"]) == {8}  # four films of each test set


def test_a_reply_never_has_the_token_of_an_image(experiment):
    reader = predict.load(experiment.models["medgemma"], None, 8)
    (token,) = models.image_tokens(reader.model)
    assert reader.processor.tokenizer.convert_ids_to_tokens(token) == "<image_soft_token>"
    head = reader.model.get_output_embeddings().weight
    with torch.no_grad():
        head[token] = 100 * head.abs().max()  # far the likeliest, wherever the hidden states sum to more than zero
    protocol = Protocol.of(experiment, "free_reasoning", "b-test").model_copy(update={"max_new_tokens": 4})
    inputs = models.inputs(
        reader.processor, [Image.open(curate.dataset(experiment, "b-test")["image"][0])], protocol.prompt
    )
    for sample in (False, True):
        written = reader.model.generate(**inputs, max_new_tokens=4, do_sample=sample)[:, inputs["input_ids"].shape[1] :]
        assert token not in written


def test_the_divergence_of_a_reply_is_that_of_its_tokens_by_a_plain_forward_pass(experiment):
    protocol = Protocol.of(experiment, "free_reasoning", "b-test")
    films = curate.dataset(experiment, "b-test")["image"].head(3)
    settings = experiment.models["medgemma"]
    policy, start = (
        predict.load(settings, each, 8) for each in (experiment.paths.adapter(at("sft/free_reasoning")), None)
    )
    found = path.kl_to_start(policy, start, films, protocol)
    for number in range(3):  # one film alone has no padding before it
        torch.manual_seed(0)
        alone = path.kl_to_start(policy, start, films.iloc[[number]], protocol)
        assert alone[0] > 0 and found[number] > 0
    inputs = models.inputs(policy.processor, [Image.open(films.iloc[0])], protocol.prompt)
    with torch.inference_mode():
        whole = policy.model.generate(**inputs, max_new_tokens=20, do_sample=False)
        summed = path._token_kl(policy.model, start.model, inputs, whole).sum().item()
        by_hand, asked = 0.0, inputs["input_ids"].shape[1]
        for place in range(asked, whole.shape[1]):
            kinds = {"token_type_ids": torch.nn.functional.pad(inputs["token_type_ids"], (0, place - asked))}
            given = {"input_ids": whole[:, :place], "pixel_values": inputs["pixel_values"], **kinds}
            here, there = (each(**given).logits[0, -1].log_softmax(-1) for each in (policy.model, start.model))
            by_hand += torch.nn.functional.kl_div(there, here, log_target=True, reduction="sum").item()
            if whole[0, place].item() in policy.model.generation_config.eos_token_id:
                break
    assert summed == pytest.approx(by_hand, rel=1e-3)


def test_the_released_tables_hold_numbers_and_give_the_dose_response(experiment):
    tables = release.collect(experiment)
    text = [name for table in tables.values() for name in table.select_dtypes(["str", "object"])]
    assert set(text) == {"dataset", "view", "run", "collapse"}  # no reply, and no name of a film or patient
    films = tables["films"].query("dataset == 'b-test'")
    answers = tables["answers"][tables["answers"]["film"].isin(films["film"])]
    for ruler in ("labels", "truth"):
        scored = dose.score(films, answers, ruler, NIH9, 50, 0)
        effects = dose.dose_response(scored, (released.START, 0), [0])
        assert set(effects["run"]) == {"sft", "hard", "format"} and np.isfinite(effects["effect"]).all()


def test_the_truth_in_the_released_tables_is_what_was_drawn(experiment):
    films = release.collect(experiment)["films"]
    drawn = sorted(
        tuple(sorted({box.finding for box in boxes}))
        for name in experiment.path.tests
        for boxes in curate.dataset(experiment, name)["boxes"]
    )
    told = [
        tuple(sorted(name for name, there in zip(CHEXPERT14, row, strict=True) if there and name != "No Finding"))
        for row in dose.unpack(films["truth"])
    ]
    assert sorted(told) == drawn


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.25])
def test_weights_between_two_checkpoints_are_the_weighted_mean_of_both(experiment, alpha):
    settings = experiment.models["medgemma"]
    start, end = (experiment.paths.adapter(at(name)) for name in ("sft/free_reasoning", "grpo/hard"))
    found = dict(remedies.between(settings, start, end, alpha, 8).model.named_parameters())
    first, last = (dict(models.load_trained(settings, each).named_parameters()) for each in (start, end))
    for name, weight in found.items():
        assert torch.allclose(weight, (1 - alpha) * first[name] + alpha * last[name], atol=1e-6), name
    assert remedies.between(settings, start, end, alpha, 8).key != remedies.between(settings, start, end, 0.3, 8).key


def test_sampled_replies_come_in_groups_of_one_film_and_come_again_with_the_seed(experiment):
    reader = predict.load(experiment.models["medgemma"], experiment.paths.adapter(at("sft/free_reasoning")), 8)
    protocol = Protocol.of(experiment, "free_reasoning", "b-test")
    images = curate.dataset(experiment, "b-test")["image"].head(5)
    given, again = (remedies.sample_replies(reader, images, protocol, 4, 1.0, seed=3) for _ in range(2))
    assert given == again and [len(replies) for replies in given] == [4] * 5
    cold = remedies.sample_replies(reader, images, protocol, 2, 1e-4, seed=3)  # without heat, the greedy reply twice
    greedy = predict.answer_films(reader, images, protocol, experiment.folder / "greedy")
    assert cold == [[text] * 2 for text in greedy]


def test_a_vote_takes_what_more_than_half_of_the_replies_name():
    assert remedies.vote([["Edema"], ["Edema", "Fracture"], ["Fracture", "Edema"], []]) == {"Edema"}
    assert remedies.vote([[], []]) == set()
