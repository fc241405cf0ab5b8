"""Telling folders that are the parts of a data set, or wrap it, from folders that are classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.benchmarks.class_folders import AnyPath, composed, is_hidden, is_picture, visible_files

_TRAIN_WORDS = ("train", "training", "trainset", "trainval", "trn")
_TEST_WORDS = (
    *("test", "testing", "testset", "tst", "val", "valid", "validation", "eval", "evaluation"),
    *("holdout", "dev"),
)
_OTHER_WORDS = (
    *("unlabeled", "unlabelled", "pred", "prediction", "query", "gallery", "extra"),
    *("fold", "split", "session"),
)
_PART_WORDS = {*_TRAIN_WORDS, *_TEST_WORDS, *_OTHER_WORDS}
_STRAYS = 3  # pictures beside folders of pictures
_FEW = 6  # so many folders are taken for parts, however few folders they have in common


@final
@dataclass(frozen=True)
class _Layout:
    """What a folder holds, after folders that hold nothing but one other folder of folders.

    Attributes:
        path: the innermost of these folders.
        folders: in it, those with pictures somewhere below.
        is_flat: pictures lie in it directly, more than a few strays or with nothing else.
    """

    path: Path
    folders: tuple[str, ...]
    is_flat: bool


def check_no_parts(
    root: AnyPath, class_names: Sequence[str] | Mapping[str, str] | None, argument: str = "train"
) -> None:
    """Raise if the folders of ``root``, which are to be classes, look like something else.

    - Parts of a data set, by their names (``Training`` and ``Testing``, ``seg_train`` and ``seg_test``,
      ``dev`` and ``eval``) or because they hold the same folders.
    - One folder around the folders of the classes.
    - Classes that are divided into parts (``cat/train``, ``cat/test``).

    A mapping from folder to class name says that they are classes; nothing is checked then.

    Raises:
        ValueError: they look so; the error says what to pass.
    """
    if isinstance(class_names, Mapping):
        return
    root = Path(root).expanduser()
    top = _layout(root)
    if top.path == root:
        top = replace(top, is_flat=False)  # pictures in the root itself are not read
    if (found := _named_parts(top)) is not None:
        listed = ", ".join(map(repr, top.folders))
        raise wrong_value(
            argument,
            "a folder with one folder of images per class",
            f"{str(top.path)!r}, whose folders {listed} are the parts of a data set",
            f"{_to_pass(argument, found)} {_if_classes(root, top.path / top.folders[0])}",
        )
    if top.path != root and len(top.folders) > 1:
        raise wrong_value(
            argument,
            "a folder with one folder of images per class",
            f"{str(root)!r}, whose only folder with images, {top.path.relative_to(root).parts[0]!r}, holds "
            f"{len(top.folders)} folders of images",
            f"{_to_pass(argument, [top.path])} {_if_classes(root, top.path)}",
        )
    if top.is_flat or len(top.folders) < 2 or _layout(top.path / top.folders[0]).is_flat:
        return
    inside = [_layout(top.path / folder) for folder in top.folders]
    if any(each.is_flat for each in inside):
        return
    if all(map(_holds_parts, inside)):
        raise wrong_value(
            argument,
            "a folder with one folder of images per class",
            f"{str(root)!r}, whose class folders are divided into parts, as {str(inside[0].path)!r} into "
            f"{', '.join(map(repr, inside[0].folders))}",
            "Move the images to train/class/ and test/class/, and pass both folders.",
        )
    shared = _shared(inside)
    if shared and (len(inside) <= max(len(shared), _FEW) or all(map(_words, top.folders))):
        raise wrong_value(
            argument,
            "a folder with one folder of images per class",
            f"{str(root)!r}, whose {len(inside)} folders {', '.join(map(repr, top.folders[:5]))} all hold "
            f"the folders {', '.join(map(repr, shared[:3]))}{', ...' if len(shared) > 3 else ''}, as the "
            "parts or the domains of a data set do",
            "Pass the folder of the part that is to be learned as `train` and that for testing as `test`, or "
            f"domain_folder_benchmark(root) if they are domains. {_if_classes(root, root / top.folders[0])}",
        )


def check_domains(root: AnyPath, domains: Sequence[str], *, chosen: bool, class_names: object) -> None:
    """Raise if folders that are to be domains look like something else, or their classes do.

    Args:
        root: the folder around the domains.
        domains: its folders.
        chosen: whether the user named the domains, and so says that they are.
        class_names: as of `check_no_parts`.

    Raises:
        ValueError: the domains look like the parts of a data set, or wrap it, or hold parts themselves.
    """
    root = Path(root).expanduser()
    parts = [domain for domain in domains if _words(domain)]
    if not chosen and parts:
        top = _layout(root)
        found = _named_parts(top)
        pair = f"Pass folder_benchmark({', '.join(repr(str(path)) for path in found)}). " if found else ""
        raise wrong_value(
            "root",
            "a folder with one folder per domain",
            f"{str(root)!r}, where {', '.join(map(repr, parts))} is called like a part of a data set",
            f"{pair}If these are domains, name them: domains={list(domains)}.",
        )
    if not chosen and len(domains) == 1:
        below = _layout(root)
        within = [_layout(below.path / folder) for folder in below.folders]
        if len(within) > 1 and not any(each.is_flat for each in within) and _shared(within):
            raise wrong_value(
                "root",
                "a folder with one folder per domain",
                f"{str(root)!r}, whose only folder {domains[0]!r} holds folders with the same folders in "
                "them",
                f"Pass domain_folder_benchmark({str(below.path)!r}), or name it: domains={list(domains)}.",
            )
    if isinstance(class_names, Mapping):
        return
    for domain in domains:
        inside = _layout(root / domain)
        deeper = [_layout(inside.path / folder) for folder in inside.folders]
        divided = bool(deeper) and all(map(_holds_parts, deeper))
        if inside.path != root / domain and len(inside.folders) > 1:
            got = f"{str(root / domain)!r}, whose only folder holds {len(inside.folders)} folders of images"
        elif _named_parts(inside) is not None:
            listed = ", ".join(map(repr, inside.folders))
            got = f"{str(inside.path)!r}, whose folders {listed} are the parts of a data set"
        elif divided:
            listed = ", ".join(map(repr, deeper[0].folders))
            got = f"{str(deeper[0].path)!r}, whose folders {listed} are the parts of a data set"
        else:
            continue
        raise wrong_value(
            "root",
            "a folder with the class folders directly in each domain's folder",
            got,
            "For parts, pass domain_benchmark({domain: (train, test)}, class_names=...) with data sets, as "
            "torchvision's ImageFolder, of each part.",
        )


def _named_parts(top: _Layout) -> list[Path] | None:
    """Return the parts to train on and, if there is one, to test on; None if these are no parts by name."""
    named = {folder: words for folder in top.folders if (words := _words(folder))}
    if len(named) == 1 and len(top.folders) > 1:  # beside masks, or something else
        [(folder, words)] = named.items()
        layout = _layout(top.path / folder)
        is_train = bool(words & set(_TRAIN_WORDS)) and not layout.is_flat and len(layout.folders) > 1
        return [layout.path] if is_train else None
    if not _holds_parts(top):
        return None
    layouts = {folder: _layout(top.path / folder) for folder in named}
    with_classes = [folder for folder, each in layouts.items() if each.folders and not each.is_flat]
    if not with_classes:
        return None  # flat pictures in folders of these names: classes that are called so
    classes = [set(layouts[folder].folders) for folder in with_classes]
    if len(named) < len(top.folders) and not set.intersection(*classes):
        return None  # a test tube and a train station among others
    train, test = (
        next((folder for word in words for folder in with_classes if word in named[folder]), None)
        for words in (_TRAIN_WORDS, _TEST_WORDS)
    )
    others = [folder for folder in with_classes if folder != test]
    # A part for testing is learned only where there is no other.
    others.sort(key=lambda folder: bool(named[folder] & {"test", "testing", "val", "validation"}))
    train = train or next(iter(others), None)
    return [layouts[folder].path for folder in dict.fromkeys((train, test)) if folder is not None]


def _to_pass(argument: str, found: Sequence[Path]) -> str:
    if argument == "test":
        return f"Pass test={str(found[-1])!r}."
    return f"Pass folder_benchmark({', '.join(repr(str(path)) for path in found)})."


def _holds_parts(layout: _Layout) -> bool:
    named = [words for folder in layout.folders if (words := _words(folder))]
    return not layout.is_flat and len(named) > 1 and len(set[str]().union(*named)) > 1


def _words(folder: str) -> set[str]:
    """Return the words in a folder's name that name a part of a data set.

    >>> _words("seg_train"), _words("TestImages"), _words("trains"), _words("train2017")
    ({'train'}, {'test'}, set(), {'train'})
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", folder)
    return {word for word in re.findall(r"[a-z]+", spaced.lower()) if word in _PART_WORDS}


def _shared(layouts: Sequence[_Layout]) -> list[str]:
    """Return the names of at least two folders that all have in common, if those are most of them."""
    sets = [{composed(folder) for folder in each.folders} for each in layouts]
    both = set.intersection(*sets)
    return sorted(both) if len(both) > 1 and 2 * len(both) >= len(set.union(*sets)) else []


def _layout(folder: Path) -> _Layout:
    entries = [entry for entry in folder.iterdir() if not is_hidden(entry.name)]
    folders = sorted(entry for entry in entries if entry.is_dir() and _has_pictures(entry))
    own = sum(is_picture(entry.name) and entry.is_file() for entry in entries)
    is_flat = own > (_STRAYS if folders else 0)
    if not is_flat and len(folders) == 1:
        below = _layout(folders[0])
        if not below.is_flat:
            return below
    return _Layout(folder, tuple(entry.name for entry in folders), is_flat)


def _has_pictures(folder: Path) -> bool:
    return any(is_picture(name) for _, name in visible_files(folder))


def _if_classes(root: Path, folder: Path) -> str:
    name = folder.relative_to(root).parts[0]
    return (
        f"If these are the classes, say so by a mapping from folder to name: class_names={{{name!r}: ..., }}."
    )
