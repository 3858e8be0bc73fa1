"""Every prompt is a text file in this folder, for a radiologist to read and edit.

At the top lie the study's own, in `teacher/` the teacher's, in `others/` those that other projects ask their models.
"""

from importlib.resources import files


def names(folder: str = "") -> list[str]:
    """The prompts that lie in `folder` itself, by file name without `.txt`."""
    place = files(__name__).joinpath(folder)
    return sorted(file.name.removesuffix(".txt") for file in place.iterdir() if file.name.endswith(".txt"))


def load(name: str) -> str:
    """The text of prompt `name`, such as `free_reasoning` or `teacher/again`, without the newline at its end.

    Raises ValueError for a name that has no file.
    """
    there = names() + [f"{folder}/{each}" for folder in ("others", "teacher") for each in names(folder)]
    if name not in there:
        raise ValueError(f"no prompt {name!r} in chexreason/prompts; there are {', '.join(there)}")
    return files(__name__).joinpath(f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")
