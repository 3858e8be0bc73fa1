"""The teacher at work: every film ends with a checked trace or in the report, and no reply is asked for twice."""

import hashlib
import itertools
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT
from endpoint import READING, Endpoint, Sent, completion, fine, trace
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from chexreason import answers, config, models, prompts, records
from chexreason.data import curate
from chexreason.teacher import check, clients, generate, rules
from chexreason.teacher.clients import TeacherError
from chexreason.training import sft

FORMATS = ("only_label", "free_reasoning", "reasoning_narrative", "reasoning_a")
"""The four that the paper trains."""

LABELS = (["Cardiomegaly"], ["Edema", "Pleural Effusion"], ["No Finding"], ["Fracture", "Support Devices"])


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Back-off as it is, but in hundredths of seconds and three times at most."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(clients, "PATIENCE", 2)


NOWHERE = "http://127.0.0.1:9/v1"


def study(folder, url=NOWHERE, formats=("free_reasoning",), **settings) -> config.Study:
    """The smoke study with SFT of `formats` and a teacher at `url`."""
    return taught(folder, {"kind": "openai", "base_url": url, "model": "m", "seed": 0, **settings}, formats)


def taught(folder, teacher: dict, formats=("free_reasoning",)) -> config.Study:
    """The smoke study with SFT of `formats` and this teacher."""
    values = config.read(ROOT / "params" / "smoke.yaml") | {"teacher": teacher}
    values["sft"]["runs"] = {format: {"model": "medgemma", "format": format} for format in formats}
    values["grpo"]["runs"] = {}
    file = folder / "params" / "smoke.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return config.load(file)


def films(folder, number: int) -> pd.DataFrame:
    """`number` films whose grey is their number, with a patient's name in the image's metadata."""
    (folder / "films").mkdir(exist_ok=True)
    rows = []
    for each in range(number):
        about, path = PngInfo(), folder / "films" / f"p1000-{each}.png"
        about.add_text("patient", "p1000")
        Image.fromarray(np.full((6, 8), each, np.uint8)).save(path, pnginfo=about)
        rows.append((f"p1000-{each}", "PA", LABELS[each % len(LABELS)], [], str(path)))
    return pd.DataFrame(rows, columns=["film", "view", "labels", "boxes", "image"])


def scripted(script: dict):
    """A server's behaviour: what `script` lists for a film, one after another, the last for ever, and fine for others.

    An entry may be a function of the request.
    """
    turns = defaultdict(Counter)

    def behave(request):
        told = script.get(request.number, [fine])
        turn = turns["turn"][request.number]
        turns["turn"][request.number] += 1
        sent = told[min(turn, len(told) - 1)]
        return sent(request) if callable(sent) else sent

    return behave


def whole_but_cut(request) -> Sent:
    return fine(request)._replace(cut=True)


def half_json(request) -> Sent:
    return Sent(fine(request).body[:-40])


def saying(reading):
    return lambda request: completion(trace(request.labels, reading))


WRONG = completion(trace("Pneumonia"))
MISBEHAVIOUR = {
    1: [Sent(b"{}", 429, {"Retry-After": "0.05"}), fine],
    2: [Sent(b"{}", 500), Sent(b"{}", 503), fine],
    3: [whole_but_cut, fine],
    4: [half_json, fine],
    5: [completion("<think>An endless", finish="length"), fine],
    6: [WRONG, fine],
    7: [saying(READING + " According to the report the heart is large."), fine],
    8: [completion("", choices=[]), fine],
    9: [WRONG],
    10: [Sent(b"{}", 500)],
    11: [Sent(b"", cut=True), fine],
    12: [saying("Too short."), saying("very " * 400), completion("No tags at all."), fine],
    13: [Sent(b'{"error": "busy"}'), fine],
    14: [completion("", finish="content_filter")],
    15: [Sent(b'{"error": {"message": "image too large for secret-1234"}}', 400)],
    16: [completion("", choices=["a word"])],
}


