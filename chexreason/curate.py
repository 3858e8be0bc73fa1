"""Which films train and test: patient splits, the greedy sampler, the test sets, and the manifest of it all."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from chexreason import labels, records
from chexreason.labels import CHEXPERT14

LABELS = list(CHEXPERT14)
MANIFEST = "curate/manifest.parquet"
PREVALENCE = "curate/prevalence.parquet"


class CurateError(ValueError):
    """A source cannot give what the params file asks of it; the message names the key and what is there."""


def candidates(study, source: str) -> pd.DataFrame:
    """The films of `source` in the study's views, one row a film.

    film, source (the key in the params file), patient, study, view, the 14 labels as stated (1, 0, -1, NaN), `recipe`
    (how a phantom is drawn), and `never_stated`: the labels this source does not have.  They stay unknown, where other
    silence is settled by the study's policy.  Names of films, studies and patients begin with the source's key.
    """
    from chexreason.sources import phantom

    section = study.sources[source]
    films = phantom.film_table(section.films, section.seed, section.hospital, section.labels, section.pixels)
    channel = phantom.HOSPITALS["hospitals"][section.labels or section.hospital]["labels"]
    never_stated = phantom.HOSPITALS["channels"][channel]["unknown"]
    for name in ("film", "study", "patient"):
        films[name] = source + films[name].str.removeprefix(section.hospital.lower())
    films = films[films["view"].isin(study.curate.views)].reset_index(drop=True)
    return films.assign(source=source, never_stated=[never_stated] * len(films))


def settle(films: pd.DataFrame, policy: str) -> pd.DataFrame:
    """The labels of `films` settled by `policy` (films x 14; 1.0, 0.0, NaN), whatever part of a source `films` is."""
    unknown = pd.DataFrame([[name in never for name in LABELS] for never in films["never_stated"]], films.index, LABELS)
    return labels.settle(films[LABELS].fillna(0.0), policy).mask(unknown)


def unit(names: Iterable[str], salt: str) -> np.ndarray:
    """A number in [0, 1) for each name, the same on every machine: a hash of the salt and the name, nothing else."""
    hashes = (hashlib.blake2b(f"{salt}/{name}".encode(), digest_size=8).digest() for name in names)
    return np.fromiter((int.from_bytes(each, "big") >> 11 for each in hashes), dtype=float) / 2**53


def share_out(patients: pd.Series, shares: dict[str, float], salt: str) -> pd.Series:
    """The share each patient falls into.  It depends on the patient and `salt` only, not on the other rows."""
    names = patients.unique()
    place = np.searchsorted(np.cumsum(list(shares.values())), unit(names, salt), side="right")
    share = np.array(list(shares))[np.minimum(place, len(shares) - 1)]
    return patients.map(dict(zip(names, share, strict=True)))


def greedy(
    present: pd.DataFrame, count: int, floor: float, ceiling: float, penalty: float, order: np.ndarray
) -> pd.DataFrame:
    """Pick `count` films one by one, each time one of the highest score (PROTOCOL: Data; the formula is ours).

    With n_l the films picked so far that show label l, and N = `count`, a film that shows the labels Y scores

        sum over l in Y of  D_l - penalty * A_l
        D_l = max(0, 1 - n_l / ceil(floor * N))                        what l still lacks of its floor
        A_l = n_l / (ceiling * N) if n_l >= ceiling * N, else 0        how abundant l is

    and of equal scores the film lowest in `order` (random numbers, one a film) wins.  `present`: bool, films x labels.
    Films of one label pattern score alike, so a pick weighs patterns, of which there are few, and not films.
    Returns a row a pick, indexed as `present`: `pick` (from 1) and `lacking`, the labels whose deficit it reduced.
    Raises CurateError when there are fewer than `count` films.
    """
    if len(present) < count:
        raise CurateError(f"{count} films are asked for, but these patients have only {len(present)}")
    columns = np.array(present.columns)
    codes = present.to_numpy(bool) @ (1 << np.arange(len(columns)))
    _, first, pattern = np.unique(codes, return_index=True, return_inverse=True)
    shows = present.to_numpy(float)[first]
    queue = np.lexsort((order, pattern))  # the films, pattern after pattern, each pattern in `order`
    following = np.searchsorted(pattern[queue], np.arange(len(shows)))
    end = np.append(following[1:], len(queue))
    need, limit = _need(floor, count), max(ceiling * count, 1.0)
    seen = np.zeros(len(columns))
    picks = []
    for _ in range(count):
        deficit = np.maximum(need - seen, 0) / max(need, 1)
        abundance = np.where(seen >= limit, seen / limit, 0.0)
        score = (shows @ (deficit - penalty * abundance)).round(9)  # equal sums stay equal, whatever their order
        left = np.flatnonzero(following < end)
        best = left[score[left] == score[left].max()]
        chosen = best[np.argmin(order[queue[following[best]]])]
        picks.append((queue[following[chosen]], list(columns[(shows[chosen] > 0) & (deficit > 0)])))
        following[chosen] += 1
        seen += shows[chosen]
    rows, lacking = zip(*picks, strict=True)
    return pd.DataFrame({"pick": range(1, count + 1), "lacking": lacking}, index=present.index[list(rows)])


def sample(films: pd.DataFrame, split: str, count: int, section) -> pd.DataFrame:
    """`count` films by the greedy sampler, every label the source states in at least `section.floor` of them.

    `section` is `study.curate`.  Films without any positive label teach nothing and are passed over.  Adds `why`.
    Raises CurateError, naming the label, how many films show it and how many are needed.
    """
    present = settle(films, section.policy) == 1.0
    present = present.loc[present.any(axis=1), [name for name in LABELS if name not in films["never_stated"].iloc[0]]]
    need = _need(section.floor, count)
    _refuse_below(present.sum(), need, split, "its patients have")
    order = unit(films.loc[present.index, "film"], f"{section.seed}/{split}")
    try:
        picks = greedy(present, count, section.floor, section.ceiling, section.penalty, order)
    except CurateError as error:
        raise CurateError(f"curate.{split}: {error}; raise sources.{section.train}.films") from None
    _refuse_below(present.loc[picks.index].sum(), need, split, "the sampler, with this ceiling and penalty, took")
    lacking = picks["lacking"].map(lambda names: f"deficit of {', '.join(names)}" if names else "no deficit left")
    why = split + ": greedy pick " + picks["pick"].astype(str) + ", " + lacking
    return films.loc[picks.index].assign(split=split, why=why)


def whole_patients(films: pd.DataFrame, count: int, salt: str) -> pd.DataFrame:
    """At most `count` films, all films of each patient taken; patients in random order, skipping who no longer fits."""
    sizes = films.groupby("patient").size()
    left, chosen = count, []
    for patient, size in sizes.iloc[np.argsort(unit(sizes.index, salt))].items():
        if size <= left:
            chosen.append(patient)
            left -= size
    return films[films["patient"].isin(chosen)]


def training(study) -> pd.DataFrame:
    """The SFT, hold-out, RL and validation films of the training source; no patient is in two of the three shares."""
    section = study.curate
    pool = candidates(study, section.train)
    share = share_out(pool["patient"], section.shares.model_dump(), f"{section.seed}/share")
    sft = sample(pool[share == "sft"], "sft", section.sft, section)
    held = sft.index.isin(whole_patients(sft, round(section.holdout * section.sft), f"{section.seed}/holdout").index)
    sft.loc[held, "split"] = "sft-holdout"
    sft.loc[held, "why"] += "; held out by patient"
    rl = sample(pool[share == "rl"], "rl", section.rl, section)
    return pd.concat([sft, rl, _validation(pool[share == "validation"], section)])


def tests(study) -> pd.DataFrame:
    """The films of every test set; test sets of one source share neither films nor patients.

    Raises CurateError when a source has too few films, or is the one that trains.
    """
    drawn = []
    for source in dict.fromkeys(test.source for test in study.tests.values()):
        films = candidates(study, source)
        for name, test in study.tests.items():
            if test.source == source:
                drawn.append(_test(films, name, test, study))
                films = films[~films["patient"].isin(drawn[-1]["patient"])]
    return pd.concat(drawn)


def choose(study) -> pd.DataFrame:
    """The manifest: one row a chosen film, with its split, why it is there, where its image lies, and its boxes (JSON).

    Columns: film, source, patient, study, view, split, why, path (relative to the study's folder), the 14 labels as
    stated, never_stated, boxes, recipe.  `write_films` draws the images and adds their hashes.
    """
    from chexreason.sources import phantom

    chosen = pd.concat([training(study), tests(study)], ignore_index=True)
    path = "curate/films/" + chosen["film"] + ".png"
    boxes = [json.dumps([box._asdict() for box in phantom.boxes(recipe)]) for recipe in chosen["recipe"]]
    columns = ["film", "source", "patient", "study", "view", "split", "why", "path", *LABELS, "never_stated", "boxes"]
    return chosen.assign(path=path, boxes=boxes)[[*columns, "recipe"]]


def write_films(manifest: pd.DataFrame, study) -> pd.DataFrame:
    """Draw every film of the manifest as an 8-bit PNG and add `sha256`.

    A file that already shows the same recipe, drawn by the same code, is kept; so an interrupted run goes on where it
    was cut off.
    """
    from tqdm.std import tqdm

    from chexreason.sources import drawing

    code = records.sha256(drawing.__file__)
    sizes = [study.sources[source].size for source in manifest["source"]]
    films = zip(manifest["path"], manifest["recipe"], sizes, strict=True)
    films = tqdm(films, total=len(manifest), desc="films", mininterval=5, unit="film")
    return manifest.assign(sha256=[_write_film(study.folder / path, *film, code) for path, *film in films])


def prevalence(manifest: pd.DataFrame, study) -> pd.DataFrame:
    """The share of films that show each label, in the pool (the training source's candidates) and in every split.

    label, stage ("pool", "sft" with its hold-out, "rl" and the data sets), share (NaN where never stated), n (films).
    """
    pool = candidates(study, study.curate.train).assign(split="pool")
    films = pd.concat([pool, manifest.replace({"split": {"sft-holdout": "sft"}})], ignore_index=True)
    settled = settle(films, study.curate.policy).groupby(films["split"], sort=False)
    shares = settled.mean().rename_axis("stage").melt(ignore_index=False, var_name="label", value_name="share")
    return shares.reset_index()[["label", "stage", "share"]].assign(n=lambda table: table["stage"].map(settled.size()))


def patients_shared(manifest: pd.DataFrame) -> pd.DataFrame:
    """How many patients each two splits have in common (splits x splits; the diagonal counts a split's own)."""
    there = pd.crosstab(manifest["patient"], manifest["split"]).gt(0).astype(int)[list(manifest["split"].unique())]
    return (there.T @ there).rename_axis(index=None, columns=None)


def dataset(study, split: str) -> pd.DataFrame:
    """The films of one split, ready to train on or to ask: the manifest's rows, labels settled by the study's policy.

    The 14 labels are 1.0, 0.0, or NaN where the source has no such label; `labels` is the list of the positive names,
    `image` the absolute path (str), `boxes` a list of `Box`.  Reads the manifest record.
    Raises CurateError for a split that is not in it.
    """
    from chexreason.sources.phantom import Box

    manifest = records.load(study.folder / MANIFEST)
    films = manifest[manifest["split"] == split].reset_index(drop=True)
    if films.empty:
        raise CurateError(f"no split {split!r} in {MANIFEST}; there are {', '.join(manifest['split'].unique())}")
    settled = settle(films, study.curate.policy)
    return films.assign(
        **settled,
        labels=[list(labels.positives(row)) for _, row in settled.iterrows()],
        image=[str(study.folder / path) for path in films["path"]],
        boxes=[[Box(**box) for box in json.loads(text)] for text in films["boxes"]],
    )


def cooccurrence(films: pd.DataFrame) -> pd.DataFrame:
    """Of the films that show the row's label, the share that show the column's (14 x 14), from a `dataset`."""
    shows = films[LABELS].eq(1.0).astype(float)
    return (shows.T @ shows).div(shows.sum(), axis="index")


def clearest(films: pd.DataFrame) -> pd.DataFrame:
    """For each finding the film of a `dataset` that shows it with the least else, then most strongly: image, box."""
    found = films[["image", "boxes"]].assign(count=films["boxes"].map(len)).explode("boxes").dropna()
    found = found.assign(
        box=found["boxes"],
        finding=[box.finding for box in found["boxes"]],
        weakness=[-box.strength for box in found["boxes"]],
    )
    first = found.sort_values(["count", "weakness"], kind="stable").drop_duplicates("finding")
    return first.set_index("finding").reindex(LABELS).dropna()[["image", "box"]]


def gallery(study, splits: Iterable[str], each: int) -> pd.DataFrame:
    """`each` films of every split, drawn at random but always the same ones: image, caption (split, view, labels)."""
    films = pd.concat([_some(dataset(study, split), each) for split in splits], ignore_index=True)
    named = films["labels"].map(lambda names: ", ".join(names) or "no label")
    return films.assign(caption=films["split"] + ", " + films["view"] + ": " + named)[["image", "caption"]]


def summary(manifest: pd.DataFrame, shares: pd.DataFrame) -> str:
    """What was curated, a sentence a line, from the manifest and the `prevalence` record."""
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
    return films.iloc[np.argsort(unit(films["film"], "gallery"))[:count]]


def _need(floor: float, count: int) -> int:
    """ceil(floor * count), not led astray by 0.07 * 100 = 7.000000000000001."""
    return int(np.ceil(round(floor * count, 9)))


def _refuse_below(found: pd.Series, need: int, split: str, who: str) -> None:
    scarce = found[found < need]
    if len(scarce):
        told = "; ".join(f"{name}: {who} {number}, {need} are needed" for name, number in scarce.items())
        raise CurateError(f"curate.floor cannot be met in {split}: {told} (more films in the source, or a lower floor)")


def _validation(films: pd.DataFrame, section) -> pd.DataFrame:
    if len(films) < section.validation:
        raise CurateError(
            f"curate.validation: {section.validation} films are asked for, but the patients of this share have only "
            f"{len(films)}; raise sources.{section.train}.films or curate.shares.validation"
        )
    split = f"{section.train}-validation"
    order = np.argsort(unit(films["film"], f"{section.seed}/{split}"))[: section.validation]
    return films.iloc[order].assign(split=split, why="validation: random film of the validation share")


def _test(films: pd.DataFrame, name: str, test, study) -> pd.DataFrame:
    """Whole patients of `films`, and the first films of one more patient where no patient fits the rest."""
    if test.source == study.curate.train:
        raise CurateError(
            f"tests.{name}.source: {test.source!r} is the source that trains; a test needs one of its own"
        )
    salt = f"{study.curate.seed}/{name}"
    drawn = whole_patients(films, test.films, salt)
    others = films[~films["patient"].isin(drawn["patient"])]
    rest = test.films - len(drawn)
    if len(others) < rest:
        raise CurateError(
            f"tests.{name}.films: {test.films} films are asked for, but source {test.source} has only {len(films)} "
            f"left of patients in no other test; raise sources.{test.source}.films"
        )
    drawn = pd.concat([drawn, others[others["patient"] == others["patient"].min()].iloc[:rest]]) if rest else drawn
    return drawn.assign(split=name, why=f"{name}: patient drawn at random from source {test.source}")


def _write_film(path: Path, recipe: str, size: int, code: str) -> str:
    """Draw a film unless its file already shows it; return the file's SHA-256.  `code` is the drawing code's hash."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from chexreason.sources import phantom

    key = hashlib.sha256(f"{code}/{size}/{recipe}".encode()).hexdigest()
    if _key(path) != key:
        about = PngInfo()
        about.add_text("drawn", key)
        about.add_text("note", "phantom: drawn, not taken of a patient")
        with records.replacing(path) as temporary:
            Image.fromarray(phantom.draw(recipe, size).image).save(temporary, format="PNG", pnginfo=about)
    return records.sha256(path)


def _key(path: Path) -> str | None:
    """The key of the drawing in a PNG this module wrote, or None.  Files are replaced whole: there is no half one."""
    from PIL import Image

    if not path.exists():
        return None
    with Image.open(path) as image:
        return image.info.get("drawn")
