"""Kill runs of many compositions at random moments, resume them, and compare all that they end with.

    python benchmarks/kill_study.py --processes 2

Each script of `kill_study_runs.py` runs once without a break, and once in processes that begin from scratch
and are ended by ``SIGKILL``, each time in another phase, drawn from a seed: inside training (at a step of any
optimizer), inside evaluation (at a forward pass), or inside writing (when a file is opened for writing, or
renamed), and there at once or up to 20 ms later. The same script is started again until it ends. Then
everything is compared: weights and buffers, the optimizer's state, values of all metrics, accuracy matrices,
clock, the global generators of Python, NumPy and PyTorch, and the rows of the results file as multisets, bit
for bit; only measured time and memory of the process may differ. A comparison is killed as a whole, with its
processes.

Writes ``kill_study.md`` beside this script if all scripts ran. Its exit code is 1 if anything differs. Needs
Linux or macOS.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

sys.path.insert(0, str(Path(__file__).parent))
from kill_study_runs import SCRIPTS, compared

from avalanche_vlm.logging import read_results, read_runs
from avalanche_vlm.metrics import CostMetric
from avalanche_vlm.models import CLIPClassifier

HERE = Path(__file__).parent
PHASES = ("training", "evaluation", "writing")
# What is measured by the clock or of the process.
COSTS = {"training_seconds", "evaluation_seconds", "peak_memory"}
LOGGED_COSTS = ("TrainingSeconds", "EvaluationSeconds", "PeakMemory")
TOGETHER = {"Two runs, one results file": ("Replay", "SeGP-CL, inside")}
COMPARISONS = {"Comparison in one process": 0, "Comparison in two processes": 2}
LIMIT_S = 300


# In the process that is killed.


class Moments:
    """Counts what a run does, and kills the process at one of them.

    Args:
        folder: in which writing counts.
        plan: phase, number and delay of the kill; None to count only.
    """

    def __init__(self, folder: Path, plan: dict[str, Any] | None) -> None:
        self.folder = str(folder)
        self.plan = plan
        self.counts = Counter[str]()

    def listen(self) -> None:
        """Begin to count."""
        register_optimizer_step_pre_hook(lambda *_: self.pass_by("training"))
        register_module_forward_pre_hook(self._forward)
        sys.addaudithook(self._audit)

    def pass_by(self, phase: str) -> None:
        """Count a moment, and kill the process if it is the one."""
        self.counts[phase] += 1
        if self.plan is None or [phase, self.counts[phase]] != [self.plan["phase"], self.plan["number"]]:
            return
        if self.plan["delay"]:
            threading.Thread(target=self._kill_later, daemon=True).start()
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    def _kill_later(self) -> None:
        assert self.plan is not None
        time.sleep(self.plan["delay"])
        os.kill(os.getpid(), signal.SIGKILL)

    def _forward(self, module: torch.nn.Module, inputs: Any) -> None:
        if isinstance(module, CLIPClassifier) and not module.training:
            self.pass_by("evaluation")

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename":
            path, writes = arguments[1], True
        elif event == "open":
            path, writes = arguments[0], bool(int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        else:
            return
        if writes and isinstance(path, (str, os.PathLike)) and str(path).startswith(self.folder):
            self.pass_by("writing")


def child(name: str, folder: Path, results: Path, plan: dict[str, Any] | None) -> None:
    """Run a script, or what is left of it; called in a process of its own."""
    warnings.showwarning = lambda *arguments, **more: None  # the host turns its own on again
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    moments = Moments(results.parent if results.parent in folder.parents else folder, plan)
    moments.listen()
    if name in COMPARISONS:
        compared(folder, COMPARISONS[name])
        return
    ended = end_of(SCRIPTS[name].run(folder, name, results))
    counts = dict(moments.counts)
    torch.save(ended, folder / "ended.tmp")
    os.replace(folder / "ended.tmp", folder / "ended.pt")
    (folder / "moments.json").write_text(json.dumps(counts))


def end_of(strategy: Any) -> dict[str, Any]:
    """Return what a run ends with, as plain values and tensors."""
    model, evaluator = strategy.model, strategy.evaluator
    tensors = [*torch.nn.Module.named_parameters(model), *model.named_buffers()]

    def without_costs(values: dict[str, Any]) -> dict[str, Any]:
        return {n: value for n, value in values.items() if not n.startswith(LOGGED_COSTS)}

    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "weights": {name: tensor.detach() for name, tensor in tensors},
        "optimizer": strategy.optimizer.state_dict(),
        "metrics": {
            "all": without_costs(
                {n: (list(x), list(y)) for n, (x, y) in evaluator.get_all_metrics().items()}
            ),
            "last": without_costs(evaluator.get_last_metrics()),
            "results": [m.result() for m in evaluator.metrics if not isinstance(m, CostMetric)],
            "clock": {n: value for n, value in vars(strategy.clock).items() if isinstance(value, int)},
        },
        "generators": {
            "Python": [version, list(words), gauss],
            "NumPy": [str(kind), torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
            "PyTorch": torch.get_rng_state(),
        },
    }


# In the process that kills.


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Return where two ends differ in any bit."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.shape == second.shape and first.dtype == second.dtype
        return [] if same and torch.equal(_bits(first), _bits(second)) else [where]
    if isinstance(first, dict) and isinstance(second, dict):
        if list(first) != list(second):
            return [f"{where} has other keys: {sorted(map(str, first.keys() ^ second.keys()))[:4]}"]
        return [each for key in first for each in differences(first[key], second[key], f"{where}/{key}")]
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        if len(first) != len(second):
            return [f"{where}: {len(first)} and {len(second)} entries"]
        pairs = enumerate(zip(first, second, strict=True))
        return [each for index, pair in pairs for each in differences(*pair, f"{where}/{index}")]
    same = first == second or (first != first and second != second)
    return [] if same else [f"{where}: {str(first)[:40]} and {str(second)[:40]}"]


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def rows_of(folder: Path, method: str | None = None) -> Counter[str]:
    """Return the rows that a run, or a comparison, has left, without the ids of runs and without costs."""
    rows = [row for path in sorted(folder.rglob("results*.csv")) for row in read_results(path)]
    return Counter(
        repr(replace(row, run=""))
        for row in rows
        if method in (None, row.method) and not any(cost in row.metric for cost in COSTS)
    )


def row_differences(whole: Counter[str], killed: Counter[str]) -> list[str]:
    """Return what the rows of the killed run have too few or too many, if anything."""
    missing, more = whole - killed, killed - whole
    examples = [*missing.elements(), *more.elements()][:2]
    words = f"rows: {missing.total()} missing, {more.total()} too many, e.g. {examples}"
    return [words] if missing or more else []


class Interpreter:
    """A process that has imported everything, and forks for each request: the fast way to begin from scratch.

    It does nothing else, so that what it forks shares imports with the others, and no state.
    """

    def __init__(self) -> None:
        command = [sys.executable, __file__, "--serve"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lock = threading.Lock()

    def close(self) -> None:
        """End the process."""
        self.process.communicate()

    def run(self, *request: Any) -> int:
        """Run a script, and return how its process ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.lock:
            self.process.stdin.write(json.dumps([*map(str, request[:3]), request[3]]) + "\n")
            self.process.stdin.flush()
            return int(self.process.stdout.readline())


