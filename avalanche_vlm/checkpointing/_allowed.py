"""What a checkpoint may make anew: an explicit list of classes and functions, looked up by name.

Nothing is imported by a name that stands in a file, and no constructor is called: a class only
gets an empty instance, whose attributes are then set. That a run holds objects of a class is no reason
to make more of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from avalanche_vlm._checks import wrong_type
from avalanche_vlm.functional.semantic_drift import SemanticDrift
from avalanche_vlm.memory._stored_rows import StoredRows
from avalanche_vlm.metrics._stream_accuracies import StreamAccuracies
from avalanche_vlm.text import ClassNames, PromptTemplate

_registered: dict[str, type] = {}


def allow_in_checkpoints(*classes: type) -> None:
    """Let checkpoints hold objects of these classes that a run makes while it trains.

    What the constructors of plugins, metrics and strategies build is filled in place and needs no
    permission. Containers, buffers and data sets of the host, and optimizers, schedules and layers of
    torch, are known. Everything else that a plugin of yours makes later is refused, when saving as when
    resuming, until its class is allowed here: also of a class of which constructors have made others,
    or a file could make a writer of files of it. To be called in every process, before `resume`.

    No instance that is read has its class called: neither ``__new__`` nor ``__init__``. But its methods
    will be, with the attributes that the file gives. So allow what keeps data, and nothing that acts.

    Args:
        *classes: plain Python classes, whose instances keep their state in attributes.

    Raises:
        TypeError: something is no class.

    >>> class Note:
    ...     pass
    >>> allow_in_checkpoints(Note)
    """
    for kind in classes:
        if not isinstance(kind, type):
            raise wrong_type("classes", "classes", kind)
        _registered[class_name(kind)] = kind


def class_name(kind: type) -> str:
    """Return the full name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def allowed_class(name: str) -> type | None:
    """Return the class of a full name, if instances of it may be made."""
    return _registered.get(name) or _known_classes().get(name)


@cache
def _known_classes() -> dict[str, type]:
    from avalanche.benchmarks import utils
    from avalanche.benchmarks.utils import (
        classification_dataset,
        data,
        data_attribute,
        detection_dataset,
        flat_data,
        transform_groups,
        transforms,
    )
    from avalanche.evaluation import metrics
    from avalanche.evaluation.metric_results import AlternativeValues, MetricValue, TensorImage
    from avalanche.evaluation.metrics.mean import Mean, Sum
    from avalanche.training import storage_policy
    from avalanche.training.supervised import der
    from avalanche.training.utils import ParamData

    data_sets: list[Any] = [
        utils.AvalancheDataset,
        data._FlatDataWithTransform,  # pyright: ignore[reportPrivateUsage]
        flat_data.FlatData,
        flat_data.ConstantSequence,
        flat_data.LazyIndices,
        flat_data.LazyRange,
        data_attribute.DataAttribute,
        data_attribute.TaskLabels,
        classification_dataset.TaskAwareClassificationDataset,
        classification_dataset.TaskAwareSupervisedClassificationDataset,
        classification_dataset.ClassificationDataset,
        detection_dataset.DetectionDataset,
        transform_groups.TransformGroups,
        transform_groups.DefaultTransformGroups,
        transform_groups.EmptyTransformGroups,
        transforms.TupleTransform,
        transforms.MultiParamCompose,
        transforms.MultiParamTransformCallable,
    ]
    buffers: list[Any] = [
        storage_policy.ReservoirSamplingBuffer,
        storage_policy.ExperienceBalancedBuffer,
        storage_policy.ClassBalancedBuffer,
        storage_policy.ParametricBuffer,
        storage_policy._ParametricSingleBuffer,  # pyright: ignore[reportPrivateUsage]
        storage_policy.RandomExemplarsSelectionStrategy,
        der.ClassBalancedBufferWithLogits,
    ]
    values: list[Any] = [
        ClassNames,
        PromptTemplate,
        StreamAccuracies,
        SemanticDrift,
        StoredRows,
        ParamData,
        Mean,
        Sum,
        metrics.Accuracy,
        metrics.TaskAwareAccuracy,
        metrics.LossMetric,
        metrics.TaskAwareLoss,
        metrics.Forgetting,
        metrics.BWT,
        metrics.ForwardTransfer,
        AlternativeValues,
        MetricValue,
        TensorImage,
    ]
    kinds = (*data_sets, *buffers, *values, *_torch_classes())
    return {class_name(kind): kind for kind in kinds}


def _torch_classes() -> list[type]:
    """Return the optimizers, schedules and layers of torch, which runs make as they go."""
    found: list[type] = [torch.optim.swa_utils.AveragedModel]
    for module, base in (
        (torch.optim, torch.optim.Optimizer),
        (torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler),
        (torch.nn, torch.nn.Module),
    ):
        members: list[Any] = list(vars(module).values())
        found += [kind for kind in members if isinstance(kind, type) and issubclass(kind, base)]
    return found


@cache
def factories() -> dict[str, type]:
    """Return the classes that a default dictionary may make values of: they are called, without arguments."""
    from avalanche.evaluation import metrics
    from avalanche.evaluation.metrics.mean import Mean, Sum

    kinds = (metrics.Accuracy, Mean, Sum)
    return {class_name(kind): kind for kind in kinds}


@cache
def known_functions() -> dict[str, Callable[..., Any]]:
    """Return functions of the host, of torch and of Python that objects keep as attributes, by name."""
    from avalanche.benchmarks.utils.transform_groups import identity
    from avalanche.training.plugins import evaluation
    from torch.utils.data import default_collate

    return {
        "identity": identity,
        "default_collate": default_collate,
        "metric lists": evaluation._init_metrics_list_lambda,  # pyright: ignore[reportPrivateUsage]
        "torch.zeros": torch.zeros,
        "torch.ones": torch.ones,
        **{kind.__name__: kind for kind in (list, dict, set, int, float, str, Counter)},
    }
