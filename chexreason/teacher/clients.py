"""Teachers that are language models: a transformers model on this machine, a server with OpenAI's protocol, Gemini.

A question is a text, a film and a seed; a reply is a text and its number of tokens. Nothing else about a film leaves
this module: no name, no patient, no metadata of its image.
"""

import base64
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chexreason import config

PATIENCE = 8
"""How often a request is sent again after a 429, a 5xx, a time-out or a cut connection, after ever longer waits."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 120
"""Seconds before Gemini is asked a second time, and the most it may ask us to wait."""


class TeacherError(RuntimeError):
    """The teacher cannot work with these settings; the message names the key, the variable or the address."""


class NoReply(RuntimeError):
    """One question was not answered after all attempts; others may be."""


class Question(NamedTuple):
    """A question: a text, the film (None: text only), and a seed below 2**31."""

    text: str
    image: Path | None
    seed: int


class Reply(NamedTuple):
    """A reply: its text, its fault ("" or "cut off ..."), and the number of tokens read and written."""

    text: str
    fault: str
    tokens_in: int
    tokens_out: int


class Asker(NamedTuple):
    """`ask` answers up to `together` questions per call, and up to `workers` calls may run at the same time.

    `ask` raises NoReply if this question cannot be answered, and TeacherError if none can.
    """

    ask: Callable[[list[Question]], list[Reply]]
    together: int
    workers: int


def client(settings: config.Asked) -> Asker:
    """The client of a study's teacher; `settings` is its section `teacher`.

    Raises TeacherError for a missing key, or if `show_film` is set for a model that cannot read images.
    """
    kinds: dict[type, Callable] = {config.LocalTeacher: _local, config.Endpoint: _endpoint, config.Gemini: _gemini}
    return kinds[type(settings)](settings)


def pixels(path: str | Path) -> np.ndarray:
    """The image of a film as uint8 (height, width)."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def png(path: str | Path) -> bytes:
    """The film as a PNG with pixels only."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(pixels(path)).save(data, format="PNG")
    return data.getvalue()


def _local(settings: config.LocalTeacher) -> Asker:
    """A transformers model, asked in batches; the same batch gives the same replies."""
    import torch
    from PIL import Image

    model, processor = _load(settings)
    stops = torch.tensor(model.generation_config.eos_token_id, device=model.device).flatten()
    sampling: dict[str, Any] = {"do_sample": False}
    if settings.temperature:
        sampling = {"do_sample": True, "temperature": settings.temperature}

    def ask(questions: list[Question]) -> list[Reply]:
        texts = [_chat(processor, question) for question in questions]
        films = [[Image.fromarray(pixels(question.image)).convert("RGB")] for question in questions if question.image]
        shown = {"images": films} if films else {}
        inputs = processor(text=texts, **shown, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(sum(question.seed for question in questions))
            output = model.generate(**inputs.to(model.device), max_new_tokens=settings.max_new_tokens, **sampling)
        new = output[:, inputs["input_ids"].shape[1] :]
        stopped = torch.isin(new, stops)
        lengths = torch.where(stopped.any(1), stopped.int().argmax(1) + 1, new.shape[1]).tolist()
        faults = ["" if ended else _cut_off(settings) for ended in stopped.any(1).tolist()]
        given = inputs["attention_mask"].sum(1).tolist()
        said = processor.batch_decode(new, skip_special_tokens=True)
        return [Reply(*reply) for reply in zip(said, faults, given, lengths, strict=True)]

    return Asker(ask, settings.batch, 1)


def _load(settings: config.LocalTeacher):
    """Model and processor; a model without image input has a tokenizer only."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from chexreason import models

    place = models.folder(settings.model)
    if hasattr(AutoConfig.from_pretrained(place, trust_remote_code=False), "vision_config"):
        model = config.Model(name="teacher", path=settings.model, dtype=settings.dtype)
        return models.load_base(model), models.load_processor(model)
    if settings.show_film:
        raise TeacherError(f"teacher.model: {settings.model} cannot look at films; set teacher.show_film: false")
    words: Any = AutoModelForCausalLM.from_pretrained(
        place, dtype=settings.dtype, use_safetensors=True, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(place, padding_side="left", trust_remote_code=False)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return words.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def _chat(processor, question: Question) -> str:
    content: str | list = question.text
    if question.image:
        content = [{"type": "image"}, {"type": "text", "text": question.text}]
    message = [{"role": "user", "content": content}]
    return processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)


