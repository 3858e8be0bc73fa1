"""The two rewards of the paper (PROTOCOL: GRPO, equations 3 and 4), and how any other reward is found and called.

A reward has trl's signature: it takes `completions`, `truth` and any other argument listed in `GIVEN`, and returns one
float per completion.  `REWARDS` lists the rewards of this package.  Your own reward is `package.module:function`, or
`file.py:function` in a file next to the params file.
"""

import difflib
import functools
import importlib
import importlib.util
import inspect
import json
import math
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from chexreason import answers, config, runtime
from chexreason.labels import CHEXPERT14


def jaccard(truth: Collection[str], given: Collection[str]) -> float:
    """The Jaccard index of two sets of labels: |truth and given| / |truth or given|; 1 if both are empty."""
    union = set(truth) | set(given)
    return len(set(truth) & set(given)) / len(union) if union else 1.0


def malformed(text: str) -> bool:
    """Whether a reply is not exactly one `<think>` block and then one `<solution>` block."""
    return answers.read_strict(text) is None


def failures(texts: Sequence[str], token_ids: Sequence[Sequence[int]] = (), ends: Collection[int] = ()) -> float:
    """The share of all replies that are malformed; a reply that was cut off at the token limit does not count as one.

    `token_ids` are the tokens of each reply, and `ends` are the tokens that end a reply.  Without `ends`, no reply
    counts as cut off.
    """
    whole = [not ends or ids[-1] in ends for ids in token_ids] or [True] * len(texts)
    return sum(ended and malformed(text) for text, ended in zip(texts, whole, strict=True)) / len(texts)


def length(text: str, unit: str, token_ids: Sequence[int]) -> int:
    """The length |t| of a whole reply in equation 3, in `characters`, `words` or `tokens` (the paper gives no unit)."""
    return {"characters": len(text), "words": len(text.split()), "tokens": len(token_ids)}[unit]


def hard(text: str, truth: Collection[str], length: int, settings: config.Reward) -> float:
    """The hard reward of one completion (equation 3).

    0 if the reply is malformed.  Otherwise the Jaccard index of its labels and `truth`, minus
    `settings.length_penalty` if `length` is below `settings.min_length`.
    """
    answer = answers.read_strict(text)
    if answer is None:
        return 0.0
    short = length < settings.min_length
    return jaccard(truth, answer.labels) - (settings.length_penalty if short else 0.0)


class Window(NamedTuple):
    """The state of the nuanced reward: the last `size` predictions, oldest first.  It is never changed in place.

    A prediction is the set of labels in one reply.
    """

    size: int
    predictions: tuple[tuple[str, ...], ...] = ()

    def add(self, predictions: Iterable[Sequence[str]]) -> "Window":
        """The window after these predictions, in this order."""
        together = (*self.predictions, *map(tuple, predictions))
        return self._replace(predictions=together[-self.size :])

    def dominant(self, dominance: float) -> frozenset[str]:
        """The labels that occur in more than `dominance` (a share) of the last `size` predictions.

        The share is always of `size`, so a few predictions at the start of training cannot dominate.
        """
        counts = Counter(label for labels in self.predictions for label in labels)
        return frozenset(label for label, count in counts.items() if count / self.size > dominance)

    def to_json(self) -> str:
        """The window as text, for a checkpoint."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> "Window":
        """The window `to_json` wrote."""
        saved = json.loads(text)
        return cls(saved["size"]).add(saved["predictions"])


class Parts(NamedTuple):
    """The five terms of equation 4 for one completion, in the paper's points; none is negative."""

    match: float
    partial: float
    false_positives: float
    collapse: float
    format: float

    @property
    def total(self) -> float:
        """match + partial - false positives - collapse - format."""
        return self.match + self.partial - self.false_positives - self.collapse - self.format


def read_labels(text: str) -> tuple[str, ...] | None:
    """The labels in a reply, each once; None if the reply cannot be read."""
    answer, reading = answers.read_strict(text), answers.read(text)
    if answer is not None:
        return answer.labels
    return None if reading.failed else reading.labels


