"""The checks that every trace must pass."""

import re
from collections.abc import Collection

from chexreason import answers

TRACES = "curate/traces.parquet"
MAX_WORDS = {"only_label": 0, "free_reasoning": 75, "reasoning_narrative": 120, "reasoning_a": 160}
"""How long the reasoning of each SFT format may be."""

FORMATS = tuple(MAX_WORDS)

_ANSWER = r"(?:findings?|diagnos[ei]s|conclusions?|answers?|abnormalit(?:y|ies)|information|list|text)"
GIVEAWAYS = re.compile(
    "|".join(
        (
            r"ground.?truth|label|annotat|answer key|metadata|data ?set|pretend|beforehand|(?:already|without) know",
            r"\b(?:as|was|were) (?:given|provided|supplied|stated|told|listed|instructed|requested|required)",
            rf"\b(?:correct|expected|provided|supplied|stated|listed|specified|the given) {_ANSWER}",
            rf"\b{_ANSWER} (?:given|provided|supplied|stated|listed|specified)",
            r"\b(?:i|we) (?:am|are|have been) (?:given|told|asked|instructed)|\byou (?:gave|told|provided|asked)",
            r"\b(?:the|your|radiology|radiologist's|accompanying) (?:report|prompt|instructions?)\b",
            r"\bas (?:if|though) (?:i|we) (?:did|do|had|have|were)\b",
            r"\b(?:must|should|have to|need to) (?:conclude|end (?:in|with)|arrive at|justify|match)\b",
        )
    )
)
"""Phrases (in lower case) by which a trace reveals that it knew the answer."""


def check(
    text: str,
    truth: Collection[str],
    format: str = "free_reasoning",
    min_words: int = 0,
    max_words: int | None = None,
) -> str:
    """The fault of a trace of `format`, with its kind before a colon; "" if there is none.

    `max_words` is by default that of the rule-based teacher.
    """
    answer = answers.read_strict(text, format)
    if answer is None:
        return "not of the published form"
    if set(answer.labels) != set(truth):
        return f"wrong labels: {', '.join(answer.labels) or 'none'}, not {', '.join(truth) or 'none'}"
    giveaway = GIVEAWAYS.search(" ".join(answer.reasoning.lower().split()))
    if giveaway:
        return f"gives the answer away: {giveaway[0]!r}"
    words, most = len(answer.reasoning.split()), MAX_WORDS[format] if max_words is None else max_words
    if words < min_words:
        return f"too short: {words} words, at least {min_words} are needed"
    return f"too long: {words} words, at most {most} are allowed" if words > most else ""
