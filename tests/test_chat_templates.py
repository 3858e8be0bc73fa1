"""SFT, GRPO and prediction give a model the same tokens, and read all of its reply, whatever its tokenizer adds."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import at
from small import adds, changed, curated, stand_in, untrained_adapter, with_model

from chexreason import answers, config, models, rewards
from chexreason.data import curate
from chexreason.inference import predict
from chexreason.inference.protocol import Protocol
from chexreason.training import common, grpo, sft

OPENED = "<think>\n"
REPLY = "<think>The heart is wide.</think>\n<solution>Cardiomegaly</solution>"


def adds_bos(place):
    """A copy of the stand-in for MedGemma whose tokenizer adds <bos> by itself, as the published one does."""
    return stand_in(place, tokenizer=adds("<bos>", 2), tokenizer_config={"padding_side": "right"})


def opens_thought(place, name="medgemma", opened=OPENED):
    """A copy of a stand-in whose chat template begins every reply with `opened`."""
    header = {"medgemma": "<start_of_turn>model\n", "qwen": "<|im_start|>assistant\n"}[name]
    return stand_in(place, name, lambda text: text.replace(header, header + opened))


def model(place) -> config.Model:
    return config.Model(name="other", path=str(place), dtype="float32")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> config.Study:
    return curated(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def doubled(study, tmp_path_factory) -> config.Study:
    """The study with a model whose tokenizer adds <bos>."""
    return with_model(study, adds_bos(tmp_path_factory.mktemp("bos") / "other"))


@pytest.fixture(scope="module")
def thinking(study, tmp_path_factory) -> config.Study:
    """The study with a model whose chat template opens the thought."""
    return with_model(study, opens_thought(tmp_path_factory.mktemp("thinking") / "other"))


def film(study):
    from PIL import Image

    return Image.open(curate.dataset(study, "sft")["image"].iloc[0])


# What the tokenizer adds.


def test_a_tokenizer_that_adds_bos_gives_the_prompt_one_bos_everywhere(doubled, study):
    processor, plain = (models.load_processor(each.models["medgemma"]) for each in (doubled, study))
    assert processor.tokenizer.padding_side == "left"
    expected = models.inputs(plain, [film(study)], "Read.")["input_ids"][0].tolist()
    question = models.question(processor, "Read.")
    given = [
        models.inputs(processor, [film(study)], "Read.")["input_ids"][0].tolist(),  # as prediction asks
        processor(images=[[film(study)]], text=[question], return_tensors="pt")["input_ids"][0].tolist(),  # as trl does
    ]
    assert given == [expected, expected] and expected.count(processor.tokenizer.bos_token_id) == 1


def test_sft_marks_the_image_and_the_answer_where_they_are(doubled):
    runner = sft.trainer(doubled, "free_reasoning", 0)
    first = runner.train_dataset[0]
    written = first["completion"][0]["content"]
    batch = runner.data_collator([first])
    words, ids = runner.processing_class.tokenizer, batch["input_ids"][0]
    assert torch.equal(batch["token_type_ids"][0] == 1, ids == words.image_token_id)
    assert words.decode(ids[batch["labels"][0] != -100]) == f"{written}<end_of_turn>\n"


def test_grpo_scores_samples_as_a_plain_forward_pass_of_the_same_model_does(doubled):
    untrained_adapter(doubled)
    runner = grpo.trainer(doubled, "hard", 0)
    runner.model.train()
    runner.current_gradient_accumulation_steps = 1
    given = runner._generate_and_score_completions([runner.train_dataset[number // 2] for number in range(4)])
    ids = torch.cat([given["prompt_ids"], given["completion_ids"]], dim=1)
    mask = torch.cat([given["prompt_mask"], given["completion_mask"]], dim=1)
    image = (ids == runner.processing_class.tokenizer.image_token_id).long()
    assert torch.equal(given["token_type_ids"], image)
    runner.model.eval()
    with torch.no_grad():
        logits = runner.model(
            input_ids=ids, attention_mask=mask, pixel_values=given["pixel_values"], token_type_ids=image
        ).logits
    sampled = given["completion_ids"]
    scores = torch.log_softmax(logits[:, -sampled.shape[1] - 1 : -1] / runner.temperature, dim=-1)
    expected, asked = scores.gather(2, sampled[..., None])[..., 0], given["completion_mask"].bool()
    for name in ("ref_per_token_logps", "old_per_token_logps"):
        assert (given[name] - expected)[asked].abs().max() < 1e-4  # nats; one token late: 0.1


def test_a_template_without_the_bos_that_the_tokenizer_adds_gets_it(tmp_path):
    def bare(text: str) -> str:
        return text.replace("{{ bos_token }}", "")

    place = stand_in(tmp_path / "other", template=bare, tokenizer=adds("<bos>", 2))
    processor = models.load_processor(model(place))
    assert models.question(processor, "Read.").startswith("<bos><start_of_turn>user")
    place = stand_in(tmp_path / "none", template=bare)
    assert models.question(models.load_processor(model(place)), "Read.").startswith("<start_of_turn>user")


def test_a_tokenizer_that_adds_an_end_of_its_own_adds_none(tmp_path):
    place = stand_in(tmp_path / "other", tokenizer=adds("<end_of_turn>", 5, after=True))
    words = models.load_processor(model(place)).tokenizer
    assert words("Read.").input_ids == words("Read.", add_special_tokens=False).input_ids


def test_a_tokenizer_without_a_pad_token_pads_with_its_end(tmp_path):
    place = stand_in(tmp_path / "other", tokenizer_config={"pad_token": None})
    words = models.load_processor(model(place)).tokenizer
    assert words.pad_token == words.eos_token


def test_a_tokenizer_that_drops_a_tag_from_replies_is_refused(tmp_path):
    place = stand_in(tmp_path / "other", tokenizer_config={"extra_special_tokens": ["<think>", "</think>"]})
    with pytest.raises(models.ModelError, match=r"its tokenizer drops <think>, </think> from replies"):
        models.load_processor(model(place))


def test_a_processor_without_a_chat_template_or_eyes_is_refused_in_a_line(tmp_path):
    (stand_in(tmp_path / "mute") / "chat_template.jinja").unlink()
    with pytest.raises(models.ModelError, match="mute: has no chat template"):
        models.load_processor(model(tmp_path / "mute"))
    place = stand_in(tmp_path / "blind", processor_config={"image_processor": {"image_processor_type": "Nobody's"}})
    with pytest.raises(models.ModelError, match=r"blind: cannot be loaded: [^\n]*$"):
        models.load_processor(model(place))


# Where a reply ends, and how it is generated.


def test_a_reply_ends_at_the_templates_end_of_turn_though_the_generation_config_forgot_it(study, tmp_path):
    place = stand_in(
        tmp_path / "other",
        generation_config={"eos_token_id": 1, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "top_k": 3},
        tokenizer_config={"eos_token": "<unk>"},
    )
    protocol, images = (
        Protocol.of(study, "free_reasoning", study.validation),
        list(curate.dataset(study, "sft")["image"]),
    )
    protocol = protocol.model_copy(update={"max_new_tokens": 120})
    readers = [predict.load(each, None, 8) for each in (study.models["medgemma"], model(place))]
    right, replies = (
        predict.reply_to_films(reader, images[:4], protocol, tmp_path / str(number))
        for number, reader in enumerate(readers)
    )
    assert replies == right
    assert not all(reply.cut_off for reply in right)
    assert readers[1].model.generation_config.repetition_penalty is None


def test_a_reply_is_cut_off_exactly_where_no_end_was_generated(study, tmp_path):
    reader, images = predict.load(study.models["medgemma"], None, 4), list(curate.dataset(study, "sft")["image"])[:4]
    protocol = Protocol.of(study, "free_reasoning", study.validation).model_copy(update={"max_new_tokens": 160})
    whole = predict.reply_to_films(reader, images, protocol, tmp_path / "whole")
    words = reader.processor.tokenizer
    tokens = [len(words(reply.text).input_ids) for reply in whole]
    limit = sorted(tokens)[1]  # the end is one token more
    short = predict.reply_to_films(
        reader, images, protocol.model_copy(update={"max_new_tokens": limit}), tmp_path / "short"
    )
    assert [reply.cut_off for reply in short] == [count >= limit for count in tokens]
    for long, cut in zip(whole, short, strict=True):
        assert long.text.startswith(cut.text)


def test_the_overview_tells_cut_off_from_malformed(study):
    films = curate.dataset(study, "b-test").head(3)
    given = [predict.Reply(REPLY, False), predict.Reply("<think>The heart", True), predict.Reply("No idea.", False)]
    protocol = Protocol.of(study, "free_reasoning", "b-test")
    table = predict.read(study, "b-test", films, given, models.load_processor(study.models["medgemma"]), protocol)
    assert list(table["cut_off"]) == [False, True, False]
    row = predict.overview(table).loc["b-test"]
    assert (row["fail_rate"], row["cut_off"], row["malformed"]) == (0.667, 0.333, 0.333)
    assert "66.7% unreadable, 0 refused, 33.3% cut off at the token limit" in predict.summary(table)
    old = predict.overview(table.drop(columns="cut_off")).loc["b-test"]  # a record of before
    assert math.isnan(old["cut_off"]) and math.isnan(old["malformed"])


@pytest.mark.parametrize("name", ["hard", "nuanced"])
def test_the_rewards_log_counts_as_format_failures_only_replies_that_ended(study, name):
    reward = grpo.reward_function(rewards.make_reward(name, study.file.parent, {}, study.grpo.reward), name, "", [9])
    logged, texts = {}, [REPLY, "<think>The heart", "No idea.", "<think>So"]
    reward(
        completions=[[{"content": text}] for text in texts],
        truth=[["Cardiomegaly"]] * 4,
        completion_ids=[[1, 9], [1, 2], [1, 9], [3, 4]],
        log_metric=logged.__setitem__,
    )
    assert logged["format_failures"] == 0.25


@pytest.mark.parametrize(("unit", "expected"), [("tokens", 1.0), ("words", 1.0), ("characters", 1.0)])
def test_the_length_of_a_reply_is_the_same_in_training_and_in_prediction(study, unit, expected):
    """Of a reply just as long as it must be; the token that ends it is not counted."""
    words = models.load_processor(study.models["medgemma"]).tokenizer
    ids, end = words(REPLY).input_ids, words.eos_token_id
    size = rewards.length(REPLY, unit, ids)
    settings = study.grpo.reward.model_copy(update={"length_unit": unit, "min_length": size + 1})
    score = grpo.reward_function(partial(rewards.hard_reward, settings=settings), "hard", "", [end])
    given = {"completions": [[{"content": REPLY}]], "truth": [["Cardiomegaly"]], "completion_ids": [[*ids, end]]}
    assert score(**given, log_metric=lambda *_: None) == [expected - settings.length_penalty]
    enough = settings.model_copy(update={"min_length": size})
    score = grpo.reward_function(partial(rewards.hard_reward, settings=enough), "hard", "", [end])
    assert score(**given, log_metric=lambda *_: None) == [expected]


# A template that opens the thought.


@pytest.mark.parametrize("name", ["medgemma", "qwen"])
@pytest.mark.parametrize("opened", ["<think>\n", "<think>", "<think>\n\n"])
def test_what_the_template_writes_of_a_reply_is_known(tmp_path, name, opened):
    assert (
        models.template_opening(models.load_processor(model(opens_thought(tmp_path / "other", name, opened)))) == opened
    )


@pytest.mark.parametrize("opened", ["", "<think>\n\n</think>\n\n", "Sure. "])
def test_a_template_that_leaves_nothing_open_adds_nothing(tmp_path, opened):
    assert models.template_opening(models.load_processor(model(opens_thought(tmp_path / "other", opened=opened)))) == ""


def test_a_perfect_completion_after_an_opened_thought_earns_what_a_whole_one_does(study):
    settings = study.grpo.reward.model_copy(update={"min_length": 1})
    rest = REPLY.removeprefix("<think>")
    given = {"truth": [["Cardiomegaly"]], "completion_ids": [[1, 9]], "log_metric": lambda *_: None}
    scores = [
        grpo.reward_function(rewards.make_reward(name, study.file.parent, {}, settings), name, opening, [9])(
            completions=[[{"content": text}]], **given
        )
        for name in ("hard", "nuanced")
        for opening, text in (("", REPLY), (OPENED, rest))
    ]
    assert scores == [[1.0], [1.0], [1.0], [1.0]]


@pytest.mark.parametrize("format", ["free_reasoning", "only_label"])
def test_sft_goes_on_where_the_template_stops(thinking, format):
    runner = sft.trainer(thinking, format, 0)
    plain = sft.data(thinking, "sft", format)[0]["completion"][0]["content"]
    first = runner.train_dataset[0]
    prompt, image = first["prompt"][0]["content"], first["image"]
    batch, words = runner.data_collator([first]), runner.processing_class.tokenizer
    ids, learned = batch["input_ids"][0], batch["labels"][0] != -100
    assert torch.equal(ids[~learned], models.inputs(runner.processing_class, [image], prompt)["input_ids"][0])
    assert words.decode(ids[~learned]).endswith(f"<start_of_turn>model\n{OPENED}")
    written = words.decode(ids[learned]).removesuffix("<end_of_turn>\n")
    assert written == (plain.removeprefix("<think>") if format == "free_reasoning" else f"</think>\n{plain}")
    assert answers.read(OPENED + written).labels == answers.read(plain).labels


def test_the_opened_thought_is_part_of_what_prediction_records(thinking, study, tmp_path):
    reader = predict.load(thinking.models["medgemma"], None, 2)
    images, protocol = curate.dataset(study, "sft")["image"][:2], Protocol.of(study, "free_reasoning", study.validation)
    texts = predict.answer_films(reader, images, protocol, tmp_path)
    assert all(text.startswith(OPENED) for text in texts)
    assert predict.answer_films(reader, images, protocol, tmp_path) == texts  # from the journal


NO_THOUGHT = "{{ message['content'].split('</think>')[-1] | trim }}"
UNUSABLE = {
    "gives another input in training": ("<start_of_turn>model\n", "<start_of_turn>model\n<think>\n\n</think>\n\n"),
    "its chat template changes the answer": (
        "{{ item['text'] | trim }}",
        NO_THOUGHT.replace("message['content']", "item['text']"),
    ),
    "does not end a reply": ("{{ '<end_of_turn>\n' }}", "{{ '\n' }}"),
}


@pytest.mark.parametrize("fault", UNUSABLE)
def test_a_template_with_which_sft_would_teach_something_else_is_refused(study, tmp_path, fault):
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    place = stand_in(tmp_path / "other", template=lambda text: text.replace(*UNUSABLE[fault]))
    processor, films = models.load_processor(model(place)), sft.data(study, "sft", "free_reasoning")
    collator, ends = (
        DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True),
        SimpleNamespace(eos_token_id=[5]),
    )
    runner = SimpleNamespace(
        processing_class=processor,
        train_dataset=films,
        data_collator=collator,
        model=SimpleNamespace(generation_config=ends),
    )
    with pytest.raises(models.ModelError, match=fault):
        sft.refuse_other_tokens(runner, "free_reasoning", "other")


# What comes after training.


def test_a_card_that_cannot_be_made_costs_no_training(study, monkeypatch):
    monkeypatch.setattr(sft, "describe", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) as failed:
        sft.train(study, "only_label", 0)
    assert "adapters are kept in" in failed.value.__notes__[0]
    place = study.paths.run(at("sft/only_label"))
    assert (place / "adapter" / "adapter_model.safetensors").is_file()
    monkeypatch.undo()
    monkeypatch.setattr(sft, "trainer", lambda *_: pytest.fail("trained again"))
    log = sft.train(study, "only_label", 0)
    assert len(log) and (place / "adapter" / "README.md").is_file()


def test_a_log_without_kl_has_every_step_and_its_collapse(study):
    """With beta 0, trl logs no KL."""
    calm = {"entropy": 1.0, "completions/mean_length": 9.0, "completions/clipped_ratio": 1.0, "reward": 0.1}
    calm |= {"format_failures": 0.0, "commonest_label": 0.2, "frac_reward_zero_std": 0.0, "loss": 0.0}
    limits = study.grpo.collapse.model_copy(update={"rollouts": 1})
    table = grpo.log([calm | {"step": step} for step in (1, 2)] + [{"train_runtime": 1.0, "step": 2}], limits)
    assert list(table["step"]) == [1, 2] and table["kl"].isna().all()
    assert list(table["collapse"]) == ["cut off", "cut off"]
    assert "not measured, because beta is 0" in grpo.summary(table.assign(validation_f1=0.5))


def test_patience_is_restored_with_a_checkpoint(tmp_path):
    from transformers import TrainerState, TrainingArguments

    arguments = TrainingArguments(output_dir=str(tmp_path), metric_for_best_model="eval_loss", eval_strategy="steps")
    arguments.load_best_model_at_end = True
    before, after = common.early_stopping(3), common.early_stopping(3)
    for loss in (1.0, 1.5, 2.0):
        before.check_metric_value(arguments, TrainerState(best_metric=None if loss == 1.0 else 1.0), None, loss)
    assert before.early_stopping_patience_counter == 2
    TrainerState(stateful_callbacks=[before]).save_to_json(str(tmp_path / "trainer_state.json"))
    after.on_train_begin(arguments, TrainerState.load_from_json(str(tmp_path / "trainer_state.json")), None)
    assert after.early_stopping_patience_counter == 2


# The KL term.


def test_the_gradient_of_the_kl_term_by_hand(study):
    """k3 = exp(r - p) - (r - p) - 1, with r the reference's log-probability and p the policy's.

    Its own gradient is 1 - exp(r - p).  Times the ratio w = exp(p - old), the gradient is w (k3 + 1 - exp(r - p)),
    which is w (p - r): that of the reverse KL divergence.
    """
    untrained_adapter(study)
    other = changed(study, grpo={"use_bias_correction_kl": False})
    runner = grpo.trainer(other, "hard", 0)
    assert runner.args.use_bias_correction_kl is False and study.grpo.use_bias_correction_kl is True
    reference, old = torch.tensor([[-1.5, -1.0, -0.5]]), torch.tensor([[-1.1, -2.0, -0.4]])
    p, r = torch.tensor([[-1.0, -2.0, -0.5]]), reference
    runner.model.train()
    runner.current_gradient_accumulation_steps = 1
    ones = torch.ones((1, 3), dtype=torch.long)
    given = {"prompt_ids": ones, "prompt_mask": ones, "completion_ids": ones, "completion_mask": ones}
    given |= {"advantages": torch.zeros(1), "old_per_token_logps": old, "ref_per_token_logps": reference}
    for corrected, by_hand in ((False, 1 - torch.exp(r - p)), (True, torch.exp(p - old) * (p - r))):
        policy = p.clone().requires_grad_()
        runner._get_per_token_logps_and_entropies = lambda *_, now=policy, **__: (now, torch.ones_like(old), None)
        runner.args.use_bias_correction_kl = corrected
        runner._compute_loss(runner.model, given).backward()
        torch.testing.assert_close(policy.grad, study.grpo.beta * by_hand / study.grpo.max_completion_length)


# Legal and illegal values.


@pytest.mark.parametrize(
    ("key", "value"), [("grpo.top_p", 0.0), ("lora.lora_dropout", 1.0), ("models.medgemma.target_modules", "(")]
)
def test_a_value_under_which_nothing_is_learned_is_refused(tmp_path, key, value):
    from conftest import changed_study

    with pytest.raises(config.ParamsError, match=key):
        changed_study(tmp_path, "smoke", {key: value})


def test_the_hard_reward_of_a_format_without_a_thought_is_refused(tmp_path):
    from conftest import changed_study

    runs = {"short": {"model": "medgemma", "format": "only_label"}}
    with pytest.raises(config.ParamsError, match="is 0 for every answer of the format only_label"):
        changed_study(
            tmp_path, "smoke", {"sft.runs": runs, "grpo.runs": {"hard": {"start": "short", "reward": "hard"}}}
        )


def test_a_rollout_of_more_films_than_there_are_is_refused_before_training(study):
    with pytest.raises(config.ParamsError, match=r"a rollout takes 10 films .* left 8 for rl"):
        grpo.trainer(changed(study, grpo={"films_per_step": 5}), "hard", 0)
