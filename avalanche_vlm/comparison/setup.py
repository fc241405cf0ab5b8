"""What the methods of a comparison begin with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from avalanche_vlm._checks import (
    check_choice,
    check_count,
    check_sequence,
    check_type,
    wrong_type,
    wrong_value,
)
from avalanche_vlm.benchmarks import class_names
from avalanche_vlm.functional.label_space import LABEL_SPACES, LabelSpace
from avalanche_vlm.models import CLIPClassifier, TextHead, VisionLanguageBackbone, ZeroShotHead


@final
@dataclass(frozen=True, kw_only=True)
class Setup:
    """A benchmark, and the model that every method begins with on it.

    Args:
        benchmark: of Avalanche, with class names; its streams ``train_stream`` and ``test_stream`` are used.
        backbone: of the model; every run gets one of its own.
        head: makes the head that is zero-shot on this backbone.
        spaces: the label spaces that are measured. Tables and curves are in the first one; the second, if
            there is one, is that of Transfer and of the matrices.
        seed: of the run, for what the method draws itself.
        device: what the method trains on.
        train_arguments: for ``strategy.train``, such as ``{"reset_optimizer_state": True}``.

    Raises:
        TypeError: an argument has another type.
        ValueError: no label space, or an unknown one.

    >>> from avalanche_vlm.benchmarks import tensor_benchmark
    >>> from avalanche_vlm.models import EmbeddingBackbone, TextFeatureHead
    >>> import torch
    >>> data = torch.randn(8, 4), torch.arange(4).repeat(2)
    >>> benchmark = tensor_benchmark(data, data, class_names=list("abcd"), n_experiences=2)
    >>> setup = Setup(
    ...     benchmark=benchmark,
    ...     backbone=EmbeddingBackbone(4),
    ...     head=lambda: TextFeatureHead(torch.eye(4)),
    ... )
    >>> len(setup.model().class_names)
    4
    """

    benchmark: Any
    backbone: VisionLanguageBackbone
    head: Callable[[], TextHead] = ZeroShotHead
    spaces: tuple[LabelSpace, ...] = ("seen", "all")
    seed: int = 0
    device: str = "cpu"
    train_arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_type("backbone", self.backbone, VisionLanguageBackbone)
        if not callable(self.head):
            raise wrong_type("head", "a function that makes a head", self.head)
        check_type("train_arguments", self.train_arguments, Mapping)
        check_sequence("spaces", self.spaces, str, "label spaces")
        check_count("seed", self.seed, at_least=0)
        check_type("device", self.device, str)
        if not self.spaces:
            raise wrong_value("spaces", "at least one label space", self.spaces)
        for space in self.spaces:
            check_choice("spaces", space, LABEL_SPACES)

    def model(self, head: TextHead | None = None, **arguments: Any) -> CLIPClassifier:
        """Return a classifier that knows the names of the benchmark's classes.

        Args:
            head: of the classifier; None for the zero-shot one.
            **arguments: for `CLIPClassifier`, such as ``trainable``.
        """
        model = CLIPClassifier(self.backbone, self.head() if head is None else head, **arguments)
        model.set_classes(class_names(self.benchmark))
        return model
