"""Which films train and test: patient splits, the greedy sampler, the test sets, and the manifest of it all."""

import json
import os
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from chexreason import records
from chexreason.config import Curate, Folder, Study, Test
from chexreason.data import convert, film_table, sampling
from chexreason.data.phantom import hospitals
from chexreason.labels import positives

MANIFEST = "curate/manifest.parquet"
EXCLUDED = "curate/excluded.parquet"
PREVALENCE = "curate/prevalence.parquet"
RELABELED = "curate/relabeled.parquet"
COLUMNS = ["film", "source", "patient", "study", "view", "split", "why", "path", *sampling.LABELS, "never_stated"]


class Candidates(NamedTuple):
    """The films of a source that can be used, and the excluded ones: film, source, path, reason."""

    films: pd.DataFrame
    excluded: pd.DataFrame


def candidates(study: Study, source: str) -> Candidates:
    """The films of `source` with its views and splits; those without any label are excluded.

    One row per film: film, source (the key in the params file), patient, study, view, original (path in the source's
    folder; "" for a phantom), the 14 labels as stated (1, 0, -1, NaN), `never_stated` (labels that this source does not
    have; they stay unknown under every uncertainty policy), and `recipe` (how a phantom is drawn).  The names of films,
    studies and patients begin with the name of the data set or the key of the source.
    """
    section, read = study.sources[source], source_films(study, source)
    films = read.table
    silent = films[sampling.LABELS].isna().all(axis=1)
    excluded = [read.excluded, films.loc[silent, ["film", "path"]].assign(reason="no label is stated")]
    films = films[~silent]
    if section.partial:
        films = films[film_table.present(films, section.folder)]
    films = films.rename(columns={"path": "original"}).drop(columns=["split", "native"], errors="ignore")
    films = films.reset_index(drop=True).assign(source=source, never_stated=[list(read.unknown)] * len(films))
    return Candidates(films, pd.concat(excluded, ignore_index=True).assign(source=source))


def source_films(study: Study, source: str) -> film_table.Films:
    """The films of `source` with the views and splits that the study uses.

    Raises CurateError for a split that the source does not have.
    """
    section, read = study.sources[source], _read(study, source)
    films = read.table[read.table["view"].isin(section.views or study.curate.views)]
    if section.splits:
        _refuse_unknown(section, source, read.table)
        films = films[films["split"].isin(section.splits)]
    return read._replace(table=films)


def _refuse_unknown(section: Folder, source: str, table: pd.DataFrame) -> None:
    """Raise CurateError if the table has none of the source's splits or, for own films, not all of them."""
    there = list(table["split"].unique())
    named = section.splits or []
    missing = [split for split in named if split not in there]
    if missing and (section.kind == "own" or len(missing) == len(named)):
        known = ", ".join(map(repr, filter(None, there))) or "none"
        raise sampling.CurateError(
            f"sources.{source}.splits: no film is in split {missing[0]!r}; the splits are {known}"
        )


def _read(study: Study, source: str, key: str | None = None) -> film_table.Films:
    """All films of the folder or the phantom hospital of `source`; names begin with the data set's name or the key.

    With the `key` of another source, own films and phantoms have the names that they have in that source.
    """
    section, key = study.sources[source], key or source
    if section.kind == "phantom":
        return hospitals.read(section, key)
    films = _read_folder(section, study.file.parent)
    owner = key if section.kind == "own" else section.kind
    names = {name: owner + "-" + films.table[name] for name in ("film", "study")}
    names["patient"] = (_hospital(study, source) if section.kind == "own" else owner) + "-" + films.table["patient"]
    return films._replace(
        table=films.table.assign(**names), excluded=films.excluded.assign(film=owner + "-" + films.excluded["film"])
    )


def _read_folder(section: Folder, beside: Path) -> film_table.Films:
    """The films of a source on disk, read by `chexreason.data.<kind>.read`.

    Its arguments may be `root` (the folder), any key of the source's section, the whole `section`, and `beside` (the
    folder of the params file).
    """
    read = import_module(f"chexreason.data.{section.kind}").read
    given = {**dict(section), "root": section.folder, "section": section, "beside": beside}
    return read(**{name: given[name] for name in signature(read).parameters})


def _hospital(study: Study, source: str) -> str:
    """The prefix of patients' names of `source`, which has own films.

    Sources in the same folder, or in a folder above it, have the same patients.  The prefix is the data set's name if
    one of them is a data set, or else the key of the first own source there.
    """
    sections = {name: section for name, section in study.sources.items() if isinstance(section, Folder)}
    places = {name: _place(sections[name].root) for name in _sources(study) if name in sections}
    around = [name for name in places if _place(sections[source].root).is_relative_to(places[name])]
    first = min(around, key=lambda name: (sections[name].kind == "own", len(places[name].parts)), default=source)
    return first if sections[first].kind == "own" else sections[first].kind