def nuanced(text: str, truth: Collection[str], window: Window, settings: config.Nuanced) -> Parts:
    """The nuanced reward of one completion (equation 4); `window` holds the predictions before its batch.

    For each term: what the paper states; then, after "ours", what we decided.

    - match: +100 for an exact match (`match`).  Ours: sets are compared, so two empty sets match; 0 if no answer can be
      read.
    - partial: 30 x correct / |truth| (`recall`) + 20 x correct / |prediction| (`precision`).  Ours: an exact match gets
      both terms in full, so the maximum is 150.
    - false positives: a penalty that depends on the label's frequency, highest for No Finding and Support Devices.
      Ours: see `false_positive`.
    - collapse: if one label is in more than 70 % (`dominance`) of the last 100 predictions (`window`), -30 for each
      excess repetition (`repetition`) and -50 for mode collapse (`collapse`).  Ours: see `dominance_cost`.
    - format: -100 for each invalid label (`invalid`), -25 for each duplicate (`duplicate`), and a penalty for text
      outside the two blocks (`outside`).  Ours: `outside` is charged once for any malformed reply; the total is at most
      `format_limit`, so that one very long reply does not outweigh its batch.
    - Labels are filtered to the fourteen before they are compared.  Ours: an invalid name costs its penalty and nothing
      else.  In a malformed reply, the labels that evaluation would read still count.
    """
    given, reading = read_labels(text), answers.read(text)
    labels, true = set(given or ()), set(truth)
    correct, exact = len(labels & true), given is not None and labels == true
    found, precise = (1.0, 1.0) if exact else (correct / max(1, len(true)), correct / max(1, len(labels)))
    faults = settings.invalid * reading.unknown + settings.duplicate * reading.duplicates
    return Parts(
        match=settings.match if exact else 0.0,
        partial=settings.recall * found + settings.precision * precise,
        false_positives=sum(false_positive(label, settings) for label in sorted(labels - true)),
        collapse=dominance_cost(labels, window, settings),
        format=min(settings.format_limit, faults + (settings.outside if malformed(text) else 0.0)),
    )


def false_positive(label: str, settings: config.Nuanced) -> float:
    """The cost of one wrong label, in points (ours; the paper gives no weights).

    It grows linearly with the label's frequency: `settings.false_positive` for a label that never occurs, twice as much
    for the most frequent label.  `settings.frequency` has the share of the training source's studies with each label,
    before sampling.
    """
    commonest = max(settings.frequency.values())
    return settings.false_positive * (1.0 + settings.frequency.get(label, 0.0) / commonest)


def dominance_cost(labels: Collection[str], window: Window, settings: config.Nuanced) -> float:
    """The cost of `labels` that dominate `window`, in points (our interpretation).

    A label dominates by its share of predictions, because one reply may have several labels.  Every dominant label in a
    completion is one excess repetition, whether the label is true or not; a completion with at least one of them also
    pays for mode collapse, once.  A completion without a dominant label pays nothing.  If all completions of a group
    paid the same, their advantages would not change.
    """
    repeated = window.dominant(settings.dominance) & set(labels)
    return settings.repetition * len(repeated) + (settings.collapse if repeated else 0.0)


def nuanced_batch(
    texts: Sequence[str], truths: Sequence[Collection[str]], window: Window, settings: config.Nuanced
) -> tuple[list[Parts], Window]:
    """The nuanced reward of every completion of a batch, and the window after the batch.

    All completions of a batch are compared with the same window, so that their order does not matter.  Then their
    predictions enter the window in order.  A reply that cannot be read is not a prediction; an answer without labels
    is.
    """
    parts = [nuanced(text, truth, window, settings) for text, truth in zip(texts, truths, strict=True)]
    return parts, window.add(labels for text in texts if (labels := read_labels(text)) is not None)


def texts(completions: Sequence[Sequence[dict]]) -> list[str]:
    """The text of each of trl's completions, which are conversations of one message."""
    return [completion[0]["content"] for completion in completions]


def hard_reward(completions, truth, completion_ids, settings: config.Reward, **_) -> list[float]:
    """The hard reward of each completion, as trl calls it; `completion_ids` are without the token that ends a reply."""
    return [
        hard(text, labels, length(text, settings.length_unit, ids), settings)
        for text, labels, ids in zip(texts(completions), truth, completion_ids, strict=True)
    ]


