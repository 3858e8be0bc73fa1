"""The model card of an adapter: its README.md, which peft and the hub read."""

from pathlib import Path
from typing import NamedTuple

from chexreason import __version__, config, models

TEMPLATE = Path(__file__).with_suffix(".md")
PAPER = "2512.23090"
LIMITS = """\
- It is for research on training methods. It is not a medical device, and its answers are not a diagnosis.
- It answers with the fourteen CheXpert labels only, as the labeler of its training films would.
- It was trained on frontal films of one source. The study's comparison measures how it does on others."""
PHANTOM = "- **Phantom**: its training films are drawings. Its answers and scores say nothing about real films."
STAND_IN = "- **Stand-in**: its base is a small model for tests of the method, not the published one."


class Scores(NamedTuple):
    """Scores of a run's weights in its log: the data set, how they were measured, and the values by name."""

    dataset: str
    how: str
    values: dict[str, float]


def text(study: config.Study, model: str, run: str, data: str, settings: dict, scores: Scores) -> str:
    """The model card of one run's adapter, made from `model_card.md`.

    `run` is its name (`sft/free_reasoning, seed 0`), `data` a sentence about its training films, `settings` the values
    of the params file.  An undefined score (NaN) is left out.  The card has no time and no path of the machine, so the
    same study gives the same bytes.
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
    limits = [LIMITS]
    limits += [PHANTOM] if study.phantom else []
    limits += [STAND_IN] if base.path.startswith(models.STAND_IN) else []
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        title=title,
        model=base,
        version=models.version(base) or "version unknown",
        commit=models.commit(base),
        package=__version__,
        study=study,
        paper=PAPER,
        data=data,
        settings=yaml.safe_dump(settings, sort_keys=False).strip(),
        how=scores.how,
        scores=[f"{name}: {value:.4f}" for name, value in known.items()],
        limits="\n".join(limits),
    )
    return str(card)
