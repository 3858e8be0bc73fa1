"""Which films train and test: patient splits, the greedy sampler, the test sets, and the manifest of it all."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from chexreason import labels, prepare, records, sources
from chexreason.labels import CHEXPERT14

LABELS = list(CHEXPERT14)
MANIFEST = "curate/manifest.parquet"
ASIDE = "curate/aside.parquet"
PREVALENCE = "curate/prevalence.parquet"
COLUMNS = ["film", "source", "patient", "study", "view", "split", "why", "path", *LABELS, "never_stated"]


class CurateError(ValueError):
    """A source cannot give what the params file asks of it; the message names the key and what is there."""


class Candidates(NamedTuple):
    """The films a source offers, and those it has but that cannot be used: film, source, path, reason."""

    films: pd.DataFrame
    aside: pd.DataFrame


def candidates(study, source: str) -> Candidates:
    """The films of `source` in its views and splits that have any label; the others of these views are set aside.

    One row a film: film, source (the key in the params file), patient, study, view, original (path in the source's
    folder; "" for a phantom), the 14 labels as stated (1, 0, -1, NaN), `never_stated` (the labels this source has no
    word for: they stay unknown, where other silence is settled by the study's policy), and `recipe` (how a phantom is
    drawn).  Names of films, studies and patients begin with the data set's name, or else the source's key.
    """
    section, read = study.sources[source], offered(study, source)
    films = read.table
    silent = films[LABELS].isna().all(axis=1)
    aside = [read.aside, films.loc[silent, ["film", "path"]].assign(reason="no label is stated")]
    films = films[~silent]
    if section.partial:
        films = films[sources.present(films, section.folder)]
    films = films.rename(columns={"path": "original"}).drop(columns=["split", "native"], errors="ignore")
    films = films.reset_index(drop=True).assign(source=source, never_stated=[list(read.unknown)] * len(films))
    return Candidates(films, pd.concat(aside, ignore_index=True).assign(source=source))


def offered(study, source: str) -> sources.Films:
    """What `source` holds, its table with the films of the views and splits that the study names only.

    Raises CurateError for a split that the source does not have.
    """
    section, read = study.sources[source], _read(study, source)
    films = read.table[read.table["view"].isin(section.views or study.curate.views)]
    if section.splits:
        _refuse_unknown(section, source, read.table)
        films = films[films["split"].isin(section.splits)]
    return read._replace(table=films)


def _refuse_unknown(section, source: str, table: pd.DataFrame) -> None:
    """Raises CurateError for a split of one's own that the table does not have, or when it has none of those named."""
    there = list(table["split"].unique())
    missing = [split for split in section.splits if split not in there]
    if missing and (section.kind == "own" or len(missing) == len(section.splits)):
        known = ", ".join(map(repr, filter(None, there))) or "none"
        raise CurateError(f"sources.{source}.splits: no film is in split {missing[0]!r}; the splits are {known}")


def _read(study, source: str) -> sources.Films:
    """What the folder or the phantom hospital of `source` holds, its names beginning with the data set's or the key."""
    from chexreason.sources import chexpert, mimic, nih, own, phantom

    section = study.sources[source]
    match section.kind:
        case "phantom":
            return phantom.read(section, source)
        case "mimic":
            films = mimic.read(section.folder, section.labels)
        case "chexpert":
            films = chexpert.read(section.folder)
        case "nih":
            films = nih.read(section.folder, section.fibrosis)
        case "own":
            films = own.read(section.folder, section, study.file.parent)
    owner = source if section.kind == "own" else section.kind
    names = {name: owner + "-" + films.table[name] for name in ("film", "study")}
    names["patient"] = (_hospital(study, source) if section.kind == "own" else owner) + "-" + films.table["patient"]
    return films._replace(
        table=films.table.assign(**names), aside=films.aside.assign(film=owner + "-" + films.aside["film"])
    )


def _hospital(study, source: str) -> str:
    """What the names of the patients of `source`, which is one's own, begin with.

    Sources in one folder, or in a folder around it, have the same patients: a data set where one of them is, or else
    the study's first source of its own there.
    """
    sections = study.sources
    places = {name: _place(sections[name].root) for name in _sources(study) if sections[name].kind != "phantom"}
    around = [name for name in places if _place(sections[source].root).is_relative_to(places[name])]
    first = min(around, key=lambda name: (sections[name].kind == "own", len(places[name].parts)), default=source)
    return first if sections[first].kind == "own" else sections[first].kind