class NuancedReward:
    """The nuanced reward, as trl calls it.  It keeps the window and updates it with each batch.

    Rewards are points / `scale`.  The mean of each part over a batch is logged in points, as `nuanced/<part>`. Every
    call updates the window, so do not use it in `trainer.evaluate()`.  With several processes, each would have its own
    window.
    """

    def __init__(self, settings: config.Reward):
        if settings.nuanced is None:
            raise RewardError("nuanced: its constants are missing; give grpo.reward.nuanced")
        self.settings = settings.nuanced
        self.window = Window(self.settings.window)

    def __call__(self, completions, truth, log_metric, **_) -> list[float]:
        parts, self.window = nuanced_batch(texts(completions), truth, self.window, self.settings)
        for name, values in zip(Parts._fields, zip(*parts, strict=True), strict=True):
            log_metric(f"nuanced/{name}", sum(values) / len(values))
        return [part.total / self.settings.scale for part in parts]

    def state(self) -> str:
        """The window, for a checkpoint."""
        return self.window.to_json()

    def restore(self, state: str) -> None:
        """Continue with the window that `state` returned."""
        self.window = Window.from_json(state)


def format_reward(completions, completion_ids, settings: config.Reward, **_) -> list[float]:
    """The hard reward of each completion as if its labels were right: a control that rewards form alone."""
    written = texts(completions)
    truth = [read_labels(text) or () for text in written]
    return hard_reward(completions, truth, completion_ids, settings)


def corrected(
    labels: Collection[str], named: Collection[str], sensitivity: dict[str, float], false: dict[str, float]
) -> float:
    """The share of labels on which a reply agrees with the truth, estimated without bias from noisy labels.

    `sensitivity` has for each label the chance s that it is reported where it is present, `false` the chance f that it
    is reported where it is absent.  (y - f) / (s - f) is an unbiased estimate of the presence of a label that is
    reported (y = 1) or not (y = 0) (Natarajan et al. 2013).  A label with s = f tells nothing and is left out.
    """
    if unknown := {*sensitivity, *false} - {*CHEXPERT14} or {*false} - {*sensitivity}:
        raise RewardError(f"corrected: sensitivity has no rate for {min(unknown)!r}, or it is not one of the labels")
    rates = {name: (found, false.get(name, 0.0)) for name, found in sensitivity.items()}
    present = {name: ((name in labels) - f) / (s - f) for name, (s, f) in rates.items() if s != f}
    if not present:
        raise RewardError("corrected: no label is reported more often where it is present than where it is absent")
    agrees = [value if name in named else 1 - value for name, value in present.items()]
    return sum(agrees) / len(agrees)


def corrected_reward(
    completions,
    truth,
    completion_ids,
    settings: config.Reward,
    sensitivity: dict[str, float],
    false: dict[str, float],
    **_,
) -> list[float]:
    """The hard reward with `corrected` in place of the Jaccard index; its rates are given under `reward_args`."""
    values = []
    for text, labels, ids in zip(texts(completions), truth, completion_ids, strict=True):
        answer = answers.read_strict(text)
        short = length(text, settings.length_unit, ids) < settings.min_length
        penalty = settings.length_penalty if short else 0.0
        values.append(corrected(labels, answer.labels, sensitivity, false) - penalty if answer else 0.0)
    return values


REWARDS: dict[str, Callable] = {
    "hard": hard_reward,
    "format": format_reward,
    "corrected": corrected_reward,
    "nuanced": NuancedReward,
}
"""The rewards that a params file can name: functions, or classes for rewards with state.

If a function, or the `__init__` of a class, has an argument `settings`, it gets the section `grpo.reward`.  Its other
arguments come from the run's `reward_args`.  A class makes one reward per run, which is called like a function.  Its
`state()` (anything that JSON can hold) is saved in every checkpoint, and `restore(state)` gets it when a run resumes.
"""

GIVEN = {
    "prompts": "the conversation before each reply",
    "completions": "the replies, each `[{'role': 'assistant', 'content': text}]`, with what the template opens",
    "completion_ids": "the tokens of each reply, without the token that ends it",
    "truth": "the positive labels of each film, a list of names",
    "film": "the id of each film",
    "image": "each film, a PIL image",
    "cut_off": "whether each reply reached the token limit",
    "log_metric": "`log_metric(name, value)` adds a column to the run's log, a mean over each batch",
    "log_extra": "`log_extra(name, values)`: trl's table of completions",
    "trainer_state": "the state of the trainer, with `global_step`",
}
"""The arguments that a reward can have.  It gets those that it names."""


class RewardError(ValueError):
    """A reward cannot be found or called, or did not return one finite number per reply."""


