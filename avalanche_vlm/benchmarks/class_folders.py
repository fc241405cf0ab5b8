"""Reading folders of images, one folder a class."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, final

from PIL import Image
from torch.utils.data import Dataset

from avalanche_vlm._checks import check_type, close_names, wrong_type, wrong_value
from avalanche_vlm._pictures import PICTURE_FORMATS, read_picture
from avalanche_vlm.text import ClassNames, normalize_text

AnyPath = str | PathLike[str]
# fmt: off
PICTURE_ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".tif", ".tiff",
    ".webp", ".gif",
)
_OTHER_PICTURE_ENDINGS = (
    ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jxl", ".svg", ".psd", ".tga", ".ico", ".eps", ".exr", ".hdr",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raw", ".dcm", ".nii", ".npy", ".npz",
)
# What systems and programs put beside a user's files, besides names that begin with a dot.
_OF_THE_SYSTEM = {
    "__macosx", "$recycle.bin", "system volume information", "lost+found",
    "@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "@transcode", "#recycle", "#snapshot",
    "network trash folder", "temporary items", "__pycache__", "_vti_cnf",
    "thumbs.db", "ehthumbs.db", "desktop.ini",
}
# fmt: on


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
        return read_picture(self.paths[index]), self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, indices: Sequence[int]) -> LabelledFiles:
        """Return the data set of these samples."""
        return LabelledFiles([self.paths[i] for i in indices], [self.targets[i] for i in indices])


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is none of the user's own: hidden, or made by a system or a program.

    >>> [is_hidden(name) for name in (".git", "._cat.png", "__MACOSX", "@eaDir", "cat.png")]
    [True, True, True, True, False]
    """
    return name.startswith(".") or name.lower() in _OF_THE_SYSTEM


def is_picture(name: str) -> bool:
    """Return whether a file's name ends as those of pictures do."""
    return name.lower().endswith(PICTURE_ENDINGS)


def class_folders(root: AnyPath, argument: str) -> list[str]:
    """Return the names of the class folders in ``root``, sorted; hidden folders do not count.

    Accented letters are sorted in their composed form, so that the order is the same whatever system
    wrote the names.

    Raises:
        TypeError: ``root`` is no path.
        ValueError: ``root`` is no folder, or has no folders in it.
    """
    check_type(argument, root, (str, PathLike))
    folder = Path(root).expanduser()
    if not folder.is_dir():
        got = f"{str(folder)!r}, which {'is a file' if folder.exists() else 'does not exist'}"
        raise wrong_value(argument, "a folder with one folder of images per class", got)
    found = [path.name for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name)]
    if not found:
        raise wrong_value(
            argument,
            "a folder with one folder of images per class",
            f"{str(folder)!r}, which has no folders in it",
            "Move the images of each class into a folder of its own.",
        )
    for name in found:
        if any(0xD800 <= ord(letter) <= 0xDFFF for letter in name):
            raise wrong_value(
                argument,
                "a folder whose class folders have names in UTF-8",
                f"{name!a} in {str(folder)!r}",
                "Rename the folder: its name was written in another encoding.",
            )
    return sorted(found, key=composed)


def read_class_folders(root: AnyPath, folders: Sequence[str], argument: str) -> LabelledFiles:
    """Return the images below ``root``; class id i is ``folders[i]``, and files are in sorted order.

    Hidden files and folders do not count, at any depth.

    Raises:
        ValueError: folders that are missing, that are not in ``folders``, or that hold no image.

    Warns:
        UserWarning: pictures are left out because their format is not read.
    """
    found = {composed(folder): folder for folder in class_folders(root, argument)}
    wanted = {composed(folder): folder for folder in folders}
    missing, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    if missing or extra:
        differences = [f"without {_listed(missing)}"] if missing else []
        differences += [f"with {_listed(extra)}"] if extra else []
        raise wrong_value(
            argument,
            f"a folder with the same {len(folders)} class folders as the other part",
            f"{str(root)!r} {' and '.join(differences)}",
            "Spell the folder of a class alike everywhere, and move away what is no class.",
        )
    paths: list[str] = []
    labels: list[int] = []
    empty: set[str] = set()
    left_out: list[str] = []
    for label, folder in enumerate(folders):
        below = Path(root).expanduser() / found[composed(folder)]
        files = [
            path for path in map(_joined, sorted(visible_files(below), key=_in_order)) if _holds_data(path)
        ]
        pictures = [path for path in files if is_picture(path)]
        left_out += [path for path in files if not is_picture(path) and _is_other_picture(path)]
        paths += pictures
        labels += [label] * len(pictures)
        if not pictures:
            empty.add(folder)
    if empty:
        others = f" and {len(left_out)} of other formats, as {left_out[0]!r}" if left_out else ""
        raise wrong_value(
            argument,
            "a folder with images in every class folder",
            f"{str(root)!r} with no image in {_listed(empty)}{others}",
            f"Remove the empty folders, or add files that end in {', '.join(PICTURE_ENDINGS)}.",
        )
    if left_out:
        warnings.warn(
            f"{len(left_out)} pictures below {str(root)!r} are left out, the first is {left_out[0]!r}: only "
            f"files that end in {', '.join(PICTURE_ENDINGS)} are read. Convert the others, or name them by "
            "their format.",
            stacklevel=3,
        )
    return LabelledFiles(paths, labels)


