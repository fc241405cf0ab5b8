"""What goes wrong with files, machines and scripts ends in a sentence, and never in a changed strategy."""

import errno
import hashlib
import io
import json
import os
import pickle
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from avalanche.training.plugins import LwFPlugin, ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer
from safetensors.torch import save as save_tensors
from torch.optim import SGD, Adam

from avalanche_vlm.checkpointing import CheckpointPlugin, _file, allow_in_checkpoints, resume, save
from avalanche_vlm.checkpointing._bytes import from_bytes, packed, to_bytes
from avalanche_vlm.checkpointing._encode import in_order_of_insertion
from avalanche_vlm.models import LoRA
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import TinyBackbone, tiny_benchmark, tiny_classifier

sys.path.insert(0, str(Path(__file__).parent))
from cases import differences, go_on, make, outcome


def build(plugins=(), *, model=None, optimizer=None, kind=FineTune, **arguments):
    torch.manual_seed(0)
    model = tiny_classifier(trainable=LoRA(rank=2)) if model is None else model
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9) if optimizer is None else optimizer(model)
    arguments = {"train_mb_size": 4, "evaluator": None, **arguments}
    return kind(model=model, optimizer=optimizer, plugins=[*plugins], **arguments)


def snapshot(strategy):
    return {
        "tensors": {n: p.detach().clone() for n, p in torch.nn.Module.named_parameters(strategy.model)},
        "optimizer": strategy.optimizer.state_dict(),
        "clock": dict(vars(strategy.clock)),
        "plugins": [id(plugin) for plugin in strategy.plugins],
    }


def trained(folder, experiences=2, plugins=(), **arguments):
    benchmark = tiny_benchmark()
    strategy = build([*plugins, CheckpointPlugin(folder, keep=9)], **arguments)
    for experience in benchmark.train_stream[:experiences]:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    return strategy


@pytest.fixture(autouse=True)
def own_handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def folder(tmp_path):
    trained(tmp_path / "run")
    return tmp_path / "run"


def refused(path, match, strategy=None, benchmark=None, error=ValueError):
    strategy = build() if strategy is None else strategy
    before = snapshot(strategy)
    random_state = torch.get_rng_state()
    with pytest.raises(error, match=match):
        resume(strategy, path, tiny_benchmark() if benchmark is None else benchmark)
    assert not differences(before, snapshot(strategy))
    assert torch.equal(random_state, torch.get_rng_state())


