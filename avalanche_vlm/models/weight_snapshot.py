"""The weights of a model as they were at some moment: those that train, and no others."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Generator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from avalanche_vlm._checks import check_number, check_type, wrong_value
from avalanche_vlm.models.classifier import CLIPClassifier
from avalanche_vlm.models.heads import TextHead
from avalanche_vlm.models.modes import in_eval_mode, is_frozen
from avalanche_vlm.models.required_classifier import required_classifier


@final
class WeightSnapshot:
    """Copies of the parameters of a classifier that train, and of what its towers keep as buffers.

    A teacher, an anchor of weights and a reference for importance are all this: whoever asks for the
    weights of the same moment by `shared` gets the same copy. What is frozen is not copied.

    Args:
        tensors: by the names of `CLIPClassifier.named_parameters` and of the backbone's buffers.

    >>> from avalanche_vlm.testing import tiny_classifier
    >>> model = tiny_classifier(trainable="image")
    >>> before = WeightSnapshot.of(model)
    >>> before.nbytes == 4 * sum(parameter.numel() for parameter in model.parameters())
    True
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        check_type("tensors", tensors, Mapping)
        self.tensors = dict(tensors)

    @classmethod
    def of(cls, model: CLIPClassifier) -> WeightSnapshot:
        """Return copies of the weights as they are."""
        return cls({name: tensor.detach().clone() for name, tensor in _tensors(model).items()})

    @classmethod
    def shared(cls, strategy: Any) -> WeightSnapshot:
        """Return the weights of a strategy's model at this moment, the same copy for all who ask.

        It lives as long as one of them holds it.

        Raises:
            TypeError: the model is no `CLIPClassifier`.
        """
        live = _tensors(required_classifier(strategy.model, "whose weights are kept"))
        reference = _shared.get(strategy)
        found = None if reference is None else reference()
        # By value: an experience may have been interrupted, or weights loaded, since it was taken.
        if found is None or not found._equals(live):
            found = cls.of(strategy.model)
            _shared[strategy] = weakref.ref(found)
        return found

    def _equals(self, live: Mapping[str, Tensor]) -> bool:
        return self.tensors.keys() == live.keys() and all(
            tensor.device == live[name].device and torch.equal(tensor, live[name])
            for name, tensor in self.tensors.items()
        )

    def mixed(self, other: WeightSnapshot, share: float) -> WeightSnapshot:
        r"""Return :math:`(1 - a) \theta + a \theta'` with the other's weights θ' and their share a."""
        check_number("share", share, at_least=0, at_most=1)
        return WeightSnapshot(
            {
                name: tensor.lerp(other.tensors[name], share)
                if name in other.tensors and tensor.is_floating_point()
                else tensor
                for name, tensor in self.tensors.items()
            }
        )

    @contextlib.contextmanager
    def applied(self, model: CLIPClassifier) -> Generator[CLIPClassifier]:
        """Let a model have these weights for a while, in eval mode and without gradients.

        Raises:
            ValueError: a weight has another shape by now.
        """
        live = _tensors(model)
        for name, tensor in self.tensors.items():
            if name in live and live[name].shape != tensor.shape:
                raise wrong_value(
                    "model",
                    f"one whose {name} has the shape that it had, {tuple(tensor.shape)}",
                    tuple(live[name].shape),
                    "Name all classes with model.set_classes before the first training.",
                )
        own = {name: live[name].data for name in self.tensors if name in live}
        try:
            for name in own:
                live[name].data = self.tensors[name].to(own[name].device)
            # Autocast keeps its copies of weights by tensor, whatever is in it by now.
            torch.clear_autocast_cache()
            with torch.no_grad(), in_eval_mode(model, unless=_chooses_text):
                yield model
        finally:
            for name, tensor in own.items():
                live[name].data = tensor
            torch.clear_autocast_cache()

    @property
    def nbytes(self) -> int:
        """Number of bytes of the copies."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


def _chooses_text(module: nn.Module) -> bool:
    """Return whether a head's mode only says which templates it reads: a teacher's are the student's."""
    return isinstance(module, TextHead) and module.depends_on_mode


_shared: weakref.WeakKeyDictionary[Any, weakref.ref[WeightSnapshot]] = weakref.WeakKeyDictionary()


def _tensors(model: CLIPClassifier) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    for name, module in model.backbone.named_modules(prefix="backbone"):
        # Running statistics change with the tower that they belong to, and nothing else that is no parameter.
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
            continue
        if not is_frozen(module):
            tensors |= dict(module.named_buffers(prefix=name))
    return tensors
