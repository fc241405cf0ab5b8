"""What state the modules of a model are in: whether anything in them trains, and eval mode for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator

from torch import nn


@contextlib.contextmanager
def in_eval_mode(model: nn.Module, *, unless: Callable[[nn.Module], bool] | None = None) -> Generator[None]:
    """Let every module of a model be in eval mode for a while, each of them its own mode afterwards.

    Args:
        model: the model.
        unless: which modules keep the mode that they have; None for none of them.
    """
    training = [each for each in model.modules() if each.training and not (unless and unless(each))]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def is_frozen(module: nn.Module | None) -> bool:
    """Return whether nothing in a module trains, so that what it says stays the same.

    Args:
        module: a tower, an adapter, a model; None, for one that is not there, is frozen.
    """
    return module is None or not any(parameter.requires_grad for parameter in module.parameters())
