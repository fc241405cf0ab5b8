"""What a hostile checkpoint tries: calls, writes, reads, changed attributes, memory. Checksums are right."""

import copy
import lzma
import resource
import sys
import warnings
from pathlib import Path

import pytest
import torch
from avalanche.training.plugins import ReplayPlugin
from safetensors.torch import save as save_tensors

from avalanche_vlm.checkpointing import _file, resume
from avalanche_vlm.checkpointing._allowed import _known_classes, factories, known_functions
from avalanche_vlm.checkpointing._bytes import from_bytes, packed, to_bytes
from avalanche_vlm.checkpointing._graph import is_place
from avalanche_vlm.testing import tiny_benchmark

sys.path.insert(0, str(Path(__file__).parent))
from checkpoint_attacks import CALLED, Holder, build, rewritten, train, watched


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return train(tmp_path_factory.mktemp("honest"))


def attempt(checkpoint, change, match=None):
    """Resume from a changed checkpoint; it may be refused, or change what is harmless."""
    path = rewritten(checkpoint, change)
    strategy, benchmark = build(checkpoint.parents[1]), tiny_benchmark()
    holder, model = strategy.plugins[0], strategy.model
    before = copy.copy(vars(holder))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    refused = None
    with warnings.catch_warnings(), watched(path):
        warnings.simplefilter("ignore")
        try:
            resume(strategy, path, benchmark)
        except (ValueError, TypeError) as error:
            refused = error
    if refused is not None:
        assert vars(holder) == before, "refused, and changed"
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
        assert "`" in str(refused) or "checkpoint" in str(refused)
    if match is not None:
        assert refused is not None, "not refused"
        assert match in str(refused), str(refused)
    for name in ("function", "kind", "tokenizer", "method", "folder", "score", "writer"):
        assert getattr(holder, name) == before[name], name
    assert holder.writer.folder == str(checkpoint.parents[1])
    assert holder.text_folder == str(checkpoint.parents[1])
    assert holder.tokenizer.name == "tiny"
    return strategy, refused


def test_the_honest_one_is_resumed(checkpoint):
    strategy, refused = attempt(checkpoint, lambda state: None)
    assert refused is None
    assert strategy.plugins[0].count == 1
    CALLED.clear()


# Calls.

FUNCTIONS = {
    "a class that constructors hold": lambda s: s.add("class", None, "checkpoint_attacks.Tokenizer"),
    "a function that constructors hold": lambda s: s.add("kept", ("plugins", (0,), "function")),
    "a class, kept": lambda s: s.add("kept", ("plugins", (0,), "kind")),
    "an object to call": lambda s: s.add(
        "object", ("plugins", (0,), "tokenizer"), "checkpoint_attacks.Tokenizer", [], ["name"]
    ),
    "a method": lambda s: s.add("kept", ("plugins", (0,), "method")),
    "a partial": lambda s: s.add("partial", ("plugins", (0,), "partial"), [0], (), ()),
    "a known class": lambda s: s.add("class", None, "torch.optim.sgd.SGD"),
    "a module": lambda s: s.add("reference", None, "module", "head"),
    "a transform": lambda s: s.add("reference", None, "data", "train", 0, 1),
}


def calls(s, function):
    return {
        "itself": function,
        "partial": s.add("partial", None, function, ("attacker/folder",), (("trust_remote_code", True),)),
        "factory": s.add("defaultdict", None, function, []),
        "factory of a partial": s.add(
            "defaultdict",
            None,
            s.add("partial", None, function, ("attacker",), (("trust_remote_code", True),)),
            [],
        ),
    }


