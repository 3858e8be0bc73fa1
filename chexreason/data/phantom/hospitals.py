"""Phantom hospitals: who has what, what the label channel says of it, and the film table.

Three layers are kept apart, each with random streams of its own, so that experiments can cross them: the patient's
truth (with view and body), the label channel, and the pixel pipeline.  The pixels are drawn by
`chexreason.data.phantom.drawing` from the `recipe` that each row of the film table carries.  Every number comes from
`hospitals.json`, which names its sources and marks what is a design proposal.

A phantom is a drawing.  No number measured on phantoms is a number about patients.
"""

import json
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from chexreason.data.film_table import Films
from chexreason.data.phantom.drawing import Box, Film, boxes, draw
from chexreason.labels import CHEXPERT14, CLOSURES, UNCERTAIN

__all__ = ["FINDINGS", "Box", "Film", "boxes", "draw", "film_table", "read", "truth"]

FINDINGS = CHEXPERT14[1:]
"""What can be drawn: twelve pathologies, then Support Devices."""

PATHOLOGIES = 12
"""The first twelve of FINDINGS.  A film with none of them is a normal film, devices or not."""

HOSPITALS = json.loads(files("chexreason.data.phantom").joinpath("hospitals.json").read_text(encoding="utf-8"))
BLOCK = 512  # patients drawn together from one random stream: asking for more films leaves the first ones as they are
MOST_STUDIES = 40  # of one patient

ZONES = ("upper", "mid", "lower")
ZONE_SHARES = {  # design: where in the lung a one-sided finding sits
    "Lung Opacity": (0.45, 0.45, 0.10),
    "Lung Lesion": (0.35, 0.35, 0.30),
    "Consolidation": (0.40, 0.30, 0.30),
    "Pneumonia": (0.25, 0.35, 0.40),
    "Atelectasis": (0.0, 0.0, 1.0),
    "Pneumothorax": (1.0, 0.0, 0.0),
    "Pleural Effusion": (0.0, 0.0, 1.0),
    "Pleural Other": (0.3, 0.7, 0.0),
    "Fracture": (0.3, 0.4, 0.3),
}
WHOLE = {  # findings without a side of their own
    "Enlarged Cardiomediastinum": "midline",
    "Cardiomegaly": "midline",
    "Edema": "both",
    "Support Devices": "both",
}


SHUFFLE = 2
"""The layer of randomness that shuffles labels; 0 draws patients and 1 their labels."""


def film_table(
    films: int,
    seed: int,
    hospital: str = "A",
    labels: str | None = None,
    pixels: str | None = None,
    noise: float = 1.0,
) -> pd.DataFrame:
    """The first `films` films of a phantom hospital, one a row; no pixels are drawn.

    `hospital` gives patients, views and studies; `labels` and `pixels` may name another hospital's label channel and
    pixel pipeline, and leave the truth as it is.  `noise` multiplies the errors of the label channel.  Columns: film,
    source, patient, study, view ("PA" or "AP"), the fourteen labels (1 present, 0 denied, -1 uncertain, NaN not
    mentioned), and recipe, the JSON text that `drawing.draw` draws from and that holds the patient's truth.
    """
    channel = HOSPITALS["hospitals"][labels or hospital]["labels"]
    pipeline = HOSPITALS["hospitals"][pixels or hospital]["pixels"]
    blocks: list[pd.DataFrame] = []
    while (found := sum(map(len, blocks))) < films:
        blocks.append(_block(seed, len(blocks), hospital, (channel, noise), pipeline, films - found))
    return pd.concat(blocks, ignore_index=True)


def read(section, key: str) -> Films:
    """The film table of a source (`config.Phantom`), with its recipes; names of films, studies and patients begin with
    `key`, the source's name in the params file."""
    perfect = section.labels == "truth"
    channel = section.hospital if perfect else section.labels or section.hospital
    table = film_table(section.films, section.seed, section.hospital, channel, section.pixels, section.noise)
    for name in ("film", "study", "patient"):
        table[name] = key + table[name].str.removeprefix(section.hospital.lower())
    labels = list(CHEXPERT14)
    if perfect:
        table[labels] = truth(table).astype(float)
    if section.shuffled:
        order = np.random.default_rng([section.seed, 0, SHUFFLE]).permutation(len(table))
        table[labels] = table[labels].to_numpy()[order]
    unknown = () if perfect else HOSPITALS["channels"][HOSPITALS["hospitals"][channel]["labels"]]["unknown"]
    none = pd.DataFrame(columns=["film", "path", "reason"], dtype="str")
    return Films(table.assign(path="", split=""), none, tuple(unknown))


