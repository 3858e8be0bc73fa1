"""The images of chosen films in the study's folder: phantoms are drawn, other films converted, each only once."""

import hashlib
import os
import re
from pathlib import Path
from typing import cast

import pandas as pd

from chexreason import fingerprint, records
from chexreason.config import Folder, Study


def file_name(film: str) -> str:
    """The name of a film's image: no two films share one, not even where case does not count, and none is too long.

    >>> file_name("nih-00000001_000"), file_name("own-s159/0")
    ('nih-00000001_000.png', 'own-s159_0~eba4c12cf02942f8.png')
    """
    if re.fullmatch(r"[a-z0-9._-]{1,100}", film):
        return f"{film}.png"
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", film)[:100]
    return f"{readable}~{hashlib.blake2b(film.encode(), digest_size=8).hexdigest()}.png"


def images(chosen: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Make the image of every film in `chosen` (from `curate.choose`) and add `sha256`, `fault` and `notes`.

    An image is an 8-bit gray PNG. A phantom is drawn from its recipe, and `sha256` is that of its pixels. Any other
    film is read from its source's folder, with at most `size` pixels per side, and `sha256` is that of its file.
    `fault` is the reason if there is no image, or "". `notes` has the remarks of `images.read` on the header. An
    existing image of the same film, made by the same code, is kept, so an interrupted run resumes.
    """
    from tqdm.std import tqdm

    films = tqdm(chosen.itertuples(), total=len(chosen), desc="films", mininterval=5, unit="film", disable=chosen.empty)
    made = [_draw_phantom(film, study) if film.recipe else _convert_film(film, study) for film in films]
    records.to_disk(study.folder)
    return chosen.join(pd.DataFrame(made, columns=["sha256", "fault", "notes"], index=chosen.index, dtype="str"))


def _draw_phantom(film, study: Study) -> tuple[str, str, str]:
    """Draw a phantom, unless its image exists."""
    from PIL import Image

    from chexreason.data.phantom import hospitals

    path, size = study.folder / film.path, study.sources[film.source].size
    key = fingerprint.digest(fingerprint.room("phantom"), size, film.recipe)
    if _about(path).get("made from") != key:
        image = Image.fromarray(hospitals.draw(film.recipe, size).image)
        _write(image, path, {"made from": key, "note": "phantom: drawn, not taken of a patient"})
    return fingerprint.pixels(path), "", ""


def _convert_film(film, study: Study) -> tuple[str, str, str]:
    """Read a film and write its image, unless it exists; a film that cannot be used has a fault."""
    from chexreason.data import images

    section = cast(Folder, study.sources[film.source])
    original, path = section.folder / film.original, study.folder / film.path
    if not film.original or not os.path.isfile(original):  # Path.is_file raises for a name that is too long
        return "", "its image is not there", ""
    sha256 = records.sha256(original)
    key = fingerprint.digest(fingerprint.room("images"), section.size, sha256)
    about = _about(path)
    if about.get("made from") != key:
        try:
            image = images.prepare(original, section.size)
        except images.FilmError as error:
            return sha256, str(error), ""
        about = {"made from": key, "notes": image.info["notes"]}
        _write(image, path, about)
    return sha256, "", about["notes"]


def _write(image, path: Path, about: dict[str, str]) -> None:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    for name, value in about.items():
        text.add_text(name, value)
    with records.replacing(path, sync=False) as temporary:
        image.save(temporary, format="PNG", pnginfo=text)


def _about(path: Path) -> dict:
    """The metadata that this module wrote into an image; empty if there is no complete image."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            return image.info
    except (OSError, SyntaxError):
        return {}
