"""The plugin that writes checkpoints while a strategy trains."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, final

from avalanche_vlm._checks import check_count, check_type, wrong_value
from avalanche_vlm.checkpointing._data import BenchmarkData
from avalanche_vlm.checkpointing._file import checkpoint_name, checkpoints_in, remove_old
from avalanche_vlm.checkpointing._interrupt import Interrupt
from avalanche_vlm.checkpointing._state import CheckpointingPlugin, Run, built, capture, check_middle
from avalanche_vlm.checkpointing.save import write_state
from avalanche_vlm.strategies import VLMTemplate


@final
class CheckpointPlugin(CheckpointingPlugin):
    """Writes a checkpoint before anything is trained, and after each experience.

    The one of an experience is written after the evaluation that follows it, so that no row of a
    matrix is lost; each further evaluation writes it again. If the next training begins without an
    evaluation, it is written then. A run that is killed loses at most the experience that it was
    in; `resume` goes back to the newest checkpoint. A script that ends with a training, and no
    evaluation, should call `save` to keep what came out of it.

    It works with the strategies of the host and ours. Where it stands in the list of plugins does
    not matter: when it is called first, or by `resume`, it moves itself to the end, after the
    evaluator and the clock of the host.

    Ctrl-C, while training, lets the run go on to where it can be resumed: the end of the epoch for
    strategies on `VLMTemplate`, the end of the experience and its evaluation for others. There
    ``KeyboardInterrupt`` is raised, which says where the checkpoint is. A second Ctrl-C interrupts
    at once.

    Args:
        folder: where the checkpoints go, one folder for a run; it is made if it does not exist.
        keep: how many of the newest checkpoints stay.
        every_n_epochs: also write one inside each experience, every so many epochs; for strategies on
            `VLMTemplate`. None for none.

    Raises:
        TypeError: ``folder`` is no path.
        ValueError: ``keep`` or ``every_n_epochs`` is smaller than 1; at the first callback, the folder
            holds the checkpoints of another run.

    >>> plugins = [CheckpointPlugin("checkpoints", keep=3)]
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, keep: int = 2, every_n_epochs: int | None = None
    ) -> None:
        super().__init__()
        check_type("folder", folder, (str, os.PathLike))
        check_count("keep", keep)
        if every_n_epochs is not None:
            check_count("every_n_epochs", every_n_epochs)
        # Private, so that they are no settings of the run: where it is saved changes nothing in it.
        self._folder = Path(folder)
        self._keep = keep
        self._every_n_epochs = every_n_epochs
        self._run: Run | None = None
        self._interrupt = Interrupt()
        self._begun = False
        self._in_training = False
        self._pending = False
        self._start = b""

    def attach(self, strategy: Any, data: BenchmarkData, *, resumed: bool = False) -> None:
        """Take the last place among the plugins of a strategy; `resume` calls this."""
        if self._run is None or not self._begun:
            self._run = Run(data=data, built=built(strategy, data))
        # A new list: the host may be going through the old one.
        others = [plugin for plugin in strategy.plugins if not isinstance(plugin, CheckpointingPlugin)]
        strategy.plugins = [_BeforeOthers(self), *others, self]
        self._begun = self._begun or resumed

    # Called before all other plugins.

    def begin_training(self, strategy: Any) -> None:
        """Write what is not written yet: nothing has changed since the last evaluation."""
        if self._every_n_epochs is not None:
            if not isinstance(strategy, VLMTemplate):
                raise wrong_value(
                    "every_n_epochs",
                    "None for strategies of the host, which cannot go on inside an experience",
                    self._every_n_epochs,
                )
            check_middle(strategy)
        self._begin(strategy)
        if self._pending:
            self._write(strategy)
            self._interrupt.raise_if_asked(self._message())
        self._in_training = True
        if isinstance(strategy, VLMTemplate):
            self._start = capture(strategy, self._started())
        self._interrupt.listen(strategy)

    def begin_evaluation(self, strategy: Any) -> None:
        """Write the state that the run begins with."""
        self._begin(strategy)
        if self._pending:
            self._interrupt.listen(strategy)

    # Called after all other plugins.

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Begin the run, if `resume` has not been called and this is the first callback."""
        if self._run is None:
            self._attach_late(strategy)
            self.begin_training(strategy)

    def before_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Begin the run, if `resume` has not been called and this is the first callback."""
        if self._run is None:
            self._attach_late(strategy)
            self.begin_evaluation(strategy)

    def before_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Note the data of an experience."""
        self._started().data.add(strategy.experience)

    def after_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint inside the experience, if it is time or Ctrl-C was pressed."""
        if not isinstance(strategy, VLMTemplate):
            return
        epochs = int(strategy.clock.train_exp_epochs)
        due = self._every_n_epochs is not None and epochs % self._every_n_epochs == 0
        if (due or self._interrupt.asked) and epochs < strategy.train_epochs and self._start:
            check_middle(strategy)
            middle = capture(strategy, self._started())
            sections = {"state": self._start, "middle": middle}
            name = checkpoint_name(strategy.clock.train_exp_counter, epochs)
            write_state(strategy, self._folder / name, sections, epochs=epochs)
            remove_old(self._folder, self._keep)
            self._interrupt.raise_if_asked(self._message())

    def after_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Note that the next evaluation is that of the experience."""
        self._in_training = False
        self._pending = True
        self._start = b""
        if not self._interrupt.asked:
            self._interrupt.stop_listening()

    def after_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Write the checkpoint of the experience that was trained before."""
        if not self._in_training and int(strategy.clock.train_exp_counter) > 0:
            try:
                self._write(strategy)
            finally:
                self._interrupt.stop_listening()
            self._interrupt.raise_if_asked(self._message())

    def _attach_late(self, strategy: Any) -> None:
        experience = next(iter(_experiences(strategy)), None)
        stream = getattr(experience, "origin_stream", None)
        self.attach(strategy, BenchmarkData(getattr(stream, "benchmark", None)))

    def _begin(self, strategy: Any) -> None:
        if self._begun:
            return
        present = checkpoints_in(self._folder)
        if present:
            raise wrong_value(
                "folder",
                "a folder without checkpoints, for a run that begins",
                f"{str(self._folder)!r} with {present[0].name}",
                "Call resume(strategy, folder, benchmark) before training to go on with that run, or give "
                "another folder.",
            )
        self._write(strategy)
        self._begun = True

    def _write(self, strategy: Any) -> None:
        path = self._folder / checkpoint_name(strategy.clock.train_exp_counter)
        write_state(strategy, path, {"state": capture(strategy, self._started())})
        remove_old(self._folder, self._keep)
        self._pending = False

    def _started(self) -> Run:
        if self._run is None:
            raise RuntimeError("CheckpointPlugin has not been called by a strategy yet.")
        return self._run

    def _message(self) -> str:
        return (
            f"Interrupted. The checkpoint is in {str(self._folder)!r}: run the same script again, with "
            "resume(strategy, folder, benchmark) before the loop, to go on from there."
        )


@final
class _BeforeOthers(CheckpointingPlugin):
    """Tells the `CheckpointPlugin` that training or evaluation begins, before any other plugin knows."""

    def __init__(self, plugin: CheckpointPlugin) -> None:
        super().__init__()
        self._plugin = plugin

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Pass on."""
        self._plugin.begin_training(strategy)

    def before_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Pass on."""
        self._plugin.begin_evaluation(strategy)


def _experiences(strategy: Any) -> list[Any]:
    """Return what a strategy is about to train on or to evaluate."""
    groups = getattr(strategy, "_eval_streams", None) or [strategy.current_eval_stream]
    return [experience for group in groups for experience in group]
