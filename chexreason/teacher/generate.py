"""Write the traces of a study with its teacher; faulty traces are requested again, and no reply is paid for twice.

Every finished reply is a line of `runs/<study>/curate/teacher/replies.jsonl`, on disk before it is used. A resumed or
repeated run requests only what is missing; delete the file to request everything again.
"""

import fcntl
import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pandas as pd

from chexreason import answers, config, fingerprint, prompts
from chexreason.teacher import check, clients, rules
from chexreason.teacher.clients import Asker, NoReply, Question, Reply, TeacherError

REPLIES = "curate/teacher/replies.jsonl"
EXCLUDED = "curate/traces_excluded.parquet"
ENOUGH = 10
"""After so many questions in a row without a reply, the server counts as down."""

DECISIVE = ("kind", "model", "dtype", "max_new_tokens", "temperature")
"""The settings that can change a reply, in addition to the question."""


class Written(NamedTuple):
    """The result of the teacher.

    `traces`: film, format, reasoning, labels (positive), text (in the form of the paper), check (always ""), by format,
    in the order of the films. `excluded`: film, format, reason, attempts, for the films without a trace of that format.
    `requests`: film, format, attempt (from 1), fault, tokens_in, tokens_out, cost, cached (from an earlier run).
    """

    traces: pd.DataFrame
    excluded: pd.DataFrame
    requests: pd.DataFrame


NOTHING = Question("", None, 0)
"""The question of a case before its first request."""


class Judged(NamedTuple):
    """A reply, its fault ("" if there is none), and whether it comes from an earlier run."""

    reply: Reply
    fault: str
    cached: bool


@dataclass
class Case:
    """A film that needs a trace of one format; `wording` is the prompt of the format.

    `question` is the current question and `request` its hash; `unanswered` is the reason if there was no reply.
    """

    film: str
    labels: tuple[str, ...]
    image: Path
    format: str
    wording: str
    question: Question = NOTHING
    request: str = ""
    judged: list[Judged] = field(default_factory=list)
    unanswered: str = ""

    @cached_property
    def sha256(self) -> str:
        """The hash of the pixels, without the metadata of the file."""
        return fingerprint.pixels(self.image)

    @property
    def fault(self) -> str:
        """The fault of the last reply."""
        return self.judged[-1].fault if self.judged else ""

    @property
    def answer(self) -> answers.Answer | None:
        """The trace, if the last reply has no fault."""
        if not self.judged or self.fault:
            return None
        answer = answers.read_strict(self.judged[-1].reply.text, self.format)
        return answer and answers.Answer(answer.reasoning.strip(), answer.labels)

    @property
    def waits(self) -> bool:
        """Whether another request may give a trace."""
        return not self.unanswered and self.answer is None


def write(study: config.Study, films: pd.DataFrame) -> Written:
    """The traces of all formats of the study for every film, by the teacher of the params file.

    `films` has film (str), view, labels (positive), boxes and image (path), see `curate.dataset`. The format Only Label
    has no reasoning, so no teacher is needed. Only traces that pass `check.check` are kept. The same replies give the
    same traces, in whatever order they arrive. Raises TeacherError if the teacher cannot work with its settings;
    earlier replies are kept.
    """
    wordings = {format: prompt(study, format) for format in _formats_to_ask(study)}
    cases = {format: _cases(films, format, wording) for format, wording in wordings.items()}
    if cases:
        _ask(study, cases)
    seed = study.teacher.seed
    tables = [
        _outcomes(cases[format]) if format in cases else rules.traces(films, seed, format).assign(attempts=1)
        for format in study.formats
    ]
    table = pd.concat(tables, ignore_index=True)
    failed = table["check"] != ""
    traces, excluded = table[~failed].drop(columns="attempts"), table[failed].rename(columns={"check": "reason"})
    return Written(
        traces.reset_index(drop=True),
        excluded[["film", "format", "reason", "attempts"]].reset_index(drop=True),
        _requests([case for some in cases.values() for case in some], study.teacher),
    )


def provenance(study: config.Study) -> dict:
    """The teacher's entries in the provenance of the traces: kind, model, the hash of each prompt, and the agreement.

    The agreement is the user's statement that credentialed films may be sent to this server.
    """
    settings = study.teacher
    if settings.kind == "rules":
        return {"kind": settings.kind}
    hashes = {format: hashlib.sha256(prompt(study, format).encode()).hexdigest() for format in _formats_to_ask(study)}
    agreement = getattr(settings, "agreement", None)
    return {"kind": settings.kind, "model": settings.model, "prompts": hashes, "agreement": agreement}


