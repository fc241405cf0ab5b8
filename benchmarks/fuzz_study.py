"""Change files in one place, read them, and see what comes of it: refused, harmless, a value, or a fault.

    python benchmarks/fuzz_study.py

Checkpoints, saved models, embedding caches, files of results, lists of stored images and outcomes of
comparisons are made, and changed in one place each: their bytes (a flip, a cut, something put in, pieces
exchanged), or one value inside, with all checksums made right again: a number, a text, a key, a kind, a
reference, the shape, type or values of a tensor, the length or nesting of a list. Each changed file is read
by the public functions in a process of its own, with bounds on memory and time, and under an audit of what it
opens, writes and calls.

- *refused*: an error of ours that names the file or the argument; what lives is as before.
- *told*: what is read is as if nothing had been changed, or an older file is taken, and a warning says so.
- *harmless*: what is read equals the original.
- *another value*: a valid file that says something else, as whoever can write files can make one: a weight,
  an accuracy, a counter. Of bytes this is possible only where a person may edit a file without a checksum.
- *fails later*: it was read as another value, and training on with it ends in an error.
- *fault*: anything else.

Writes ``fuzz_study.md`` beside this script. Its exit code is 1 if there is a fault. Needs Linux.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from fuzz_containers import CONTAINERS, Container
from kill_study import differences

HERE = Path(__file__).parent

LEVELS = ("bytes", "values")
VERDICTS = ("refused", "told", "harmless", "another value", "fails later", "fault")
COUNTS = {"bytes": 40, "values": 70}
MORE_BYTES = 2 << 30
CPU_SECONDS = 40
WALL_SECONDS = 240
# What no reading may do.
CALLS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "pty.spawn",
    "socket.connect",
)
CALLS += ("socket.getaddrinfo", "ctypes.dlopen", "os.fork", "code.__new__", "pickle.find_class")
WRITES = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
)


@dataclass(frozen=True)
class Case:
    """A change, and what came of it."""

    container: str
    level: str
    number: int
    change: str
    of_data: bool
    verdict: str
    reason: str


class Audit:
    """Notes what a process does that reading must not: calls, writes outside of a folder, strange reads."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.found: list[str] = []
        self.usual: set[str] = set()  # what reading the valid files does too
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in CALLS:
            self.found.append(f"{event} {arguments!r:.80}")
        elif event in WRITES:
            self._note_path(event, arguments[1] if event in ("os.rename", "os.link") else arguments[0])
        elif event == "open":
            path, flags = arguments[0], int(arguments[2] or 0)
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._note_path("writing", path)
            elif isinstance(path, (str, bytes, os.PathLike)) and "outside" in os.fsdecode(path):
                self.found.append(f"reading {os.fsdecode(path)}")

    def _note_path(self, event: str, path: Any) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        place = os.path.realpath(os.fsdecode(path))
        assert self.folder is not None
        if not place.startswith((self.folder, "/dev/null", "/dev/shm", f"/proc/{os.getpid()}/clear_refs")):
            self.found.append(f"{event} {place}".replace(f"/{os.getpid()}/", "/self/"))

    @property
    def unusual(self) -> list[str]:
        """What was found, without what reading the valid files does too."""
        return [each for each in self.found if each not in self.usual]


def read_changed(
    container: Container, folder: Path, level: str, draw: random.Random, audit: Audit, original: Any
) -> Case:
    """Change a copy of the files, read it, and judge; called in a process of its own."""
    change_of = container.change_bytes if level == "bytes" else container.change_value
    for _ in range(50):
        try:
            change = change_of(folder, draw)
            break
        except (TypeError, RecursionError, OverflowError, ValueError, RuntimeError, KeyError):
            continue  # what no file can hold
    else:
        raise RuntimeError(f"no change of {container.name} can be written")
    before = container.live()
    kept = clone(before)
    audit.folder, here = str(folder.resolve()), os.getcwd()
    os.chdir(folder)  # loggers write there
    verdict, reason = judge(container, folder, level, kept, original)
    os.chdir(here)
    audit.folder = None
    if audit.unusual:
        verdict, reason = "fault", f"it does: {audit.unusual[0]}; {reason}"
    return Case(container.name, level, 0, str(change), change.of_data, verdict, reason)