def with_pixels(recipe: str, hospital: str) -> str:
    """The same film as another hospital's pixels show it: its recipe with that pixel pipeline."""
    return json.dumps(json.loads(recipe) | {"pixels": HOSPITALS["hospitals"][hospital]["pixels"]})


def truth(table: pd.DataFrame) -> pd.DataFrame:
    """What is really there, read from the recipes of a film table: films x 14 labels, bool."""
    present = np.zeros((len(table), len(CHEXPERT14)), bool)
    column = {name: number for number, name in enumerate(CHEXPERT14)}
    for row, recipe in enumerate(table["recipe"]):
        for finding in json.loads(recipe)["findings"]:
            present[row, column[finding["finding"]]] = True
    present[:, 0] = ~present[:, 1 : 1 + PATHOLOGIES].any(axis=1)
    return pd.DataFrame(present, columns=list(CHEXPERT14), index=table.index)


def _block(seed: int, block: int, hospital: str, channel: tuple[str, float], pipeline: str, most: int) -> pd.DataFrame:
    """Up to `most` films of one block of patients; `channel` is the name of the label channel, and its noise."""
    cases = HOSPITALS["hospitals"][hospital]["cases"]
    rng, channel_rng = (np.random.default_rng([seed, block, layer]) for layer in (0, 1))
    patient, study, present, normal = _studies(hospital, rng)
    views = _views(cases, normal, rng)
    bodies, (side, zone, at) = _bodies(rng), _places(rng)
    strengths = rng.uniform(0.35, 1, present.shape).round(3)
    reported = _report(present, normal, *channel, channel_rng)

    of_study = np.repeat(np.arange(len(study)), 1 + (rng.random(len(study)) < cases["films_per_study"] - 1))
    shifts = rng.uniform(-0.012, 0.012, (len(of_study), 2)).round(4)
    seeds = rng.integers(2**31, size=len(of_study))
    first = np.r_[True, of_study[1:] != of_study[:-1]]
    rows = []
    for film, row in enumerate(of_study[:most]):
        who = f"{hospital.lower()}-p{block * BLOCK + patient[row]:05d}"
        which = f"{who}-s{study[row]}"
        findings = [
            {
                "finding": FINDINGS[number],
                "side": str(side[patient[row], number]),
                "zone": str(zone[patient[row], number]),
                "at": at[patient[row], number].tolist(),
                "strength": float(strengths[row, number]),
            }
            for number in np.flatnonzero(present[row])
        ]
        recipe = {
            "pixels": pipeline,
            "view": str(views[row]),
            "seed": int(seeds[film]),
            "shift": shifts[film].tolist(),
            "body": bodies[patient[row]],
            "findings": findings,
        }
        name = f"{which}-f{0 if first[film] else 1}"
        rows.append((name, f"phantom-{hospital.lower()}", who, which, views[row], json.dumps(recipe)))
    table = pd.DataFrame(rows, columns=["film", "source", "patient", "study", "view", "recipe"])
    table[list(CHEXPERT14)] = reported[of_study[:most]]
    return table[["film", "source", "patient", "study", "view", *CHEXPERT14, "recipe"]]


# Patient truth: a Gaussian copula of the findings of an abnormal film, and a chain of studies for each patient.


class Copula(NamedTuple):
    """Findings of abnormal films: present where `root @ normals > cut`, given that any pathology is."""

    root: np.ndarray  # (findings, findings)
    cut: np.ndarray  # (findings,)
    abnormal: float  # share of draws with any pathology
    normal_devices: float  # cut of Support Devices on normal films