def summary(written: Written) -> str:
    """The number of films with a trace of each format, the reasons for missing ones, and the cost of all requests.

    Requests of earlier runs count, too. No film is named.
    """
    traces, excluded, requests = written
    lines = []
    for format in dict.fromkeys([*traces["format"], *excluded["format"]]):
        reasons = excluded.loc[excluded["format"] == format, "reason"].str.split(":").str[0].value_counts()
        kept, lost = (traces["format"] == format).sum(), reasons.sum()
        lines.append(f"{format}: {kept:,} traces; {lost:,} films excluded.")
        lines += [f"- {kind}: {count:,}." for kind, count in reasons.items()]
    if len(requests):
        tokens = f"{requests['tokens_in'].sum():,} tokens in, {requests['tokens_out'].sum():,} tokens out"
        lines.append(f"{len(requests):,} requests: {tokens}, cost {requests['cost'].sum():,.2f}.")
    return "\n".join(lines)


def prompt(study: config.Study, format: str) -> str:
    """The teacher's prompt for `format`: a file of `prompts/teacher/`, or one next to the params file.

    Raises TeacherError if it cannot be read, or has no place for the labels.
    """
    name, packaged = _client_settings(study).prompts.get(format, format), prompts.names("teacher")
    key, beside = f"teacher.prompts.{format}", study.file.parent / name
    if name not in packaged and not beside.is_file():
        raise TeacherError(
            f"{study.file.name}: {key}: {name!r} is neither a prompt of prompts/teacher "
            f"({', '.join(packaged)}) nor a file beside the params file"
        )
    try:
        text = prompts.load(f"teacher/{name}") if name in packaged else beside.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TeacherError(f"{study.file.name}: {key}: {name} cannot be read as text in UTF-8: {error}") from None
    if "{labels}" not in text:
        raise TeacherError(f"{key}: {name} does not say {{labels}}, so the teacher would not be told them")
    return text


class Replies:
    """The finished replies of a study in `file`, open for appending; one JSON object per line.

    Raises TeacherError if another process uses the file, or for a line without a reply.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._lock = file, threading.Lock()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TeacherError(f"{file.name}: another run is asking this teacher; wait for it, or stop it") from None
        self._known = dict(self._lines())

    def get(self, film: str, request: str) -> Reply | None:
        """The reply to this request about `film`, or None."""
        return self._known.get((film, request))

    def add(self, film: str, request: str, reply: Reply) -> None:
        """Write a reply to the disk before returning."""
        line = json.dumps({"film": film, "request": request, **reply._asdict()}).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())

    def _lines(self) -> Iterator[tuple[tuple[str, str], Reply]]:
        """The lines of the file; an incomplete last line is removed from it."""
        self._file.seek(0)
        whole, newline, _ = self._file.read().rpartition(b"\n")
        self._file.truncate(len(whole + newline))
        for number, line in enumerate(whole.split(b"\n") if newline else [], 1):
            try:
                values = json.loads(line)
                yield (values.pop("film"), values.pop("request")), Reply(**values)
            except (ValueError, KeyError, TypeError, AttributeError):
                raise TeacherError(f"{self._file.name}: line {number} holds no reply; take that line out") from None


_WHEN = {False: "asked", True: "from earlier runs"}


class Meter:
    """A progress bar over traces that also shows requests and their cost, for this run and earlier runs."""

    def __init__(self, traces: int, settings: config.Asked):
        from tqdm.std import tqdm

        self.bar = tqdm(total=traces, desc="traces", unit="trace", mininterval=5, file=sys.stderr)
        self._settings, self._counts, self._costs = settings, {True: 0, False: 0}, {True: 0.0, False: 0.0}

    def turn_to(self, format: str) -> None:
        """Say which format's traces are written now."""
        self.bar.set_description_str(f"traces, {format}")

    def count(self, reply: Reply, cached: bool) -> None:
        """Take one finished request into account."""
        self._counts[cached] += 1
        self._costs[cached] += cost(reply, self._settings)
        told = [f"{self._counts[each]} {name}, cost {self._costs[each]:.2f}" for each, name in _WHEN.items()]
        self.bar.set_postfix_str("; ".join(told), refresh=False)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()


def cost(reply: Reply, settings: config.Asked) -> float:
    """The cost of a reply, in the currency of the params file; 0 for a local model."""
    prices = getattr(settings, "price_in", 0.0), getattr(settings, "price_out", 0.0)
    return (reply.tokens_in * prices[0] + reply.tokens_out * prices[1]) / 1e6


def _formats_to_ask(study: config.Study) -> list[str]:
    """The formats that need a language model."""
    return [] if study.teacher.kind == "rules" else [each for each in study.formats if each != answers.ONLY_LABEL]


def _cases(films: pd.DataFrame, format: str, wording: str) -> list[Case]:
    return [Case(film.film, tuple(film.labels), Path(film.image), format, wording) for film in films.itertuples()]


def _outcomes(cases: list[Case]) -> pd.DataFrame:
    """The results of `cases`: the columns of `rules.traces`, and attempts."""
    rows = []
    for case in cases:
        answer = case.answer
        text = answers.write(answer, case.format) if answer else ""
        reasoning, labels = answer or ("", ())
        attempts = len(case.judged) + bool(case.unanswered)
        rows.append((case.film, case.format, reasoning, list(labels), text, case.unanswered or case.fault, attempts))
    return pd.DataFrame(rows, columns=["film", "format", "reasoning", "labels", "text", "check", "attempts"])


