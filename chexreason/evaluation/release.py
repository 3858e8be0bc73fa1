"""The small records of an experiment, from which its chapters are made: `released/<study>/`.

They hold answers as numbers and no text, no image and no name of a patient.  Only phantoms are released.
"""

from pathlib import Path

import pandas as pd

from chexreason import fingerprint, records
from chexreason.config import Checkpoint, Study
from chexreason.data import curate
from chexreason.evaluation import compare, rulers
from chexreason.evaluation.released import PLAN, START
from chexreason.labels import CHEXPERT14, bits, positives
from chexreason.training import grpo


def collect(study: Study) -> dict[str, pd.DataFrame]:
    """The tables of an experiment whose paths have been asked.

    - `films`: film (number), dataset, patient (number), view, labels, truth (both as `labels.bits`)
    - `answers`: run, seed, step, film, labels, failed, cut_off, kl (see `path.predict_path`); the run `start` has the
      SFT checkpoint of each seed, the run `sft` the path to it
    - `logs`: run, seed, and the columns of every GRPO run's log

    Raises RecordError for a study with films that are not phantoms, or if a path has not been asked.
    """
    if any(source.kind != "phantom" for source in study.sources.values()):
        raise records.RecordError(f"{study.file.name}: only experiments on phantoms are released")
    films = _films(study)
    number = films.set_index("name")["film"]
    tables = [_answers(study, run).assign(seed=run.seed) for stage in ("sft", "grpo") for run in study.runs(stage)]
    answers = pd.concat(tables, ignore_index=True)
    answers["film"] = answers["film"].map(number)
    columns = ["run", "seed", "step", "film", "labels", "failed", "cut_off", "kl"]
    logs = [records.load(study.paths.log(run)).assign(run=run.run, seed=run.seed) for run in study.runs("grpo")]
    small = {"seed": "int8", "step": "int16", "film": "int16", "labels": "int16", "kl": "float32"}
    return {
        "films": films.drop(columns="name"),
        "answers": answers[columns].astype(small),
        "logs": pd.concat(logs, ignore_index=True)[["run", "seed", *grpo.LOGGED.values(), "collapse"]],
    }


def _films(study: Study) -> pd.DataFrame:
    manifest = records.load(study.folder / curate.MANIFEST)
    view = manifest.set_index("film")["view"]
    labeled, truth = compare.labeled_films(study), rulers.true_films(study)
    labeled = labeled[labeled["dataset"].isin(study.walk.tests)]
    table = labeled[["dataset", "patient"]].assign(
        view=view, labels=_bits(labeled), truth=_bits(truth.loc[labeled.index])
    )
    table = table.sort_values(["dataset", "patient"]).rename_axis("name").reset_index()
    return table.assign(film=range(len(table)), patient=pd.factorize(table["patient"])[0])


def _bits(films: pd.DataFrame) -> list[int]:
    return [bits(positives(row)) for _, row in films[list(CHEXPERT14)].iterrows()]


def _answers(study: Study, run: Checkpoint) -> pd.DataFrame:
    """The answers along a path, with its name; of an SFT run also those of its chosen step, as `START`."""
    table = records.load(study.paths.path(run))
    if run.stage == "grpo":
        return table.assign(run=run.run)
    chosen = table[table["step"] == table.loc[table["chosen"], "step"].max()]
    return pd.concat([table.assign(run="sft"), chosen.assign(run=START, step=0)])


def save(study: Study, root: Path) -> Path:
    """Write the tables to `root/released/<study>`; returns the folder.

    Their provenance names the commit, the params, and the digest of the plan.
    """
    folder, tables = root / "released" / study.study, collect(study)
    inputs = [study.paths.path(run) for stage in ("sft", "grpo") for run in study.runs(stage)]
    provenance = records.provenance(study, None, inputs)
    code = {name: fingerprint.room(name) for name in ("sft", "grpo", "path")}
    provenance |= {"plan": records.sha256(root / PLAN), "code": code}
    for name, table in tables.items():
        records.save(table, folder / f"{name}.parquet", provenance)
    return folder
