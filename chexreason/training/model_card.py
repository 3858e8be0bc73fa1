"""The model card of an adapter: the README.md that peft, the hub and whoever is handed the folder look for."""

from typing import NamedTuple

from chexreason import __version__, config, models

PAPER = "2512.23090"
LIMITS = """\
- It is research on how a model is trained, and no medical device: what it says is no diagnosis.
- It names the fourteen CheXpert labels and nothing else, as the labeller of its training films would.
- It has seen frontal films of one source. How it does elsewhere is what the study's comparison measures."""
PHANTOM = "- **Phantom**: its training films are drawings. Nothing it says or scores holds for a real film."
STAND_IN = "- **Stand-in**: its base is a small model forged for tests of the method, not the published one."


class Scores(NamedTuple):
    """What the log of a run says of its weights: measures by name, the films they are of, and how they were taken."""

    dataset: str
    how: str
    values: dict[str, float]


def text(study: config.Study, model: str, run: str, data: str, settings: dict, scores: Scores) -> str:
    """The card of one run's adapter, metadata first.

    `run` names it (`sft/free_reasoning, seed 0`), `data` says in a sentence what it learnt from, `settings` are the
    values of the params file it was trained with.  A score that is undefined (NaN) is left out.  No time and no path is
    in it, so that the same study gives the same bytes.
    """
    import yaml
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    base, known = study.models[model], {name: value for name, value in scores.values.items() if value == value}
    title = f"{base.name}, {run}{' (phantom)' if study.phantom else ''}"
    metadata = ModelCardData(
        base_model=base.path,
        library_name="peft",
        pipeline_tag="image-text-to-text",
        tags=["chexreason", "lora", f"arxiv:{PAPER}", *(["phantom"] if study.phantom else [])],
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="image-text-to-text",
                dataset_type=scores.dataset,
                dataset_name=f"{scores.dataset} of the study {study.title}",
                metric_type=name,
                metric_value=value,
            )
            for name, value in known.items()
        ]
        or None,
    )
    revision = f', revision="{commit}"' if (commit := models.commit(base)) else ""
    limits = [LIMITS]
    limits += [PHANTOM] if study.phantom else []
    limits += [STAND_IN] if base.path.startswith(models.STAND_IN) else []
    listed = [f"- {name}: {value:.4f}" for name, value in known.items()] or ["None is defined on so few films."]
    body = f"""\
# {title}

A LoRA adapter for `{base.path}` ({models.version(base) or "version unknown"}), trained with ChexReason \
{__version__} in its study "{study.title}" (`{study.study}`, params {study.hash}), after Berger et al., arXiv:{PAPER}.

## Data

{data}
No patient of theirs is in validation.

## Training

```yaml
{yaml.safe_dump(settings, sort_keys=False).strip()}
```

## Scores while training

{scores.how}

{chr(10).join(listed)}

## Limits

{chr(10).join(limits)}

## Use

```python
from chexreason import config, models

base = config.Model(name="{base.name}", path="{base.path}"{revision}, dtype="{base.dtype}")
model = models.load_trained(base, "path/to/this/folder")
```
"""
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}"))
