"""Prompts: text files in this folder, which a radiologist can read and edit.

The study's prompts are in the folder itself, the teacher's in `teacher/`, and those of other projects' models in
`others/`.
"""

from importlib.resources import files


def names(folder: str = "") -> list[str]:
    """The prompts in `folder`, by file name without `.txt`."""
    place = files(__name__).joinpath(folder)
    return sorted(file.name.removesuffix(".txt") for file in place.iterdir() if file.name.endswith(".txt"))


def load(name: str) -> str:
    """The text of the prompt `name`, such as `free_reasoning` or `teacher/again`, without the last newline.

    Raises ValueError if there is no such file.
    """
    there = names() + [f"{folder}/{each}" for folder in ("others", "teacher") for each in names(folder)]
    if name not in there:
        raise ValueError(f"no prompt {name!r} in chexreason/prompts; there are {', '.join(there)}")
    return files(__name__).joinpath(f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")
