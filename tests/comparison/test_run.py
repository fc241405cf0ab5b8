"""Runs as data, and what they begin with."""

import importlib.util
import pickle
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_vlm.benchmarks import tensor_benchmark
from avalanche_vlm.comparison import Run, Setup, grid
from avalanche_vlm.models import CosineHead, EmbeddingBackbone, TextFeatureHead, ZeroShotHead
from avalanche_vlm.testing import TinyBackbone
from tests.comparison.cases import NAMES, fine_tune, prepare, zero_shot

names = st.text(min_size=1).filter(str.strip)


def run_of(build=zero_shot, prepare=prepare, **names):
    return Run(**{"method": "m", "stream": "s", "seed": 0, **names}, build=build, prepare=prepare)


def test_grid_has_each_method_on_each_stream_with_each_seed():
    runs = grid({"a": zero_shot, "b": fine_tune}, {"x": prepare, "y": print}, seeds=(seed for seed in (3, 1)))
    assert [(run.stream, run.method, run.seed) for run in runs] == [
        *(("x", "a", 3), ("x", "a", 1), ("x", "b", 3), ("x", "b", 1)),
        *(("y", "a", 3), ("y", "a", 1), ("y", "b", 3), ("y", "b", 1)),
    ]
    assert all(run.build is {"a": zero_shot, "b": fine_tune}[run.method] for run in runs)
    assert all(run.prepare is {"x": prepare, "y": print}[run.stream] for run in runs)
    assert str(runs[0]) == "a, x, seed 3"


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("method", " ", ValueError),
        ("stream", "", ValueError),
        ("method", 3, TypeError),
        ("seed", -1, ValueError),
        ("seed", "0", TypeError),
        ("build", "naive", TypeError),
        ("prepare", None, TypeError),
    ],
)
def test_wrong_arguments_of_a_run_are_named(argument, value, error):
    with pytest.raises(error, match=f"`{argument}` must be"):
        run_of(**{argument: value})


@settings(deadline=None)  # the machine may be busy
@given(names, names, st.integers(0, 10**6))
def test_names_of_folders_are_kept_by_all_file_systems(method, stream, seed):
    name = run_of(method=method, stream=stream, seed=seed).folder_name
    assert all(letter.isascii() and (letter.isalnum() or letter in ".+-") for letter in name)
    assert 0 < len(name) < 100
    assert not name.startswith(("-", ".."))


def test_no_two_runs_share_a_folder():
    alike = ["a b", "a-b", "a/b", "a|b", "a b ", "A B", "猫", "犬", "a" * 200, "a" * 201]
    pairs = [(method, stream) for method in alike for stream in alike]
    folders = {run_of(method=method, stream=stream).folder_name.lower() for method, stream in pairs}
    folders |= {run_of(method="a", stream="b 1", seed=1).folder_name}
    folders |= {run_of(method="1 a", stream="b", seed=1).folder_name}
    assert len(folders) == len(pairs) + 2
    assert run_of().folder_name == run_of(fine_tune, print).folder_name  # names alone decide


def import_from(path):
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_definition_is_how_the_functions_read(tmp_path):
    def defined(text, name="script"):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        return run_of(import_from(path).build).definition()

    text = "def helper():\n    return 1\n\ndef build(setup, evaluator):\n    return helper()\n"
    first = defined(text)
    assert defined(text.replace("return 1", "return 22222"), "of_another_helper") == first
    assert defined(f"# A note\n{text}", "further_down") == first
    assert defined(text.replace("return helper()", "return None"), "edited") != first


def test_the_definition_stays_when_the_file_is_edited_later(tmp_path):
    path = tmp_path / "script.py"
    path.write_text("def build(setup, evaluator):\n    return 1\n")
    run = run_of(import_from(path).build)
    first = run.definition()
    path.write_text("def build(setup, evaluator):\n    return 1 + 1\n")
    assert run.definition() == first
    assert run_of(import_from(path).build).definition() != first


def test_the_definition_has_the_arguments_of_partials():
    first = run_of(partial(fine_tune, rate=0.1), partial(prepare, spaces=("all",))).definition()
    again = run_of(partial(fine_tune, rate=0.1), partial(prepare, spaces=("all",)), method="other", seed=7)
    assert again.definition() == first
    assert pickle.loads(pickle.dumps(again)).definition() == first
    others = [
        run_of(partial(fine_tune, rate=0.2), partial(prepare, spaces=("all",))),
        run_of(partial(fine_tune, rate=0.1), partial(prepare, spaces=("seen",))),
        run_of(partial(fine_tune, rate=0.1), prepare),
        run_of(partial(zero_shot, rate=0.1), partial(prepare, spaces=("all",))),
        run_of(partial(fine_tune, 0.1), partial(prepare, spaces=("all",))),
    ]
    assert len({first, *(run.definition() for run in others)}) == 6
    # Where an object lies says nothing.
    kinds = [type("Part", (), {}) for _ in range(2)]
    assert len({run_of(partial(fine_tune, plugins=[kind()])).definition() for kind in kinds}) == 1
    # The order in which arguments were given neither.
    orders = [{"rate": 1.0, "plugins": ()}, {"plugins": (), "rate": 1.0}]
    assert len({run_of(partial(fine_tune, **order)).definition() for order in orders}) == 1


class Built:
    def __call__(self, setup, evaluator):
        return zero_shot(setup, evaluator)


def test_functions_without_a_source_have_a_definition_too():
    found = {run_of(build).definition() for build in (print, len, Built())}
    assert len(found) == 3
    assert run_of(Built()).definition() in found


def test_functions_that_only_this_process_has_are_refused():
    run_of().check_importable()
    run_of(partial(fine_tune, rate=0.1)).check_importable()
    with pytest.raises(
        ValueError, match="`runs` must be functions that another process can import; got m, s"
    ):
        run_of(lambda setup, evaluator: None).check_importable()


def test_a_setup_makes_models_that_know_the_classes():
    setup = prepare(0)
    first, second = setup.model(), setup.model(CosineHead(setup.head()))
    assert list(first.class_names) == list(second.class_names) == NAMES
    assert isinstance(first.head, TextFeatureHead)
    assert first.head is not setup.model().head
    assert isinstance(second.head, CosineHead)
    assert second.backbone is setup.backbone


def test_a_setup_passes_arguments_on_to_the_model():
    setup = replace(prepare(0), backbone=TinyBackbone(), head=ZeroShotHead)
    assert not any(weight.requires_grad for weight in setup.model().parameters())
    assert any(weight.requires_grad for weight in setup.model(trainable="image").parameters())


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("backbone", torch.nn.Linear(2, 2), TypeError),
        ("head", "zero-shot", TypeError),
        ("spaces", (), ValueError),
        ("spaces", ("seen", "open"), ValueError),
        ("train_arguments", [1], TypeError),
    ],
)
def test_wrong_arguments_of_a_setup_are_named(argument, value, error):
    setup = prepare(0)
    with pytest.raises(error, match=f"`{argument}` must be"):
        replace(setup, **{argument: value})


def test_a_setup_stays_as_it_is():
    data = torch.eye(4), torch.arange(4)
    benchmark = tensor_benchmark(data, data, class_names=list("abcd"), n_experiences=2)
    setup = Setup(benchmark=benchmark, backbone=EmbeddingBackbone(4))
    assert (setup.spaces, setup.seed, setup.device, dict(setup.train_arguments)) == (
        ("seen", "all"),
        0,
        "cpu",
        {},
    )
    with pytest.raises(AttributeError):
        setup.seed = 1
