"""The template of our strategies: the host's, with its traps answered once."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from avalanche.training.templates.base_sgd import PeriodicEval
from avalanche.training.templates.common_templates import SupervisedTemplate
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from avalanche_vlm._checks import check_choice, check_count, check_type, wrong_type, wrong_value
from avalanche_vlm._host import experience_classes
from avalanche_vlm._precision import Precision
from avalanche_vlm.functional import LABEL_SPACES, LabelSpace
from avalanche_vlm.memory import SeedBuffer
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.plugins._finite import check_loss, check_settings, check_weights
from avalanche_vlm.plugins.fast_loader import fast_loader
from avalanche_vlm.strategies.early_stopping import check_early_stopping
from avalanche_vlm.strategies.gradient_step import GradientStep
from avalanche_vlm.strategies.resting_text import RestingText
from avalanche_vlm.strategies.template_arguments import check_plugins, check_template
from avalanche_vlm.strategies.triggers import trigger_of


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
    - the evaluation batch is as large as the training batch, not 1;
    - numbers that are not finite are refused: settings of the optimizer before an experience and before
      each step, a loss before its step, weights after an epoch;
    - batches of tensors are indexed at once, whichever plugin chose the loader;
    - mixed precision, clipping, accumulation and a number of iterations in place of epochs are
      arguments, see `TemplateArguments`.

    What plugins see of accumulation: a term that is added to ``strategy.loss`` in
    ``before_backward`` needs no special case. ``before_update`` and ``after_update`` are called once
    a step, and there the gradients are those of the step, before they are clipped. All other
    callbacks are called for each batch, and in ``after_backward`` the gradients are those of this
    batch alone, unscaled. So a plugin that sets gradients to zero or calls ``backward`` for
    gradients of its own (A-GEM, GEM) loses nothing, but what it computes outside ``forward`` and
    ``criterion`` is under autocast only where it enters ``strategy.autocast()``, and not scaled. A step
    that fp16 leaves out, because a gradient is not finite, counts for callbacks as one that was made.

    Args:
        model: the classifier; its classes have names.
        optimizer: made of ``model.parameters()``.
        plugins: further plugins of ours or the host's; the list is not changed.
        fast_loading: see `TemplateArguments`, as for the arguments that follow.
        precision: likewise.
        max_gradient_norm: likewise.
        accumulate_batches: likewise.
        train_iterations: likewise.
        text_space: likewise.
        **template: the host's arguments.

    Raises:
        TypeError: ``model`` is not a `CLIPClassifier`.
        ValueError: an argument is out of its range, or both ``train_epochs`` and ``train_iterations`` are
            given; at the first training, a model without anything that trains; in training, a loss, a
            weight or a setting of the optimizer that is not finite.
    """

    #: The criterion need not look at the numbers.
    refuses_non_finite = True

    model: CLIPClassifier  # pyright: ignore[reportIncompatibleVariableOverride]
    _resume_point: _ResumePoint | None = None
    _fresh_optimizer_state = False  # of a method whose optimizer forgets between experiences

    def __init__(
        self,
        *,
        model: CLIPClassifier,
        optimizer: Optimizer,
        plugins: Sequence[Any] = (),
        fast_loading: bool = True,
        precision: Precision = "fp32",
        max_gradient_norm: float | None = None,
        accumulate_batches: int = 1,
        train_iterations: int | None = None,
        text_space: LabelSpace = "all",
        **template: Any,
    ) -> None:
        check_type("model", model, CLIPClassifier)
        check_type("optimizer", optimizer, Optimizer)
        check_plugins(plugins)
        check_template(template)
        if train_iterations is not None:
            check_count("train_iterations", train_iterations)
            if "train_epochs" in template:
                got, advice = f"both, with {template['train_epochs']} epochs", "Leave out one of them."
                raise wrong_value("train_iterations", "given in place of train_epochs", got, advice)
        self.train_iterations = train_iterations
        check_choice("text_space", text_space, LABEL_SPACES)
        self.text_space: LabelSpace = text_space
        self._resting_text: RestingText | None = None
        check_type("fast_loading", fast_loading, bool)
        self.fast_loading = fast_loading
        if precision != "fp32" and model.backbone.logit_scale.dtype == torch.float64:
            raise wrong_value(
                "precision",
                "'fp32' for a model in double precision, which autocast leaves as it is",
                repr(precision),
                "Call model.float().",
            )
        self._gradient_step = GradientStep(
            precision=precision,
            max_gradient_norm=max_gradient_norm,
            accumulate_batches=accumulate_batches,
            device=torch.device(template.get("device", "cpu")),
        )
        template.setdefault("criterion", LabelSpaceCrossEntropy("seen"))
        template.setdefault("eval_mb_size", template.get("train_mb_size", 1))
        super().__init__(model=model, optimizer=optimizer, plugins=[*plugins], **template)

    @property
    def gradient_scaler(self) -> GradScaler | None:
        """What scales the loss under fp16, whose ``state_dict`` belongs to a checkpoint; else None."""
        return self._gradient_step.gradient_scaler

    def make_train_dataloader(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, **kwargs: Any
    ) -> None:
        """Make the loader; an experience without samples is refused in our words, not the sampler's.

        So are images, where a plugin of the host would find out after the training that it keeps none.
        """
        experience_classes(self.experience)
        for plugin in self.plugins:
            policy = getattr(plugin, "storage_policy", None)
            if isinstance(policy, SeedBuffer):
                policy.check_samples(self.experience)
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
        check_settings(self.optimizer)
        super().make_optimizer(
            reset_optimizer_state=reset_optimizer_state or self._fresh_optimizer_state,
            **{**kwargs, "remove_params": True},
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

    def _before_training_exp(self, **kwargs: Any) -> None:
        if self._resume_point is not None:
            self._resume_point.begin()
        super()._before_training_exp(**kwargs)
        self._resting_text = None if self.text_space == "all" else RestingText(self)

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        """Train the epochs of an experience: all, or those that are left in a resumed one."""
        point, self._resume_point = self._resume_point, None
        if point is not None:
            point.enter()
        epochs = 0 if point is None else point.epochs
        self._plan_epochs(epochs)
        while epochs < self.train_epochs:
            self._before_training_epoch(**kwargs)
            if self._stop_training:
                self._stop_training = False
                break
            before = self.clock.train_exp_iterations
            self.training_epoch(**kwargs)
            epochs += 1
            check_weights(self)
            self._plan_epochs(epochs, idle=self.clock.train_exp_iterations == before)
            self._after_training_epoch(**kwargs)
            if epochs == 1:
                check_early_stopping(self)
        self._resting_text = None

    def _plan_epochs(self, done: int, *, idle: bool = False) -> None:
        """Set ``train_epochs`` to what ``train_iterations`` make of it; none follows an idle epoch."""
        if self.train_iterations is None:
            return
        left = 0 if idle else self.train_iterations - self.clock.train_exp_iterations
        # Not known before all plugins have chosen their loaders, and a loader need not know its length.
        self.train_epochs = done + math.ceil(max(left, 0) / (_length(self.dataloader) or left or 1))
        for plugin in self.plugins:
            if isinstance(plugin, PeriodicEval):  # it asks at the beginning which epoch will be the last
                plugin.before_training_exp(self)

    def training_epoch(self, **kwargs: Any) -> None:
        """Train on each batch once, or until ``train_iterations`` are reached; steps may take several."""
        if self.fast_loading:
            # Not before: until the first batch is asked for, plugins may set another loader.
            self.dataloader = fast_loader(self.dataloader)
        step, last = self._gradient_step, _length(self.dataloader) - 1
        end = None
        if self.train_iterations is not None:
            end = self.train_iterations - self.clock.train_exp_iterations - 1
            last = end if last < 0 else min(last, end)
        step.forget_batches()
        for index, batch in enumerate(self.dataloader):
            if self._stop_training:
                break
            self.mbatch = batch
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)

            self.optimizer.zero_grad()
            self.loss = self._make_empty_loss()
            self._before_forward(**kwargs)
            with self.model.head.text_part.encoding_once():
                self.mb_output = self.forward()
                self._after_forward(**kwargs)
                self.loss += self.criterion()

                self._before_backward(**kwargs)
            check_loss(self)
            self.backward()
            self._after_backward(**kwargs)

            if step.add_batch(self.optimizer, len(self.mb_y), last=index == last):
                self._before_update(**kwargs)
                check_settings(self.optimizer)
                self.optimizer_step()
                self._after_update(**kwargs)

            self._after_training_iteration(**kwargs)
            if index == end:
                break

    def _unpack_minibatch(self) -> None:
        """Bring the batch to the device, if its labels are class ids.

        Raises:
            TypeError: they are not whole numbers.
            ValueError: they are not one number a sample.
        """
        batch: Any = self.mbatch
        check_labels(batch[1])
        super()._unpack_minibatch()

    def eval_epoch(self, **kwargs: Any) -> None:
        """Evaluate on each batch of the loader."""
        if self.fast_loading:
            self.dataloader = fast_loader(self.dataloader)
        super().eval_epoch(**kwargs)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the precision of the forward pass, for a plugin that computes a term of the loss."""
        return self._gradient_step.autocast()

    def forward(self) -> Any:
        """Return the model's output for the current batch, as fp32."""
        resting = self._resting_text if self.is_training else None
        with self.autocast(), contextlib.nullcontext() if resting is None else resting.during(self):
            output = super().forward()
        reduced = isinstance(output, Tensor) and output.dtype in (torch.bfloat16, torch.float16)
        return output.float() if reduced else output

    def criterion(self) -> Any:
        """Return the loss of the current batch."""
        with self.autocast():
            return super().criterion()

    def backward(self) -> None:
        """Compute the gradients of the loss."""
        self._gradient_step.backward(self.loss, self.optimizer, retain_graph=self.retain_graph)

    def optimizer_step(self) -> None:
        """Update the parameters."""
        self._gradient_step.step(self.optimizer)


def check_labels(labels: Any) -> None:
    """Raise unless the labels of a batch are class ids (B,).

    Raises:
        TypeError: they are not whole numbers.
        ValueError: they are not one number a sample.
    """
    expected = "whole numbers (B,), one class id a sample"
    advice = "The data set gives (x, y): let y be one whole number, int(y), and no list of one."
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        raise wrong_type("y", expected, labels, advice)
    if labels.ndim != 1:  # metrics of the host take (B, 1) for a score of one class
        raise wrong_value("y", expected, tuple(labels.shape), advice)


def _length(loader: Any) -> int:
    return len(loader) if hasattr(loader, "__len__") else 0


for _event in (
    *("before_training_iteration", "before_forward", "after_forward", "before_backward", "after_backward"),
    *("before_update", "after_update", "after_training_iteration"),
    *("before_eval_iteration", "before_eval_forward", "after_eval_forward", "after_eval_iteration"),
):
    setattr(VLMTemplate, f"_{_event}", trigger_of(_event))
