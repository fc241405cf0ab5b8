"""The plugin that writes checkpoints while a strategy trains."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from avalanche_vlm._checks import check_count, check_type, wrong_value
from avalanche_vlm.checkpointing._capture import capture, check_middle
from avalanche_vlm.checkpointing._data import BenchmarkData
from avalanche_vlm.checkpointing._file import (
    checkpoint_name,
    checkpoints_in,
    checksums_in,
    remove_old,
    run_of,
    set_aside_newer,
)
from avalanche_vlm.checkpointing._interrupt import Interrupt
from avalanche_vlm.checkpointing._walk import CheckpointingPlugin, Run, new_run, note_data
from avalanche_vlm.checkpointing.save import write_state
from avalanche_vlm.strategies import VLMTemplate


@final
class CheckpointPlugin(CheckpointingPlugin):
    """Writes a checkpoint before anything is trained, and after each experience.

    The one of an experience is written after the evaluation that follows it, so that no row of a
    matrix is lost; each further evaluation writes it again. If the next training begins without an
    evaluation, it is written then. If there are several evaluations after an experience, and the run
    is killed between two of them, `resume` warns that those left are missing. A run that is killed
    loses at most the experience that it was in; `resume` goes back to the newest checkpoint. A script
    that ends with a training, and no evaluation, should call `save` to keep what came out of it.

    It works with the strategies of the host and ours. Where it stands in the list of plugins does
    not matter: when it is called first, or by `resume`, it moves itself to the end, after the
    evaluator and the clock of the host.

    Ctrl-C, while training, lets the run go on to where it can be resumed: the end of the epoch for
    strategies on `VLMTemplate`, the end of the experience and its evaluation for others. There
    ``KeyboardInterrupt`` is raised, which says where the checkpoint is. A second Ctrl-C interrupts
    at once.

    What a run makes that a checkpoint cannot hold is refused when it is saved, most of it before
    training begins: functions and paths at other places
    than where constructors had put them, open files, endless loaders, objects of classes that are not
    known (see `allow_in_checkpoints`), parts added to the model, online streams that are cut at random
    on the way. Call `resume` before the first training too: only then is it certain what
    constructors had made. Not kept are the order of a set that has had elements removed, and what
    loggers say about where they write. Edits of frozen weights that torch does not count (through
    ``.data``) are noticed by samples of them.

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
        self._folder = Path(folder).absolute()  # a script may go elsewhere
        self._keep = keep
        self._every_n_epochs = every_n_epochs
        self._run: Run | None = None
        self._interrupt = Interrupt()
        self._begun = False
        self._in_training = False
        self._pending = False
        self._start = b""
        self._resumed_at: tuple[int, int] | None = None
        self._files: dict[str, bytes] | None = None
        self._strategy: weakref.ref[Any] | None = None

    def writes_to(self, folder: Path) -> bool:
        """Return whether this is the folder of the checkpoints."""
        return folder.absolute() == self._folder

    def check_folder(self, run: str) -> None:
        """Raise if the folder holds the checkpoints of another run than the one to be resumed.

        Raises:
            ValueError: it does.
        """
        for path in checkpoints_in(self._folder):
            if run_of(path) not in (run, None):
                raise wrong_value(
                    "folder",
                    "that of the run that is resumed, or one without checkpoints",
                    f"{str(self._folder)!r} with {path.name} of another run",
                    "Give the CheckpointPlugin another folder.",
                )

    def attach(self, strategy: Any, run: Run, *, resumed: Mapping[str, Any] | None = None) -> None:
        """Take the last place among the plugins of a strategy; `resume` calls this.

        Args:
            strategy: the strategy.
            run: what it was built of, and the data of its benchmark.
            resumed: the header of the checkpoint that is resumed; None for a run that begins.

        Raises:
            ValueError: the strategy has another `CheckpointPlugin`, or this one belongs to another strategy.
        """
        check_only_one(strategy)
        self.check_owner(strategy)
        self._strategy = weakref.ref(strategy)
        if self._run is None or not self._begun:
            self._run = run
        if resumed is not None:
            self._run.id = str(resumed["run"])
            self._run.evaluations = [int(count) for count in resumed["evaluations"]]
            self._resumed_at = int(resumed["experiences"]), int(resumed["epochs"])
            self._files = checksums_in(self._folder)
        # A new list: the host may be going through the old one.
        others = [plugin for plugin in strategy.plugins if not isinstance(plugin, CheckpointingPlugin)]
        strategy.plugins = [_BeforeOthers(self), *others, self]
        self._begun = self._begun or resumed is not None

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
        self._interrupt.listen(strategy)

    def begin_experience(self, strategy: Any) -> None:
        """Remember the state in which an experience begins: a checkpoint inside of it starts there."""
        if isinstance(strategy, VLMTemplate):
            self._start = capture(strategy, self._started())

    def begin_evaluation(self, strategy: Any) -> None:
        """Write the state that the run begins with."""
        self._begin(strategy)
        if self._pending:
            self._interrupt.listen(strategy)

    # Called after all other plugins.

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Begin the run, if `resume` has not been called and this is the first callback."""
        self.check_owner(strategy)
        if self._run is None:
            self._attach_late(strategy)
            self.begin_training(strategy)

    def before_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Begin the run, if `resume` has not been called and this is the first callback."""
        self.check_owner(strategy)
        if self._run is None:
            self._attach_late(strategy)
            self.begin_evaluation(strategy)

    def before_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Note the data of an experience."""
        note_data(strategy, self._started())

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
            self._put(strategy, sections, epochs)
            self._interrupt.raise_if_asked(self._message())

    def after_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Note that the next evaluation is that of the experience."""
        self._in_training = False
        self._pending = True
        self._start = b""
        self._started().evaluations.append(0)
        if not self._interrupt.asked:
            self._interrupt.stop_listening()

    def after_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Write the checkpoint of the experience that was trained before."""
        if not self._in_training:
            self._started().evaluations[-1] += 1
        if not self._in_training and int(strategy.clock.train_exp_counter) > 0:
            try:
                self._write(strategy)
            finally:
                self._interrupt.stop_listening()
            self._interrupt.raise_if_asked(self._message())

    def check_owner(self, strategy: Any) -> None:
        """Raise if the checkpoints are those of another strategy."""
        if self._strategy is not None and self._strategy() is not strategy:
            raise wrong_value(
                "strategy.plugins",
                "plugins of its own",
                "the CheckpointPlugin of another strategy",
                "Make a CheckpointPlugin, with a folder, for each run.",
            )

    def _attach_late(self, strategy: Any) -> None:
        # Not the benchmark that an experience comes from, which a split may have left behind.
        self.attach(strategy, new_run(strategy, BenchmarkData()))

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
        self._put(strategy, {"state": capture(strategy, self._started())})
        self._pending = False

    def _put(self, strategy: Any, sections: Mapping[str, bytes], epochs: int = 0) -> None:
        if self._resumed_at is not None:
            # Not sooner: a script that only resumes, and trains nothing, should change no file.
            self._check_alone()
            set_aside_newer(self._folder, self._resumed_at)
            self._resumed_at = None
        self._check_alone()
        path = self._folder / checkpoint_name(strategy.clock.train_exp_counter, epochs)
        write_state(strategy, path, sections, run=self._started(), epochs=epochs)
        remove_old(self._folder, self._keep)
        self._files = checksums_in(self._folder)

    def _check_alone(self) -> None:
        """Raise if another process has written into the folder: it goes on with the same run."""
        if self._files is not None and not checksums_in(self._folder).items() <= self._files.items():
            raise RuntimeError(
                f"Another process has written a checkpoint into {str(self._folder)!r} meanwhile. Let only "
                "one go on with a run; to try something else from the same checkpoint, copy it elsewhere."
            )

    def _started(self) -> Run:
        if self._run is None:
            raise RuntimeError("CheckpointPlugin has not been called by a strategy yet.")
        return self._run

    def _message(self) -> str:
        return (
            f"Interrupted. The checkpoint is in {str(self._folder)!r}: run the same script again, with "
            "resume(strategy, folder, benchmark) before the loop, to go on from there."
        )


def check_only_one(strategy: Any) -> None:
    """Raise `ValueError` if a strategy has several `CheckpointPlugin`s, of which one would write alone."""
    found = [plugin for plugin in getattr(strategy, "plugins", ()) if isinstance(plugin, CheckpointPlugin)]
    if len(found) > 1:
        raise wrong_value(
            "strategy.plugins",
            "plugins with one CheckpointPlugin",
            f"{len(found)}",
            "Take one; copy its folder if you want the checkpoints twice.",
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

    def before_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Pass on."""
        self._plugin.begin_experience(strategy)

    def before_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Pass on."""
        self._plugin.begin_evaluation(strategy)