def _studies(hospital: str, rng: np.random.Generator):
    """patient (studies,), study number (studies,), present (studies, 13) bool and normal (studies,) bool of a block.

    From study to study the latent Gaussians move by a step that keeps their law (preconditioned Crank-Nicolson: a
    step that would leave an abnormal film without pathology is not taken), so findings persist and rates stay.
    """
    cases, copula = HOSPITALS["hospitals"][hospital]["cases"], _copula(hospital)
    count = rng.geometric(1 / cases["studies_per_patient"], BLOCK).clip(max=MOST_STUDIES)
    keep = cases["persistence"]
    latent, health = _abnormal(copula, BLOCK, rng), rng.standard_normal(BLOCK)
    present = np.zeros((BLOCK, count.max(), len(FINDINGS)), bool)
    normal = np.zeros((BLOCK, count.max()), bool)
    for number in range(count.max()):
        well = health > -ndtri(cases["truth_no_finding"])
        normal[:, number] = well
        present[:, number] = (latent > copula.cut) & ~well[:, None]
        present[:, number, PATHOLOGIES] |= well & (latent[:, PATHOLOGIES] > copula.normal_devices)
        fresh = rng.standard_normal((BLOCK, len(FINDINGS))) @ copula.root.T
        step = keep * latent + np.sqrt(1 - keep**2) * fresh
        latent = np.where(_any(step, copula.cut)[:, None], step, latent)
        health = keep * health + np.sqrt(1 - keep**2) * rng.standard_normal(BLOCK)
    taken = np.arange(count.max()) < count[:, None]
    patient, study = np.nonzero(taken)
    return patient, study, present[taken], normal[taken]


def _abnormal(copula: Copula, patients: int, rng: np.random.Generator) -> np.ndarray:
    """Latents (patients, findings) of films with at least one pathology, by rejection."""
    latent = rng.standard_normal((patients, len(copula.cut))) @ copula.root.T
    while (bad := ~_any(latent, copula.cut)).any():
        latent[bad] = rng.standard_normal((bad.sum(), len(copula.cut))) @ copula.root.T
    return latent


def _any(latent: np.ndarray, cut: np.ndarray) -> np.ndarray:
    return np.asarray((latent[:, :PATHOLOGIES] > cut[:PATHOLOGIES]).any(axis=1))


@lru_cache
def _copula(hospital: str) -> Copula:
    """The copula of a hospital: correlations of its joint tables, cuts at its own rates."""
    cases = HOSPITALS["hospitals"][hospital]["cases"]
    correlation = np.eye(len(FINDINGS))
    for name in cases["joints"]:  # a later table overrules an earlier one where it knows both findings
        known = [FINDINGS.index(finding) for finding in HOSPITALS["joints"][name]["findings"]]
        correlation[np.ix_(known, known)] = _correlations(name)
    normal, rates = cases["truth_no_finding"], _truth_rates(hospital)
    rates[PATHOLOGIES] -= normal * cases["devices_when_normal"]
    return _cuts(_root(correlation), rates / (1 - normal), cases["devices_when_normal"], PATHOLOGIES)


@lru_cache
def _correlations(name: str) -> np.ndarray:
    """Latent correlations (findings, findings) of a published joint table, of its abnormal films."""
    table = HOSPITALS["joints"][name]
    joint = np.array(table["joint"]) / (1 - table["no_finding"])
    rates = joint.diagonal().copy()
    pathologies = len(rates) - ("Support Devices" in table["findings"])
    rates[pathologies:] -= table.get("devices_and_no_finding", 0) / (1 - table["no_finding"])
    correlation = np.eye(len(rates))
    for _ in range(5):
        fitted = _cuts(_root(correlation), rates, 0.5, pathologies)
        correlation = _tetrachoric(fitted.cut, joint * fitted.abnormal)
    return correlation


def _cuts(root: np.ndarray, rates: np.ndarray, normal_devices: float, pathologies: int) -> Copula:
    """Cuts at which findings have `rates` among draws with any pathology; Monte Carlo with a stream of its own."""
    latent = np.random.default_rng(0).standard_normal((60_000, len(rates))) @ root.T
    share = 0.8
    for _ in range(15):
        cut = -ndtri(rates * share)
        abnormal = (latent[:, :pathologies] > cut[:pathologies]).any(axis=1)
        share = abnormal.mean()
    devices = latent[abnormal, -1]
    if pathologies < len(rates):
        cut[-1] = np.quantile(devices, 1 - rates[-1])
    return Copula(root, cut, float(share), float(np.quantile(devices, 1 - normal_devices)))


