"""Rewards are pure functions of text, truth and explicit state (PROTOCOL: GRPO, equations 3 and 4)."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from chexreason import answers, config


def jaccard(truth: Collection[str], given: Collection[str]) -> float:
    """|truth and given| / |truth or given|; two empty sets agree, and score 1."""
    union = set(truth) | set(given)
    return len(set(truth) & set(given)) / len(union) if union else 1.0


def malformed(text: str) -> bool:
    """Whether a reply is not exactly one `<think>` block and then one `<solution>` block."""
    return answers.read_strict(text) is None


def failures(texts: Sequence[str], token_ids: Sequence[Sequence[int]] = (), ends: Collection[int] = ()) -> float:
    """The share of replies out of form among all, without those that were cut off at the token limit.

    `token_ids` are the tokens of each reply and `ends` those that end one; without `ends`, none was cut off.
    """
    whole = [not ends or ids[-1] in ends for ids in token_ids] or [True] * len(texts)
    return sum(ended and malformed(text) for text, ended in zip(texts, whole, strict=True)) / len(texts)


def length(text: str, unit: str, token_ids: Sequence[int]) -> int:
    """|t| of equation 3, whose unit the paper leaves open: the whole reply in `characters`, `words` or `tokens`."""
    return {"characters": len(text), "words": len(text.split()), "tokens": len(token_ids)}[unit]


def hard(text: str, truth: Collection[str], length: int, settings: config.Reward) -> float:
    """The hard reward of one completion (equation 3).

    0 unless the reply has exactly the published form; else the Jaccard index of its labels with `truth`, less
    `settings.length_penalty` when `length` is below `settings.min_length`.
    """
    answer = answers.read_strict(text)
    if answer is None:
        return 0.0
    short = length < settings.min_length
    return jaccard(truth, answer.labels) - (settings.length_penalty if short else 0.0)


class Window(NamedTuple):
    """The nuanced reward's state: the last `size` predictions, oldest first.  Never changed in place.

    A prediction is the labels of one reply, of the fourteen and each once.
    """

    size: int
    predictions: tuple[tuple[str, ...], ...] = ()

    def add(self, predictions: Iterable[Sequence[str]]) -> "Window":
        """The window after these predictions, which come in this order."""
        together = (*self.predictions, *map(tuple, predictions))
        return self._replace(predictions=together[-self.size :])

    def dominant(self, dominance: float) -> frozenset[str]:
        """The labels that more than `dominance` (a share) of the last `size` predictions hold.

        The share is always of `size`, so a window that is not full yet is not judged on a handful of predictions.
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


def predicted(text: str) -> tuple[str, ...] | None:
    """The labels a reply predicts, of the fourteen and each once, or None where evaluation too can read none."""
    answer, reading = answers.read_strict(text), answers.read(text)
    if answer is not None:
        return answer.labels
    return None if reading.failed else reading.labels


def nuanced(text: str, truth: Collection[str], window: Window, settings: config.Nuanced) -> Parts:
    """The nuanced reward of one completion (equation 4), `window` being the predictions before its batch.

    What the paper states stands first, what it leaves open and we decided after the dash.

    - match: an exact match earns +100 (`match`) - of sets, also when both are empty; 0 where no answer can be read.
    - partial: 30 x correct / |truth| (`recall`) + 20 x correct / |prediction| (`precision`) - the terms of equation 4
      are added, so an exact match earns all of both too, and 150 is the most there is.
    - false positives are penalised by label frequency, No Finding and Support Devices most - see `false_positive`.
    - collapse: when one label passes 70 % (`dominance`) of the last 100 predictions (`window`), -30 for each excess
      repetition (`repetition`) and -50 for mode collapse (`collapse`) - see `dominated`.
    - format: -100 for each invalid label (`invalid`), -25 for each duplicate (`duplicate`), a penalty for text outside
      the two blocks - the latter (`outside`) once for any reply that is not exactly the two blocks, a missing or
      repeated block included; together at most `format_limit`, so that one runaway reply does not outweigh its batch.
    - labels are filtered to the fourteen before they are compared - an invalid name costs its penalty and nothing else.
      A reply out of form is not worthless as under equation 3: what evaluation reads in it counts, less the penalty.
    """
    given, reading = predicted(text), answers.read(text)
    labels, true = set(given or ()), set(truth)
    correct, exact = len(labels & true), given is not None and labels == true
    found, precise = (1.0, 1.0) if exact else (correct / max(1, len(true)), correct / max(1, len(labels)))
    faults = settings.invalid * reading.unknown + settings.duplicate * reading.duplicates
    return Parts(
        match=settings.match if exact else 0.0,
        partial=settings.recall * found + settings.precision * precise,
        false_positives=sum(false_positive(label, settings) for label in sorted(labels - true)),
        collapse=dominated(labels, window, settings),
        format=min(settings.format_limit, faults + (settings.outside if malformed(text) else 0.0)),
    )