def _place(root: str) -> Path:
    """Where a folder of the params file is, whether or not there is one on this machine."""
    return Path(os.path.expandvars(root)).expanduser().resolve()


def training_splits(study: Study, pool: pd.DataFrame) -> pd.DataFrame:
    """The SFT, hold-out, RL and validation films, from the `pool` of films of the training source.

    No patient is in two of the three shares.
    """
    section = study.curate
    share = sampling.assign_shares(pool["patient"], section.shares.model_dump(), f"{section.seed}/share")
    sft = sampling.sample(pool[share == "sft"], "sft", section.sft, section)
    held = sft.index.isin(
        sampling.whole_patients(sft, round(section.holdout * section.sft), f"{section.seed}/holdout").index
    )
    sft.loc[held, "split"] = "sft-holdout"
    sft.loc[held, "why"] += "; held out by patient"
    rl = sampling.sample(pool[share == "rl"], "rl", section.rl, section)
    return pd.concat([sft, rl, _validation(pool[share == "validation"], section)])


def _other_rl_films(study: Study, pools: dict[str, pd.DataFrame]) -> list[pd.DataFrame]:
    """The GRPO films of the sources other than the training source."""
    return [
        sampling.sample(pools[source], study.rl_split(source), study.curate.rl, study.curate)
        for source in study.rl_sources[1:]
    ]