def _endpoint(settings: config.Endpoint) -> Asker:
    """A server with OpenAI's protocol; the client repeats failed requests and follows `Retry-After`.

    A local server is called directly, without any proxy of the environment.
    """
    import openai

    key, address = _key(settings) or "no-key", settings.base_url
    client = openai.OpenAI(
        api_key=key,
        base_url=settings.base_url,
        timeout=settings.timeout,
        max_retries=PATIENCE,
        http_client=_client(trust_env=not settings.local),
    )

    def ask(question: Question) -> Reply:
        content: list[Any] = [{"type": "text", "text": question.text}]
        if question.image:
            film = f"data:image/png;base64,{base64.b64encode(png(question.image)).decode()}"
            content.insert(0, {"type": "image_url", "image_url": {"url": film}})
        try:
            reply = client.chat.completions.create(
                model=settings.model,
                messages=[{"role": "user", "content": content}],  # type: ignore[misc, list-item]
                temperature=settings.temperature,
                seed=question.seed,
                max_tokens=settings.max_new_tokens,
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            raise _refused(settings, address) from None
        except openai.NotFoundError:
            raise _not_found(settings, address) from None
        used = reply.usage
        return Reply(*_message(reply, settings), *((used.prompt_tokens, used.completion_tokens) if used else (0, 0)))

    return _hosted(ask, settings, address, openai.OpenAIError)


def _message(reply, settings: config.Endpoint) -> tuple[str, str]:
    """The text of a chat completion and its fault."""
    if not reply.choices:
        return "", "an empty reply"
    choice = reply.choices[0]
    text = choice.message.content or ""
    if choice.finish_reason == "length":
        return text, _cut_off(settings)
    if choice.finish_reason == "content_filter" or choice.message.refusal:
        return text, "the endpoint refused to answer"
    return text, "" if text else "an empty reply"


def _gemini(settings: config.Gemini) -> Asker:
    """Gemini; its key is in GEMINI_API_KEY or the variable in `teacher.key`. Thoughts are paid for as output."""
    from google import genai
    from google.genai import errors, types

    settings = settings.model_copy(update={"key": settings.key or "GEMINI_API_KEY"})
    patience = types.HttpRetryOptions(attempts=PATIENCE + 1, initial_delay=FIRST_WAIT, max_delay=60, jitter=FIRST_WAIT)
    http = types.HttpOptions(
        timeout=settings.timeout * 1000,
        retry_options=patience,
        httpx_client=_client(event_hooks={"response": [_retry_wait]}),
    )
    client = genai.Client(api_key=_key(settings), vertexai=False, http_options=http)

    def ask(question: Question) -> Reply:
        film: list[Any] = (
            [types.Part.from_bytes(data=png(question.image), mime_type="image/png")] if question.image else []
        )
        config = types.GenerateContentConfig(
            temperature=settings.temperature, seed=question.seed, max_output_tokens=settings.max_new_tokens
        )
        try:
            reply = client.models.generate_content(model=settings.model, contents=[*film, question.text], config=config)
        except errors.APIError as error:
            if error.code in (401, 403) or "API_KEY_INVALID" in str(error):
                raise _refused(settings, "Gemini") from None
            if error.code == 404:
                raise _not_found(settings, "Gemini") from None
            raise
        used = reply.usage_metadata or types.GenerateContentResponseUsageMetadata()
        written = (used.candidates_token_count or 0) + (used.thoughts_token_count or 0)
        return Reply(*_gemini_reply(reply, settings), used.prompt_token_count or 0, written)

    return _hosted(ask, settings, "Gemini", errors.APIError)


def _gemini_reply(reply, settings: config.Gemini) -> tuple[str, str]:
    """The text of Gemini's reply, without thoughts, and its fault."""
    if not reply.candidates:
        return "", "the endpoint refused to answer" if reply.prompt_feedback else "an empty reply"
    candidate = reply.candidates[0]
    parts = (candidate.content.parts or []) if candidate.content else []
    text = "".join(part.text for part in parts if part.text and not part.thought)
    reason = candidate.finish_reason.name if candidate.finish_reason else "STOP"
    if reason == "MAX_TOKENS":
        return text, _cut_off(settings)
    if reason != "STOP":
        return text, f"the endpoint refused to answer ({reason})"
    return text, "" if text else "an empty reply"


def _hosted(ask: Callable[[Question], Reply], settings: config.Hosted, address: str, failed: type[Exception]) -> Asker:
    """An asker from `ask` in which `failed`, a broken connection or an invalid reply raises NoReply."""
    import httpx

    def one(questions: list[Question]) -> list[Reply]:
        try:
            return [ask(question) for question in questions]
        except (failed, httpx.HTTPError, AttributeError, TypeError, ValueError) as error:
            raise NoReply(_brief(error, address, _key(settings))) from None

    return Asker(one, 1, settings.workers)


def _client(**options):
    """An HTTP client that treats a truncated reply, or an error with a success status, as a failed connection.

    The libraries that use it then send the request again. It follows no redirect, so films go only to the address in
    the params file.
    """
    import httpx

    class Whole(httpx.Client):
        def send(self, request, **how):
            try:
                response = super().send(request, **how)
                body = json.loads(response.content) if response.is_success else {}
            except (httpx.TimeoutException, httpx.ConnectError):
                raise
            except (httpx.TransportError, ValueError) as error:
                raise httpx.ConnectError(f"cut off: {error}", request=request) from error
            if not isinstance(body, dict) or body.get("error"):
                raise httpx.ConnectError(f"no reply but {body}", request=request)
            return response

    return Whole(**options)


def _retry_wait(response) -> None:
    """Wait as long as `Retry-After` says; Gemini's client does not do this."""
    told = response.headers.get("retry-after", "")
    if told.isdigit():
        time.sleep(min(int(told), LONGEST_WAIT))


def _key(settings: config.Hosted) -> str | None:
    """The key in the environment variable that the params file names; None if it names none."""
    if settings.key is None:
        return None
    key = os.environ.get(settings.key, "").strip()
    if not key:
        raise TeacherError(f"teacher.key: the environment variable {settings.key} is not set; put the key there")
    return key


def _refused(settings: config.Hosted, address: str) -> TeacherError:
    if settings.key is None:
        return TeacherError(f"{address} asks for a key; name the environment variable that holds it under teacher.key")
    return TeacherError(f"{address} does not accept the key in the environment variable {settings.key}")


def _not_found(settings: config.Hosted, address: str) -> TeacherError:
    return TeacherError(f"{address} has no model {settings.model!r}; is teacher.model right, and the address?")


def _brief(error: Exception, address: str, key: str | None) -> str:
    """The error and its cause in about 200 characters, without the key."""
    said = f"{address}: {error} {error.__cause__ or ''}"
    return " ".join((said.replace(key, "(key)") if key else said).split())[:200]


def _cut_off(settings: config.Asked) -> str:
    return f"cut off after teacher.max_new_tokens ({settings.max_new_tokens})"