def serve() -> None:
    """Fork for each line of the input, and say how it ended."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            name, folder, results, plan = json.loads(line)
            try:
                child(name, Path(folder), Path(results), plan)
                os._exit(0)
            except BaseException:
                Path(folder, "errors.txt").write_text(traceback.format_exc())
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def start(name: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a comparison in a process of its own, from scratch."""
    return subprocess.Popen(command_of(name, folder, folder / "results.csv", None), start_new_session=True)


def command_of(*request: Any) -> list[str]:
    """Return the command that runs a script."""
    *words, plan = request
    return [sys.executable, __file__, "--child", *map(str, words), json.dumps(plan)]


def was_killed(code: int, name: str, folder: Path) -> bool:
    """Return whether a process was killed.

    Raises:
        RuntimeError: it ended with an error.
    """
    if code not in (0, -signal.SIGKILL):
        errors = folder / "errors.txt"
        reason = errors.read_text()[-1500:] if errors.exists() else "see above"
        raise RuntimeError(f"{name} ended with {code}: {reason}")
    return code != 0


def plans(counts: dict[str, int], kills: int, draw: random.Random) -> list[dict[str, Any]]:
    """Return when to kill a run that does so much: each phase in turn, after a share of it."""
    phases = [phase for phase in PHASES if counts.get(phase)]
    draw.shuffle(phases)
    found = []
    for index in range(kills):
        phase = phases[index % len(phases)]
        number = draw.randint(1, max(1, round(1.3 * counts[phase] / (kills + 1))))
        found.append({"phase": phase, "number": number, "delay": draw.choice([0, draw.uniform(0, 0.02)])})
    return found