@pytest.fixture
def misbehaved(tmp_path, monkeypatch):
    """What came of seventeen films and an endpoint that misbehaves: study, films, result, requests."""
    monkeypatch.setenv("MY_KEY", "secret-1234")
    table = films(tmp_path, 17)
    with Endpoint(scripted(MISBEHAVIOUR)) as endpoint:
        given = study(tmp_path, endpoint.url, key="MY_KEY")
        yield given, table, generate.write(given, table), endpoint


def test_every_film_ends_with_a_valid_trace_or_in_the_report(misbehaved):
    _, table, written, endpoint = misbehaved
    lost = [9, 10, 14, 15, 16]
    assert written.traces["film"].tolist() == [f"p1000-{each}" for each in range(17) if each not in lost]
    truth = table.set_index("film")["labels"]
    for row in written.traces.itertuples():
        assert check.check(row.text, truth[row.film], row.format, 30, 350) == row.check == ""
        assert answers.read_strict(row.text) == (row.reasoning, tuple(row.labels)) == (READING, tuple(truth[row.film]))
    assert written.excluded["film"].tolist() == [f"p1000-{each}" for each in lost]
    wrong, down, filtered, refused, strange = written.excluded["reason"]
    assert wrong == "wrong labels: Pneumonia, not Edema, Pleural Effusion"
    assert down.startswith(f"no reply: {endpoint.url}: Error code: 500")
    assert filtered == "the endpoint refused to answer"
    assert "image too large for (key)" in refused
    assert strange.startswith(f"no reply: {endpoint.url}: ")
    assert written.excluded["attempts"].tolist() == [4, 1, 4, 1, 1]
    told = generate.summary(written).splitlines()
    assert told[0] == "free_reasoning: 12 traces; 5 films excluded."
    assert {"- no reply: 3.", "- wrong labels: 1.", "- the endpoint refused to answer: 1."} == set(told[1:4])


def test_a_faulty_trace_is_asked_for_again_with_its_fault_and_another_seed(misbehaved):
    _, _, written, endpoint = misbehaved
    first, second = [request for request in endpoint.seen if request.number == 6]
    assert "wrong labels: Pneumonia, not No Finding" in second.text.removeprefix(first.text)
    assert first.body["seed"] != second.body["seed"]
    faults = written.requests.groupby("film")["fault"].agg(list)
    assert faults["p1000-5"] == ["cut off after teacher.max_new_tokens (1024)", ""]
    assert faults["p1000-7"] == ["gives the answer away: 'the report'", ""]
    assert faults["p1000-8"] == ["an empty reply", ""]
    assert faults["p1000-12"] == [
        "too short: 2 words, at least 30 are needed",
        "too long: 400 words, at most 350 are allowed",
        "not of the published form",
        "",
    ]


def test_what_the_network_breaks_is_sent_again_and_counts_as_one_attempt(misbehaved):
    _, _, written, endpoint = misbehaved
    sent, counted = Counter(request.number for request in endpoint.seen), written.requests["film"].value_counts()
    for number, times in {1: 2, 2: 3, 3: 2, 4: 2, 11: 2, 13: 2, 10: 3, 15: 1}.items():
        assert (number, sent[number]) == (number, times)
        assert counted.get(f"p1000-{number}", 0) == (0 if number in (10, 15) else 1)


def test_a_second_run_asks_only_what_had_no_reply_and_gives_the_same_traces(misbehaved):
    given, table, written, endpoint = misbehaved
    path = given.folder / generate.REPLIES
    lines = path.read_bytes().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    path.write_bytes(b"".join(lines))
    endpoint.seen.clear()
    again = generate.write(given, table)
    assert {request.number for request in endpoint.seen} == {10, 15, 16}
    assert again.traces.to_json() == written.traces.to_json()
    assert again.excluded.equals(written.excluded)
    assert again.requests["cached"].all()
    assert not written.requests["cached"].any()
    assert again.requests.drop(columns="cached").equals(written.requests.drop(columns="cached"))