# Files.


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "empty":
        data = b""
    elif how == "truncated":
        data = data[: len(data) // 2]
    elif how == "last byte":
        data = data[:-1]
    else:
        data[{"start": 0, "header": 60, "middle": len(data) // 2, "tail": -1}[how]] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("how", ["empty", "truncated", "last byte", "start", "header", "middle", "tail"])
def test_a_damaged_file_is_refused_and_the_one_before_taken(folder, how):
    newest = folder / "experience-0002.ckpt"
    damage(newest, how)
    refused(newest, "damaged|no checkpoint")
    strategy = build()
    with pytest.warns(UserWarning, match=r"experience-0002\.ckpt .*experience-0001\.ckpt is taken"):
        assert resume(strategy, folder, tiny_benchmark()) == 1
    assert strategy.clock.train_exp_counter == 1


def test_a_folder_with_damaged_files_only(folder):
    for path in folder.iterdir():
        damage(path, "middle")
    refused(folder, "a folder with a good checkpoint")


def test_nothing_to_resume(tmp_path):
    assert resume(build(), tmp_path, tiny_benchmark()) == 0
    assert resume(build(), tmp_path / "none", tiny_benchmark()) == 0


def test_another_format(folder, monkeypatch):
    file = _file.read_checkpoint(folder / "experience-0002.ckpt")
    monkeypatch.setattr(_file, "FORMAT", 99)
    _file.write_checkpoint(folder / "experience-0002.ckpt", file.header, file.sections)
    monkeypatch.undo()
    refused(folder, "format 3; got .* of format 99")


def test_other_versions_are_told(folder):
    file = _file.read_checkpoint(folder / "experience-0002.ckpt")
    versions = {**file.header["versions"], "torch": "1.0"}
    _file.write_checkpoint(
        folder / "experience-0002.ckpt", {**file.header, "versions": versions}, file.sections
    )
    with pytest.warns(UserWarning, match=r"torch 1\.0 -> "):
        assert resume(build(), folder, tiny_benchmark()) == 2


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


def hostile(content):
    structure = packed(content)
    lengths = len(structure).to_bytes(8, "big") + len(content).to_bytes(8, "big")
    return lengths + structure + save_tensors({})


def payloads():
    file = io.BytesIO()
    torch.save({"nodes": Attack()}, file)
    yield "torch.save", hostile(file.getvalue())
    yield "pickle", hostile(pickle.dumps(Attack()))
    yield "bare pickle", pickle.dumps(Attack())
    nested = pickle.dumps(torch.load)
    yield "torch.load", hostile(nested)


@pytest.mark.parametrize(
    ("name", "content"), list(payloads()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_hostile_file_runs_no_code(folder, name, content, monkeypatch):
    monkeypatch.chdir(folder)
    file = _file.read_checkpoint(folder / "experience-0002.ckpt")
    _file.write_checkpoint(folder / "experience-0002.ckpt", file.header, {"state": content})
    refused(folder / "experience-0002.ckpt", "refused")
    assert not (folder / "attacked").exists()


def rewritten(folder, change):
    """Change the newest state of a folder, with a checksum that is right."""
    path = folder / "experience-0002.ckpt"
    file = _file.read_checkpoint(path)
    state = from_bytes(file.sections["state"])
    change(state)
    _file.write_checkpoint(path, file.header, {"state": to_bytes(state)})
    return path


@pytest.mark.parametrize(
    "name", ["subprocess.Popen", "torch.utils.data.DataLoader", "avalanche.logging.csv_logger.CSVLogger"]
)
def test_a_class_that_is_not_known_is_refused_by_name(folder, name):
    def change(state):
        state["nodes"].append(("object", None, name, [], []))
        state["roots"]["strategy"][0].append(("new", [len(state["nodes"]) - 1]))

    refused(rewritten(folder, change), f"one with a {name}.*allow_in_checkpoints")


def test_a_kind_of_node_that_is_not_known(folder):
    def change(state):
        state["nodes"].append(("call", None, "os.system", "touch attacked"))
        state["roots"]["strategy"][0].append(("new", [len(state["nodes"]) - 1]))

    refused(rewritten(folder, change), "'call'")


# Writing.


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_checkpoints(folder, step, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    strategy, benchmark = build([CheckpointPlugin(folder, keep=9)]), tiny_benchmark()
    resume(strategy, folder, benchmark)
    strategy.train(benchmark.train_stream[2])
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left.*earlier ones are still there"):
        strategy.eval(benchmark.test_stream)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_disk_that_fills_up_while_writing(tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            if len(data) > 100:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    strategy, path = build(), tmp_path / "a.ckpt"
    save(strategy, path)
    before = path.read_bytes()
    whole = Path.open

    def opened(self, *mode, **arguments):
        return Full(self, *mode) if self.suffix == ".tmp" else whole(self, *mode, **arguments)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(OSError, match="No space left"):
        save(strategy, path)
    monkeypatch.undo()
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="could not be written"):
        save(build(), tmp_path / "file" / "a.ckpt")


def test_a_process_that_dies_between_the_steps_of_writing(folder):
    newest = (folder / "experience-0002.ckpt").read_bytes()
    for name in ("write", "fsync", "replace"):
        child = os.fork() if name != "write" else 0
        if name == "write":
            # A torn file under a temporary name, as a kill in the middle of a write leaves it.
            (folder / ".experience-0003.ckpt.1.tmp").write_bytes(newest[:1000])
        elif child == 0:
            setattr(os, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            _file.write_checkpoint(folder / "experience-0003.ckpt", {}, {"state": b"x" * 10_000})
            os._exit(0)
        else:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        strategy = build()
        assert resume(strategy, folder, tiny_benchmark()) == 2
    _file.remove_old(folder, 9)
    assert sorted(path.name for path in folder.iterdir()) == [f"experience-000{i}.ckpt" for i in range(3)]


def test_the_newest_are_kept(tmp_path):
    benchmark = tiny_benchmark()
    strategy = build([CheckpointPlugin(tmp_path / "run", keep=2)])
    go_on(strategy, benchmark, 0)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "experience-0002.ckpt",
        "experience-0003.ckpt",
    ]


# Strategies, models and benchmarks that are others.


def other_backbone():
    from avalanche_vlm.models import CLIPClassifier
    from avalanche_vlm.testing import TINY_CLASSES

    return CLIPClassifier(TinyBackbone(seed=1), class_names=TINY_CLASSES, trainable=LoRA(rank=2))


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (lambda: build(model=other_backbone()), "frozen weights"),
        (lambda: build(model=tiny_classifier(trainable=LoRA(rank=3))), r"lora_.* is \(.*\) of torch.float32"),
        (
            lambda: build(model=tiny_classifier(trainable="image")),
            "is frozen, as in the run|with the parameter",
        ),
        (lambda: build([LwFPlugin()]), r"strategy\.plugins.*got \[LwFPlugin"),
        (
            lambda: build(kind=Naive, criterion=torch.nn.CrossEntropyLoss()),
            "`strategy` must be FineTune.*got Naive",
        ),
        (
            lambda: build(optimizer=lambda m: Adam(m.parameters())),
            "`strategy.optimizer` must be SGD.*got Adam",
        ),
        (lambda: build(optimizer=two_groups), "1 parameter groups; got 2"),
    ],
)
def test_another_strategy_is_refused(folder, other, match):
    refused(folder, match, strategy=other())


def two_groups(model):
    first, *rest = model.parameters()
    return SGD([{"params": [first]}, {"params": rest}], lr=0.1, momentum=0.9)


def test_parameters_in_other_groups(tmp_path):
    trained(tmp_path, optimizer=two_groups)

    def swapped(model):
        first, *rest = model.parameters()
        return SGD([{"params": rest}, {"params": [first]}], lr=0.1, momentum=0.9)

    refused(tmp_path, "group 0 holds", strategy=build(optimizer=swapped))


def test_other_class_names(folder):
    model = tiny_classifier(trainable=LoRA(rank=2))
    model.set_classes(["cat", "dog", "cow", "fox", "hen", "owl", "eel"])
    refused(folder, "6 class names of the run; got 7", strategy=build(model=model))


@pytest.mark.parametrize(
    ("benchmark", "match"),
    [
        (lambda: tiny_benchmark(n_experiences=2), "8 samples in experience 0"),
        (lambda: tiny_benchmark(per_class=5), "8 samples in experience 0 of the stream 'train'; got 10"),
        (lambda: reordered(), "other labels or samples"),
        (lambda: other_pixels(), "other labels or samples"),
        (lambda: None, "with the stream 'train'"),
    ],
)
def test_another_benchmark_is_refused(folder, benchmark, match):
    made = benchmark()
    refused(folder, match, benchmark=made if made is not None else object())


def reordered():
    from avalanche_vlm.benchmarks import tensor_benchmark
    from avalanche_vlm.testing import TINY_CLASSES, tiny_images

    pairs = [tiny_images(seed=seed) for seed in (0, 1)]
    return tensor_benchmark(*pairs, class_names=TINY_CLASSES, n_experiences=3, class_order=[1, 2, 0, 3, 4, 5])


def other_pixels():
    from avalanche_vlm.benchmarks import tensor_benchmark
    from avalanche_vlm.testing import TINY_CLASSES, tiny_images

    pairs = [tiny_images(seed=seed) for seed in (5, 6)]
    return tensor_benchmark(*pairs, class_names=TINY_CLASSES, n_experiences=3)


def test_another_setting_is_told_and_the_run_goes_on_as_begun(tmp_path):
    trained(tmp_path, plugins=[ReplayPlugin(6)])
    strategy = build([ReplayPlugin(8)], train_epochs=3)
    with pytest.warns(UserWarning, match="in the run that is resumed") as told:
        resume(strategy, tmp_path, tiny_benchmark())
    messages = [str(each.message) for each in told]
    assert any("strategy.train_epochs was 1 in the run that is resumed and is 3 now" in m for m in messages)
    assert any("plugins[0].mem_size was 6" in m for m in messages)
    assert strategy.train_epochs == 1


def test_a_new_run_does_not_write_over_another(folder):
    strategy, benchmark = build([CheckpointPlugin(folder)]), tiny_benchmark()
    with pytest.raises(ValueError, match="a folder without checkpoints"):
        strategy.train(benchmark.train_stream[0])


# Plugins of users.


class Note:
    def __init__(self, text):
        self.text = text


class Writer(SupervisedPlugin):
    """Keeps objects of its own class, a buffer that the user holds too, and a function."""

    def __init__(self, buffer, choose):
        super().__init__()
        self.buffer, self.choose, self.notes = buffer, choose, []
        self.generator = torch.Generator().manual_seed(3)

    def after_training_exp(self, strategy, *args, **kwargs):
        self.buffer.post_adapt(strategy, strategy.experience)
        self.notes.append(
            Note(f"{strategy.clock.train_exp_counter} {torch.rand(1, generator=self.generator)}")
        )


def test_objects_of_users_need_permission_and_keep_their_identity(tmp_path):
    with pytest.raises(TypeError, match=r"plugins\[0\]\.notes\[0\] holds a .*Note.*allow_in_checkpoints"):
        trained(tmp_path / "refused", plugins=[Writer(ClassBalancedBuffer(6), max)])
    allow_in_checkpoints(Note)
    first = trained(tmp_path / "run", plugins=[Writer(ClassBalancedBuffer(6), max)])
    buffer = ClassBalancedBuffer(6)
    second = build([Writer(buffer, max)])
    resume(second, tmp_path / "run", tiny_benchmark())
    old, new = first.plugins[1], second.plugins[0]
    assert [note.text for note in new.notes] == [note.text for note in old.notes]
    assert new.buffer is buffer
    assert new.choose is max
    assert [x.tolist() for x, *_ in buffer.buffer] == [x.tolist() for x, *_ in old.buffer.buffer]
    assert torch.equal(torch.rand(3, generator=new.generator), torch.rand(3, generator=old.generator))


class Counting(SupervisedPlugin):
    """Has a state that only it can put into words."""

    def __init__(self):
        super().__init__()
        self.count, self.handle = 0, iter(())

    def after_training_exp(self, strategy, *args, **kwargs):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        if self.count < 0:
            raise ValueError("a counter of another kind")
        self.count = state["count"]


def test_a_state_dict_is_used_where_attributes_cannot_be_stored(tmp_path):
    trained(tmp_path, plugins=[Counting(), Counting()])
    strategy = build([Counting(), Counting()])
    resume(strategy, tmp_path, tiny_benchmark())
    assert [plugin.count for plugin in strategy.plugins[:2]] == [2, 2]
    stubborn = Counting()
    stubborn.count = -1
    strategy = build([Counting(), stubborn])
    refused(tmp_path, "a counter of another kind", strategy=strategy)
    assert strategy.plugins[0].count == 0


# Checkpoints inside experiences, Ctrl-C, logs.


def test_inside_an_experience_only_our_template(tmp_path):
    strategy = build(
        [CheckpointPlugin(tmp_path, every_n_epochs=1)], kind=Naive, criterion=torch.nn.CrossEntropyLoss()
    )
    with pytest.raises(ValueError, match="every_n_epochs"):
        strategy.train(tiny_benchmark().train_stream[0])


class PressCtrlC(SupervisedPlugin):
    def __init__(self, at, times=1):
        super().__init__()
        self.at, self.times = at, times

    def after_training_iteration(self, strategy, *args, **kwargs):
        if strategy.clock.train_iterations == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("case", "left"), [("LoRA", "experience-0001-epoch-0001.ckpt"), ("replay", "experience-0002.ckpt")]
)
def test_ctrl_c_stops_where_the_run_can_go_on(tmp_path, case, left):
    handler = signal.getsignal(signal.SIGINT)
    whole, benchmark = make(
        case,
        "Adam",
        tmp_path / "whole",
        host_logs=False,
        plugins=[PressCtrlC(-1), CheckpointPlugin(tmp_path / "a")],
    )
    go_on(whole, benchmark, 0)
    assert signal.getsignal(signal.SIGINT) == handler
    # The second iteration of the second experience.
    strategy, benchmark = make(
        case,
        "Adam",
        tmp_path / "run",
        host_logs=False,
        plugins=[PressCtrlC(5), CheckpointPlugin(tmp_path / "b")],
    )
    with pytest.raises(KeyboardInterrupt, match=r"resume\(strategy, folder, benchmark\)"):
        go_on(strategy, benchmark, 0)
    assert signal.getsignal(signal.SIGINT) == handler
    assert _file.checkpoints_in(tmp_path / "b")[0].name == left
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="plugins.*at was 5")
        strategy, benchmark = make(
            case,
            "Adam",
            tmp_path / "run",
            host_logs=False,
            plugins=[PressCtrlC(-1), CheckpointPlugin(tmp_path / "b")],
        )
        start = resume(strategy, tmp_path / "b", benchmark)
    go_on(strategy, benchmark, start)
    expected, got = outcome(whole, tmp_path / "whole"), outcome(strategy, tmp_path / "run")
    assert not [
        line
        for key in ("tensors", "matrices", "metrics")
        for line in differences(expected[key], got[key], key)
    ]


def test_a_second_ctrl_c_interrupts_at_once(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    strategy = build([PressCtrlC(0, times=2), CheckpointPlugin(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        strategy.train(tiny_benchmark().train_stream[0])
    assert signal.getsignal(signal.SIGINT) == handler
    assert strategy.clock.train_iterations == 0


def test_rows_of_other_runs_stay(tmp_path):
    strategy, benchmark = make(
        "LoRA", "SGD", tmp_path / "run", host_logs=False, plugins=[CheckpointPlugin(tmp_path / "a", keep=9)]
    )
    strategy.eval(benchmark.test_stream)
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    file = tmp_path / "run" / "results.csv"
    lines = file.read_bytes().splitlines(keepends=True)
    other = [
        line.replace(line[:12], b"ffffffffffff", 1).replace(b"LoRA", b'"a ""name"",\nin two lines"')
        for line in lines[1:4]
    ]
    file.write_bytes(b"".join([*lines, *other[:1]]))
    strategy.train(benchmark.train_stream[1])
    with file.open("ab") as opened:
        opened.write(b"".join(other[1:]))
    strategy.eval(benchmark.test_stream)
    again, benchmark = make("LoRA", "SGD", tmp_path / "run", host_logs=False, plugins=[])
    resume(again, tmp_path / "a" / "experience-0001.ckpt", benchmark)
    assert file.read_bytes() == b"".join([*lines, *other])
    # From the very beginning, before the run had an id.
    again, benchmark = make(
        "LoRA", "SGD", tmp_path / "run", host_logs=False, plugins=[CheckpointPlugin(tmp_path / "c")]
    )
    resume(again, tmp_path / "a" / "experience-0000.ckpt", benchmark)
    assert file.read_bytes() == b"".join([lines[0], *other])


def test_without_evaluation_the_next_training_writes(tmp_path):
    benchmark = tiny_benchmark()
    strategy = build([CheckpointPlugin(tmp_path, keep=9)])
    for experience in benchmark.train_stream:
        strategy.train(experience)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"experience-000{i}.ckpt" for i in range(3)]
    save(strategy, tmp_path / "last.ckpt", benchmark)
    assert resume(build(), tmp_path / "last.ckpt", benchmark) == 3


def test_sets_keep_their_order():
    for values in ([7, 15], [15, 7], [3, 11, 19, 27], [40, 8, 0, 16], list(range(50))):
        original = set(values)
        assert list(set(in_order_of_insertion(original))) == list(original)


# What stands in the place of a checkpoint, or beside the plugin.


@pytest.mark.parametrize("kind", ["folder", "link", "loop"])
def test_what_is_not_a_file_is_told_and_the_one_before_taken(folder, kind):
    newest = folder / "experience-0002.ckpt"
    newest.unlink()
    if kind == "folder":
        newest.mkdir()
    else:
        newest.symlink_to(newest.name if kind == "loop" else "nothing")
    with pytest.warns(UserWarning, match="experience-0002.ckpt is not a checkpoint: it is a "):
        assert resume(build(), folder, tiny_benchmark()) == 1
    with pytest.raises(ValueError, match="is not a checkpoint: it is a "):
        resume(build(), newest, tiny_benchmark())
    strategy = build([CheckpointPlugin(folder, keep=1)])
    with pytest.warns(UserWarning, match="is not a checkpoint"):
        resume(strategy, folder, tiny_benchmark())
    go_on(strategy, tiny_benchmark(), 1)
    assert (folder / "experience-0003.ckpt").is_file()


def test_time_stamps_stop_nobody(tmp_path):
    strategy, benchmark = build([CheckpointPlugin(tmp_path)]), tiny_benchmark()
    for experience in benchmark.train_stream[:2]:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        for path in tmp_path.iterdir():
            os.utime(path, (1, 1))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("by_resume", [True, False])
def test_two_plugins_are_refused_before_anything_is_written(tmp_path, by_resume):
    strategy, benchmark = (
        build([CheckpointPlugin(tmp_path / "a"), CheckpointPlugin(tmp_path / "b")]),
        tiny_benchmark(),
    )
    with pytest.raises(ValueError, match="one CheckpointPlugin"):
        resume(strategy, tmp_path / "a", benchmark) if by_resume else strategy.train(
            benchmark.train_stream[0]
        )
    assert not list(tmp_path.iterdir())


def test_a_plugin_belongs_to_one_strategy(tmp_path):
    plugin, benchmark = CheckpointPlugin(tmp_path), tiny_benchmark()
    first = build([plugin])
    first.train(benchmark.train_stream[0])
    first.eval(benchmark.test_stream)
    second = build([plugin])
    with pytest.raises(ValueError, match="another strategy"):
        second.train(benchmark.train_stream[0])
    with pytest.raises(ValueError, match="another strategy"):
        resume(build([plugin]), tmp_path, benchmark)


@pytest.mark.parametrize("sizes", [[["state", -1]], [["state", 10**12]], [["state", 0], ["middle", 1]], []])
def test_sections_are_as_long_as_the_header_says(folder, sizes):
    path = folder / "experience-0002.ckpt"
    file = _file.read_checkpoint(path)
    content = b"".join(file.sections.values())
    head = json.dumps({**file.header, "sections": sizes}).encode()
    body = len(head).to_bytes(8, "big") + head + content
    path.write_bytes(b"avlmckpt" + hashlib.sha256(body).digest() + body)
    with pytest.raises(ValueError, match="is damaged"):
        resume(build(), path, tiny_benchmark())
