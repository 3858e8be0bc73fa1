"""Rewards are pure functions of text and truth (PROTOCOL: GRPO, equation 3)."""

from collections.abc import Collection

from chexreason import answers


def jaccard(truth: Collection[str], given: Collection[str]) -> float:
    """|truth and given| / |truth or given|; two empty sets agree, and score 1."""
    union = set(truth) | set(given)
    return len(set(truth) & set(given)) / len(union) if union else 1.0


def hard(text: str, truth: Collection[str], length: int, min_length: int, length_penalty: float) -> float:
    """The hard reward of one completion (equation 3).

    0 unless the reply has exactly the published form; else the Jaccard index of its labels with `truth`, less
    `length_penalty` when `length` is below `min_length`.  The paper leaves the penalty and the unit of length open:
    the caller measures `length` in the unit its params file names.
    """
    answer = answers.read_strict(text)
    if answer is None:
        return 0.0
    return jaccard(truth, answer.labels) - (length_penalty if length < min_length else 0.0)