@pytest.mark.parametrize(
    ("form", "where"),
    [
        *(("itself", where) for where in ("score", "count", "new", "functions")),
        *(("partial", "new"), ("factory", "table"), ("factory of a partial", "table")),
    ],
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_that_acts_is_moved_or_called(checkpoint, name, form, where):
    strategy, refused = attempt(
        checkpoint, lambda s: s.set(".Holder", where, calls(s, FUNCTIONS[name](s))[form])
    )
    if refused is None:
        # A part of the model, or of the data, may be held by a plugin: modules are what is trained.
        assert (name, form) in (("a module", "itself"), ("a transform", "itself"))
        table = getattr(strategy.plugins[0], where)
        assert not callable(getattr(table, "default_factory", None)) or where != "table"


@pytest.mark.parametrize("factory", ["torch.zeros", "torch.ones", "list"])
def test_a_partial_of_a_known_function_is_refused(checkpoint, factory):
    function = lambda s: s.add("partial", None, s.add("function", None, factory), ((10**12,),), ())  # noqa: E731
    attempt(
        checkpoint, lambda s: s.set(".Holder", "table", s.add("defaultdict", None, function(s), [])), "calls"
    )


# Layers and optimizers of torch are many, and alike here.
CLASSES = sorted(
    name for index, name in enumerate(_known_classes()) if not name.startswith("torch.") or index % 25 == 0
)


@pytest.mark.parametrize("name", [*CLASSES, "checkpoint_attacks.Tokenizer", "checkpoint_attacks.Writer"])
def test_objects_of_every_class_that_is_known_are_made_without_a_call(checkpoint, name):
    odd = [("folder", "/"), ("log_dir", "/"), ("transform_groups", 7), ("_datasets", ["/etc/passwd"])]
    _, refused = attempt(checkpoint, lambda s: s.set(".Holder", "new", s.add("object", None, name, odd, [])))
    assert not name.startswith("checkpoint_attacks") or "allow_in_checkpoints" in str(refused)


@pytest.mark.parametrize("name", [*CLASSES[::4], *sorted(factories())])
def test_a_known_class_is_called_by_nobody_but_default_dictionaries(checkpoint, name):
    def change(s):
        s.set(".Holder", "table", s.add("defaultdict", None, s.add("class", None, name), []))

    _, refused = attempt(checkpoint, change)
    assert (refused is None) == (name in factories())


@pytest.mark.parametrize("name", sorted(known_functions()))
def test_a_known_function_does_not_take_the_place_of_another(checkpoint, name):
    attempt(checkpoint, lambda s: s.set(".Holder", "count", s.add("function", None, name)))


# Changed attributes.

PLACES = {
    "another folder": ("folder", lambda s: "/somewhere"),
    "another folder, as text": ("text_folder", lambda s: "/somewhere"),
    "a path from elsewhere": ("text_folder", lambda s: s.add("kept", ("plugins", (0,), "folder"))),
    "text for a function": ("function", lambda s: "shutil.rmtree"),
    "another function": ("function", lambda s: s.add("kept", ("plugins", (0,), "score"))),
    "another tokenizer": (
        "tokenizer",
        lambda s: s.add("object", None, "checkpoint_attacks.Tokenizer", [("name", "evil")], []),
    ),
    "a tokenizer with another name": (
        "tokenizer",
        lambda s: s.add(
            "object", ("plugins", (0,), "tokenizer"), "checkpoint_attacks.Tokenizer", [("name", "./evil")], []
        ),
    ),
    "a writer to another folder": (
        "writer",
        lambda s: s.add(
            "object", ("plugins", (0,), "writer"), "checkpoint_attacks.Writer", [("folder", "/")], ["file"]
        ),
    ),
    "a method": ("note", lambda s: s.add("kept", ("plugins", (0,), "function"))),
    "a hook of the host": ("before_training", lambda s: s.add("kept", ("plugins", (0,), "function"))),
    "its class": ("__class__", lambda s: s.add("kept", ("plugins", (0,), "kind"))),
    "its attributes": ("__dict__", lambda s: s.add("dict", None, [])),
}


@pytest.mark.parametrize("name", PLACES)
def test_what_says_where_or_what_is_done_stays(checkpoint, name):
    attribute, value = PLACES[name]
    attempt(checkpoint, lambda s: s.set(".Holder", attribute, value(s)))


OF_MODEL = {
    "the call of torch": ("head", "_compiled_call_impl"),
    "a call of torch, of the model": ("", "_compiled_call_impl"),
    "forward": ("head", "forward"),
    "hooks": ("head", "_forward_hooks"),
    "parts": ("", "_modules"),
    "the name of weights": ("backbone", "pretrained"),
    "the name of a tokenizer": ("backbone", "model_name"),
    "a configuration": ("backbone", "_configuration"),
    "a derived tokenizer": ("backbone", "_tokenizer"),
}


@pytest.mark.parametrize("value", ["text", "kept", "object", "module"])
@pytest.mark.parametrize("name", OF_MODEL)
def test_the_model_calls_and_loads_what_it_did(checkpoint, name, value):
    module, attribute = OF_MODEL[name]
    values = {
        "text": lambda s: "hf-hub:attacker/model",
        "kept": lambda s: s.add("kept", ("plugins", (0,), "function")),
        "object": lambda s: s.add(
            "object", ("plugins", (0,), "tokenizer"), "checkpoint_attacks.Tokenizer", [], []
        ),
        "module": lambda s: s.add("reference", None, "module", "head"),
    }
    attempt(checkpoint, lambda s: s.set_of_model(module, attribute, values[value](s)), "sets")


@pytest.mark.parametrize("gone", ["_parameters", "_modules", "forward", "__class__", 3])
def test_parts_of_a_module_are_not_taken_away(checkpoint, gone):
    def change(s):
        s.state["attributes"] = [("head", [], [gone])]

    attempt(checkpoint, change, "sets")


def of_sources():
    from avalanche_vlm.sources import DiffusionImageSource, StoredImageSource

    for kind, names in (
        (DiffusionImageSource, ("pipeline", "_loaded", "revision", "scheduler", "dtype")),
        (StoredImageSource, ("folder",)),
    ):
        yield from ((kind, name) for name in names)


@pytest.mark.parametrize(("kind", "name"), list(of_sources()), ids=str)
def test_sources_of_images_load_and_write_where_they_did(tmp_path, kind, name):
    from avalanche.core import SupervisedPlugin
    from checkpoint_attacks import State

    from avalanche_vlm.checkpointing import CheckpointPlugin
    from avalanche_vlm.sources import DiffusionImageSource, RenderedImageSource, StoredImageSource
    from avalanche_vlm.strategies import FineTune
    from avalanche_vlm.testing import tiny_classifier

    class Source(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            made = StoredImageSource(tmp_path / "images", RenderedImageSource())
            self.source = made if kind is StoredImageSource else DiffusionImageSource("own/pipeline")

    def built():
        model = tiny_classifier(trainable="image")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return FineTune(model=model, optimizer=optimizer, train_mb_size=8, evaluator=None, plugins=[Source()])

    strategy, benchmark = built(), tiny_benchmark()
    strategy.plugins.append(CheckpointPlugin(tmp_path / "run"))
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    path = rewritten(
        tmp_path / "run" / "experience-0001.ckpt", lambda s: State.set(s, f".{kind.__name__}", name, "evil")
    )
    strategy = built()
    before = dict(vars(strategy.plugins[0].source))
    with pytest.raises(ValueError, match="sets"), watched(path):
        resume(strategy, path, benchmark)
    assert vars(strategy.plugins[0].source) == before


# Schedules, which set every entry of their state as an attribute.


@pytest.mark.parametrize("entry", ["step", "get_lr", "optimizer", "state_dict", "__class__", "new"])
@pytest.mark.parametrize("value", ["kept", "class", "text"])
@pytest.mark.parametrize("inner", [False, True])
def test_a_schedule_keeps_its_methods(checkpoint, entry, value, inner):
    def change(s):
        values = {
            "kept": s.add("kept", ("plugins", (0,), "function")),
            "class": s.add("class", None, "list"),
            "text": "text",
        }
        nodes = s.state["nodes"]
        number = next(i for i, n in enumerate(nodes) if n[0] == "stateful" and n[2].endswith("SequentialLR"))
        (own,) = nodes[number][3]
        if inner:
            pairs = dict(nodes[own][2])
            (schedules,) = pairs["_schedulers"]
            ((own,), *_) = nodes[schedules][2]
        nodes[own] = (*nodes[own][:2], [*nodes[own][2], (entry, values[value])])

    strategy, _ = attempt(checkpoint, change)
    holder = strategy.plugins[0]
    for schedule in (holder.schedule, *holder.schedule._schedulers):
        assert callable(schedule.step)
        assert schedule.optimizer is holder.other
        assert not callable(getattr(schedule, "new", None))


def test_only_what_has_a_state_of_its_own_loads_one(checkpoint):
    attempt(
        checkpoint,
        lambda s: s.set(
            ".Holder",
            "writer",
            s.add("stateful", ("plugins", (0,), "writer"), "checkpoint_attacks.Writer", "x"),
        ),
    )


# Data.


def data_of(s, *, texts, indices=None, transform=None):
    """Return a data set of text, whose transform is one of the benchmark's."""
    items = s.add("list", None, texts)
    groups = s.add(
        "object",
        None,
        "avalanche.benchmarks.utils.transform_groups.TransformGroups",
        [
            (
                "transform_groups",
                s.add(
                    "dict", None, [("train", transform or s.add("reference", None, "data", "train", 0, 1))]
                ),
            ),
            ("current_group", "train"),
        ],
        [],
    )
    pairs = [
        ("_datasets", s.add("list", None, [items])),
        ("_indices", indices),
        ("_can_flatten", False),
        ("_discard_elements_not_in_indices", False),
        ("_cumulative_sizes", s.add("list", None, [len(texts)])),
        ("_transform_groups", groups),
        ("_frozen_transform_groups", groups),
    ]
    return s.add("object", None, "avalanche.benchmarks.utils.data._FlatDataWithTransform", pairs, [])


def test_a_data_set_of_names_of_files_is_refused(checkpoint):
    attempt(checkpoint, lambda s: s.set(".Holder", "new", data_of(s, texts=["/etc/passwd"])), "data")


def test_a_transform_of_a_data_set_is_one_of_the_benchmark(checkpoint):
    def change(s):
        function = s.add("kept", ("plugins", (0,), "function"))
        s.set(".Holder", "new", data_of(s, texts=[1], transform=function))

    attempt(checkpoint, change, "where constructors put them")


@pytest.mark.parametrize("indices", [[1], [-1], "many", "range"])
def test_indices_are_within_their_data(checkpoint, indices):
    lazy = "avalanche.benchmarks.utils.flat_data.Lazy"

    def change(s):
        made = {
            "many": lambda: s.add(
                "object",
                None,
                f"{lazy}Indices",
                [
                    ("_lists", s.add("list", None, [])),
                    ("_known_length", 10**12),
                    ("_offset", 0),
                    ("_eager_list", None),
                ],
                [],
            ),
            "range": lambda: s.add(
                "object", None, f"{lazy}Range", [("_start", 0), ("_end", 10**12), ("_offset", 0)], []
            ),
        }
        own = made[indices]() if isinstance(indices, str) else s.add("list", None, indices)
        s.set(".Holder", "new", data_of(s, texts=[1], indices=own))

    attempt(checkpoint, change, "samples")


# Enumerations, named tuples, numbers, dtypes.


@pytest.mark.parametrize(
    "node",
    [
        ("dtype", None, "hub"),
        ("dtype", None, "load"),
        ("number", None, "O", "x"),
        ("number", None, "V1000000000", 1),
        ("array", None, "O", (1,), b"12345678"),
        ("enum", None, "checkpoint_attacks.Level", "__class__"),
        ("enum", None, "checkpoint_attacks.Level", "mro"),
        ("enum", None, "signal.Signals", "SIGKILL"),
        ("named tuple", None, "checkpoint_attacks.Pair", (1, 2, 3)),
        ("named tuple", None, "checkpoint_attacks.Writer", (1, 2)),
        ("named tuple", None, "os.stat_result", (1, 2)),
        ("logger", None, 3),
        ("experience", None, "train", 99),
        ("experience", None, "train", "0"),
        ("numpy generator", None, "__init__", 3),
        ("tensor", None, 3, False, True, False, None),
        ("reference", None, "module", "head.forward"),
        ("reference", None, "data", "train", 0, 999),
        ("module", None, "copy", "head.tokenizer", [], {}, [], True, []),
        ("module", None, "subprocess.Popen", [], [], [], [], [], []),
        ("optimizer", None, "checkpoint_attacks.Writer", [], {}, {}),
        ("lock", None, "Thread"),
        ("range", None, "a", "b", "c"),
    ],
    ids=str,
)
def test_odd_nodes_are_refused(checkpoint, node):
    _, refused = attempt(checkpoint, lambda s: s.set(".Holder", "new", s.add(*node)))
    assert refused is not None


# Memory.


def written(checkpoint, content):
    path = checkpoint.with_name("bomb.ckpt")
    _file.write_checkpoint(path, _file.read_checkpoint(checkpoint).header, {"state": content})
    return path


def refused_within(checkpoint, content, megabytes):
    path = written(checkpoint, content) if isinstance(content, bytes) else rewritten(checkpoint, content)
    strategy = build(checkpoint.parents[1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"`|checkpoint"):
        resume(strategy, path, tiny_benchmark())
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < megabytes


@pytest.fixture(scope="module")
def blanks():
    """Many megabytes of blanks in some kilobytes, and how many they are."""
    packer = lzma.LZMACompressor(
        check=lzma.CHECK_NONE, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 20}]
    )
    block = b" " * (1 << 24)
    made = [packer.compress(b"["), *(packer.compress(block) for _ in range(20)), packer.flush()]
    return b"".join(made), 20 * len(block) + 1


@pytest.mark.parametrize("claimed", ["right", "small", "huge"])
def test_some_kilobytes_do_not_become_hundreds_of_megabytes(checkpoint, blanks, claimed):
    made, whole = blanks
    length = {"right": whole, "small": 1 << 18, "huge": 1 << 60}[claimed]
    lengths = len(made).to_bytes(8, "big") + length.to_bytes(8, "big")
    refused_within(checkpoint, lengths + made + save_tensors({}), megabytes=150)


def test_the_state_of_a_generator_does_not_become_gigabytes(checkpoint):
    import zlib

    made = zlib.compress(bytes(1 << 29))

    def change(s):
        s.state["random"]["torch"] = torch.frombuffer(bytearray(made), dtype=torch.uint8)

    refused_within(checkpoint, change, megabytes=150)


def test_a_tensor_does_not_lie_in_more_memory_than_its_file_has(checkpoint):
    def change(s):
        node = ("tensor", None, torch.ones(1), False, True, False, (10**6, 1 << 40, 0, (1,)))
        s.set(".Holder", "new", s.add(*node))

    refused_within(checkpoint, change, megabytes=150)


@pytest.mark.parametrize(
    "place", [(7, 4, 0, (1,)), (7, 400, -4, (1,)), (7, 400, 2, (1,)), (7, 400, 0, (99,)), (7, 400, 0, ())]
)
def test_a_tensor_lies_within_its_memory(checkpoint, place):
    def change(s):
        s.set(".Holder", "new", s.add("tensor", None, torch.ones(3), False, True, False, (10**6, *place[1:])))

    refused_within(checkpoint, change, megabytes=50)


def test_one_tensor_is_not_many(checkpoint):
    content = to_bytes([torch.ones(3)])
    stored = int.from_bytes(content[:8], "big")
    structure = packed(b'[{"x":[0,false]},{"x":[0,false]}]')
    lengths = len(structure).to_bytes(8, "big") + (33).to_bytes(8, "big")
    with pytest.raises(ValueError, match="refused"):
        from_bytes(lengths + structure + content[16 + stored :])


def test_copies_of_the_model_are_bounded(checkpoint):
    def change(s):
        copies = [s.add("module", None, "copy", "", [], {}, [], True, []) for _ in range(3000)]
        s.set(".Holder", "new", s.add("list", None, copies))

    refused_within(checkpoint, change, megabytes=400)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"t":' * 50_000,
        b"{}",
        b'{"t":1}',
        b'{"a":1,"b":2}',
        b'{"i":"zz"}',
        b'{"x":["a"]}',
        b"nul",
    ],
)
def test_deep_and_odd_structures_are_refused(checkpoint, text):
    structure = packed(text)
    lengths = len(structure).to_bytes(8, "big") + len(text).to_bytes(8, "big")
    refused_within(checkpoint, lengths + structure + save_tensors({}), megabytes=100)


