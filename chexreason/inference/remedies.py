"""Remedies that need no training: weights between two checkpoints, and several sampled replies to each film."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from chexreason import config, fingerprint, models, records, runtime
from chexreason.inference import predict
from chexreason.inference.protocol import Protocol


@dataclass(frozen=True)
class Between(predict.Reader):
    """A model with weights between the adapter `start` (`alpha` 0) and the adapter `trained` (1), or beyond."""

    start: Path = Path()
    alpha: float = 1.0

    @cached_property
    def model(self) -> Any:
        """The base model with the weighted adapters merged into it.

        The factors of LoRA do not average linearly: peft's "cat" puts those of both adapters side by side, so that
        their product is the weighted sum of both changes of the weights.
        """
        assert self.trained
        runtime.steady_threads()
        loaded = models.attach(models.load_base(self.settings), self.start)
        loaded.load_adapter(str(self.trained), "end", use_safetensors=True)
        weights = [1.0 - self.alpha, self.alpha]
        loaded.add_weighted_adapter(["default", "end"], weights, "between", combination_type="cat")
        loaded.set_adapter("between")
        return models.plain_generation(loaded.merge_and_unload().eval(), self.processor)


def between(settings: config.Model, start: Path, end: Path, alpha: float, batch: int) -> Between:
    """A reader with weights at `alpha` of the way from the adapter in `start` to that in `end` (see `Between`)."""
    plain = predict.load(settings, end, batch)
    key = fingerprint.digest(plain.key, records.sha256(start / models.ADAPTER[1]), alpha)
    return Between(settings, end, plain.processor, batch, key, start, alpha)


def sample_replies(
    reader: predict.Reader, images: Sequence[str | Path], protocol: Protocol, draws: int, temperature: float, seed: int
) -> list[list[str]]:
    """`draws` sampled replies to each film, in the order of `images`; the same again with the same seed and batch."""
    import torch
    from PIL import Image

    model, replies = reader.model, []
    torch.manual_seed(seed)
    opening, size = models.template_opening(reader.processor), max(1, reader.batch // draws)
    for first in range(0, len(images), size):
        films = [Image.open(image) for image in list(images)[first : first + size]]
        inputs = models.inputs(reader.processor, films, protocol.prompt).to(model.device)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        with torch.inference_mode():
            output = model.generate(
                **inputs, max_new_tokens=protocol.max_new_tokens, num_return_sequences=draws, **sampling
            )
        texts = reader.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        replies += [[opening + text for text in texts[at : at + draws]] for at in range(0, len(texts), draws)]
    return replies


def vote(label_sets: Sequence[Sequence[str]]) -> set[str]:
    """The labels that more than half of the replies to a film name."""
    named = [set(labels) for labels in label_sets]
    return {label for label in set().union(*named) if 2 * sum(label in labels for labels in named) > len(named)}
