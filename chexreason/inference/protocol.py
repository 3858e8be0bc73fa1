"""The protocol under which every model is asked and read, as a frozen record whose hash stands beside every answer."""

import hashlib
import json
from typing import Literal

from chexreason import answers, config, prompts


class Protocol(config.Section):
    """All that an answer follows from, but for the model and the film: two answers of one hash can be compared.

    `prompt` is its text, `image_size` the longest side of the film in pixels, and `reading` the rules by which
    evaluation reads the reply (`answers.RULES`).
    """

    prompt: str
    decoding: Literal["greedy"] = "greedy"
    max_new_tokens: config.Count
    image_size: config.Count
    reading: str = answers.RULES

    @classmethod
    def of(cls, study: config.Study, prompt: str, dataset: str) -> "Protocol":
        """How `dataset` is asked about with the prompt of this name; raises ValueError for no such prompt."""
        return cls(
            prompt=prompts.load(prompt),
            max_new_tokens=study.predict.max_new_tokens,
            image_size=study.source(dataset).size,
        )

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that change when any part of the protocol does."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:12]


def protocols(study: config.Study, checkpoint: config.Checkpoint) -> dict[str, Protocol]:
    """How a checkpoint is asked about each of its data sets."""
    prompt = study.prompt(checkpoint)
    return {dataset: Protocol.of(study, prompt, dataset) for dataset in study.datasets(checkpoint)}