def _tetrachoric(cut: np.ndarray, joint: np.ndarray) -> np.ndarray:
    """Correlations at which P(both above their cuts) is `joint`, by bisection of Plackett's integral."""
    a, b = cut[:, None], cut[None, :]
    node, weight = np.polynomial.legendre.leggauss(24)
    low, high = np.full(joint.shape, -0.95), np.full(joint.shape, 0.95)
    for _ in range(25):
        middle = (low + high) / 2
        r = middle[..., None] * (node + 1) / 2
        density = np.exp(-(a**2 + b**2)[..., None] / 2 / (1 - r**2) + (a * b)[..., None] * r / (1 - r**2))
        both = ndtr(-a) * ndtr(-b) + middle / 4 / np.pi * ((density / np.sqrt(1 - r**2)) @ weight)
        low, high = np.where(both < joint, middle, low), np.where(both < joint, high, middle)
    correlation = (low + high) / 2
    np.fill_diagonal(correlation, 1)
    return correlation


def _root(correlation: np.ndarray) -> np.ndarray:
    """A matrix whose rows have unit length and whose square is the nearest we get to `correlation`."""
    value, vector = np.linalg.eigh(correlation)
    root = vector * np.sqrt(value.clip(min=1e-6))
    return root / np.linalg.norm(root, axis=1, keepdims=True)


# The label channel.


class Channel(NamedTuple):
    """Chances, one a finding: of being called present or uncertain, and of being denied when neither is said."""

    sensitivity: np.ndarray
    false: np.ndarray  # called present though absent, on an abnormal film
    hedged: np.ndarray  # called uncertain though present
    vague: np.ndarray  # called uncertain though absent, on an abnormal film
    denied: np.ndarray


def _noisier(channel: Channel, noise: float) -> Channel:
    """The channel with `noise` times as many misses and false reports, as far as there can be."""
    if noise == 1:
        return channel
    found = (1 - (1 - channel.sensitivity) * noise).clip(0, 1)
    return channel._replace(
        sensitivity=np.where(channel.sensitivity > 0, found, 0), false=(channel.false * noise).clip(0, 1)
    )


@lru_cache
def _channel(name: str) -> Channel:
    """The channel's chances, from its sensitivity, its ppv and the rates of its home hospital."""
    spec = HOSPITALS["channels"][name]
    cases = HOSPITALS["hospitals"][spec["home"]]["cases"]
    positive, sensitivity, uncertain, negative = (
        _row(part) for part in (cases["positive"], spec["sensitivity"], spec["uncertain"], spec["negative"])
    )
    present = positive * _row(spec["ppv"]) / np.where(sensitivity > 0, sensitivity, 1)
    absent = _open_to_error(spec, cases) - present
    false = positive * (1 - _row(spec["ppv"])) / absent
    hedged = np.minimum(spec["hedged"], uncertain / 2 / np.where(present > 0, present, 1))
    vague = (uncertain - hedged * present) / absent
    return Channel(sensitivity, false, hedged, vague, negative / (1 - positive - uncertain))


def _truth_rates(hospital: str) -> np.ndarray:
    """Rates of the findings (13,) at which the hospital's own channel reports its published rates."""
    cases = HOSPITALS["hospitals"][hospital]["cases"]
    name = HOSPITALS["hospitals"][hospital]["labels"]
    channel = _channel(name)
    error = channel.false * _open_to_error(HOSPITALS["channels"][name], cases)
    seen = channel.sensitivity > 0
    rates = (_row(cases["positive"]) - error) / np.where(seen, channel.sensitivity - channel.false, 1)
    return np.where(seen, rates, _row(cases.get("truth", {})))


