"""How long each iteration of a strategy takes, for the studies of cost."""

import time

from avalanche.core import SupervisedPlugin


class Stopwatch(SupervisedPlugin):
    """Notes how long each iteration takes."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def before_training_iteration(self, strategy, *args, **kwargs) -> None:
        """Begin."""
        self.began = time.perf_counter()

    def after_training_iteration(self, strategy, *args, **kwargs) -> None:
        """End."""
        self.seconds.append(time.perf_counter() - self.began)