def test_a_torn_last_line_is_dropped_and_asked_again(tmp_path):
    table = films(tmp_path, 4)
    with Endpoint() as endpoint:
        given = study(tmp_path, endpoint.url)
        written = generate.write(given, table)
        path = given.folder / generate.REPLIES
        path.write_bytes(path.read_bytes()[:-30])
        endpoint.seen.clear()
        assert generate.write(given, table).traces.equals(written.traces)
        assert len(endpoint.seen) == 1
    assert generate.write(given, table).traces.equals(written.traces)  # nobody is asked: the endpoint is gone


def test_a_line_that_holds_no_reply_is_named(tmp_path):
    given = study(tmp_path)
    path = given.folder / generate.REPLIES
    path.parent.mkdir(parents=True)
    path.write_text('{"film": "a"}\n')
    with pytest.raises(TeacherError, match=r"replies\.jsonl: line 1 holds no reply"):
        generate.write(given, films(tmp_path, 1))


RUN = """
import sys, pandas as pd
from chexreason import config
from chexreason.teacher import generate
generate.write(config.load(sys.argv[1]), pd.read_json(sys.argv[2]))
"""


def test_a_kill_in_the_middle_repeats_no_finished_request(tmp_path):
    table, released = films(tmp_path, 24), threading.Event()
    served = threading.Semaphore(9)

    def nine_then_none(request):
        if not served.acquire(blocking=False):
            released.wait(30)
        return fine(request)

    with Endpoint(nine_then_none) as endpoint:
        given = study(tmp_path, endpoint.url, workers=4)
        table.to_json(tmp_path / "films.json")
        call = [sys.executable, "-c", RUN, str(given.file), str(tmp_path / "films.json")]
        running = subprocess.Popen(call, cwd=ROOT, stderr=subprocess.DEVNULL)
        path = given.folder / generate.REPLIES
        until = time.monotonic() + 60
        while time.monotonic() < until and not (path.exists() and path.read_bytes().count(b"\n") == 9):
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
        running.wait()
        first = {request.number for request in endpoint.seen}
        finished = {int(json.loads(line)["film"].removeprefix("p1000-")) for line in path.read_bytes().splitlines()}
        assert len(finished) == 9
        assert 9 < len(first) <= 13  # nine replies, and as many questions under way as there are workers

        released.set()
        endpoint.behave = fine
        endpoint.seen.clear()
        written = generate.write(given, table)
    assert sorted(request.number for request in endpoint.seen) == sorted(set(range(24)) - finished)
    assert written.traces["film"].tolist() == table["film"].tolist()
    assert written.requests["cached"].sum() == 9


def test_two_runs_do_not_ask_at_once(tmp_path):
    given, table, held = study(tmp_path), films(tmp_path, 1), tmp_path / "held"
    path = given.folder / generate.REPLIES
    path.parent.mkdir(parents=True)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.flock(f, 2); open(sys.argv[2], 'w').close(); input()"
    with subprocess.Popen([sys.executable, "-c", hold, str(path), str(held)], stdin=subprocess.PIPE) as other:
        while not held.exists():
            time.sleep(0.01)
        with pytest.raises(TeacherError, match="another run is asking this teacher"):
            generate.write(given, table)
        other.stdin.close()


def test_requests_run_side_by_side(tmp_path):
    together = threading.Barrier(6)

    def when_all_are_there(request):
        together.wait(20)
        return fine(request)

    with Endpoint(when_all_are_there) as endpoint:
        assert len(generate.write(study(tmp_path, endpoint.url, workers=6), films(tmp_path, 12)).traces) == 12


def test_an_endpoint_is_given_the_time_it_asks_for(tmp_path):
    times = []

    def busy_once(request):
        times.append(time.monotonic())
        return fine(request) if len(times) > 1 else Sent(b"{}", 429, {"Retry-After": "0.3"})

    with Endpoint(busy_once) as endpoint:
        generate.write(study(tmp_path, endpoint.url), films(tmp_path, 1))
    assert times[1] - times[0] >= 0.3


def chunks(data: bytes) -> set[bytes]:
    """The kinds of chunks in a PNG."""
    found, place = set(), 8
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        found.add(data[place + 4 : place + 8])
        place += 12 + length
    return found