def judge(container: Container, folder: Path, level: str, before: Any, original: Any) -> tuple[str, str]:
    """Return the verdict on reading changed files, and its reason."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = container.read(folder)
        except BaseException as error:
            verdict, reason = judge_error(error, folder, level)
            moved = differences(before, container.live())
            return (
                ("fault", f"refused, and changed what lives: {moved[0]}; {reason}")
                if moved
                else (verdict, reason)
            )
    words = [str(each.message) for each in told if not issubclass(each.category, DeprecationWarning)]
    reason = words[0] if words else ""
    different = differences(original, found)
    if not different:
        return ("told" if words else "harmless"), reason.replace(str(folder), "...")
    if words and any(str(folder) in each for each in words):
        return "told", f"{reason}; {different[0]}".replace(str(folder), "...")
    if level == "bytes" and not container.is_text:
        return "fault", f"read without a word, and differs: {different[0]}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            container.go_on(folder)
    except Exception as error:
        return "fails later", f"{type(error).__name__}: {str(error)[:200]}"
    return "another value", different[0]


def judge_error(error: BaseException, folder: Path, level: str) -> tuple[str, str]:
    """Return the verdict on an error."""
    text = str(error)
    reason = f"{type(error).__name__}: {text}"
    if not isinstance(error, (ValueError, TypeError, OSError)):
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "fault", f"{reason[:200]} ({Path(where.filename).name}:{where.lineno})"
    names = str(folder) in text or re.search(r"`[a-z_.\[\]0-9: ]+`", text) is not None
    if isinstance(error, OSError):
        names = names or str(folder) in str(error.filename)
    if not names or len(text.split()) < 4:
        return "fault", f"no sentence that names file or argument: {reason[:200]}"
    if level == "values" and "checksum is" in text:
        return "fault", f"only a checksum refuses, which should have been right: {reason[:200]}"
    return "refused", reason.replace(str(folder), "...")


def clone(value: Any) -> Any:
    """Return a copy of plain values and tensors."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: clone(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([clone(item) for item in value])
    return value


# Each in a process of its own.


def in_process(work: Any, bound: bool = True) -> tuple[int, Any]:
    """Return how a forked process ended, and what the work in it returned."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            if bound:
                limits()
            result = json.dumps(work())
        except BaseException:
            result = json.dumps({"error": traceback.format_exc()[-1500:]})
        with os.fdopen(writer, "w") as file:
            file.write(result)
        os._exit(0)
    os.close(writer)
    deadline = time.monotonic() + WALL_SECONDS
    signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
    signal.alarm(WALL_SECONDS)
    with os.fdopen(reader) as file:
        result = file.read()
    _, status = os.waitpid(pid, 0)
    signal.alarm(0)
    code = os.waitstatus_to_exitcode(status)
    if time.monotonic() > deadline:
        code = -signal.SIGALRM
    return code, json.loads(result) if result else None


def limits() -> None:
    """Bound memory and time of this process, and keep its output to itself."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(
        resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE_BYTES, resource.RLIM_INFINITY)
    )
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(
        resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + CPU_SECONDS, resource.RLIM_INFINITY)
    )
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)


