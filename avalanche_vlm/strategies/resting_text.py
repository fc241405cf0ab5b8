"""Class weights that rest while a strategy trains on other classes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, final

import torch
from torch import Tensor

from avalanche_vlm._checks import wrong_value
from avalanche_vlm._host import strategy_columns
from avalanche_vlm.functional.cross_modal import full_precision
from avalanche_vlm.functional.label_space import columns_with_labels


@final
class RestingText:
    """The class weights with which an experience began, for the classes that need no new ones.

    Args:
        strategy: about to train on an experience, with its ``text_space``.

    Raises:
        ValueError: the head has no class weights, because it makes them of each image.
    """

    def __init__(self, strategy: Any) -> None:
        model = strategy.model
        columns = strategy_columns(strategy, strategy.text_space)
        if not model.head.has_class_weights:
            expected = f"'all' for a {type(model.head).__name__}, whose class weights are made for each image"
            raise wrong_value("text_space", expected, repr(strategy.text_space))
        with torch.no_grad(), strategy.autocast():
            self._weights: Tensor = full_precision(model.head.text_part(model.backbone).detach())
        self._columns = columns.to(self._weights.device)

    def during(self, strategy: Any) -> AbstractContextManager[None]:
        """Return what lets the classes of the space, and those of the batch, be encoded alone."""
        live = columns_with_labels(self._columns, strategy.mb_y.to(self._columns.device))
        return strategy.model.head.text_part.encoding_only(live, self._weights)
