"""The arguments that every strategy here takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from avalanche.core import BasePlugin
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from torch import Tensor, nn

from avalanche_vlm._checks import (
    check_choice,
    check_count,
    check_function,
    check_type,
    wrong_type,
    wrong_value,
)
from avalanche_vlm._precision import Precision
from avalanche_vlm.functional import LabelSpace


class TemplateArguments(TypedDict, total=False):
    """The host's own arguments, which every strategy here passes on, and those of `VLMTemplate`.

    Attributes:
        fast_loading: whether batches are indexed at once where the data are tensors, as
            `fast_loader` says: the same batches, sooner. False leaves the host's loaders alone.
        precision: ``"bf16"`` or ``"fp16"`` runs the forward pass and the criterion, in training and
            evaluation, under torch's autocast. Parameters and gradients stay fp32, and logits are
            handed on as fp32. With fp16 the loss is scaled; fp16 on the CPU works, and is slow.
        max_gradient_norm: largest norm of all gradients together, at each step; None for no limit.
        accumulate_batches: number of batches whose gradients make one step, that of one batch of
            all their samples. The batches that are left at the end of an epoch make one too.
        train_iterations: number of iterations (batches) of an experience, whatever its size, in place of
            ``train_epochs``: epochs follow one another, and the last is cut where the number is reached.
            Plugins see the cut epoch begin and end, and batches that it leaves over make a step.
            ``strategy.train_epochs`` is then the number of epochs of the experience at hand.
        text_space: the classes whose text is encoded anew at each step of training, together with the
            labels of the batch, where text passes something that trains: a label space, that of the
            criterion as a rule. The others keep the weights with which the experience began, and give
            no gradient. A loss over the same space stays as it is, at a part of the time and the
            memory, but for rounding, which Adam may enlarge; what reads other logits in training, such
            as LwF, sees weights that rest.
    """

    criterion: Callable[[Tensor, Tensor], Tensor] | nn.Module
    train_mb_size: int
    train_epochs: int
    eval_mb_size: int
    device: str | torch.device
    evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] | None
    eval_every: int
    peval_mode: str
    fast_loading: bool
    precision: Precision
    max_gradient_norm: float | None
    accumulate_batches: int
    train_iterations: int | None
    text_space: LabelSpace


def check_template(template: Mapping[str, Any]) -> None:
    """Raise for a wrong value among those of the host's arguments that are given.

    Raises:
        TypeError: a value has another type, or is a class that has to be built.
        ValueError: a value is out of its range.
    """
    for name in ("train_mb_size", "train_epochs", "eval_mb_size"):
        if name in template:
            check_count(name, template[name])
    if "eval_every" in template:
        check_count("eval_every", template["eval_every"], at_least=-1)
    if "peval_mode" in template:
        check_choice("peval_mode", template["peval_mode"], ("epoch", "iteration"))
    if "criterion" in template:
        check_function("criterion", template["criterion"], "a loss of logits and labels, such as a module")
    evaluator = template.get("evaluator")
    is_class = isinstance(evaluator, type) and issubclass(evaluator, EvaluationPlugin)  # the host calls it
    if not (evaluator is None or is_class or isinstance(evaluator, EvaluationPlugin)):
        check_function("evaluator", evaluator, "an EvaluationPlugin, a function that makes one, or None")
    if "device" in template:
        check_type("device", template["device"], (str, torch.device))
        try:
            torch.device(template["device"])
        except RuntimeError as error:
            raise wrong_value("device", "a device of torch, such as 'cpu' or 'cuda:0'", str(error)) from error


def check_plugins(plugins: Any) -> None:
    """Raise unless a strategy can be given these plugins.

    Raises:
        TypeError: they are not a list of plugins.
        ValueError: one of them stands there twice; or two are the host's
            ``ReplayPlugin``, of which the last sets the loader and the others replay nothing.
    """
    if isinstance(plugins, str) or not isinstance(plugins, Sequence):
        raise wrong_type("plugins", "a list of plugins", plugins)
    for number, plugin in enumerate(plugins):
        if isinstance(plugin, type):
            advice = f"Build it: {plugin.__name__}(...)."
            raise wrong_type("plugins", "a list of plugins", plugin, advice)
        if not isinstance(plugin, BasePlugin):
            raise wrong_type("plugins", "a list of plugins of Avalanche or of this package", plugin)
        if any(plugin is other for other in plugins[:number]):
            raise wrong_value(
                "plugins",
                "a list in which each plugin stands once, because each is called as often as it stands there",
                f"the same {type(plugin).__name__} twice",
                "Leave one out, or build a second one.",
            )
    count = sum(isinstance(plugin, ReplayPlugin) for plugin in plugins)
    if count > 1:
        raise wrong_value(
            "plugins",
            "a list with at most one ReplayPlugin of Avalanche, because the last one displaces the others",
            f"{count}",
            "For a second memory take FeatureReplayPlugin.",
        )