def tests(study: Study, pools: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The films of every test set, from the films of each source; two sets of one source have no patient in common.

    Raises CurateError if a source has too few films, or is used for training.
    """
    drawn = []
    for source in dict.fromkeys(test.source for test in study.tests.values()):
        films = pools[source]
        for name, test in study.tests.items():
            if test.source == source:
                drawn.append(_test(films, name, test, study))
                films = films[~films["patient"].isin(drawn[-1]["patient"])]
    return pd.concat(drawn)


def crossed(study: Study, pools: dict[str, pd.DataFrame], taken: pd.Series) -> pd.DataFrame:
    """The films of `study.crossed`, of patients that are not among `taken`: each film once with each hospital's pixels.

    The name of a film ends in the name of the pixels' hospital; its patient is the same in both.
    """
    drawn = [pd.DataFrame()]
    for name, (source, pixels) in study.crossed.items():
        test = Test(source=source, films=study.crossing.films, label_sets=[study.crossing.label_set])
        films = _test(pools[source][~pools[source]["patient"].isin(taken)], source, test, study)
        recipes = [hospitals.with_pixels(recipe, pixels) for recipe in films["recipe"]]
        why = f"layers: patient drawn at random from source {source}, with the pixels of hospital {pixels}"
        drawn.append(films.assign(film=films["film"] + f"@{pixels}", recipe=recipes, split=name, why=why))
    return pd.concat(drawn)


def choose(study: Study, pools: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The chosen films with their split and the reason, one row per film, from the films of each source.

    Columns: film, source, patient, study, view, split, why, path (of its image, relative to the study's folder), the 14
    labels as stated, never_stated, boxes (JSON), original, recipe.  With `curate.frozen`, the films of that manifest.
    Raises CurateError if the sources have too few films, or a patient would be in two splits.
    """
    if study.curate.frozen:
        chosen = _frozen_films(study, pd.concat(pools.values(), ignore_index=True))
    else:
        trained = [training_splits(study, pools[study.curate.train]), *_other_rl_films(study, pools)]
        tested = tests(study, pools)
        chosen = pd.concat([*trained, tested, crossed(study, pools, tested["patient"])], ignore_index=True)
    _refuse_shared(chosen, study)
    chosen["path"] = "curate/films/" + chosen["film"].map(convert.file_name)
    chosen["recipe"] = chosen["recipe"].fillna("") if "recipe" in chosen else ""
    chosen["boxes"] = [json.dumps(_boxes(recipe)) for recipe in chosen["recipe"]]
    return chosen[[*COLUMNS, "boxes", "original", "recipe"]]


def manifest(study: Study) -> Candidates:
    """Choose the study's films and make their images; returns the manifest and the excluded films.

    The manifest has the columns of `choose` and `sha256`, of the film's file (for a phantom, of its pixels).  If a file
    is missing, unreadable or not a frontal chest film, the film is excluded and the films are chosen again without it.
    Problems in the header of a film that is used are among the excluded rows, as "used all the same: ...".
    Raises CurateError if more than `curate.bad_share` of the films cannot be used, or any film of a frozen manifest.
    """
    study.claim()
    offers = {source: candidates(study, source) for source in _sources(study)}
    pools = {source: offer.films for source, offer in offers.items()}
    looked = pd.DataFrame(columns=["film", "source", "path", "sha256", "fault", "notes"], dtype="str")
    while True:
        chosen = choose(study, pools)
        made = convert.images(chosen[~chosen["film"].isin(looked["film"])], study)
        looked = pd.concat([looked, made.assign(path=made["original"])[list(looked.columns)]], ignore_index=True)
        bad = looked.loc[looked["fault"] != "", ["film", "source", "path", "fault"]].rename(columns={"fault": "reason"})
        _refuse_bad(bad, len(looked), study)
        if not chosen["film"].isin(bad["film"]).any():
            break
        pools = {source: films[~films["film"].isin(bad["film"])] for source, films in pools.items()}
    chosen["sha256"] = chosen["film"].map(looked.set_index("film")["sha256"])
    _refuse_other(chosen, study)
    noted = looked[looked["film"].isin(chosen["film"]) & (looked["notes"] != "")]
    noted = noted.assign(reason="used all the same: " + noted["notes"])[list(bad.columns)]
    return Candidates(
        chosen, pd.concat([*(offer.excluded for offer in offers.values()), bad, noted], ignore_index=True)
    )


def relabeled(study: Study, manifest: pd.DataFrame) -> pd.DataFrame:
    """Films of GRPO runs with labels of another source: one row per film and source of labels.

    Columns: film, labels (the source of the labels), the 14 labels as stated, never_stated.  Raises CurateError for a
    film that the other source does not have.
    """
    tables = [pd.DataFrame(columns=["film", "labels", *sampling.LABELS, "never_stated"])]
    for source, other in study.relabelings:
        films = manifest.loc[manifest["split"] == study.rl_split(source), ["film"]]
        read = _read(study, other, source)
        found = films.merge(read.table[["film", *sampling.LABELS]], on="film", validate="one_to_one")
        if missing := sorted(set(films["film"]) - set(found["film"])):
            raise sampling.CurateError(
                f"grpo.runs: labels: {other} does not describe {len(missing)} of the {len(films)} films of {source} "
                f"that are trained on, the first is {missing[0]}"
            )
        tables.append(found.assign(labels=other, never_stated=[list(read.unknown)] * len(found)))
    table = pd.concat(tables, ignore_index=True)
    return table.astype(dict.fromkeys(["film", "labels"], "str") | dict.fromkeys(sampling.LABELS, float))


def _with_labels(films: pd.DataFrame, study: Study, labels: str) -> pd.DataFrame:
    """The films with the labels of the source `labels` instead of their own."""
    table = records.load(study.folder / RELABELED)
    table = table[table["labels"] == labels].drop(columns="labels")
    columns = [*sampling.LABELS, "never_stated"]
    return films.drop(columns=columns).merge(table, on="film", validate="one_to_one")


def dataset(study: Study, split: str, labels: str | None = None) -> pd.DataFrame:
    """The films of one split for training or prediction, with the study's uncertainty policy applied.

    With `labels`, they have the labels of that source (`relabeled`).
    The columns are those of the manifest.  The 14 labels are 1.0, 0.0, or NaN if the source does not have the label;
    `labels` lists the positive ones, `image` is the absolute path (str), `boxes` a list of `Box`, and `credentialed`
    whether the film must not be shown.
    Raises CurateError for a split that is not in the manifest.
    """
    from chexreason.data.phantom.hospitals import Box

    manifest = records.load(study.folder / MANIFEST)
    films = manifest[manifest["split"] == split].reset_index(drop=True)
    if films.empty:
        raise sampling.CurateError(
            f"no split {split!r} in {MANIFEST}; there are {', '.join(manifest['split'].unique())}"
        )
    films = _with_labels(films, study, labels) if labels else films
    settled = sampling.apply_policy(films, study.curate.policy)
    return films.assign(
        **settled,
        labels=[list(positives(row)) for _, row in settled.iterrows()],
        image=[str(study.folder / path) for path in films["path"]],
        credentialed=[study.sources[source].credentialed for source in films["source"]],
        boxes=[[Box(**box) for box in json.loads(text)] for text in films["boxes"]],
    )


def _validation(films: pd.DataFrame, section: Curate) -> pd.DataFrame:
    if len(films) < section.validation:
        raise sampling.CurateError(
            f"curate.validation: {section.validation} films are asked for, but the patients of this share have only "
            f"{len(films)}; raise sources.{section.train}.films or curate.shares.validation"
        )
    split = f"{section.train}-validation"
    order = np.argsort(sampling.hash_to_unit(films["film"], f"{section.seed}/{split}"))[: section.validation]
    return films.iloc[order].assign(split=split, why="validation: random film of the validation share")


def _test(films: pd.DataFrame, name: str, test: Test, study: Study) -> pd.DataFrame:
    """Random films, or all films of random patients (and some films of one more patient to reach the number)."""
    if test.source in study.rl_sources:
        raise sampling.CurateError(
            f"tests.{name}.source: {test.source!r} is used for training; a test set needs another source"
        )
    if len(films) < test.films:
        raise _too_few(name, test, len(films))
    salt = f"{study.curate.seed}/{name}"
    if test.draw == "films":
        drawn = films.iloc[np.argsort(sampling.hash_to_unit(films["film"], salt))[: test.films]]
        return drawn.assign(split=name, why=f"{name}: film drawn at random from source {test.source}")
    drawn = sampling.whole_patients(films, test.films, salt)
    others = films[~films["patient"].isin(drawn["patient"])]
    rest = test.films - len(drawn)
    drawn = pd.concat([drawn, others[others["patient"] == others["patient"].min()].iloc[:rest]]) if rest else drawn
    return drawn.assign(split=name, why=f"{name}: patient drawn at random from source {test.source}")


def _too_few(name: str, test: Test, there: int) -> sampling.CurateError:
    return sampling.CurateError(
        f"tests.{name}.films: {test.films} films are asked for, but source {test.source} has only {there} left of "
        f"patients in no other test; raise sources.{test.source}.films, or ask for fewer"
    )


def _boxes(recipe: str) -> list[dict]:
    """The boxes of a phantom's findings; none for other films."""
    return [box._asdict() for box in hospitals.boxes(recipe)] if recipe else []


def _sources(study: Study) -> list[str]:
    """The sources of this study, the training source first."""
    crossed = (source for source, _ in study.crossed.values())
    return list(dict.fromkeys([*study.rl_sources, *(test.source for test in study.tests.values()), *crossed]))


def _refuse_shared(chosen: pd.DataFrame, study: Study) -> None:
    """Raise CurateError for a patient in two splits, such as a patient of two sources."""
    places = chosen[["patient"]].assign(split=sampling.without_pixels(chosen["split"])).drop_duplicates()
    plain = places["patient"].str.replace("mimic-p", "mimic-", regex=False)  # a folder p10000032, a subject 10000032
    places["alike"] = film_table.spelling_key(plain)
    shared = places[places.duplicated("alike", keep=False)].sort_values("alike", kind="stable")
    if len(shared):
        (patient, split, _), (_, other, _) = shared.iloc[:2].to_numpy()
        raise sampling.CurateError(
            f"patient {patient} would be in {split} and in {other}; give these sources other splits"
        )


def _refuse_bad(bad: pd.DataFrame, looked: int, study: Study) -> None:
    if len(bad) > study.curate.bad_share * looked:
        told = "; ".join(f"{film.film}: {film.reason}" for film in bad.head(3).itertuples())
        raise sampling.CurateError(
            f"{len(bad)} of the {looked} films looked at cannot be used, more than curate.bad_share "
            f"({study.curate.bad_share:.1%}) allows: {told}{' …' if len(bad) > 3 else ''}"
        )


def _frozen(study: Study) -> pd.DataFrame:
    """The manifest named by `curate.frozen`; raises CurateError if the record is not a manifest."""
    manifest = records.load(study.file.parent / str(study.curate.frozen))
    if missing := {"film", "split", "why", "sha256", *sampling.LABELS} - set(manifest):
        raise sampling.CurateError(
            f"curate.frozen: {study.curate.frozen} is not a manifest: it has no column {', '.join(sorted(missing))}; "
            f"give the {MANIFEST} of an earlier study"
        )
    return manifest


def _frozen_films(study: Study, films: pd.DataFrame) -> pd.DataFrame:
    """The films of a frozen manifest, with the labels they have in the sources on this machine."""
    frozen = _frozen(study)[["film", "split", "why"]]
    missing = frozen.loc[~frozen["film"].isin(films["film"]), "film"]
    if len(missing):
        raise sampling.CurateError(
            f"curate.frozen: {study.curate.frozen}: {len(missing)} of its {len(frozen)} films are not usable here, "
            f"the first is {missing.iloc[0]}"
        )
    return frozen.merge(films, on="film", validate="one_to_one")


def _refuse_other(chosen: pd.DataFrame, study: Study) -> None:
    """Raise CurateError if a film of a frozen manifest has another file or other labels on this machine."""
    if study.curate.frozen:
        columns = ["sha256", *sampling.LABELS]
        frozen, found = (table.set_index("film")[columns] for table in (_frozen(study), chosen))
        other = (frozen.loc[found.index].fillna(9) != found.fillna(9)).any(axis=1)
        if other.any():
            raise sampling.CurateError(
                f"curate.frozen: {study.curate.frozen}: {other.sum()} of its films have another file or other labels "
                f"here, the first is {other.idxmax()}"
            )
