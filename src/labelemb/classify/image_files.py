"""Which images there are in class folders, a folder a label, maybe below train/, validation/ and test/. No torch."""

from pathlib import Path

from labelemb.classify.columns import PARTS

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

Found = dict[str, list[tuple[Path, str]]]


def find_images(folder: Path) -> Found:
    """By part the images below `folder`, each with the name of its class folder; empty where there are none.

    `train/` and the like are parts where they hold class folders, else they are class folders themselves.
    """
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    parts = {PARTS[path.name.lower()]: _of_classes(path) for path in inside if path.name.lower() in PARTS}
    if parts.get("train"):
        return {part: found for part, found in parts.items() if found}
    found = _of_classes(folder)
    return {"train": found} if found else {}


def _of_classes(folder: Path) -> list[tuple[Path, str]]:
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [(path, each.name) for each in classes for path in images_below(each)]


def images_below(folder: Path) -> list[Path]:
    """The images in a folder and in those below it, by their names."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
