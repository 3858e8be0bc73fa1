"""The three kinds of teachers that are asked: a model on this machine, OpenAI's protocol (test_teaching.py), Gemini."""

import io
import json

import numpy as np
import pytest
import torch
from endpoint import Endpoint, Sent, trace
from PIL import Image

from chexreason import config, models, prompts
from chexreason.teacher import clients
from chexreason.teacher.clients import NoReply, Question, Reply, TeacherError


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.png"
    Image.fromarray(np.full((6, 8), 7, np.uint8)).save(path)
    return path


def written(text: str, reason: str = "STOP", **more) -> Sent:
    """A reply of Gemini's, with a thought before it."""
    parts = [{"text": "Let me think.", "thought": True}, {"text": text}]
    candidate = {"content": {"role": "model", "parts": parts}, "finishReason": reason}
    used = {"promptTokenCount": 300, "candidatesTokenCount": 80, "thoughtsTokenCount": 20, "totalTokenCount": 400}
    return Sent(json.dumps({"candidates": [candidate], "usageMetadata": used} | more).encode())


@pytest.fixture
def gemini(monkeypatch):
    """A function that asks Gemini's own client, which is led to a server on this machine that sends `sent` in turn."""
    monkeypatch.setenv("GEMINI_API_KEY", "secret-1234")
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    monkeypatch.setattr(clients, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(clients, "PATIENCE", 3)

    def ask(film, *sent: Sent, **settings) -> tuple[Reply, list]:
        replies = iter(sent)
        with Endpoint(lambda request: next(replies)) as endpoint:
            monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", endpoint.url.removesuffix("/v1"))
            teacher = clients.client(config.Gemini(kind="gemini", model="gemini-2.5-pro", seed=0, **settings))
            (reply,) = teacher.ask([Question("Read this film.", film, 5)])
            return reply, endpoint.seen

    return ask


def test_gemini_is_asked_with_the_film_and_its_thoughts_are_paid_but_not_kept(gemini, film):
    reply, (request,) = gemini(film, written(trace("Edema")), temperature=0.3)
    assert reply == Reply(trace("Edema"), "", 300, 100)
    assert (request.text, request.number) == ("Read this film.", 7)
    assert request.path.endswith("models/gemini-2.5-pro:generateContent")
    assert request.body["generationConfig"] == {"temperature": 0.3, "maxOutputTokens": 1024, "seed": 5}
    assert "film.png" not in str(request)
    assert "secret" not in str(request.body) + request.path


@pytest.mark.parametrize(
    "broken",
    [
        Sent(b"{}", 429),
        Sent(b"{}", 503),
        written("half")._replace(cut=True),
        Sent(b"", cut=True),
        Sent(b'{"candidates": ['),
    ],
    ids=["429", "503", "cut reply", "no reply", "half JSON"],
)
def test_gemini_is_asked_again_when_the_network_breaks(gemini, film, broken):
    reply, seen = gemini(film, broken, broken, written("fine"))
    assert (reply.text, len(seen)) == ("fine", 3)


def test_gemini_is_given_the_time_it_asks_for(gemini, film, monkeypatch):
    waits = []
    monkeypatch.setattr(clients.time, "sleep", waits.append)
    gemini(film, Sent(b"{}", 429, {"Retry-After": "7"}), Sent(b"{}", 429, {"Retry-After": "soon"}), written("fine"))
    assert 7 in waits


@pytest.mark.parametrize(
    ("sent", "fault"),
    [
        (written("half", "MAX_TOKENS"), "cut off after teacher.max_new_tokens (1024)"),
        (written("", "SAFETY"), "the endpoint refused to answer (SAFETY)"),
        (written(""), "an empty reply"),
        (written("", candidates=[]), "an empty reply"),
        (written("", candidates=[], promptFeedback={"blockReason": "SAFETY"}), "the endpoint refused to answer"),
        (Sent(b'{"candidates": [{"finishReason": "STOP"}]}'), "an empty reply"),
    ],
)
def test_what_is_wrong_with_a_reply_of_geminis_is_reported(gemini, film, sent, fault):
    assert gemini(film, sent)[0].fault == fault


BAD_KEY = b'{"error": {"code": 400, "status": "INVALID_ARGUMENT", "details": [{"reason": "API_KEY_INVALID"}]}}'


@pytest.mark.parametrize("sent", [Sent(BAD_KEY, 400), Sent(b"{}", 401), Sent(b"{}", 403)])
def test_a_wrong_key_of_geminis_stops_at_once(gemini, film, sent):
    with pytest.raises(TeacherError, match="does not accept the key in the environment variable GEMINI_API_KEY"):
        gemini(film, sent)


def test_an_unknown_model_of_geminis_stops_at_once(gemini, film):
    with pytest.raises(TeacherError, match=r"Gemini has no model 'gemini-2\.5-pro'"):
        gemini(film, Sent(b"{}", 404))


def test_gemini_down_is_no_reply(gemini, film):
    with pytest.raises(NoReply, match="cut off"):
        gemini(film, *[Sent(b"", cut=True)] * 4)
    with pytest.raises(NoReply, match="400"):
        gemini(film, Sent(b'{"error": {"code": 400, "message": "too large"}}', 400))


def local(**settings) -> config.LocalTeacher:
    return config.LocalTeacher(kind="transformers", dtype="float32", seed=0, **settings)


def questions(tmp_path, number: int, show: bool = True) -> list[Question]:
    asked_for = []
    for each in range(number):
        path = tmp_path / f"{each}.png"
        Image.fromarray(np.random.default_rng(each).integers(0, 255, (128, 128), np.uint8)).save(path)
        asked_for.append(Question("Read this chest X-ray." + " Please." * each, path if show else None, each))
    return asked_for


@pytest.mark.parametrize("name", ["medgemma", "qwen"])
def test_a_local_model_looks_at_films_in_batches_and_says_the_same_again(tmp_path, name):
    teacher = clients.client(local(model=f"stand-in:{name}", max_new_tokens=24, batch=3))
    films = questions(tmp_path, 3)
    state = torch.random.get_rng_state()
    first = teacher.ask(films)
    assert teacher.ask(films) == first
    assert torch.equal(torch.random.get_rng_state(), state)
    assert teacher.ask([each._replace(seed=9) for each in films]) != first
    assert (teacher.together, teacher.workers) == (3, 1)
    assert [reply.tokens_in for reply in first] == sorted({reply.tokens_in for reply in first})


def test_a_local_models_tokens_are_counted_up_to_its_end_and_a_missing_end_is_reported(tmp_path):
    settings = local(model="stand-in:medgemma", temperature=0.0)
    films = [each._replace(text=prompts.load("free_reasoning")) for each in questions(tmp_path, 2)]
    whole = clients.client(settings).ask(films)
    assert all(reply.fault == "" and 5 < reply.tokens_out < 100 for reply in whole)
    assert all(reply.text.startswith("<think>") and reply.text.endswith("</solution>") for reply in whole)
    short = clients.client(settings.model_copy(update={"max_new_tokens": 5})).ask(films)
    assert [(reply.fault, reply.tokens_out) for reply in short] == [("cut off after teacher.max_new_tokens (5)", 5)] * 2
    assert all(reply.text.startswith(cut.text) for reply, cut in zip(whole, short, strict=True))


def test_a_local_model_without_eyes_is_asked_in_words_only(tmp_path):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    processor = models.load_processor(config.Model(name="m", path="stand-in:medgemma", dtype="float32"))
    words = Gemma3TextConfig(
        vocab_size=len(processor.tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
    )
    Gemma3ForCausalLM(words).save_pretrained(tmp_path / "model")
    processor.tokenizer.chat_template = processor.chat_template
    processor.tokenizer.save_pretrained(tmp_path / "model")
    settings = local(model=str(tmp_path / "model"), max_new_tokens=4, show_film=False)
    assert len(clients.client(settings).ask(questions(tmp_path, 2, show=False))) == 2
    with pytest.raises(TeacherError, match=r"cannot look at films; set teacher\.show_film: false"):
        clients.client(settings.model_copy(update={"show_film": True}))


def test_a_film_goes_out_as_its_pixels(film):
    sent = Image.open(io.BytesIO(clients.png(film)))
    assert (sent.mode, sent.size, sent.getpixel((3, 3)), sent.info) == ("L", (8, 6), 7, {})
