"""Run whole, or resumed from each checkpoint of a whole run; called by tests in processes of their own.

python worker.py whole FOLDER
python worker.py resumed FOLDER
python worker.py kills FOLDER
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)

from cases import INSIDE, UNEVEN, checkpointed, differences, go_on, make, names, outcome, positions  # noqa: E402

from avalanche_vlm.checkpointing import resume  # noqa: E402

warnings.simplefilter("ignore")


def whole(root):
    """Run every case once; with Adam some also without the plugin, which must change nothing."""
    problems = {}
    for case, optimizer in names():
        name = f"{case}, {optimizer}"
        strategy, benchmark = run(root / name / "run", case, optimizer)
        problems[name] = []
        if optimizer == "Adam" and case in (*INSIDE, "replay", "AGEM", "DER"):
            bare, benchmark = make(case, optimizer, root / name / "bare")
            go_on(bare, benchmark, 0)
            with_plugin, without = outcome(strategy, root), outcome(bare, root)
            for key in ("tensors", "optimizer", "metrics", "clock", "random"):
                problems[name] += differences(without[key], with_plugin[key], f"{key} without the plugin")
    for case in INSIDE:
        run(root / f"{case}, inside" / "run", case, "Adam", **inside())
    return problems


def run(folder, case, optimizer, *, every_n_epochs=None, **arguments):
    plugins = [checkpointed(folder, every_n_epochs=every_n_epochs)]
    strategy, benchmark = make(case, optimizer, folder, plugins=plugins, **arguments)
    go_on(strategy, benchmark, 0)
    torch.save(outcome(strategy, folder), folder.parent / "outcome.pt")
    return strategy, benchmark


def inside():
    """Return arguments of runs that are resumed inside an experience, evaluating there too."""
    return {"every_n_epochs": 1, "epochs": 3, "eval_every": 1}


def resumed(root):
    """Resume every run from its checkpoints, and compare the end with that of the whole run."""
    problems = {}
    for case, optimizer in names():
        # Adam from everywhere, with SGD a spot check.
        for file in [f"experience-{position:04d}" for position in (positions(case, optimizer))]:
            problems[f"{case}, {optimizer}, {file}"] = compare(
                root / f"{case}, {optimizer}", file, case, optimizer
            )
    for case in INSIDE:
        folder = root / f"{case}, inside"
        for file in ("experience-0000-epoch-0002", "experience-0001-epoch-0001"):
            problems[f"{case}, {file}"] = compare(folder, file, case, "Adam", **inside())
    return problems


def compare(root, file, case, optimizer, *, every_n_epochs=None, **arguments):
    expected = torch.load(root / "outcome.pt", weights_only=False)
    # The logs are those of the whole run: what came after the checkpoint has to go.
    folder = root / file
    shutil.copytree(root / "run", folder)
    plugins = [checkpointed(folder, every_n_epochs=every_n_epochs)]
    strategy, benchmark = make(case, optimizer, folder, plugins=plugins, **arguments)
    start = resume(strategy, folder / "checkpoints" / f"{file}.ckpt", benchmark)
    position, _, epoch = file.removeprefix("experience-").partition("-epoch-")
    steps = []
    strategy.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    go_on(strategy, benchmark, start)
    per_epoch = expected["clock"]["train_iterations"] / 3 / strategy.train_epochs
    left = per_epoch * (strategy.train_epochs * (3 - int(position)) - int(epoch or 0))
    found = [] if start == int(position) else [f"started at {start}"]
    if case not in UNEVEN and len(steps) != left:
        found.append(f"{len(steps)} iterations where {left} were left")
    return found + differences(expected, outcome(strategy, folder))


def kills(root):
    """Kill runs at random moments until they have been killed three times; return what differs at the end."""
    draw = random.Random(0)
    problems = {}
    for case, every_n_epochs in (("LoRA, replay and LwF", 1), ("replay", None), ("DER", None)):
        arguments = {"every_n_epochs": every_n_epochs, "epochs": 3}
        folder = root / case
        strategy, _ = run(folder / "whole", case, "Adam", **arguments)
        iterations = strategy.clock.train_iterations
        expected = outcome(strategy, folder / "whole")
        done = folder / "done"
        killed = 0
        while not (folder / "outcome.pt.killed").exists():
            before = done.stat().st_size if done.exists() else 0
            child = os.fork()
            if child == 0:
                killable(folder, case, arguments)
            if killed < 3:
                wait_for(done, before + draw.randint(1, iterations // 2), child)
                time.sleep(draw.uniform(0, 0.05))
                os.kill(child, signal.SIGKILL)
                killed += 1
            os.waitpid(child, 0)
        found = differences(expected, torch.load(folder / "outcome.pt.killed", weights_only=False))
        extra = done.stat().st_size - iterations
        if not 0 <= extra <= killed * iterations / 3:
            found.append(f"{extra} more iterations after {killed} kills")
        problems[case] = found
    return problems


def killable(folder, case, arguments):
    """Go on with a run in a forked process, counting its iterations in a file."""
    here = folder / "killed"
    every_n_epochs = arguments["every_n_epochs"]
    strategy, benchmark = make(
        case,
        "Adam",
        here,
        plugins=[checkpointed(here, every_n_epochs=every_n_epochs)],
        epochs=arguments["epochs"],
    )
    done = os.open(folder / "done", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    strategy.optimizer.register_step_post_hook(lambda *_: os.write(done, b"."))
    start = resume(strategy, here / "checkpoints", benchmark)
    go_on(strategy, benchmark, start)
    torch.save(outcome(strategy, here), folder / "outcome.tmp")
    os.replace(folder / "outcome.tmp", folder / "outcome.pt.killed")
    os._exit(0)


def wait_for(file, size, child):
    """Wait until a file has grown to a size, or the process is gone."""
    while (file.stat().st_size if file.exists() else 0) < size:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.001)


if __name__ == "__main__":
    root = Path(sys.argv[2])
    (root / f"{sys.argv[1]}.json").write_text(json.dumps(globals()[sys.argv[1]](root)))