def test_what_is_almost_the_same_all_over_is_written_so_that_it_can_be_read():
    value = [0] * 3_000_000
    assert from_bytes(to_bytes(value)) == value


def test_a_run_keeps_what_it_holds(checkpoint):
    """The plugin of these attacks, resumed, goes on with what it had."""
    strategy = build(checkpoint.parents[1])
    resume(strategy, checkpoint, tiny_benchmark())
    holder = strategy.plugins[0]
    assert isinstance(holder, Holder)
    assert isinstance(strategy.plugins[1], ReplayPlugin)
    assert (holder.count, holder.level.name, tuple(holder.pair), dict(holder.table)) == (
        1,
        "HIGH",
        (1, 2),
        {1: [1]},
    )
    assert holder.folder == Path(checkpoint.parents[1])


# What a second look found.

HOLDER = ("plugins", (0,))


def lambda_schedule(s, function):
    return s.add(
        "object",
        None,
        "torch.optim.lr_scheduler.LambdaLR",
        [("lr_lambdas", s.add("list", None, [function])), ("last_epoch", 41)],
        [],
    )


@pytest.mark.parametrize("name", ["kind", "function", "tokenizer"])
def test_a_schedule_takes_no_function_of_a_file(checkpoint, name):
    def change(s):
        function = s.add("kept", (*HOLDER, name))
        if name == "tokenizer":
            function = s.add("object", (*HOLDER, name), "checkpoint_attacks.Tokenizer", [], ["name"])
        s.set(".Holder", "new", lambda_schedule(s, function))

    attempt(checkpoint, change, "where constructors put them")


