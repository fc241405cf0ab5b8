"""Whether the data mean by a class id what the model means by it."""

from __future__ import annotations

import unicodedata
from typing import Any

from avalanche_vlm._checks import wrong_value
from avalanche_vlm._host import attribute_at_ends
from avalanche_vlm.text import ClassNames, normalize_text


def check_known_names(experience: Any, names: ClassNames) -> None:
    """Raise if the data of an experience know the names of their classes, and a model knows others.

    Names are compared id by id, as far as both know names; case, white space and the composition of
    accented letters do not count, because no tokenizer of CLIP tells them apart. Data without names pass.

    Args:
        experience: of any stream; its data carry names if `avalanche_vlm.benchmarks.class_names` finds them.
        names: those of the model.

    Raises:
        ValueError: an id has two names; the error says which, and how to map one onto the other.
    """
    for known in attribute_at_ends(getattr(experience, "dataset", None), "class_names"):
        if isinstance(known, ClassNames) and known is not names:
            _check_same(known, names)


def _check_same(known: ClassNames, names: ClassNames) -> None:
    data, model = [_spelling(name) for name in known], [_spelling(name) for name in names]
    different = [index for index, (own, other) in enumerate(zip(data, model, strict=False)) if own != other]
    if not different:
        return
    first = different[0]
    got = f"id {first} as {known[first]!r} in the data and {names[first]!r} in the model"
    if len(different) > 1:
        got += f", and {len(different) - 1} more such ids"
    if set(data) <= set(model):
        advice = (
            "The model knows these names under other ids. If nothing is trained yet, name the model by the "
            "data: model.set_classes(class_names(benchmark)). Otherwise build the benchmark with the model's "
            "ids: label y becomes list(model.class_names).index(class_names(benchmark)[y])."
        )
    else:
        some = "" if len(data) == len(model) else f"[:{len(data)}]"
        advice = (
            "If the ids mean the same classes and only the words differ, name the data by the model: "
            f"with_class_names(benchmark, list(model.class_names){some}). If these are new classes, add "
            "their names at the end, model.set_classes([*model.class_names, ...]), and let their labels "
            f"begin at {len(names)}."
        )
    raise wrong_value("experience", "data whose class ids mean what the model's ids mean", got, advice)


def _spelling(name: str) -> str:
    return normalize_text(unicodedata.normalize("NFC", name))
