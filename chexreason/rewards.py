"""Rewards are pure functions of text and truth (PROTOCOL: GRPO, equation 3)."""

from collections.abc import Collection, Sequence

from chexreason import answers, params


def jaccard(truth: Collection[str], given: Collection[str]) -> float:
    """|truth and given| / |truth or given|; two empty sets agree, and score 1."""
    union = set(truth) | set(given)
    return len(set(truth) & set(given)) / len(union) if union else 1.0


def malformed(text: str) -> bool:
    """Whether a reply is not exactly one `<think>` block and then one `<solution>` block."""
    return answers.read_strict(text) is None


def length(text: str, unit: str, token_ids: Sequence[int]) -> int:
    """|t| of equation 3, whose unit the paper leaves open: the whole reply in `characters`, `words` or `tokens`."""
    return {"characters": len(text), "words": len(text.split()), "tokens": len(token_ids)}[unit]


def hard(text: str, truth: Collection[str], length: int, settings: params.Reward) -> float:
    """The hard reward of one completion (equation 3).

    0 unless the reply has exactly the published form; else the Jaccard index of its labels with `truth`, less
    `settings.length_penalty` when `length` is below `settings.min_length`.
    """
    answer = answers.read_strict(text)
    if answer is None:
        return 0.0
    short = length < settings.min_length
    return jaccard(truth, answer.labels) - (settings.length_penalty if short else 0.0)
