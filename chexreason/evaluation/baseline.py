"""The plain baseline: logistic regression on the frozen vision features of the films that SFT trains on.

It sees what the language model sees, and no word.  What it lacks, the language model adds.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from chexreason import models, runtime
from chexreason.config import Study
from chexreason.data import curate
from chexreason.evaluation import compare, metrics, report, rulers
from chexreason.inference.protocol import Protocol

BATCH = 64


def features(study: Study, model: str, images: Sequence[str | Path]) -> np.ndarray:
    """The frozen encoder's view of each film: the mean and the maximum of its last hidden states, side by side.

    Float32 (films, twice the encoder's width).  Raises ModelError for a model without an encoder of its own.
    """
    import torch
    from PIL import Image

    runtime.steady_threads()
    settings = study.models[model]
    base, processor = models.load_base(settings), models.load_processor(settings)
    encoder = models.image_encoder(base)
    if encoder is None:
        raise models.ModelError(f"{settings.path}: has no vision encoder of its own, so there is no plain baseline")
    prompt, seen = Protocol.of(study, study.predict.prompt, study.validation).prompt, []
    for start in range(0, len(images), BATCH):
        films = [Image.open(image) for image in list(images)[start : start + BATCH]]
        inputs = models.inputs(processor, films, prompt).to(base.device)
        with torch.inference_mode():
            hidden = encoder(**_of_encoder(inputs)).last_hidden_state.float()
        hidden = hidden.reshape(len(films), -1, hidden.shape[-1])  # Qwen's encoder strings all films together
        seen.append(torch.cat([hidden.mean(dim=1), hidden.amax(dim=1)], dim=1).cpu().numpy())
    return np.concatenate(seen)


def _of_encoder(inputs) -> dict:
    """The inputs of the vision encoder: Gemma 3's takes pixels, Qwen's also the grid of patches."""
    if "image_grid_thw" in inputs:
        return {"hidden_states": inputs["pixel_values"], "grid_thw": inputs["image_grid_thw"]}
    return {"pixel_values": inputs["pixel_values"]}


def fit(seen: np.ndarray, truth: np.ndarray):
    """Logistic regression on standardized features, with the threshold that has the best F1 in cross-validation.

    `truth` (films,) is 1 or 0.  Returns the fitted classifier; None where fewer than ten films are of one kind.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import TunedThresholdClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if min(truth.sum(), len(truth) - truth.sum()) < 10:
        return None
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    return TunedThresholdClassifierCV(plain, scoring="f1", cv=5, random_state=0).fit(seen, truth.astype(int))


def score(study: Study, model: str) -> pd.DataFrame:
    """The scores of the baseline on the frozen features of `model`, by the labels and, on phantoms, by the truth.

    Trained on the SFT films with their labels.  One row per data set, label set and ruler, with the columns of
    `compare`'s `overall` and macro_auroc, with intervals.  A label with too few films to learn from is never answered,
    and has no AUROC.
    """
    train = curate.dataset(study, "sft")
    names = sorted({name for sets in compare.datasets(study).values() for each in sets for name in study.labels(each)})
    seen = features(study, model, train["image"])
    fitted = {name: fit(seen, train[name].to_numpy()) for name in names}
    labeled, truth, rows = compare.labeled_films(study), rulers.true_films(study), []
    for dataset, label_sets in compare.datasets(study).items():
        films = curate.dataset(study, dataset)
        seen = features(study, model, films["image"])
        given, chances = (pd.DataFrame(index=films["film"], columns=names, dtype=kind) for kind in (float, float))
        for name, classifier in fitted.items():
            given[name] = classifier.predict(seen) if classifier else 0.0
            chances[name] = classifier.predict_proba(seen)[:, 1] if classifier else np.nan
        for label_set in label_sets:
            wanted = list(study.labels(label_set))
            known = labeled[labeled["dataset"] == dataset]
            by = {"labels": known[wanted]}
            if (truth["dataset"] == dataset).any():
                by["truth"] = truth.loc[known.index, wanted].where(known[wanted].notna())
            for ruler, films_by in by.items():
                found = metrics.score(
                    films_by,
                    given.loc[known.index, wanted] == 1,
                    known["patient"],
                    study.compare.n_resamples,
                    compare.generator(study, dataset),
                )
                areas = metrics.score_probabilities(
                    films_by,
                    chances.loc[known.index, wanted],
                    known["patient"],
                    min(study.compare.n_resamples, 1000),
                    compare.generator(study, dataset),
                )
                where = {"model": name_of(study, model), "seed": study.seeds[0], "dataset": dataset}
                where |= {"label_set": label_set, "ruler": ruler, "fail_rate": 0.0, "refusal_rate": 0.0}
                rows.append(where | found.overall | {k: v for k, v in areas.overall.items() if "auroc" in k})
    return pd.DataFrame(rows).assign(params_hash=study.hash, phantom=study.phantom)


def name_of(study: Study, model: str) -> str:
    """The name of the baseline in tables."""
    return f"{study.models[model].name}/logistic regression"


def summary(study: Study, found: pd.DataFrame, overall: pd.DataFrame) -> list[str]:
    """The baseline's macro-F1 beside that of every checkpoint of the first seed, one sentence per test set."""
    lines, ours = [], report.on_shared_labels(found.query("ruler == 'labels'"))
    for row in ours[ours["dataset"].isin(list(study.tests))].itertuples():
        beside = overall.query("dataset == @row.dataset and label_set == @row.label_set and seed == @study.seeds[0]")
        told = ", ".join(f"{other.model} {other.macro_f1:.3f}" for other in beside.itertuples())
        lines.append(
            f"On {row.dataset}, logistic regression has macro-F1 {row.macro_f1:.3f} ({row.macro_f1_low:.3f} to "
            f"{row.macro_f1_high:.3f}) and a mean area under the ROC curve of {row.macro_auroc:.3f}; macro-F1 of the "
            f"checkpoints: {told}."
        )
    return lines