def _client_settings(study: config.Study) -> config.Asked:
    """The section of a teacher that is a language model."""
    assert isinstance(study.teacher, config.Asked)
    return study.teacher


def _ask(study: config.Study, cases: dict[str, list[Case]]) -> None:
    """Request all cases, format by format."""
    settings = _client_settings(study)
    asker = cache(lambda: clients.client(settings))  # made when first needed: what is on disk needs no key and no GPU
    path = study.folder / REPLIES
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file, closing(Meter(sum(map(len, cases.values())), settings)) as meter:
        replies = Replies(file)
        for format, some in cases.items():
            meter.turn_to(format)
            _ask_format(some, settings, replies, asker, meter)


def _ask_format(
    cases: list[Case], settings: config.Asked, replies: Replies, asker: Callable[[], Asker], meter: Meter
) -> None:
    """Request every case once, then those with a fault again, up to the number of retries."""
    again = prompts.load("teacher/again")
    for attempt in range(settings.retries + 1):
        waiting = [case for case in cases if case.waits]
        for case in waiting:
            case.question = _question(case, attempt, again, settings)
            case.request = _request(case, attempt, settings)
        for case, reply, cached in _answered_cases(waiting, replies, asker):
            if isinstance(reply, NoReply):
                case.unanswered = f"no reply: {reply}"
            else:
                case.judged.append(Judged(reply, _fault(reply, case, settings), cached))
                meter.count(reply, cached)
            meter.bar.update(not case.waits)
    meter.bar.update(sum(case.waits for case in cases))


def _answered_cases(waiting: list[Case], replies: Replies, asker: Callable[[], Asker]) -> Iterator[tuple]:
    """Each case with its reply or NoReply, and whether the reply comes from an earlier run."""
    known = [(case, replies.get(case.film, case.request)) for case in waiting]
    yield from ((case, reply, True) for case, reply in known if reply)
    new = [case for case, reply in known if not reply]
    if new:
        yield from ((case, reply, False) for case, reply in _ask_concurrently(new, replies, asker()))


def _ask_concurrently(cases: list[Case], replies: Replies, asker: Asker) -> Iterator[tuple[Case, Reply | NoReply]]:
    """Request `cases`, as many at a time as the client allows; each reply is on disk before it is yielded.

    Raises TeacherError if the client does, or if nothing is answered any more; running requests are finished first.
    """

    def ask(group: list[Case]) -> list[Reply]:
        said = asker.ask([case.question for case in group])
        for case, reply in zip(group, said, strict=True):
            replies.add(case.film, case.request, reply)
        return said

    misses = 0
    with ThreadPoolExecutor(asker.workers) as pool:
        groups = [cases[start : start + asker.together] for start in range(0, len(cases), asker.together)]
        under_way = {pool.submit(ask, group): group for group in groups}
        try:
            for done in as_completed(under_way):
                error = done.exception()
                misses = misses + 1 if isinstance(error, NoReply) else 0
                if misses == ENOUGH:
                    raise TeacherError(
                        f"{misses} questions in a row had no reply, the last: {error}; what was answered is kept"
                    )
                said = [error] * len(under_way[done]) if misses else done.result()
                yield from zip(under_way[done], said, strict=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _question(case: Case, attempt: int, again: str, settings: config.Asked) -> Question:
    """The prompt of the format with the film's labels and, after a fault, the fault of the last reply.

    The seed is derived from the image, which is sent anyway, so it reveals no name.
    """
    text = case.wording.replace("{labels}", ", ".join(case.labels) or "none")
    text = text.replace("{min_words}", str(settings.min_words)).replace("{max_words}", str(settings.max_words))
    if case.fault:
        text += "\n\n" + again.replace("{fault}", case.fault)
    seed = int(_hash(settings.seed, attempt, case.sha256)[:8], 16) >> 1
    return Question(text, case.image if settings.show_film else None, seed)


def _request(case: Case, attempt: int, settings: config.Asked) -> str:
    """The hash of everything that can change a reply, and of the format."""
    image = case.sha256 if settings.show_film else None
    decisive = [getattr(settings, name, None) for name in DECISIVE]
    return _hash(case.format, case.question.text, case.labels, image, attempt, case.question.seed, decisive)


def _hash(*parts) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _fault(reply: Reply, case: Case, settings: config.Asked) -> str:
    return reply.fault or check.check(reply.text, case.labels, case.format, settings.min_words, settings.max_words)


def _requests(cases: list[Case], settings) -> pd.DataFrame:
    """The table of requests, from the replies of each case."""
    columns = ["film", "format", "attempt", "fault", "tokens_in", "tokens_out", "cost", "cached"]
    rows = [
        (case.film, case.format, attempt, fault, reply.tokens_in, reply.tokens_out, cost(reply, settings), cached)
        for case in cases
        for attempt, (reply, fault, cached) in enumerate(case.judged, 1)
    ]
    return pd.DataFrame(rows, columns=columns)