def test_the_functions_of_a_live_schedule_stay(checkpoint):
    def change(s):
        pairs = [("lr_lambdas", s.add("list", None, [s.add("kept", (*HOLDER, "function"))]))]
        name = "torch.optim.lr_scheduler.LambdaLR"
        s.set(".Holder", "decay", s.add("object", (*HOLDER, "decay"), name, pairs, []))

    _, refused = attempt(checkpoint, change)
    assert refused is not None


@pytest.mark.parametrize(
    ("home", "name", "pairs"),
    [
        ("level", "checkpoint_attacks.Level", [("_value_", 99)]),
        ("net", "torch.nn.modules.linear.Linear", [("training", False)]),
        ("other", "torch.optim.sgd.SGD", [("defaults", None)]),
    ],
)
def test_what_has_a_kind_of_its_own_is_no_plain_object(checkpoint, home, name, pairs):
    _, refused = attempt(
        checkpoint, lambda s: s.set(".Holder", "new", s.add("object", (*HOLDER, home), name, pairs, []))
    )
    assert refused is not None


def test_a_chain_of_schedules_has_schedules_alone(checkpoint):
    def change(s):
        inner = s.add(
            "list",
            None,
            [s.add("object", (*HOLDER, "writer"), "checkpoint_attacks.Writer", [], ["file", "folder"])],
        )
        name = "torch.optim.lr_scheduler.SequentialLR"
        s.set(".Holder", "new", s.add("object", None, name, [("_schedulers", inner)], []))

    _, refused = attempt(checkpoint, change)
    assert refused is not None