def _place(root: str) -> Path:
    """Where a folder of the params file is, whether or not there is one on this machine."""
    return Path(os.path.expandvars(root)).expanduser().resolve()


def settle(films: pd.DataFrame, policy: str) -> pd.DataFrame:
    """The labels of `films` settled by `policy` (films x 14; 1.0, 0.0, NaN), whatever part of a source `films` is."""
    kind, kinds = pd.factorize(films["never_stated"].map(tuple))
    unknown = np.array([[name in never for name in LABELS] for never in kinds], bool).reshape(-1, len(LABELS))[kind]
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


def training(study, pool: pd.DataFrame) -> pd.DataFrame:
    """The SFT, hold-out, RL and validation films, from the `pool` of films of the training source.

    No patient is in two of the three shares.
    """
    section = study.curate
    share = share_out(pool["patient"], section.shares.model_dump(), f"{section.seed}/share")
    sft = sample(pool[share == "sft"], "sft", section.sft, section)
    held = sft.index.isin(whole_patients(sft, round(section.holdout * section.sft), f"{section.seed}/holdout").index)
    sft.loc[held, "split"] = "sft-holdout"
    sft.loc[held, "why"] += "; held out by patient"
    rl = sample(pool[share == "rl"], "rl", section.rl, section)
    return pd.concat([sft, rl, _validation(pool[share == "validation"], section)])