def find(path: str, beside: Path) -> Any:
    """The function or class of a reward: a name of `REWARDS`, `package.module:function`, or `file.py:function`.

    The file is relative to the folder `beside`.  Its code is run, as by an import.  Raises RewardError.
    """
    if path in REWARDS:
        return REWARDS[path]
    place, _, name = path.rpartition(":")
    if not place or not name:
        near = difflib.get_close_matches(path, REWARDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RewardError(
            f"no reward {path!r}; {hint}Rewards are {', '.join(REWARDS)}, or your own as file.py:function or "
            "package.module:function"
        )
    if place.endswith(".py") and not (beside / place).is_file():
        raise RewardError(f"{path}: no file {place} beside the params file, in {beside}")
    try:
        module = runtime.module(beside / place) if place.endswith(".py") else importlib.import_module(place)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and not place.endswith(".py")
        advice = "; install it, or give a file beside the params file as file.py:function" if missing else ""
        raise RewardError(f"{path}: cannot be imported: {_brief(error)}{advice}") from error
    if not hasattr(module, name):
        there = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        near = difflib.get_close_matches(name, there, n=1)
        raise RewardError(f"{path}: {place} has no {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return getattr(module, name)


def check(path: str, beside: Path, arguments: dict) -> None:
    """Raise RewardError unless there is such a reward, it can be called, and takes the `arguments` of its run."""
    reward = find(path, beside)
    called = _reward_call(path, reward)
    constants = _parameters(path, reward)
    own = sorted(name for name in constants if name not in {*GIVEN, "settings"})
    for name in arguments:
        if name not in own:
            near = difflib.get_close_matches(name, own, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(own) or 'none'}"
            raise RewardError(f"{path}: reward_args: no argument {name!r}; {hint}")
    if not has_argument(called, "completions") and not has_argument(called, "completion_ids"):
        raise RewardError(f"{path}: takes no completions; a reward is called with {', '.join(GIVEN)}, by name")
    if inspect.isclass(reward):
        _refuse_lacking(path, constants, {*arguments, "settings"})
        _refuse_lacking(path, _parameters(path, called), {*GIVEN})
    else:
        _refuse_lacking(path, constants, {*arguments, "settings", *GIVEN})


def _reward_call(path: str, reward) -> Callable:
    """The function by which a reward is called, of a class its method; raises RewardError where there is none."""
    called = _call(reward) if inspect.isclass(reward) else reward
    if not callable(called):
        what = "is a class without the method __call__" if inspect.isclass(reward) else f"is a {type(reward).__name__}"
        raise RewardError(f"{path}: {what}; give a function, or a class of rewards that can be called")
    if inspect.iscoroutinefunction(called):
        raise RewardError(f"{path}: is an async function; give a plain one")
    if hasattr(reward, "state") != hasattr(reward, "restore"):
        raise RewardError(f"{path}: has one of the methods state and restore; a reward with state needs both")
    if hasattr(reward, "state") and not inspect.isclass(reward):
        raise RewardError(f"{path}: has state; give its class, of which each run makes a reward of its own")
    return called


def _call(reward: type) -> Callable | None:
    """The method by which what a class makes is called."""
    return next((vars(each)["__call__"] for each in reward.__mro__ if "__call__" in vars(each)), None)


def _refuse_lacking(path: str, parameters: dict[str, inspect.Parameter], given: set[str]) -> None:
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in given:
            raise RewardError(
                f"{path}: takes {name!r}, which nothing gives; set it under reward_args of the run, give it a default, "
                f"or use what every reward is given: {', '.join(GIVEN)}"
            )


def make_reward(path: str, beside: Path, arguments: dict, settings: config.Reward) -> Callable:
    """A reward ready to be called, new for each run, with the constants of its run (`arguments`) and of the study."""
    check(path, beside, arguments)
    reward = find(path, beside)
    constants = arguments | ({"settings": settings} if "settings" in _parameters(path, reward) else {})
    made: Any = reward(**constants) if inspect.isclass(reward) else functools.partial(reward, **constants)
    return made


def code_files(path: str, beside: Path) -> list[Path]:
    """The files of code that a reward from outside this package is made of: its file, or all of its package."""
    place = path.rpartition(":")[0]
    if path in REWARDS or not place:
        return []
    if place.endswith(".py"):
        return [beside / place]
    spec = importlib.util.find_spec(place.split(".")[0])
    assert spec is not None  # it could be imported
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    return sorted(file for folder in folders for file in folder.rglob("*.py")) or [Path(str(spec.origin))]


def scores(reward: Callable, name: str, **given) -> list[float]:
    """What `reward` returns for a batch, called with what it takes of `given`.

    Raises RewardError for anything but one finite number per completion.
    """
    values = reward(**{key: value for key, value in given.items() if has_argument(reward, key)})
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | dict | set | frozenset):
        raise RewardError(f"{name}: returned a {type(values).__name__}, not a list of numbers")
    values = list(values)
    if len(values) != (count := len(given["completions"])):
        raise RewardError(f"{name}: returned {len(values)} rewards for {count} replies; return one for each")
    return [_finite(value, name) for value in values]


def _finite(value, name: str) -> float:
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RewardError(f"{name}: returned {value!r:.100} for a reply; return a finite number")
    return number


BATCH = 32
"""How many replies a reward is given at once where nothing is trained, in the order of the record."""


def score_replies(reward: Callable, name: str, replies: Sequence[dict], log_metric: Callable) -> list[float]:
    """The reward of each recorded reply, in batches of `BATCH`, as if one policy had written them in this order.

    Each of `replies` has the keys text, film, truth, image (a path), credentialed, cut_off and, where the reward takes
    it, completion_ids and prompts.  Raises RewardError where the reward fails, naming the film and (unless it is
    credentialed) the beginning of the reply.
    """
    values = []
    for start in range(0, len(replies), BATCH):
        batch = replies[start : start + BATCH]
        try:
            values += scores(reward, name, **_columns(reward, batch), log_metric=log_metric)
        except Exception as error:
            secret = any(reply["credentialed"] for reply in batch)  # a traceback may hold text of a reply
            raise RewardError(_where(reward, name, batch, error)) from (None if secret else error)
    return values


def _columns(reward: Callable, replies: Sequence[dict]) -> dict:
    """Replies as trl gives them: one list for each name."""
    names = [name for name in ("truth", "film", "cut_off", "completion_ids", "prompts") if name in replies[0]]
    columns: dict[str, Any] = {name: [reply[name] for reply in replies] for name in names}
    columns["completions"] = [[{"role": "assistant", "content": reply["text"]}] for reply in replies]
    if "image" in inspect.signature(reward).parameters:
        from PIL import Image

        columns["image"] = [Image.open(reply["image"]) for reply in replies]
    if has_argument(reward, "trainer_state"):
        from transformers import TrainerState

        columns["trainer_state"] = TrainerState(max_steps=1)
    return columns | {"log_extra": lambda *_: None}


def _where(reward: Callable, name: str, batch: Sequence[dict], error: Exception) -> str:
    """What failed, and on which reply: the first of the batch that fails alone too."""
    for reply in batch:
        try:
            scores(reward, name, **_columns(reward, [reply]), log_metric=lambda *_: None)
        except Exception as alone:
            if reply["credentialed"]:  # an error may hold text of the reply
                return f"{name}: {type(alone).__name__} on a reply about the credentialed film {reply['film']}"
            said = str(alone) if isinstance(alone, RewardError) else f"{name}: {_brief(alone)}"
            return f"{said}; film {reply['film']}, reply {reply['text'][:100]!r}"
    if any(reply["credentialed"] for reply in batch):
        return f"{name}: {type(error).__name__} on {len(batch)} replies together, and on none of them alone"
    said = str(error) if isinstance(error, RewardError) else f"{name}: {_brief(error)}"
    return f"{said}; on {len(batch)} replies together, the first about film {batch[0]['film']}, and on none alone"


def has_argument(reward: Callable, name: str) -> bool:
    """Whether a reward is given `name` when it is called: it names it, or takes everything."""
    parameters = inspect.signature(reward).parameters
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def _parameters(path: str, function: Callable) -> dict[str, inspect.Parameter]:
    """The arguments that a function names, without `self` of a method that is not bound."""
    try:
        parameters = dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        raise RewardError(f"{path}: its arguments cannot be read; wrap it in a function of yours") from None
    parameters.pop("self", None)
    stars = {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    return {name: each for name, each in parameters.items() if each.kind not in stars}


def _brief(error: BaseException) -> str:
    """An exception in one line, with the line of code that raised it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    where = "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in frames[-1:])
    return f"{type(error).__name__}: {error}{where}"