@pytest.mark.parametrize("name", ["function", "tokenizer", "folder", "method"])
def test_what_acts_is_not_deleted(checkpoint, name):
    def change(s):
        number = s.node(".Holder")
        kind, home, own, pairs, left = s.state["nodes"][number]
        s.state["nodes"][number] = (kind, home, own, [pair for pair in pairs if pair[0] != name], left)

    attempt(checkpoint, change, "where constructors put them")


@pytest.mark.parametrize("name", ["a." * 30_000 + "b", ".".join("a" * 30)])
def test_loggers_of_python_are_few(checkpoint, name):
    attempt(checkpoint, lambda s: s.set(".Holder", "new", s.add("logger", None, name)), "name of a logger")


@pytest.mark.parametrize("kind", ["dict", "set", "frozenset"])
def test_keys_do_not_collide(checkpoint, kind):
    keys = [(2**61 - 1) * number for number in range(1, 3000)]
    node = [(key, None) for key in keys] if kind == "dict" else keys
    attempt(checkpoint, lambda s: s.set(".Holder", "new", s.add(kind, None, node)), "chosen to take long")


@pytest.mark.parametrize("where", ["_datasets", "_indices"])
def test_a_range_is_no_data(checkpoint, where):
    def change(s):
        encoded = data_of(s, texts=[1])
        kind, home, name, pairs, left = s.state["nodes"][encoded[0]]
        many = s.add("range", None, 0, 10**12, 1)
        value = s.add("list", None, [many]) if where == "_datasets" else many
        pairs = [(own, value if own == where else content) for own, content in pairs]
        s.state["nodes"][encoded[0]] = (kind, home, name, pairs, left)
        s.set(".Holder", "new", encoded)

    attempt(checkpoint, change, "samples")