def _open_to_error(spec: dict, cases: dict) -> np.ndarray:
    """Share of films, normal ones counted for less, on which a finding is present or may be called so."""
    normal = np.full(len(FINDINGS), cases["truth_no_finding"])
    normal[PATHOLOGIES] *= 1 - cases["devices_when_normal"]
    return 1 - (1 - spec["normal_share"]) * normal


def _report(present: np.ndarray, normal: np.ndarray, name: str, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Labels (studies, 14) as a channel reports findings (studies, 13) bool of films that are `normal` or not."""
    spec, channel = HOSPITALS["channels"][name], _noisier(_channel(name), noise)
    ease = np.where(normal, spec["normal_share"], 1)[:, None]
    positive = np.where(present, channel.sensitivity, ease * channel.false)
    uncertain = np.where(present, channel.hedged, ease * channel.vague)
    chance, denied, silent = rng.random(present.shape), rng.random(present.shape), rng.random(len(present))
    denied = np.where(spec["closed_world"] | (denied < channel.denied), 0.0, np.nan)
    said = np.where(chance < positive, 1.0, np.where(chance < positive + uncertain, UNCERTAIN, denied))
    said[:, [FINDINGS.index(finding) for finding in spec["unseen"]]] = np.nan
    for parent, children in CLOSURES.items() if spec["closed"] else ():
        above = (said[:, [FINDINGS.index(child) for child in children]] == 1).any(axis=1)
        said[above, FINDINGS.index(parent)] = 1.0
    spoken = np.isin(said[:, :PATHOLOGIES], (1.0, UNCERTAIN)).any(axis=1)
    no_finding = np.where(~spoken & (silent >= spec["silence"]), 1.0, 0.0 if spec["closed_world"] else np.nan)
    said[:, [FINDINGS.index(finding) for finding in spec["unknown"]]] = np.nan
    return np.column_stack([no_finding, said])


def _row(by_finding: dict) -> np.ndarray:
    return np.array([by_finding.get(finding, 0.0) for finding in FINDINGS])


# Bodies, views and places.


def _bodies(rng: np.random.Generator) -> list[dict]:
    """Bodies of a block of patients: fractions of the film, from the quantiles of real lung masks."""
    columns = {}
    for name, (low, middle, high) in HOSPITALS["body"]["quantiles"].items():
        columns[name] = (middle + (high - low) / 3.29 * rng.standard_normal(BLOCK)).clip(low, high)
    columns["angle_right"] = np.maximum(columns["angle_right"], columns["apex"] + 0.5)
    columns["angle_left"] = columns["angle_right"] + rng.normal(0.028, 0.015, BLOCK)
    for name, (low, high) in HOSPITALS["body"]["design"].items():
        columns[name] = rng.uniform(low, high, BLOCK)
    rounded = {name: values.round(4).tolist() for name, values in columns.items()}
    rounded["seed"] = rng.integers(2**31, size=BLOCK).tolist()
    return [dict(zip(rounded, values, strict=True)) for values in zip(*rounded.values(), strict=True)]


def _places(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a block's patients have each finding, should they have it: side, zone and two numbers in 0..1 for each.

    Shapes (patients, 13), (patients, 13) and (patients, 13, 2); persistent, as a patient's studies show.
    """
    shares = np.array([ZONE_SHARES.get(finding, (1, 0, 0)) for finding in FINDINGS])
    side, zone = rng.random((2, BLOCK, len(FINDINGS)))
    zone = (zone[..., None] > shares.cumsum(axis=1)[:, :2]).sum(axis=-1)
    whole = np.isin(FINDINGS, list(WHOLE))
    side = np.where(whole, [WHOLE.get(finding, "") for finding in FINDINGS], np.where(side < 0.5, "right", "left"))
    return side, np.where(whole, "", np.array(ZONES)[zone]), rng.random((BLOCK, len(FINDINGS), 2)).round(3)


def _views(cases: dict, normal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The view of each study: the sick are more often filmed AP, in bed."""
    share = cases["truth_no_finding"]
    sick = (cases["ap_share"] - share * cases["ap_share_no_finding"]) / (1 - share)
    return np.where(rng.random(len(normal)) < np.where(normal, cases["ap_share_no_finding"], sick), "AP", "PA")
