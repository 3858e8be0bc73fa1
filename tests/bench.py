"""How fast the parts are that the README promises something about: `make bench`.  Nothing here is asserted.

One thread each, best of three, on whatever machine this is; a busy machine shows lower figures.
"""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

TRACE = {"medgemma": 17, "qwen": 33}
"""Tokens of a Free Reasoning trace on average, which a study's checkpoints write; an untuned stand-in stops sooner."""


def best(work, times: int = 3) -> float:
    """Seconds of the fastest of `times` calls."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def drawing(hospital: str, films: int = 200) -> str:
    from chexreason.data.phantom import hospitals

    recipes = list(hospitals.film_table(films, 1, hospital)["recipe"])
    return f"{films / best(lambda: [hospitals.draw(recipe) for recipe in recipes]):.0f} films a second"


def made_up(films: int, patients: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """Truth and answers on fourteen labels, and whose film each is."""
    from chexreason.labels import CHEXPERT14

    rng = np.random.default_rng(0)
    truth = pd.DataFrame(rng.random((films, 14)) < 0.2, columns=list(CHEXPERT14)).astype(float)
    given = truth.mask(rng.random(truth.shape) < 0.2, 1 - truth).astype(bool)
    return truth, given, pd.Series(rng.integers(0, patients, films).astype(str))


def bootstrap(n_resamples: int = 10_000, films: int = 25_596, patients: int = 2_797) -> str:
    """Our resamples and those of a loop over scikit-learn, in turn; the loop is timed on few resamples, and scaled."""
    from chexreason.evaluation import metrics

    truth, given, owner = made_up(films, patients)
    ours, loop, few = [], [], 10
    for _ in range(3):
        ours.append(
            best(lambda: metrics.score(truth, given, owner, n_resamples, np.random.default_rng(0)), 1) / n_resamples
        )
        loop.append(best(lambda: scikit_learn(truth, given, owner, few), 1) / few)
    return (
        f"{min(ours) * n_resamples:.1f} s for {n_resamples:,} resamples of {films:,} films; a loop over scikit-learn's "
        f"f1_score would take {min(loop) * n_resamples:.0f} s (from {few} resamples), "
        f"{min(loop) / min(ours):.0f} times as long"
    )


def scikit_learn(truth: pd.DataFrame, given: pd.DataFrame, owner: pd.Series, n_resamples: int) -> None:
    """F1 of each label, micro and macro, of samples of patients, as one would write it with scikit-learn."""
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    present, said = truth.to_numpy(dtype=bool), given.to_numpy()
    films = list(owner.groupby(owner).indices.values())
    for _ in range(n_resamples):
        drawn = np.concatenate([films[patient] for patient in rng.integers(0, len(films), len(films))])
        for average in (None, "micro", "macro"):
            f1_score(present[drawn], said[drawn], average=average, zero_division=np.nan)


def memory() -> str:
    """The peak of a process that does nothing but the bootstrap."""
    code = "import numpy as np, bench; from chexreason.evaluation import metrics; "
    code += "metrics.score(*bench.made_up(25_596, 2_797), 10_000, np.random.default_rng(0)); "
    code += "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return f"{float(told.stdout):.2f} GB"


def curating() -> str:
    import mimic_tables

    from chexreason import config
    from chexreason.data import curate

    with TemporaryDirectory() as folder:
        mimic_tables.write(Path(folder))
        os.environ["MIMIC_CXR_JPG"] = folder
        study = config.load("params/paper.yaml")
        taken = best(lambda: curate.training_splits(study, curate.candidates(study, "mimic").films), 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return f"{taken:.1f} s, this process's peak {peak:.2f} GB, for {mimic_tables.FILMS:,} films"


def picking() -> str:
    from chexreason.data import sampling
    from chexreason.labels import CHEXPERT14

    taken = []
    for films in (50_000, 100_000, 200_000, 400_000):
        rng = np.random.default_rng(0)
        present = pd.DataFrame(rng.random((films, 14)) < 0.15, columns=list(CHEXPERT14))
        order = rng.random(films)
        told = best(lambda table=present, order=order: sampling.greedy(table, 1000, 0.05, 0.25, 4.0, order), 1)
        taken.append(f"{films:,}: {told:.2f} s")
    return ", ".join(taken)


def answering(name: str, films: int = 64, rounds: int = 3) -> str:
    """All films in one batch against one at a time, in turns, so that both meet the machine as it is at the time."""
    from chexreason import config, prompts
    from chexreason.inference import predict
    from chexreason.inference.protocol import Protocol

    settings = config.Model(name=name, path=f"stand-in:{name}", dtype="float32")
    together = predict.load(settings, None, films)
    together.model.generation_config.min_new_tokens = TRACE[name]
    alone = together._replace(batch=1)
    protocol = Protocol(prompt=prompts.load("free_reasoning"), max_new_tokens=160, image_size=128)
    with TemporaryDirectory() as folder:
        paths = drawn(Path(folder), films)
        taken = [[asking(reader, paths, protocol) for reader in (alone, together)] for _ in range(rounds)]
    one, all_at_once = np.median(taken, axis=0)
    ratio = np.median([first / second for first, second in taken])
    return (
        f"{films / all_at_once:.0f} films a second in a batch of {films}, {films / one:.1f} one at a time, "
        f"{ratio:.1f} times (medians of {rounds} paired runs, OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']})"
    )


def asking(reader, paths: list[Path], protocol) -> float:
    """Seconds to ask about all films, with a journal that holds nothing yet."""
    from chexreason.inference import predict

    with TemporaryDirectory() as journal:
        return best(lambda: predict.answer_films(reader, paths, protocol, Path(journal)), 1)


def drawn(folder: Path, films: int) -> list[Path]:
    """Phantom films as files."""
    from PIL import Image

    from chexreason.data.phantom import hospitals

    paths = [folder / f"{number}.png" for number in range(films)]
    for path, recipe in zip(paths, hospitals.film_table(films, 1)["recipe"], strict=True):
        Image.fromarray(hospitals.draw(recipe).image).save(path)
    return paths


def reading(side: int = 2500) -> str:
    """Films of 12 bits as a hospital has them, read, judged and shrunk; each kind of file on its own."""
    from PIL import Image
    from pydicom.uid import JPEG2000Lossless
    from test_films import dicom, kept

    from chexreason.data import images

    drawn = np.linspace(-1, 1, side)
    chest = (
        0.6 * drawn[:, np.newaxis] + 0.6 * np.exp(-((drawn / 0.2) ** 2)) - np.exp(-(((abs(drawn) - 0.42) / 0.25) ** 2))
    )
    stored = np.interp(chest, [chest.min(), chest.max()], [0, 4095]).astype(np.uint16)
    with TemporaryDirectory() as folder:
        packed = dicom(stored)
        packed.compress(JPEG2000Lossless)
        window = {"WindowCenter": 2048, "WindowWidth": 4096, "RescaleSlope": 1, "RescaleIntercept": 0}
        paths = {
            "DICOM": kept(Path(folder), dicom(stored), "plain.dcm"),
            "with a window": kept(Path(folder), dicom(stored, **window), "window.dcm"),
            "as JPEG 2000": kept(Path(folder), packed, "packed.dcm"),
            "16-bit PNG": Path(folder) / "film.png",
        }
        Image.fromarray(stored).save(paths["16-bit PNG"])
        taken = {name: best(lambda path=path: images.prepare(path, 896)) for name, path in paths.items()}
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in taken.items())


def starting() -> str:
    call = [Path(sys.executable).with_name("chexreason"), "--help"]
    return f"{best(lambda: subprocess.run(call, capture_output=True, check=True)):.2f} s"


if __name__ == "__main__":
    print("chexreason --help:", starting())
    for hospital in "ABC":
        print(f"drawing films of hospital {hospital}:", drawing(hospital))
    print("preparing a film of 2,500 x 2,500 pixels:", reading())
    print("reading, filtering and sampling tables of MIMIC's size:", curating())
    print("greedy sampling of 1,000 films from", picking())
    print("patient bootstrap:", bootstrap())
    print("its peak memory, with all it imports:", memory())
    for name in TRACE:
        print(f"stand-in {name} answering:", answering(name))