@pytest.mark.parametrize("text", ["/somewhere", "https://somewhere", "~/x", "../x"])
@pytest.mark.parametrize("attribute", ["text_folder", "step"])
def test_text_that_names_a_place_is_not_taken(checkpoint, attribute, text):
    strategy, _ = attempt(checkpoint, lambda s: s.set(".Holder", attribute, text))
    assert getattr(strategy.plugins[0], attribute) != text


def test_bytes_that_begin_as_a_path_are_numbers():
    assert not is_place(b"\x90\x01", b"/\x8f")
    assert not is_place(None, b"/somewhere")
    assert is_place(b"/here", b"/somewhere")


def states(change):
    return lambda s: change(s.state)


LATE = {
    "no state of a GPU": states(lambda state: state["random"].pop("cuda")),
    "a number for GPUs": states(lambda state: state["random"].update(cuda=5)),
    "a whole number that has a gradient": lambda s: s.set(
        ".Holder", "new", s.add("tensor", None, torch.ones(2, dtype=torch.int64), True, True, False, None)
    ),
    "stored and gone": states(lambda state: state["model"].update(gone=["head.weight"])),
    "a parameter among buffers": states(
        lambda state: state["model"]["buffers"].update(state["model"]["parameters"])
    ),
    "text for a number of epochs": states(lambda state: state.update(epochs="x; got y")),
    "a kind of part that is not known": states(lambda state: state["kinds"].update({"x; got y": 1})),
    "a number for names": lambda s: s.state["roots"].update(strategy=(s.state["roots"]["strategy"][0], 5)),
}


@pytest.mark.parametrize("name", LATE)
def test_what_would_fail_while_it_is_put_in_is_refused_before(checkpoint, name):
    _, refused = attempt(checkpoint, LATE[name])
    assert refused is not None