def false_positive(label: str, settings: config.Nuanced) -> float:
    """What one wrong label costs, in points (ours; the paper states no weights).

    `settings.false_positive` for a label that never occurs, twice that for the commonest, and in between in proportion
    to `settings.frequency`: the share of the training source's studies that have the label, before any balancing.
    """
    commonest = max(settings.frequency.values())
    return settings.false_positive * (1.0 + settings.frequency.get(label, 0.0) / commonest)


def dominated(labels: Collection[str], window: Window, settings: config.Nuanced) -> float:
    """What `labels` cost for repeating what dominates `window`, in points (the reading is ours).

    Dominance is counted in predictions, not labels, for a reply may hold several.  Each completion is judged as the
    next prediction: every dominant label in it is one excess repetition, and to hold any is to go along with the
    collapse, charged once.  So each repetition is charged once, to the completion that makes it, whether the label is
    true or not, and a completion that leaves the collapsed mode pays nothing: the other way round a whole group would
    pay alike, and its advantages would not notice.
    """
    repeated = window.dominant(settings.dominance) & set(labels)
    return settings.repetition * len(repeated) + (settings.collapse if repeated else 0.0)


def nuanced_batch(
    texts: Sequence[str], truths: Sequence[Collection[str]], window: Window, settings: config.Nuanced
) -> tuple[list[Parts], Window]:
    """The nuanced reward of every completion of a batch, and the window after it.

    The whole batch meets the window as the batches before it left it, so that the completions of one film compare and
    their order changes no reward of theirs.  Then the batch's predictions enter in order; a reply in which no label
    block can be read is no prediction, an answer of no label is one.
    """
    parts = [nuanced(text, truth, window, settings) for text, truth in zip(texts, truths, strict=True)]
    return parts, window.add(labels for text in texts if (labels := predicted(text)) is not None)


class NuancedReward:
    """trl's reward function for the nuanced reward: it holds the window and moves it on by each training batch.

    Rewards are points / `settings.scale`; the parts are logged in points, as `nuanced/<part>`, a batch's mean each.
    Every call counts as training: `trainer.evaluate()` would move the window, so validate by other means.  With several
    processes each would hold a window of its own.  `opening` and `ends` are the chat template's (`models.opened`,
    `models.ends`).
    """

    __name__ = "nuanced"

    def __init__(self, settings: config.Nuanced, opening: str = "", ends: Collection[int] = ()):
        self.settings, self.window = settings, Window(settings.window)
        self.opening, self.ends = opening, ends

    def __call__(self, completions, truth, log_metric, completion_ids=(), **_) -> list[float]:
        texts = [self.opening + completion[0]["content"] for completion in completions]
        parts, self.window = nuanced_batch(texts, truth, self.window, self.settings)
        for name, values in zip(Parts._fields, zip(*parts, strict=True), strict=True):
            log_metric(f"nuanced/{name}", sum(values) / len(values))
        log_metric("format_failures", failures(texts, completion_ids, self.ends))
        return [part.total / self.settings.scale for part in parts]

    def keeper(self):
        """A trainer callback by which every checkpoint holds the window, and a resumed run goes on with it.

        It stands in `trainer_state.json`, which the trainer writes last and by which a checkpoint counts as whole: a
        file of its own, written in `on_save`, would be missing after a kill between the two.
        """
        from transformers.trainer_callback import ExportableState, TrainerCallback

        reward = self

        class WindowKeeper(TrainerCallback, ExportableState):
            def state(self) -> dict:
                return {"args": {}, "attributes": {"window": reward.window.to_json()}}

            def on_train_begin(self, args, state, control, **_):
                reward.window = Window.from_json(state.stateful_callbacks["WindowKeeper"]["attributes"]["window"])

        return WindowKeeper()
