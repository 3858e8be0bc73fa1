"""Tables and figures about the curated films: prevalence, composition, examples."""

import hashlib
from collections.abc import Iterable

import numpy as np
import pandas as pd

from chexreason.config import Study
from chexreason.data import curate, sampling


def digest(manifest: pd.DataFrame) -> str:
    """A digest (64 hexadecimal digits) of the films, splits, files and labels of a manifest."""
    told = manifest.sort_values("film")[["film", "split", "sha256", *sampling.LABELS]]
    return hashlib.sha256(told.to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def prevalence(manifest: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The share of films with each label, in the pool (the candidates of the training source) and in every split.

    label, stage ("pool", "sft" with its hold-out, "rl" and the data sets), share (NaN where never stated), n (films).
    """
    pool = curate.candidates(study, study.curate.train).films.assign(split="pool")
    films = pd.concat([pool, manifest.replace({"split": {"sft-holdout": "sft"}})], ignore_index=True)
    settled = sampling.apply_policy(films, study.curate.policy).groupby(films["split"], sort=False)
    shares = settled.mean().rename_axis("stage").melt(ignore_index=False, var_name="label", value_name="share")
    return shares.reset_index()[["label", "stage", "share"]].assign(n=lambda table: table["stage"].map(settled.size()))


def exclusion_counts(excluded: pd.DataFrame) -> str:
    """The number of excluded films for each reason, one line per reason."""
    lines = [f"{reason}: {count:,} films" for reason, count in excluded["reason"].value_counts().items()]
    return "\n".join(lines) or "No film was excluded."


def composition(manifest: pd.DataFrame) -> pd.DataFrame:
    """Films, patients and films of each view, one row per split."""
    grouped = manifest.groupby("split", sort=False)
    views = grouped["view"].value_counts().unstack(fill_value=0)
    return pd.DataFrame({"films": grouped.size(), "patients": grouped["patient"].nunique()}).join(views).reset_index()


def patients_shared(manifest: pd.DataFrame) -> pd.DataFrame:
    """The number of patients that two splits share (splits x splits; the diagonal counts the patients of a split).

    The data sets of `layers` count by source, as each film is in two of them.
    """
    split = sampling.without_pixels(manifest["split"])
    there = pd.crosstab(manifest["patient"], split).gt(0).astype(int)[list(split.unique())]
    return (there.T @ there).rename_axis(index=None, columns=None)


def cooccurrence(films: pd.DataFrame) -> pd.DataFrame:
    """Of the films with the row's label, the share that also have the column's label (14 x 14), from a `dataset`."""
    shows = films[sampling.LABELS].eq(1.0).astype(float)
    return (shows.T @ shows).div(shows.sum(), axis="index")


def clearest_films(films: pd.DataFrame) -> pd.DataFrame:
    """For each label, the film of a `dataset` with the fewest other labels, then the strongest finding: image, box.

    Only phantoms have boxes; `box` is None for other films.
    """
    films = films[~films["credentialed"]]
    drawn = films["boxes"].map(len).gt(0).any()
    seen = films["boxes"] if drawn else films["labels"]
    found = films.assign(count=seen.map(len), seen=seen)[["image", "count", "seen"]].explode("seen").dropna()
    found["box"] = found["seen"] if drawn else None
    found["finding"] = [box.finding for box in found["seen"]] if drawn else found["seen"]
    found["weakness"] = [-box.strength for box in found["seen"]] if drawn else 0.0
    first = found.sort_values(["count", "weakness"], kind="stable").drop_duplicates("finding")
    return first.set_index("finding").reindex(sampling.LABELS).dropna(subset="image")[["image", "box"]]


def gallery(study: Study, splits: Iterable[str], each: int) -> pd.DataFrame:
    """`each` random films of every split, always the same ones: image, caption (split, view, labels).

    Films of credentialed sources are left out.
    """
    films = pd.concat([_some(curate.dataset(study, split), each) for split in splits], ignore_index=True)
    films = films[~films["credentialed"]]
    named = films["labels"].map(lambda names: ", ".join(names) or "no label")
    return films.assign(caption=films["split"] + ", " + films["view"] + ": " + named)[["image", "caption"]]


def summary(manifest: pd.DataFrame, shares: pd.DataFrame) -> str:
    """A summary of the manifest and the `prevalence` record, one sentence per line."""
    patients, films = manifest.groupby("split", sort=False)["patient"].nunique(), manifest["split"].value_counts()
    lines = [f"{split}: {films[split]:,} films of {patients[split]:,} patients." for split in patients.index]
    common = patients_shared(manifest).to_numpy()
    lines.append(f"Patients in more than one split: {common.sum() - common.trace()}.")
    table = shares.pivot(index="label", columns="stage", values="share")
    for stage in ("sft", "rl"):
        rare = table[stage].idxmin()
        lines.append(
            f"Rarest label in {stage}: {rare}, {table.loc[rare, stage]:.1%} (pool: {table.loc[rare, 'pool']:.1%})."
        )
    return "\n".join(lines)


def _some(films: pd.DataFrame, count: int) -> pd.DataFrame:
    return films.iloc[np.argsort(sampling.hash_to_unit(films["film"], "gallery"))[:count]]
