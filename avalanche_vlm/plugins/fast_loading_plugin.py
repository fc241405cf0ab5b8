"""Fast loading for the host's own strategies."""

from __future__ import annotations

from typing import Any, final

from avalanche.core import SupervisedPlugin

from avalanche_vlm.plugins.fast_loader import fast_loader


@final
class FastLoadingPlugin(SupervisedPlugin[Any]):
    """Indexes batches of tensors at once, in the host's own strategies; see `fast_loader`.

    Strategies of this package do it by themselves (``fast_loading=True``). Its place in the list of
    plugins decides nothing about the result: the batches stay those of the loader that is there at
    the start of each epoch, when every plugin has chosen its loader, and at the start of each
    evaluated experience. A plugin behind this one that sets another loader in ``before_eval_exp``
    or ``before_training_epoch`` keeps it, and keeps its speed too. Loaders that a strategy keeps
    beside ``strategy.dataloader``, as the host's DER and ER-ACE do for their memory, stay as they
    are.

    >>> plugins = [FastLoadingPlugin()]
    """

    supports_distributed = True

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Replace the loader by one with the same batches."""
        strategy.dataloader = fast_loader(strategy.dataloader)

    def before_eval_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Replace the loader by one with the same batches."""
        strategy.dataloader = fast_loader(strategy.dataloader)
