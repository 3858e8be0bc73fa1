"""Every prompt is a text file in this folder, for a radiologist to read and edit."""

from importlib.resources import files


def names() -> list[str]:
    """The prompts there are, by file name without `.txt`."""
    return sorted(file.name.removesuffix(".txt") for file in files(__name__).iterdir() if file.name.endswith(".txt"))


def load(name: str) -> str:
    """The text of prompt `name`, without the newline at its end.  Raises ValueError for a name that has no file."""
    if name not in names():
        raise ValueError(f"no prompt {name!r} in chexreason/prompts; there are {', '.join(names())}")
    return files(__name__).joinpath(f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")