def test_a_request_holds_the_prompt_the_labels_and_the_film_and_says_nothing_of_the_patient(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-1234")
    with Endpoint(scripted({0: [WRONG, fine]})) as endpoint:
        given = study(tmp_path, endpoint.url, key="MY_KEY")
        generate.write(given, films(tmp_path, 2))
    assert len(endpoint.seen) == 3
    for request in endpoint.seen:
        assert set(request.body) == {"model", "messages", "temperature", "seed", "max_tokens"}
        assert [set(part) for part in request.body["messages"][0]["content"]] == [
            {"type", "image_url"},
            {"type", "text"},
        ]
        assert "p1000" not in str(request) + str(request.png)
        assert str(tmp_path) not in str(request)
        assert chunks(request.png) == {b"IHDR", b"IDAT", b"IEND"}
        assert request.headers["Authorization"] == "Bearer secret-1234"
    assert ", ".join(LABELS[0]) in endpoint.seen[0].text + endpoint.seen[1].text


def test_without_show_film_only_words_are_sent(tmp_path):
    def behave(request):
        assert len(request.body["messages"][0]["content"]) == 1
        return fine(request)

    with Endpoint(behave) as endpoint:
        assert len(generate.write(study(tmp_path, endpoint.url, show_film=False), films(tmp_path, 2)).traces) == 2


def test_films_for_a_local_endpoint_pass_no_proxy(tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with Endpoint() as endpoint:
        assert len(generate.write(study(tmp_path, endpoint.url), films(tmp_path, 1)).traces) == 1


def test_a_film_is_not_sent_on_to_another_address(tmp_path):
    with Endpoint() as elsewhere, Endpoint() as endpoint:
        endpoint.behave = lambda request: Sent(b"{}", 307, {"Location": elsewhere.url + "/chat/completions"})
        written = generate.write(study(tmp_path, endpoint.url), films(tmp_path, 1))
        assert not elsewhere.seen
    assert len(written.excluded) == 1


def test_a_key_that_is_not_accepted_stops_at_once_and_is_not_printed(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", " secret-1234\n")
    caplog.set_level("DEBUG")
    with Endpoint(lambda request: Sent(b'{"error": {"message": "bad key secret-1234"}}', 401)) as endpoint:
        given = study(tmp_path, endpoint.url, key="MY_KEY", workers=2)
        with pytest.raises(TeacherError, match="does not accept the key in the environment variable MY_KEY") as caught:
            generate.write(given, films(tmp_path, 30))
        assert len(endpoint.seen) < 10
        assert endpoint.url in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "secret" not in "".join(path.read_text() for path in given.folder.rglob("*.jsonl"))
    assert "Bearer secret" not in caplog.text


def test_a_key_that_is_not_set_is_reported_by_the_name_of_its_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(TeacherError, match="environment variable MY_KEY is not set"):
        generate.write(study(tmp_path, key="MY_KEY"), films(tmp_path, 1))


def test_an_endpoint_that_wants_a_key_says_where_to_name_it(tmp_path):
    with Endpoint(lambda request: Sent(b"{}", 401)) as endpoint, pytest.raises(TeacherError, match=r"teacher\.key"):
        generate.write(study(tmp_path, endpoint.url), films(tmp_path, 1))


def test_an_unknown_model_stops_at_once_with_model_and_address(tmp_path):
    with Endpoint(lambda request: Sent(b"{}", 404)) as endpoint:
        with pytest.raises(TeacherError, match="has no model 'gemma-99'") as caught:
            generate.write(study(tmp_path, endpoint.url, model="gemma-99"), films(tmp_path, 30))
        assert endpoint.url in str(caught.value)


def test_a_password_in_an_address_is_refused_and_not_repeated(tmp_path):
    """A params file is printed in its book."""
    with pytest.raises(config.ParamsError, match="base_url must hold no user or password") as caught:
        study(tmp_path, "https://me:pass@models.example.org/v1")
    assert "pass@" not in str(caught.value)


def test_an_endpoint_that_is_down_is_not_asked_for_every_film(tmp_path, monkeypatch):
    monkeypatch.setattr(clients, "PATIENCE", 0)
    with pytest.raises(TeacherError, match=r"10 questions in a row had no reply.*Connection refused"):
        generate.write(study(tmp_path), films(tmp_path, 100))


def test_tokens_and_cost_are_summed_with_those_of_earlier_runs_apart(tmp_path, capsys):
    with Endpoint(scripted({1: [WRONG, fine]})) as endpoint:
        given = study(tmp_path, endpoint.url, price_in=2.0, price_out=30.0)
        written = generate.write(given, films(tmp_path, 3))
        assert "4 asked, cost 0.02; 0 from earlier runs, cost 0.00" in capsys.readouterr().err
        more = generate.write(given, films(tmp_path, 5))
    assert "2 asked, cost 0.01; 4 from earlier runs, cost 0.02" in capsys.readouterr().err
    assert written.requests["cost"].sum() == pytest.approx(4 * (1000 * 2 + 100 * 30) / 1e6)
    assert generate.summary(written).splitlines() == [
        "free_reasoning: 3 traces; 0 films excluded.",
        "4 requests: 4,000 tokens in, 400 tokens out, cost 0.02.",
    ]
    assert more.requests.groupby("cached")["tokens_in"].sum().to_dict() == {False: 2000, True: 4000}


@pytest.mark.parametrize(
    ("change", "asked_again"),
    [
        ({"model": "other"}, True),
        ({"temperature": 0.1}, True),
        ({"seed": 5}, True),
        ({"show_film": False}, True),
        ({"workers": 1}, False),
        ({"price_in": 7.0}, False),
        ({"retries": 0}, False),
        ({"max_words": 400}, True),  # the prompt names it
    ],
)
def test_what_a_reply_depends_on_asks_again_and_nothing_else_does(tmp_path, change, asked_again):
    table = films(tmp_path, 1)
    with Endpoint() as endpoint:
        generate.write(study(tmp_path, endpoint.url), table)
        generate.write(study(tmp_path / "", endpoint.url, **change), table)
        assert len(endpoint.seen) == 1 + asked_again


def test_another_image_or_other_labels_are_asked_again_but_not_other_metadata(tmp_path):
    table = films(tmp_path, 1)
    with Endpoint() as endpoint:
        given = study(tmp_path, endpoint.url)
        generate.write(given, table)
        Image.open(table["image"][0]).save(table["image"][0])  # without its metadata
        generate.write(given, table)
        assert len(endpoint.seen) == 1
        generate.write(given, table.assign(labels=[["Edema"]]))
        Image.fromarray(np.full((6, 8), 77, np.uint8)).save(table["image"][0])
        generate.write(given, table)
        assert len(endpoint.seen) == 3


def test_a_prompt_may_lie_beside_the_params_file(tmp_path):
    with Endpoint() as endpoint:
        given = study(tmp_path, endpoint.url, prompts={"free_reasoning": "mine.txt"})
        (given.file.parent / "mine.txt").write_text("Mine. In {max_words} words, exactly these labels: {labels}\n")
        generate.write(given, films(tmp_path, 1))
    assert endpoint.seen[0].text == "Mine. In 350 words, exactly these labels: Cardiomegaly"


def test_a_prompt_that_is_not_there_or_has_no_place_for_labels_is_refused(tmp_path):
    given = study(tmp_path, formats=FORMATS, prompts={"reasoning_a": "mine.txt"})
    with pytest.raises(TeacherError, match=r"smoke\.yaml: teacher\.prompts\.reasoning_a: 'mine\.txt' .*free_reasoning"):
        generate.write(given, films(tmp_path, 1))
    (given.file.parent / "mine.txt").write_text("No place.")
    with pytest.raises(TeacherError, match=r"does not say \{labels\}"):
        generate.write(given, films(tmp_path, 1))


def test_a_local_model_teaches_and_is_not_loaded_when_nothing_is_left_to_ask(tmp_path, monkeypatch):
    section = {"kind": "transformers", "model": "stand-in:medgemma", "dtype": "float32", "seed": 0, "batch": 2}
    section |= {"prompts": {"free_reasoning": "mine.txt"}, "min_words": 3, "max_new_tokens": 40, "retries": 1}
    given, table = taught(tmp_path, section | {"temperature": 0.0}), films(tmp_path, 3)
    (given.file.parent / "mine.txt").write_text("{labels}\n" + prompts.load("free_reasoning"))
    table["labels"] = [["Lung Opacity"], ["Lung Opacity"], ["Fracture"]]
    written = generate.write(given, table)
    assert {*written.traces["film"], *written.excluded["film"]} == set(table["film"])
    assert (written.excluded["attempts"] == 2).all()
    words = models.load_processor(config.Model(name="teacher", path="stand-in:medgemma", dtype="float32")).tokenizer
    asked_with = len(words((given.file.parent / "mine.txt").read_text()).input_ids)
    assert (written.requests["tokens_in"] > asked_with).all()  # the film and the turns come on top
    monkeypatch.setattr(clients, "client", None)
    assert generate.write(given, table).traces.equals(written.traces)


def test_every_film_gets_a_trace_of_every_format_and_only_label_costs_nothing(tmp_path, capsys):
    table = films(tmp_path, 3)
    with Endpoint() as endpoint:
        given = study(tmp_path, endpoint.url, FORMATS, price_in=2.0)
        written = generate.write(given, table)
        assert len(endpoint.seen) == 9
        assert generate.write(given, table).traces.equals(written.traces)
        assert len(endpoint.seen) == 9
    assert list(written.traces) == ["film", "format", "reasoning", "labels", "text", "check"]
    asked_for = [(format, film) for format in FORMATS for film in table["film"]]
    assert list(zip(written.traces["format"], written.traces["film"], strict=True)) == asked_for
    for row in written.traces.itertuples():
        told = "" if row.format == "only_label" else READING
        assert answers.read_strict(row.text, row.format) == (row.reasoning, tuple(row.labels))
        assert (row.reasoning, row.labels) == (told, table.set_index("film")["labels"][row.film])
    assert list(zip(written.requests["format"], written.requests["film"], strict=True)) == asked_for[3:]
    assert generate.summary(written).splitlines() == [
        *(f"{format}: 3 traces; 0 films excluded." for format in FORMATS),
        "9 requests: 9,000 tokens in, 900 tokens out, cost 0.02.",
    ]
    shown = capsys.readouterr().err
    assert all(f"traces, {format}:" in shown for format in FORMATS[1:])


def test_each_format_is_asked_for_in_the_words_of_its_prompt(tmp_path):
    with Endpoint() as endpoint:
        given = study(tmp_path, endpoint.url, FORMATS, prompts={"reasoning_a": "free_reasoning"})
        generate.write(given, films(tmp_path, 1))
    openings = [prompts.load(f"teacher/{name}").split("{min_words}")[0] for name in (*FORMATS[1:3], FORMATS[1])]
    asked_in = [request.text.partition("30 to 350 words")[0] for request in endpoint.seen]
    assert asked_in == [opening.replace("{labels}", "Cardiomegaly") for opening in openings]


def test_a_format_that_fails_is_excluded_and_the_others_are_kept(tmp_path):
    def wrong_in_steps(request):
        return WRONG if "twelve steps" in request.text else fine(request)

    with Endpoint(wrong_in_steps) as endpoint:
        written = generate.write(study(tmp_path, endpoint.url, FORMATS, retries=1), films(tmp_path, 2))
    assert written.traces["format"].tolist() == [format for format in FORMATS[:3] for _ in range(2)]
    assert list(written.excluded) == ["film", "format", "reason", "attempts"]
    assert list(
        zip(written.excluded["film"], written.excluded["format"], written.excluded["attempts"], strict=True)
    ) == [(f"p1000-{each}", "reasoning_a", 2) for each in range(2)]
    assert written.requests["format"].value_counts()["reasoning_a"] == 4
    told = generate.summary(written)
    assert "reasoning_a: 0 traces; 2 films excluded.\n- wrong labels: 2." in told
    assert "p1000" not in told


def test_two_formats_of_one_prompt_keep_their_own_replies(tmp_path):
    numbers = itertools.count()
    with Endpoint(lambda request: saying(f"{READING} {next(numbers)}")(request)) as endpoint:
        same = {"reasoning_a": "free_reasoning"}
        given = study(tmp_path, endpoint.url, ("free_reasoning", "reasoning_a"), prompts=same)
        table = films(tmp_path, 2)
        written = generate.write(given, table)
    assert len(set(written.traces["text"])) == 4
    assert generate.write(given, table).traces.equals(written.traces)  # nobody is asked: the endpoint is gone


def test_another_format_of_a_study_asks_for_that_format_only(tmp_path):
    table = films(tmp_path, 2)
    with Endpoint() as endpoint:
        generate.write(study(tmp_path, endpoint.url, ["reasoning_a"]), table)
        generate.write(study(tmp_path, endpoint.url, ["only_label", "reasoning_narrative", "reasoning_a"]), table)
    assert ["twelve steps" in request.text for request in endpoint.seen] == [True] * 2 + [False] * 2


def test_only_label_alone_asks_nobody(tmp_path):
    table, given = films(tmp_path, 4), study(tmp_path, formats=["only_label"], key="NOT_SET")
    written = generate.write(given, table)
    assert written.traces["text"].tolist() == [f"<solution>{', '.join(labels)}</solution>" for labels in LABELS]
    assert len(written.excluded) == len(written.requests) == 0
    assert not (given.folder / generate.REPLIES).exists()
    assert generate.provenance(given)["prompts"] == {}


def test_the_rule_based_teacher_writes_the_same_table(tmp_path):
    given, table = taught(tmp_path, {"kind": "rules", "seed": 3}, FORMATS), films(tmp_path, 5)
    written = generate.write(given, table)
    tables = [rules.traces(table, 3, format) for format in FORMATS]
    assert written.traces.equals(pd.concat(tables, ignore_index=True))
    assert len(written.excluded) == len(written.requests) == 0
    assert generate.summary(written).splitlines() == [f"{format}: 5 traces; 0 films excluded." for format in FORMATS]
    assert generate.provenance(given) == {"kind": "rules"}


def test_sft_learns_the_films_that_have_a_trace_of_its_format(tmp_path, monkeypatch):
    given, table = taught(tmp_path, {"kind": "rules", "seed": 0}, FORMATS), films(tmp_path, 3)
    traces = generate.write(given, table).traces
    lost = (traces["format"] == "reasoning_a") & (traces["film"] == "p1000-1")
    kept = traces[~lost & (traces["format"] != "reasoning_narrative")]
    records.save(kept, given.folder / check.TRACES, records.provenance(given))
    monkeypatch.setattr(curate, "dataset", lambda study, split: table)
    for format, numbers in {"only_label": [0, 1, 2], "free_reasoning": [0, 1, 2], "reasoning_a": [0, 2]}.items():
        learned = sft.data(given, "sft", format)
        texts = traces[traces["format"] == format].set_index("film")["text"]
        assert [row[0]["content"] for row in learned["completion"]] == [texts[f"p1000-{each}"] for each in numbers]
        assert [image.getpixel((0, 0)) for image in learned["image"]] == numbers
        assert {row[0]["content"] for row in learned["prompt"]} == {prompts.load(format)}
    with pytest.raises(
        records.RecordError, match="no trace of reasoning_narrative, only of only_label, free_reasoning, "
    ):
        sft.data(given, "sft", "reasoning_narrative")


def test_the_origin_of_traces_tells_model_prompts_and_agreement(tmp_path):
    own = {"reasoning_a": "mine.txt"}
    given = study(tmp_path, "https://example.org/v1", FORMATS, agreement="Our DUA, section 4", prompts=own)
    (given.file.parent / "mine.txt").write_text("{labels}")
    told = generate.provenance(given)
    assert (told["kind"], told["model"], told["agreement"]) == ("openai", "m", "Our DUA, section 4")
    texts = {format: prompts.load(f"teacher/{format}") for format in FORMATS[1:3]} | {"reasoning_a": "{labels}"}
    assert told["prompts"] == {format: hashlib.sha256(text.encode()).hexdigest() for format, text in texts.items()}