def visible_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (folder, name) of all files below a folder that are not hidden; links are followed once.

    Raises:
        OSError: a folder cannot be read.
    """
    seen = set(map(str, Path(os.path.realpath(folder)).parents))  # a link up would lead to other classes
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(place)
        if real in seen:  # a link back, or two links to one folder
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield from ((place, name) for name in files if not is_hidden(name))


def _in_order(place_and_name: tuple[str, str]) -> tuple[str, ...]:
    return tuple(map(composed, place_and_name))


def _joined(place_and_name: tuple[str, str]) -> str:
    return os.path.join(*place_and_name)


def _raise(error: OSError) -> None:
    raise error


def _holds_data(path: str) -> bool:
    """Return whether a path is no pipe or socket; a link to nothing counts, and is named when it is read."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True


def _is_other_picture(path: str) -> bool:
    ending = os.path.splitext(path)[1].lower()
    if ending:
        return ending in _OTHER_PICTURE_ENDINGS
    try:
        with Image.open(path, formats=PICTURE_FORMATS):
            return True
    except Exception:  # decoders raise whatever comes when a file is not what it says
        return False


def names_of_folders(
    folders: Sequence[str], class_names: Sequence[str] | Mapping[str, str] | None
) -> ClassNames:
    """Return the class names of ``folders``, in their order.

    Args:
        folders: names of the class folders, sorted.
        class_names: one name per folder, as a list in the order of the sorted folders or as a
            mapping from folder to name, in which accented letters may be composed or not. None makes the
            names from the folders' names: a number in front is removed and underscores become spaces
            (``"001.Black_footed_Albatross"`` becomes ``"Black footed Albatross"``).

    Raises:
        TypeError: ``class_names`` is neither.
        ValueError: a folder without a name, a name without a folder, two folders of one name, or a list
            that was made in another order.
    """
    own = [folder_name(folder) for folder in folders]
    if class_names is None:
        names = own
    elif isinstance(class_names, Mapping):
        given = {composed(str(folder)): name for folder, name in class_names.items()}
        wanted = [composed(folder) for folder in folders]
        missing, unknown = set(wanted) - set(given), set(given) - set(wanted)
        if missing or unknown:
            got = (
                f"none for {_listed(missing)}"
                if missing
                else f"one for {_listed(unknown)}, which is no folder"
            )
            advice = close_names(min(unknown), folders) if unknown else ""
            raise wrong_value("class_names", "a name for each class folder", got, advice)
        names = [given[folder] for folder in wanted]
    elif isinstance(class_names, Sequence) and not isinstance(class_names, str):
        names = list(class_names)
        if len(names) != len(folders):
            raise wrong_value(
                "class_names",
                f"{len(folders)} names, one for each class folder in sorted order ({_listed(folders)})",
                f"{len(names)} names",
            )
        _check_listed_in_order(folders, own, names)
    else:
        raise wrong_type("class_names", "a list of names or a mapping from folder to name", class_names)
    folder_of: dict[str, str] = {}
    for folder, name in zip(folders, names, strict=True):
        other = folder_of.setdefault(composed(normalize_text(str(name))), folder)
        if other != folder:
            alike = composed(other) == composed(folder)
            spelling = ", whose names differ only in how accented letters are composed" if alike else ""
            raise wrong_value(
                "class_names",
                "a different name for each class folder",
                f"{name!r} for the folders {_shown(other, alike)} and {_shown(folder, alike)}{spelling}",
                "Move the images into one folder." if alike else "Pass a mapping from folder to name.",
            )
    return ClassNames(names)


def _check_listed_in_order(folders: Sequence[str], own: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a list of names that was made in another order than that of the sorted folders."""
    spelled = [composed(normalize_text(str(name))) for name in names]
    said = [composed(normalize_text(name)) for name in own]
    if spelled == said:
        return
    advice = "Pass a mapping from folder to name, class_names={folder: name, ...}."
    for key, order in ((_by_number, "by number"), (str.lower, "without regard to capitals")):
        other = sorted(folders, key=key)
        if other != list(folders):
            at = next(i for i, (a, b) in enumerate(zip(folders, other, strict=True)) if a != b)
            raise wrong_value(
                "class_names",
                "a mapping from folder to name, because the order of these folders can be read in two ways",
                f"a list, whose {names[at]!r} belongs to the folder {folders[at]!r} where text is sorted, "
                f"and to {other[at]!r} {order}",
                advice,
            )
    place = {name: index for index, name in enumerate(said)}
    for index, name in enumerate(spelled):
        if place.get(name, index) != index:
            raise wrong_value(
                "class_names",
                f"the names of the class folders in sorted order ({_listed(folders)})",
                f"{names[index]!r} for the folder {folders[index]!r}, which is how {folders[place[name]]!r} "
                "is called",
                advice,
            )


def _by_number(folder: str) -> list[Any]:
    """Return a key that sorts the numbers in names by their size."""
    if re.fullmatch(r"[+-]\d+", folder):
        return [(int(folder), "")]
    parts = re.split(r"([0-9]+)", folder)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def folder_name(folder: str) -> str:
    """Return the class name that a folder's name spells.

    >>> folder_name("000_golden_retriever"), folder_name("001.Black_footed_Albatross"), folder_name("42")
    ('golden retriever', 'Black footed Albatross', '42')
    """
    # "7-eleven" and "2-door car" keep theirs.
    without_number = re.sub(r"^\d+[\s._]+(?=\S)|^(?:0\d*|\d{3,})-(?=[^\W\d_])", "", folder)
    return " ".join(without_number.replace("_", " ").split())


def composed(name: str) -> str:
    """Return a name with its accented letters composed: systems write them as one character or as two."""
    return unicodedata.normalize("NFC", name)


def _shown(name: str, escaped: bool) -> str:
    return ascii(name) if escaped else repr(name)


def _listed(names: Sequence[str] | set[str]) -> str:
    ordered = sorted(names)
    return ", ".join(map(repr, ordered[:5])) + (f", ... ({len(ordered)} in all)" if len(ordered) > 5 else "")
