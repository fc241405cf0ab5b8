"""A run with everything that a file might misuse, and its checkpoints rewritten with right checksums."""

from __future__ import annotations

import enum
import os
import sys
from collections import defaultdict, namedtuple
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import ReplayPlugin
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, SequentialLR

import avalanche_vlm
from avalanche_vlm.checkpointing import CheckpointPlugin, _file
from avalanche_vlm.checkpointing._bytes import from_bytes, to_bytes
from avalanche_vlm.models import CosineHead, ZeroShotHead
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier

CALLED = []


def danger(*arguments, **keywords):
    CALLED.append((arguments, keywords))


class Tokenizer:
    """As SigLIP-style models have one: its constructor reads a folder, and what is in it."""

    def __new__(cls, *arguments, **keywords):
        danger("new", *arguments, **keywords)
        return super().__new__(cls)

    def __init__(self, name="tiny", **keywords):
        danger("made", name, **keywords)
        self.name = name

    def __call__(self, text="nothing", **keywords):
        danger("called", text, **keywords)

    def __setattr__(self, name, value):
        danger("set", name)
        super().__setattr__(name, value)

    def __reduce__(self):
        return danger, ()

    def __del__(self):
        if getattr(self, "name", "tiny") != "tiny":
            danger("deleted")


class Writer:
    """As a writer of TensorBoard: a folder, and a file that is opened when it is first used."""

    def __init__(self, folder):
        self.folder, self.file = str(folder), None


class Level(enum.Enum):
    LOW = 1
    HIGH = 2


Pair = namedtuple("Pair", ["first", "second"])


class Holder(SupervisedPlugin):
    """Holds functions, classes, objects to call, paths and text, of which the run changes some numbers."""

    def __init__(self, folder):
        super().__init__()
        self.function, self.kind, self.tokenizer = danger, Tokenizer, Tokenizer()
        self.partial, self.method = partial(danger, "partial"), self.note
        self.folder, self.text_folder, self.writer = Path(folder), str(folder), Writer(folder)
        self.score, self.level, self.pair = max, Level.LOW, Pair(1, 2)
        self.table, self.count, self.functions = defaultdict(list), 0, [min, max]
        self.step = None
        layer = torch.nn.Linear(1, 1)
        self.net, self.other = layer, SGD(layer.parameters(), lr=0.1)
        self.decay = LambdaLR(self.other, halve)
        self.schedule = SequentialLR(
            self.other, [CosineAnnealingLR(self.other, 4), CosineAnnealingLR(self.other, 2)], [3]
        )

    def note(self):
        danger("method")

    def after_training_exp(self, strategy, *args, **kwargs):
        self.count += 1
        self.table[self.count].append(1)
        self.level, self.pair = Level.HIGH, Pair(self.count, 2)
        self.other.step()
        self.schedule.step()


def halve(epoch):
    return 0.5**epoch


class Head(CosineHead):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.tokenizer, self.calls = Tokenizer(), 0

    def compare(self, backbone, embeddings, weights):
        self.calls += self.training
        return super().compare(backbone, embeddings, weights)


def build(folder):
    torch.manual_seed(0)
    model = tiny_classifier(Head(ZeroShotHead()))
    return FineTune(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.1),
        plugins=[Holder(folder), ReplayPlugin(6)],
        train_mb_size=8,
        evaluator=None,
    )


def train(folder):
    """Train one experience with checkpoints, and return the last one."""
    strategy, benchmark = build(folder), tiny_benchmark()
    strategy.plugins.append(CheckpointPlugin(folder / "run"))
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    return folder / "run" / "experience-0001.ckpt"


class State:
    """The decoded state of a checkpoint, to be changed."""

    def __init__(self, content):
        self.state = from_bytes(content)

    def add(self, *node):
        """Add a node and return its encoded name."""
        self.state["nodes"].append(node)
        return [len(self.state["nodes"]) - 1]

    def node(self, ending):
        """Return the number of the first object of a class that ends so."""
        return next(
            i for i, n in enumerate(self.state["nodes"]) if n[0] == "object" and n[2].endswith(ending)
        )

    def set(self, ending, name, value):
        """Set an attribute of the first object of a class."""
        number = self.node(ending)
        kind, home, own, pairs, left = self.state["nodes"][number]
        pairs = [pair for pair in pairs if pair[0] != name]
        self.state["nodes"][number] = (kind, home, own, [*pairs, (name, value)], left)

    def set_of_model(self, module, name, value):
        """Set a plain attribute of a part of the model."""
        entries = {entry[0]: entry for entry in self.state["attributes"]}
        _, pairs, gone = entries.get(module, (module, [], []))
        entries[module] = (module, [*[pair for pair in pairs if pair[0] != name], (name, value)], gone)
        self.state["attributes"] = list(entries.values())


def rewritten(path, change):
    """Write a checkpoint again with a changed state, whose checksum is right."""
    file = _file.read_checkpoint(path)
    state = State(file.sections["state"])
    change(state)
    other = path.with_name("attack.ckpt")
    _file.write_checkpoint(other, file.header, {"state": to_bytes(state.state)})
    return other


_events = []
_listening = False


def _hear(event, arguments):
    if _listening and event in _HEARD:
        _events.append((event, arguments))


_HEARD = (
    *("open", "exec", "compile", "import", "os.system", "subprocess.Popen", "socket.connect"),
    *("os.mkdir", "os.remove", "os.rename", "os.truncate", "shutil.rmtree", "socket.getaddrinfo"),
)
sys.addaudithook(_hear)


@contextmanager
def watched(*allowed):
    """Raise unless a block reads the allowed files alone, and calls nothing of the user's."""
    global _listening
    CALLED.clear()
    _events.clear()
    _listening = True
    try:
        yield
    finally:
        _listening = False
    odd = [(event, found[0]) for event, found in _events if not _is_harmless(event, found, allowed)]
    assert not odd, odd
    assert not CALLED, CALLED


def _is_harmless(event, arguments, allowed):
    if event in ("import", "compile", "exec"):  # Python's own, when a part of the package is first used
        return True
    if event != "open" or isinstance(arguments[0], int):
        return event == "open"
    name, mode = os.fspath(arguments[0]), str(arguments[1] or "r")
    installed = (sys.prefix, sys.base_prefix, str(Path(avalanche_vlm.__file__).parent))
    return name in map(os.fspath, allowed) or (name.startswith(installed) and set(mode) <= {"r", "b", "t"})
