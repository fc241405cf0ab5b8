"""The template of our strategies: the host's, with its traps answered once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates.common_templates import SupervisedTemplate
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_vlm._checks import check_count, check_type, wrong_type, wrong_value
from avalanche_vlm._host import experience_classes
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.plugins import LabelSpaceCrossEntropy


class TemplateArguments(TypedDict, total=False):
    """The host's own arguments, which every strategy here passes on."""

    criterion: Callable[[Tensor, Tensor], Tensor] | nn.Module
    train_mb_size: int
    train_epochs: int
    eval_mb_size: int
    device: str | torch.device
    evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin]
    eval_every: int
    peval_mode: str


class _ResumePoint(NamedTuple):
    """Where in an experience a run goes on: how many epochs are done, and how to get there."""

    epochs: int
    begin: Callable[[], None]
    enter: Callable[[], None]


class VLMTemplate(SupervisedTemplate[Any, Any, Any]):
    """The host's supervised template for a `CLIPClassifier`.

    It differs from the host's in these points:

    - the criterion is `LabelSpaceCrossEntropy` over the classes seen, not cross-entropy over all
      columns;
    - the optimizer holds what trains and nothing else: parameters that were frozen are taken out,
      new ones join the first group (the host adds every parameter it finds and takes none out);
    - a model in which nothing trains is refused, instead of training nothing for hours;
    - the evaluation batch is as large as the training batch, not 1.

    Args:
        model: the classifier; its classes have names.
        optimizer: made of ``model.parameters()``.
        plugins: further plugins of ours or the host's; the list is not changed.
        **template: the host's arguments.

    Raises:
        TypeError: ``model`` is not a `CLIPClassifier`.
        ValueError: at the first training, a model without anything that trains.
    """

    _resume_point: _ResumePoint | None = None

    def __init__(
        self,
        *,
        model: CLIPClassifier,
        optimizer: Optimizer,
        plugins: Sequence[Any] = (),
        **template: Any,
    ) -> None:
        check_type("model", model, CLIPClassifier)
        check_type("optimizer", optimizer, Optimizer)
        if not isinstance(plugins, Sequence):
            raise wrong_type("plugins", "a list of plugins", plugins)
        if "train_epochs" in template:
            check_count("train_epochs", template["train_epochs"])
        for name in ("train_mb_size", "eval_mb_size"):
            if template.get(name) is not None:
                check_count(name, template[name])
        template.setdefault("criterion", LabelSpaceCrossEntropy("seen"))
        template.setdefault("eval_mb_size", template.get("train_mb_size", 1))
        super().__init__(model=model, optimizer=optimizer, plugins=[*plugins], **template)

    def make_train_dataloader(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, **kwargs: Any
    ) -> None:
        """Make the loader; an experience without samples is refused in our words, not the sampler's."""
        experience_classes(self.experience)
        super().make_train_dataloader(**kwargs)

    def make_optimizer(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, reset_optimizer_state: bool = False, **kwargs: Any
    ) -> None:
        """Let the optimizer hold exactly the parameters that train."""
        if not any(True for _ in self.model.parameters()):
            raise wrong_value(
                "model",
                f"a model in which something trains, for {type(self).__name__}",
                "one that is frozen",
                "Give CLIPClassifier trainable='image', 'text', 'both' or LoRA(...), or a head that learns.",
            )
        super().make_optimizer(
            reset_optimizer_state=reset_optimizer_state, **{**kwargs, "remove_params": True}
        )

    def resume_inside_experience(
        self, epochs: int, *, begin: Callable[[], None], enter: Callable[[], None]
    ) -> None:
        """Let the next training go on after some of its epochs; `avalanche_vlm.checkpointing` asks.

        Args:
            epochs: how many epochs of the experience are done.
            begin: restores the state in which the experience was begun. Data sets, loaders and
                plugins are then prepared as they were.
            enter: restores the state after these epochs, just before the next one.
        """
        self._resume_point = _ResumePoint(epochs, begin, enter)

    def _before_training(self, **kwargs: Any) -> None:
        if self._resume_point is not None:
            self._resume_point.begin()
        super()._before_training(**kwargs)

    def _train_exp(
        self, experience: Any, eval_streams: Any = None, **kwargs: Any
    ) -> None:
        """Train the epochs of an experience: all, or those that are left in a resumed one."""
        point, self._resume_point = self._resume_point, None
        if point is not None:
            point.enter()
        for _ in range(0 if point is None else point.epochs, self.train_epochs):
            self._before_training_epoch(**kwargs)
            if self._stop_training:
                self._stop_training = False
                break
            self.training_epoch(**kwargs)
            self._after_training_epoch(**kwargs)
