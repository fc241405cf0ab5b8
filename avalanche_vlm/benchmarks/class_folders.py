"""Reading folders of images, one folder a class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, final

from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from avalanche_vlm._checks import check_type, close_names, wrong_type, wrong_value
from avalanche_vlm.text import ClassNames, normalize_text

AnyPath = str | PathLike[str]
# Those of the known endings. Pillow goes by the content, and would ask other programs to draw some formats.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")


@final
class LabelledFiles(Dataset[tuple[Any, int]]):
    """Image files with their labels; x is a PIL image in RGB, read when it is asked for.

    Args:
        paths: the image files.
        targets: class ids (N,).
    """

    def __init__(self, paths: Sequence[str], targets: Sequence[int]) -> None:
        self.paths = list(paths)
        self.targets = list(targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return _read_picture(self.paths[index]), self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, indices: Sequence[int]) -> LabelledFiles:
        """Return the data set of these samples."""
        return LabelledFiles([self.paths[i] for i in indices], [self.targets[i] for i in indices])


def _read_picture(path: str) -> Image.Image:
    with Image.open(path, formats=_FORMATS) as picture:
        return picture.convert("RGB")


def class_folders(root: AnyPath, argument: str) -> list[str]:
    """Return the names of the class folders in ``root``, sorted; hidden folders do not count.

    Raises:
        TypeError: ``root`` is no path.
        ValueError: ``root`` is no folder, or has no folders in it.
    """
    check_type(argument, root, (str, PathLike))
    folder = Path(root).expanduser()
    if not folder.is_dir():
        got = f"{str(folder)!r}, which {'is a file' if folder.exists() else 'does not exist'}"
        raise wrong_value(argument, "a folder with one folder of images per class", got)
    found = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise wrong_value(
            argument,
            "a folder with one folder of images per class",
            f"{str(folder)!r}, which has no folders in it",
            "Move the images of each class into a folder of its own.",
        )
    return found


def read_class_folders(root: AnyPath, folders: Sequence[str], argument: str) -> LabelledFiles:
    """Return the images below ``root``; class id i is ``folders[i]``, and files are in sorted order.

    Raises:
        ValueError: folders that are missing, that are not in ``folders``, or that hold no image.
    """
    found = class_folders(root, argument)
    missing, extra = set(folders) - set(found), set(found) - set(folders)
    if missing or extra:
        differences = [f"without {_listed(missing)}"] if missing else []
        differences += [f"with {_listed(extra)}"] if extra else []
        raise wrong_value(
            argument,
            f"a folder with the same {len(folders)} class folders as the other part",
            f"{str(root)!r} {' and '.join(differences)}",
            "Spell the folder of a class alike everywhere, and move away what is no class.",
        )
    class_ids = {folder: index for index, folder in enumerate(folders)}
    samples = make_dataset(
        str(Path(root).expanduser()), class_ids, extensions=IMG_EXTENSIONS, allow_empty=True
    )
    empty = set(folders) - {folders[label] for _, label in samples}
    if empty:
        raise wrong_value(
            argument,
            "a folder with images in every class folder",
            f"{str(root)!r} with no image in {_listed(empty)}",
            f"Remove the empty folders, or add files that end in {', '.join(IMG_EXTENSIONS)}.",
        )
    return LabelledFiles([path for path, _ in samples], [label for _, label in samples])


def names_of_folders(
    folders: Sequence[str], class_names: Sequence[str] | Mapping[str, str] | None
) -> ClassNames:
    """Return the class names of ``folders``, in their order.

    Args:
        folders: names of the class folders, sorted.
        class_names: one name per folder, as a list in the order of the sorted folders or as a
            mapping from folder to name. None makes the names from the folders' names: a number in
            front is removed and underscores become spaces (``"001.Black_footed_Albatross"`` becomes
            ``"Black footed Albatross"``).

    Raises:
        TypeError: ``class_names`` is neither.
        ValueError: a folder without a name, a name without a folder, or two folders of one name.
    """
    if class_names is None:
        names = [folder_name(folder) for folder in folders]
    elif isinstance(class_names, Mapping):
        missing, unknown = set(folders) - set(class_names), set(class_names) - set(folders)
        if missing or unknown:
            got = (
                f"none for {_listed(missing)}"
                if missing
                else f"one for {_listed(unknown)}, which is no folder"
            )
            advice = close_names(min(unknown), folders) if unknown else ""
            raise wrong_value("class_names", "a name for each class folder", got, advice)
        names = [class_names[folder] for folder in folders]
    elif isinstance(class_names, Sequence) and not isinstance(class_names, str):
        names = list(class_names)
        if len(names) != len(folders):
            raise wrong_value(
                "class_names",
                f"{len(folders)} names, one for each class folder in sorted order ({_listed(folders)})",
                f"{len(names)} names",
            )
    else:
        raise wrong_type("class_names", "a list of names or a mapping from folder to name", class_names)
    folder_of: dict[str, str] = {}
    for folder, name in zip(folders, names, strict=True):
        other = folder_of.setdefault(normalize_text(str(name)), folder)
        if other != folder:
            raise wrong_value(
                "class_names",
                "a different name for each class folder",
                f"{name!r} for the folders {other!r} and {folder!r}",
                "Pass a mapping from folder to name.",
            )
    return ClassNames(names)


def folder_name(folder: str) -> str:
    """Return the class name that a folder's name spells.

    >>> folder_name("000_golden_retriever"), folder_name("001.Black_footed_Albatross"), folder_name("42")
    ('golden retriever', 'Black footed Albatross', '42')
    """
    without_number = re.sub(r"^\d+[\s._-]+(?=\S)", "", folder)
    return " ".join(without_number.replace("_", " ").split())


def _listed(names: Sequence[str] | set[str]) -> str:
    ordered = sorted(names)
    return ", ".join(map(repr, ordered[:5])) + (f", ... ({len(ordered)} in all)" if len(ordered) > 5 else "")
