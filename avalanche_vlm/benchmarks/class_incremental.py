"""How a data set is cut into a class-incremental stream; shared by the builders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Any, TypedDict

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.scenarios.deprecated.new_classes import NCScenario
from avalanche.benchmarks.utils import TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.classification_dataset import (
    _make_taskaware_classification_dataset,  # pyright: ignore[reportPrivateUsage]
)

from avalanche_vlm._checks import check_count, check_function, check_type, wrong_type, wrong_value
from avalanche_vlm.benchmarks.class_names import check_labels, name_dataset
from avalanche_vlm.text import ClassNames

Transform = Callable[[Any], Any]


class StreamArguments(TypedDict, total=False):
    """What every builder takes beside its data.

    Attributes:
        task_labels: False gives every sample the task label 0; True gives it the index of its
            experience, which only task-aware models of the host need.
        train_transform: applied to each x of the train stream, ``model.train_transform`` as a rule.
            Without it, x comes as it is stored.
        eval_transform: the same for the test stream, ``model.eval_transform`` as a rule.
    """

    task_labels: bool
    train_transform: Transform | None
    eval_transform: Transform | None


class ClassIncrementalArguments(StreamArguments, total=False):
    """What every class-incremental builder takes beside its data.

    Labels are never renumbered: class id i is ``class_names[i]`` in every experience, whatever the
    order. Give one of ``n_experiences`` and ``classes_per_experience``.

    Attributes:
        n_experiences: number of experiences with equally many classes; it must divide the number of
            classes.
        classes_per_experience: number of classes of each experience, for unequal ones; all classes
            of the order must be dealt out.
        class_order: class ids in the order in which they arrive. Classes that are left out have a
            name, but no samples in the stream.
        seed: a random class order instead, the one that the host's ``nc_benchmark`` draws for this
            seed; the global random state is left alone. With neither, classes arrive by id.
    """

    n_experiences: int | None
    classes_per_experience: Sequence[int] | None
    class_order: Sequence[int] | None
    seed: int | None


def class_incremental(
    train: Any,
    test: Any,
    class_names: Iterable[str],
    *,
    n_experiences: int | None = None,
    classes_per_experience: Sequence[int] | None = None,
    class_order: Sequence[int] | None = None,
    seed: int | None = None,
    task_labels: bool = False,
    train_transform: Transform | None = None,
    eval_transform: Transform | None = None,
) -> NCScenario:
    """Cut a pair of data sets into experiences of new classes; see `ClassIncrementalArguments`.

    Args:
        train: a data set of (x, y) with ``targets``.
        test: the same, with samples of every class of the order.
        class_names: one name per class id.
        n_experiences: see `ClassIncrementalArguments`, as for the arguments that follow.
        classes_per_experience: likewise.
        class_order: likewise.
        seed: likewise.
        task_labels: likewise.
        train_transform: likewise.
        eval_transform: likewise.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: a label without a name or a name without samples, a class of the order without
            samples, an order with duplicates or unknown ids, or classes that cannot be dealt out as
            asked.
    """
    names = class_names if isinstance(class_names, ClassNames) else ClassNames(class_names)
    check_stream_arguments(task_labels, train_transform, eval_transform)
    # Names first: one too few or too many makes the number of classes wrong, and with it what the
    # later checks would say about the order and the experiences.
    present = _present_labels(train, test, names)
    if class_order is None:
        _check_every_name_used(names, present)
    order = _class_order(len(names), class_order, seed)
    _check_present(present, order, names)
    counts = _class_counts(len(order), n_experiences, classes_per_experience)
    return nc_benchmark(
        host_dataset(train, names),
        host_dataset(test, names),
        n_experiences=len(counts),
        task_labels=task_labels,
        shuffle=False,
        fixed_class_order=order,
        per_exp_classes=dict(enumerate(counts)),
        train_transform=train_transform,
        eval_transform=eval_transform,
    )


def host_dataset(
    dataset: Any, names: ClassNames, **arguments: Any
) -> TaskAwareSupervisedClassificationDataset[Any]:
    """Return a named data set of the host that reads from ``dataset`` (x, y).

    Args:
        dataset: a data set with ``targets``.
        names: the names of all classes.
        **arguments: for the host: task labels and transforms.
    """
    targets = [int(label) for label in dataset.targets]
    # The host's public function for this leaves the labels out, and its builders then refuse it.
    labelled: Any = _make_taskaware_classification_dataset(dataset, targets=targets, **arguments)
    return name_dataset(labelled, names)


def check_stream_arguments(
    task_labels: bool, train_transform: Transform | None, eval_transform: Transform | None
) -> None:
    """Raise `TypeError` for a wrong argument among those that every builder takes."""
    check_type("task_labels", task_labels, bool)
    for argument, transform in (("train_transform", train_transform), ("eval_transform", eval_transform)):
        if transform is not None:
            check_function(argument, transform, "a callable that is applied to x")


def check_every_class_present(
    train: Any, test: Any, classes: Iterable[int], names: ClassNames, where: str = ""
) -> None:
    """Raise `ValueError` unless all labels have names, and all ``classes`` samples in both data sets."""
    _check_present(_present_labels(train, test, names, where), classes, names, where)


def _present_labels(train: Any, test: Any, names: ClassNames, where: str = "") -> dict[str, set[int]]:
    """Return the labels of both parts, all of which have names."""
    present = {
        argument: {int(label) for label in dataset.targets}
        for argument, dataset in (("train", train), ("test", test))
    }
    for argument, labels in present.items():
        check_labels(names, labels, f"`{argument}`{where}")
    return present


def _check_every_name_used(names: ClassNames, present: dict[str, set[int]]) -> None:
    unused = set(range(len(names))) - set[int]().union(*present.values())
    if unused:
        raise wrong_value(
            "class_names",
            "names of classes with samples",
            f"{len(names)} names, and in `train` and `test` no sample of {_listed(unused, names)}",
            "Remove the names or add samples. Classes that are left out on purpose: pass `class_order`.",
        )


def _check_present(
    present: dict[str, set[int]], classes: Iterable[int], names: ClassNames, where: str = ""
) -> None:
    wanted = set(classes)
    for argument, labels in present.items():
        if wanted - labels:
            raise wrong_value(
                argument,
                f"data with samples of every class{where}",
                f"none of {_listed(wanted - labels, names)}",
                "Add samples, or leave the class out (of `class_order`, or of the data and the names).",
            )


def _listed(classes: Iterable[int], names: ClassNames) -> str:
    shown = [f"{index} ({names[index]!r})" for index in sorted(classes)]
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")


def _class_order(class_count: int, class_order: Sequence[int] | None, seed: int | None) -> list[int]:
    if class_order is None:
        if seed is None:
            return list(range(class_count))
        check_count("seed", seed, at_least=0)
        return torch.randperm(class_count, generator=torch.Generator().manual_seed(int(seed))).tolist()
    if seed is not None:
        raise wrong_value("seed", "left out where `class_order` is given", seed)
    if not isinstance(class_order, Iterable):
        raise wrong_type("class_order", "a list of class ids", class_order)
    order: list[int] = []
    for index in class_order:
        if isinstance(index, bool) or not isinstance(index, Integral):
            raise wrong_type("class_order", "a list of class ids", index)
        order.append(int(index))
    outside = [index for index in order if not 0 <= index < class_count]
    repeated = sorted({index for index in order if order.count(index) > 1})
    if not order or outside or repeated:
        got = f"the id{'s' * (len(outside) > 1)} {outside}" if outside else f"{repeated} more than once"
        raise wrong_value(
            "class_order",
            f"class ids from 0 to {class_count - 1} (the named classes), each at most once",
            got if order else "an empty list",
        )
    return order


def _class_counts(
    class_count: int, n_experiences: int | None, classes_per_experience: Sequence[int] | None
) -> list[int]:
    if (n_experiences is None) == (classes_per_experience is None):
        raise wrong_value(
            "n_experiences",
            "given if `classes_per_experience` is not, and left out if it is",
            "neither" if n_experiences is None else "both",
        )
    if classes_per_experience is not None:
        check_type("classes_per_experience", classes_per_experience, (list, tuple))
        for count in classes_per_experience:
            check_count("classes_per_experience", count)
        if sum(classes_per_experience) != class_count:
            raise wrong_value(
                "classes_per_experience",
                f"a list that deals out all {class_count} classes",
                f"{list(classes_per_experience)}, which deals out {sum(classes_per_experience)}",
            )
        return [int(count) for count in classes_per_experience]
    check_count("n_experiences", n_experiences)
    assert n_experiences is not None
    if class_count % n_experiences:
        smaller, larger = class_count // n_experiences, class_count % n_experiences
        uneven = [smaller + 1] * larger + [smaller] * (n_experiences - larger)
        advice = f"For unequal experiences pass classes_per_experience={uneven}." if smaller else ""
        raise wrong_value(
            "n_experiences",
            f"a number that divides the {class_count} classes without remainder",
            n_experiences,
            advice,
        )
    return [class_count // n_experiences] * n_experiences