def cases_of(
    container: Container, counts: dict[str, int], audit: Audit, only: int | None = None
) -> list[Case]:
    """Return what comes of all changes of one kind of files."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-study-")).resolve()
    original, folder = root / "original", root / "changed"
    original.mkdir()

    def build() -> None:
        warnings.simplefilter("ignore")
        container.prepare()
        container.build(original)

    def read() -> None:
        container.prepare()
        audit.folder = str(folder)
        os.chdir(folder)
        found = container.read(folder)
        audit.folder = None
        torch.save((found, audit.found), root / "original.pt")

    found = []
    try:
        for step in (build, read):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(original, folder)
            code, result = in_process(step, bound=False)
            if code or result:
                raise RuntimeError(f"{container.name}: {code} {result and result['error']}")
        expected, usual = torch.load(root / "original.pt", weights_only=False)
        audit.usual = set(usual)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            container.prepare()
        for level in LEVELS:
            for number in range(counts[level]) if only is None else [only]:
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(original, folder, symlinks=True)
                draw = random.Random(f"{container.name} {level} {number}")

                def work(level: str = level, draw: random.Random = draw) -> Any:
                    return asdict(read_changed(container, folder, level, draw, audit, expected))

                code, result = in_process(work)
                if code or not result or "error" in result:
                    reason = f"the process ended with {code}: {result and result['error']}"
                    result = asdict(Case(container.name, level, number, "", False, "fault", reason))
                found.append(Case(**result | {"number": number}))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return found


def page(cases: Sequence[Case]) -> str:
    """Return the tables as Markdown."""
    faults = [case for case in cases if case.verdict == "fault"]
    lines = [
        *("# Files with one change", ""),
        "Written by `benchmarks/fuzz_study.py`, which says what is changed, and what the verdicts mean.",
        *("", f"{len(cases)} changes, {len(faults)} faults.", ""),
        f"| what | change of | {' | '.join(VERDICTS)} |",
        "|---|---|" + "---|" * len(VERDICTS),
    ]
    for container in dict.fromkeys(case.container for case in cases):
        for level in LEVELS:
            own = Counter(c.verdict for c in cases if (c.container, c.level) == (container, level))
            lines.append(f"| {container} | {level} | " + " | ".join(str(own[v]) for v in VERDICTS) + " |")
    for verdict in ("fault", "fails later", "another value"):
        chosen = [case for case in cases if case.verdict == verdict]
        lines += ["", f"## {verdict.capitalize()}", ""]
        lines += (
            ["None."]
            if not chosen
            else ["| what | change of | number | change | what came of it |", "|---|---|---|---|---|"]
        )
        for case in chosen:
            words = (case.container, case.level, str(case.number), case.change[:110], case.reason[:110])
            lines.append("| " + " | ".join(_cell(word) for word in words) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    plain = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return re.sub(r"/[^ ]*/fuzz-study-[^/ ]*", "...", plain).replace("|", "\\|").replace("`", "'")


def _of_index(work: Any, index: int) -> list[Case]:
    return work(CONTAINERS[index])


def main() -> None:
    """Change, read, judge, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names, or parts of names, of containers")
    parser.add_argument("--number", type=int, help="one change alone, of bytes and of values")
    parser.add_argument(
        "--bytes", type=int, default=COUNTS["bytes"], help="changes of bytes of each container"
    )
    parser.add_argument(
        "--values", type=int, default=COUNTS["values"], help="changes of values of each container"
    )
    parser.add_argument("--processes", type=int, default=1, help="how many containers at a time")
    parser.add_argument("--all", action="store_true", help="print every case")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    chosen = [c for c in CONTAINERS if arguments.only is None or any(o in c.name for o in arguments.only)]
    cases: list[Case] = []
    counts = {"bytes": arguments.bytes, "values": arguments.values}
    work = partial(cases_of, counts=counts, audit=Audit(), only=arguments.number)
    with multiprocessing.get_context("fork").Pool(arguments.processes) as pool:
        for found in pool.imap(partial(_of_index, work), [CONTAINERS.index(each) for each in chosen]):
            cases += found
            verdicts = dict(Counter((c.level, c.verdict) for c in found))
            sys.stdout.write(f"{found[0].container}: {verdicts}\n")
            for case in found:
                if arguments.all or case.verdict in ("fault", "fails later"):
                    place = f"{case.level} {case.number} {case.verdict}: {case.change}"
                    sys.stdout.write(f"  {place}\n    {case.reason[:400]}\n")
            sys.stdout.flush()
    if chosen == CONTAINERS and arguments.number is None:
        (HERE / "fuzz_study.md").write_text(page(cases))
    sys.exit(any(case.verdict == "fault" for case in cases))


if __name__ == "__main__":
    main()
