"""The protocol: how every model is asked and how its answers are read. Its hash is in every row of answers."""

import hashlib
import json
from typing import Literal

from chexreason import answers, config, prompts


class Protocol(config.Section):
    """Everything that can change an answer, except the model and the film. Answers with the same hash can be compared.

    `prompt` is its text, `image_size` the longest side of the film in pixels, and `reading` the rules for reading
    replies (`answers.RULES`).
    """

    prompt: str
    decoding: Literal["greedy"] = "greedy"
    max_new_tokens: config.Count
    image_size: config.Count
    reading: str = answers.RULES

    @classmethod
    def of(cls, study: config.Study, prompt: str, dataset: str) -> "Protocol":
        """The protocol for `dataset` with the prompt of this name; raises ValueError if there is no such prompt."""
        return cls(
            prompt=prompts.load(prompt),
            max_new_tokens=study.predict.max_new_tokens,
            image_size=study.source(dataset).size,
        )

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that change with any part of the protocol."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:12]


def protocols(study: config.Study, checkpoint: config.Checkpoint) -> dict[str, Protocol]:
    """The protocol of a checkpoint for each of its data sets."""
    prompt = study.prompt(checkpoint)
    return {dataset: Protocol.of(study, prompt, dataset) for dataset in study.datasets(checkpoint)}