Runner = Callable[..., int]


def killed_run(
    *request: Any, runners: Sequence[Runner], counts: dict[str, int], draw: random.Random
) -> Counter[str]:
    """Run a script, killing it in all of its processes but the last; return how often in each phase."""
    done = Counter[str]()
    name, folder, _ = request
    kills = len(runners) - 1
    for runner, plan in zip(runners, [*plans(counts, kills, draw), None], strict=True):
        if not was_killed(runner(*request, plan), name, folder):
            break  # it came to its end
        assert plan is not None, f"{name} was killed by somebody else"
        done[plan["phase"]] += 1
    return done


def script_row(
    name: str, root: Path, first: Runner, runners: Sequence[Runner]
) -> tuple[str, Counter[str], list[str]]:
    """Return name, kills and differences of one script, or of two that write to one file."""
    names = TOGETHER.get(name, (name,))
    counts: dict[str, dict[str, int]] = {}
    for each in names:
        whole = root / "whole" / each
        was_killed(first(each, whole, root / "whole" / "results.csv", None), each, whole)
        counts[each] = json.loads((whole / "moments.json").read_text())

    def run(each: str) -> Counter[str]:
        draw = random.Random(f"{name}, {each}")
        request = each, root / "killed" / each, root / "killed" / "results.csv"
        return killed_run(*request, runners=runners, counts=counts[each], draw=draw)

    with ThreadPoolExecutor(len(names)) as side_by_side:
        done = sum(side_by_side.map(run, names), Counter[str]())
    return name, done, [line for each in names for line in script_differences(each, root)]


def script_differences(name: str, root: Path) -> list[str]:
    """Return where the killed run differs from the whole one."""
    folders = [root / kind for kind in ("whole", "killed")]
    ends = [torch.load(folder / name / "ended.pt", weights_only=False) for folder in folders]
    found = differences(*ends)
    found += row_differences(*(rows_of(folder, name) for folder in folders))
    results = root / "killed" / "results.csv"
    ids = {row.run for row in read_results(results) if row.method == name}
    noted = {run for run, facts in read_runs(results).items() if facts["method"] == name}
    if len(ids) != 1 or ids != noted:
        found.append(f"rows of {len(ids)} runs, and {len(noted)} runs noted")
    return found


def comparison_row(name: str, root: Path, kills: int) -> tuple[str, Counter[str], list[str]]:
    """Return name, kills and differences of a comparison, which is killed with all its processes."""
    whole, killed = root / "whole", root / "killed"
    was_killed(start(name, whole).wait(LIMIT_S), name, whole)
    draw, done, expected = random.Random(name), Counter[str](), rows_of(whole)
    while True:
        process = start(name, killed)
        if done.total() < kills:
            before, share = size_of(killed), draw.uniform(0, size_of(whole) / kills)
            while process.poll() is None and size_of(killed) <= before + share:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.1))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        if not was_killed(process.wait(LIMIT_S), name, killed):
            break
        done["any"] += 1
    found = row_differences(expected, rows_of(killed))
    outcomes = [json.loads(path.read_text()) for path in sorted(killed.rglob("outcome.json"))]
    if {each["state"] for each in outcomes} != {"finished"} or len(outcomes) != 4 or not expected:
        found.append(f"outcomes: {outcomes}")
    return name, done, found