def tests(study, pools: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The films of every test set, from the films of each source; sets of one source share neither films nor patients.

    Raises CurateError when a source has too few films, or is the one that trains.
    """
    drawn = []
    for source in dict.fromkeys(test.source for test in study.tests.values()):
        films = pools[source]
        for name, test in study.tests.items():
            if test.source == source:
                drawn.append(_test(films, name, test, study))
                films = films[~films["patient"].isin(drawn[-1]["patient"])]
    return pd.concat(drawn)


def choose(study, pools: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a chosen film, with its split and why it is there, from the films of each source.

    Columns: film, source, patient, study, view, split, why, path (of its image, relative to the study's folder), the 14
    labels as stated, never_stated, boxes (JSON), original, recipe.  With `curate.frozen`, the films of that manifest.
    Raises CurateError where the sources cannot give what is asked, or a patient would be in two splits.
    """
    if study.curate.frozen:
        chosen = _thawed(study, pd.concat(pools.values(), ignore_index=True))
    else:
        chosen = pd.concat([training(study, pools[study.curate.train]), tests(study, pools)], ignore_index=True)
    _refuse_shared(chosen, study)
    chosen["path"] = "curate/films/" + chosen["film"].map(prepare.file_name)
    chosen["recipe"] = chosen["recipe"].fillna("") if "recipe" in chosen else ""
    chosen["boxes"] = [json.dumps(_boxes(recipe)) for recipe in chosen["recipe"]]
    return chosen[[*COLUMNS, "boxes", "original", "recipe"]]


def manifest(study) -> Candidates:
    """Choose the study's films and make their images; what cannot be used is replaced, and set aside with its reason.

    The manifest is that of `choose` with `sha256`, of the file a film came from (of a phantom: of its image).  A film
    whose file is missing, unreadable or no frontal chest film is left out, and the choice made again without it.
    What could not be read of the header of a film that is used is among the others, as "used all the same: ...".
    Raises CurateError when more than `curate.bad_share` of the films looked at are such, or one of a frozen manifest.
    """
    study.claim()
    offers = {source: candidates(study, source) for source in _sources(study)}
    pools = {source: offer.films for source, offer in offers.items()}
    looked = pd.DataFrame(columns=["film", "source", "path", "sha256", "fault", "notes"], dtype="str")
    while True:
        chosen = choose(study, pools)
        made = prepare.images(chosen[~chosen["film"].isin(looked["film"])], study)
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
    return Candidates(chosen, pd.concat([*(offer.aside for offer in offers.values()), bad, noted], ignore_index=True))


def digest(manifest: pd.DataFrame) -> str:
    """Sixty-four hexadecimal digits that two groups have in common only if film, split, file and labels all are."""
    told = manifest.sort_values("film")[["film", "split", "sha256", *LABELS]]
    return hashlib.sha256(told.to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def prevalence(manifest: pd.DataFrame, study) -> pd.DataFrame:
    """The share of films that show each label, in the pool (the training source's candidates) and in every split.

    label, stage ("pool", "sft" with its hold-out, "rl" and the data sets), share (NaN where never stated), n (films).
    """
    pool = candidates(study, study.curate.train).films.assign(split="pool")
    films = pd.concat([pool, manifest.replace({"split": {"sft-holdout": "sft"}})], ignore_index=True)
    settled = settle(films, study.curate.policy).groupby(films["split"], sort=False)
    shares = settled.mean().rename_axis("stage").melt(ignore_index=False, var_name="label", value_name="share")
    return shares.reset_index()[["label", "stage", "share"]].assign(n=lambda table: table["stage"].map(settled.size()))


def told(aside: pd.DataFrame) -> str:
    """What was set aside, a line a reason; films are counted, not named."""
    lines = [f"{reason}: {count:,} films" for reason, count in aside["reason"].value_counts().items()]
    return "\n".join(lines) or "No film was set aside."


def composition(manifest: pd.DataFrame) -> pd.DataFrame:
    """Films, patients and films of each view, one row a split."""
    grouped = manifest.groupby("split", sort=False)
    views = grouped["view"].value_counts().unstack(fill_value=0)
    return pd.DataFrame({"films": grouped.size(), "patients": grouped["patient"].nunique()}).join(views).reset_index()


def patients_shared(manifest: pd.DataFrame) -> pd.DataFrame:
    """How many patients each two splits have in common (splits x splits; the diagonal counts a split's own)."""
    there = pd.crosstab(manifest["patient"], manifest["split"]).gt(0).astype(int)[list(manifest["split"].unique())]
    return (there.T @ there).rename_axis(index=None, columns=None)


def dataset(study, split: str) -> pd.DataFrame:
    """The films of one split, ready to train on or to ask: the manifest's rows, labels settled by the study's policy.

    The 14 labels are 1.0, 0.0, or NaN where the source has no such label; `labels` is the list of the positive names,
    `image` the absolute path (str), `boxes` a list of `Box`, `credentialed` whether the film must not be shown.
    Reads the manifest record.
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
        credentialed=[study.sources[source].credentialed for source in films["source"]],
        boxes=[[Box(**box) for box in json.loads(text)] for text in films["boxes"]],
    )


def cooccurrence(films: pd.DataFrame) -> pd.DataFrame:
    """Of the films that show the row's label, the share that show the column's (14 x 14), from a `dataset`."""
    shows = films[LABELS].eq(1.0).astype(float)
    return (shows.T @ shows).div(shows.sum(), axis="index")


def clearest(films: pd.DataFrame) -> pd.DataFrame:
    """For each label the film of a `dataset` that shows it with the least else, then most strongly: image, box.

    Where a finding lies is known of phantoms only; `box` is None for a film whose boxes are not known.
    """
    films = films[~films["credentialed"]]
    drawn = films["boxes"].map(len).gt(0).any()
    seen = films["boxes"] if drawn else films["labels"]
    found = films.assign(count=seen.map(len), seen=seen)[["image", "count", "seen"]].explode("seen").dropna()
    found["box"] = found["seen"] if drawn else None
    found["finding"] = [box.finding for box in found["seen"]] if drawn else found["seen"]
    found["weakness"] = [-box.strength for box in found["seen"]] if drawn else 0.0
    first = found.sort_values(["count", "weakness"], kind="stable").drop_duplicates("finding")
    return first.set_index("finding").reindex(LABELS).dropna(subset="image")[["image", "box"]]


def gallery(study, splits: Iterable[str], each: int) -> pd.DataFrame:
    """`each` films of every split, drawn at random but always the same ones: image, caption (split, view, labels).

    Films of credentialed sources are left out.
    """
    films = pd.concat([_some(dataset(study, split), each) for split in splits], ignore_index=True)
    films = films[~films["credentialed"]]
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
    """Films one by one, or whole patients and the first films of one more where no patient fits the rest."""
    if test.source == study.curate.train:
        raise CurateError(
            f"tests.{name}.source: {test.source!r} is the source that trains; a test needs one of its own"
        )
    if len(films) < test.films:
        raise _too_few(name, test, len(films))
    salt = f"{study.curate.seed}/{name}"
    if test.draw == "films":
        drawn = films.iloc[np.argsort(unit(films["film"], salt))[: test.films]]
        return drawn.assign(split=name, why=f"{name}: film drawn at random from source {test.source}")
    drawn = whole_patients(films, test.films, salt)
    others = films[~films["patient"].isin(drawn["patient"])]
    rest = test.films - len(drawn)
    drawn = pd.concat([drawn, others[others["patient"] == others["patient"].min()].iloc[:rest]]) if rest else drawn
    return drawn.assign(split=name, why=f"{name}: patient drawn at random from source {test.source}")


def _too_few(name: str, test, there: int) -> CurateError:
    return CurateError(
        f"tests.{name}.films: {test.films} films are asked for, but source {test.source} has only {there} left of "
        f"patients in no other test; raise sources.{test.source}.films, or ask for fewer"
    )


def _boxes(recipe: str) -> list[dict]:
    """Where the findings of a phantom lie; of any other film it is not known."""
    from chexreason.sources import phantom

    return [box._asdict() for box in phantom.boxes(recipe)] if recipe else []


def _sources(study) -> list[str]:
    """The sources this study draws from, the one that trains first."""
    return list(dict.fromkeys([study.curate.train, *(test.source for test in study.tests.values())]))


def _refuse_shared(chosen: pd.DataFrame, study) -> None:
    """Raises CurateError for a patient in two splits, as where two sources have the same patients."""
    places = chosen[["patient", "split"]].drop_duplicates()
    plain = places["patient"].str.replace("mimic-p", "mimic-", regex=False)  # a folder p10000032, a subject 10000032
    places["alike"] = sources.alike(plain)
    shared = places[places.duplicated("alike", keep=False)].sort_values("alike", kind="stable")
    if len(shared):
        (patient, split, _), (_, other, _) = shared.iloc[:2].to_numpy()
        raise CurateError(f"patient {patient} would be in {split} and in {other}; give these sources other splits")


def _refuse_bad(bad: pd.DataFrame, looked: int, study) -> None:
    if len(bad) > study.curate.bad_share * looked:
        told = "; ".join(f"{film.film}: {film.reason}" for film in bad.head(3).itertuples())
        raise CurateError(
            f"{len(bad)} of the {looked} films looked at cannot be used, more than curate.bad_share "
            f"({study.curate.bad_share:.1%}) allows: {told}{' …' if len(bad) > 3 else ''}"
        )


def _frozen(study) -> pd.DataFrame:
    """The manifest that `curate.frozen` names; raises CurateError for a record of another kind."""
    manifest = records.load(study.file.parent / study.curate.frozen)
    if missing := {"film", "split", "why", "sha256", *LABELS} - set(manifest):
        raise CurateError(
            f"curate.frozen: {study.curate.frozen} is no manifest: it has no column {', '.join(sorted(missing))}; "
            f"give the {MANIFEST} of an earlier study"
        )
    return manifest


def _thawed(study, films: pd.DataFrame) -> pd.DataFrame:
    """The films of a frozen manifest, with the labels they have in the sources on this machine."""
    frozen = _frozen(study)[["film", "split", "why"]]
    missing = frozen.loc[~frozen["film"].isin(films["film"]), "film"]
    if len(missing):
        raise CurateError(
            f"curate.frozen: {study.curate.frozen}: {len(missing)} of its {len(frozen)} films are not usable here, "
            f"the first is {missing.iloc[0]}"
        )
    return frozen.merge(films, on="film", validate="one_to_one")


def _refuse_other(chosen: pd.DataFrame, study) -> None:
    """Raises CurateError when a film of a frozen manifest has another file or other labels here."""
    if study.curate.frozen:
        columns = ["sha256", *LABELS]
        frozen, found = (table.set_index("film")[columns] for table in (_frozen(study), chosen))
        other = (frozen.loc[found.index].fillna(9) != found.fillna(9)).any(axis=1)
        if other.any():
            raise CurateError(
                f"curate.frozen: {study.curate.frozen}: {other.sum()} of its films have another file or other labels "
                f"here, the first is {other.idxmax()}"
            )