def size_of(folder: Path) -> int:
    """Return the bytes of results that a comparison has written."""
    return sum(path.stat().st_size for path in folder.rglob("results*.csv"))


def row(
    name: str, first: Runner, runners: Sequence[Runner], keep: bool
) -> tuple[str, Counter[str], list[str]]:
    """Return name, kills and differences; an error is one."""
    root = Path(tempfile.mkdtemp(prefix="kill-study-")).resolve()
    try:
        if name in COMPARISONS:
            return comparison_row(name, root, len(runners) - 1)
        return script_row(name, root, first, runners)
    except Exception as error:
        return name, Counter(), [f"{type(error).__name__}: {error}"]
    finally:
        if keep:
            sys.stdout.write(f"{name}: {root}\n")
        else:
            shutil.rmtree(root, ignore_errors=True)


NAMES = [*SCRIPTS, *TOGETHER, *COMPARISONS]


def page(rows: Sequence[tuple[str, Counter[str], list[str]]], interpreters: int) -> str:
    """Return the table as Markdown.

    Args:
        rows: name, kills and differences.
        interpreters: how many the processes were forked from; 0 if each began from scratch.
    """
    began = (
        f"The processes of a run were forked from {interpreters} interpreters in turn that had imported and "
        "done nothing else\n(`--quick`); those of a comparison began from scratch."
        if interpreters
        else "Each process began from scratch."
    )
    total = sum((done for _, done, _ in rows), Counter[str]())
    bad = [name for name, _, found in rows if found]
    lines = [
        *("# Killed and resumed: many compositions", ""),
        "Written by `benchmarks/kill_study.py`, which says what is killed, when, and what is compared.",
        *("", f"{total.total()} kills of {len(rows)} compositions: {total['training']} inside training,"),
        f"{total['evaluation']} inside evaluation, {total['writing']} inside writing,",
        f"{total['any']} anywhere in a comparison. {began}",
        f"{'**Something differs.**' if bad else 'Nothing differs.'}",
        *("", "| composition | in training | in evaluation | in writing | anywhere | the end |"),
        "|---|---|---|---|---|---|",
    ]
    for name, done, found in rows:
        counts = " | ".join(str(done[phase]) for phase in (*PHASES, "any"))
        lines.append(f"| {name} | {counts} | {'**differs**' if found else 'equal'} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Kill, compare, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="*", help="names, or parts of names, of compositions")
    parser.add_argument("--kills", type=int, default=3, help="of each run")
    parser.add_argument("--processes", type=int, default=1, help="how many compositions at a time")
    parser.add_argument("--quick", action="store_true", help="fork from a few interpreters that import once")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the runs")
    arguments = parser.parse_args()
    if arguments.child:
        name, folder, results, plan = arguments.child
        child(name, Path(folder), Path(results), json.loads(plan))
        return
    if arguments.serve:
        serve()
        return
    chosen = [name for name in NAMES if arguments.only is None or any(o in name for o in arguments.only)]
    count = arguments.kills + 1
    runners: list[Runner] = [lambda *request: subprocess.run(command_of(*request), check=False).returncode]
    runners = [Interpreter().run for _ in range(count)] if arguments.quick else runners * count
    first = Interpreter().run
    rows = []
    with ThreadPoolExecutor(arguments.processes) as pool:
        for name, done, found in pool.map(lambda each: row(each, first, runners, arguments.keep), chosen):
            rows.append((name, done, found))
            words = "equal" if not found else "DIFFERS\n  " + "\n  ".join(found[:8])
            sys.stdout.write(f"{name}: {dict(done)}: {words}\n")
            sys.stdout.flush()
    if chosen == NAMES:
        (HERE / "kill_study.md").write_text(page(rows, count if arguments.quick else 0))
    sys.exit(any(found for *_, found in rows))


if __name__ == "__main__":
    main()
