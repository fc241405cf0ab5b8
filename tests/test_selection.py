import gc
import io
import json
import pickle
import traceback
import weakref
from dataclasses import FrozenInstanceError
from functools import wraps

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training import Naive
from rich.console import Console
from sklearn.model_selection import ParameterGrid
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from avalanche_vlm.benchmarks import (
    class_names,
    domain_benchmark,
    multi_dataset_benchmark,
    tensor_benchmark,
    with_validation_stream,
)
from avalanche_vlm.functional import label_space_predictions
from avalanche_vlm.models import CLIPClassifier, CosineHead, EmbeddingBackbone, TextFeatureHead
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.selection import HiddenStreamError, choose_hyperparameters

CLASSES, WIDTH = 6, 16
SEEDS = {"selection_seeds": [10, 11], "reported_seeds": [0, 1, 2]}


def clusters(seed, per_class=10):
    means = F.normalize(torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0)), dim=1)
    y = torch.arange(CLASSES).repeat(per_class)
    noise = torch.randn(len(y), WIDTH, generator=torch.Generator().manual_seed(seed))
    return means[y] + 0.2 * noise, y


def class_incremental(seed):
    names = [f"class {index}" for index in range(CLASSES)]
    return tensor_benchmark(clusters(1), clusters(2), class_names=names, n_experiences=3, seed=seed)


def domains(seed):
    names = [f"class {index}" for index in range(CLASSES)]
    pairs = {str(part): (clusters(part), clusters(part + 10)) for part in range(2)}
    return domain_benchmark(pairs, class_names=names)


def from_datasets(seed):
    x, y = clusters(1)
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    whole = as_classification_dataset(data)
    order = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(seed))
    parts = [whole.subset(torch.isin(y, classes).nonzero().flatten().tolist()) for classes in order.split(2)]
    return benchmark_from_datasets(train=parts, test=[whole])


def score_of_naive(benchmark, *, seed, lr):
    """Return the accuracy among an experience's classes of the host's Naive, from useless weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = torch.randn(CLASSES, WIDTH)
        head = CosineHead(TextFeatureHead(start))
        backbone = EmbeddingBackbone(WIDTH, logit_scale=10.0)
        model = CLIPClassifier(backbone, head, class_names=class_names(benchmark))
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=lr),
            criterion=LabelSpaceCrossEntropy("experience"),
            train_mb_size=8,
            train_epochs=3,
            evaluator=None,
        )
        for experience in benchmark.train_stream:
            strategy.train(experience)
    model.eval()
    hits = []
    for experience in benchmark.valid_stream:
        columns = torch.tensor(sorted(set(map(int, experience.dataset.targets))))
        for x, y, *_ in experience.dataset:
            hits.append(int(label_space_predictions(model(x[None]), columns)) == y)
    return sum(hits) / len(hits)


def choose(candidates, train_and_score=None, make_benchmark=class_incremental, **arguments):
    return choose_hyperparameters(
        candidates,
        make_benchmark=make_benchmark,
        train_and_score=train_and_score or (lambda benchmark, seed, value: value),
        **(SEEDS | arguments),
    )


def test_the_right_learning_rate_is_found_and_found_again():
    grid = ParameterGrid({"lr": [1e-6, 1.0]})
    choice = choose(grid, score_of_naive, validation_fraction=0.4)
    assert choice.best == {"lr": 1.0}
    assert choice.scores[1].mean - choice.scores[0].mean > 0.3
    assert choice == choose(grid, score_of_naive, validation_fraction=0.4)


def test_mean_and_deviation_are_those_of_the_scores():
    choice = choose([{"value": 1}, {"value": 2}], lambda benchmark, seed, value: value * (seed - 9))
    assert choice.best == {"value": 2}
    assert choice.scores[1].by_seed == {10: 2.0, 11: 4.0}
    assert choice.scores[1].mean == 3.0
    assert choice.scores[1].std == pytest.approx(2**0.5)
    with pytest.raises(FrozenInstanceError):
        choice.best = {}


def test_of_equals_the_earlier_one_is_chosen():
    assert choose([{"value": 1, "name": "a"}, {"value": 1, "name": "b"}], score_with_name).best["name"] == "a"


def score_with_name(benchmark, *, seed, value, name):
    return value


def test_every_candidate_meets_the_same_seeds_and_the_same_data():
    met = []

    def note(benchmark, *, seed, value):
        assert set(benchmark.streams) == {"train", "valid"}
        content = [(float(x.sum()), int(y)) for e in benchmark.valid_stream for x, y, *_ in e.dataset]
        met.append((value, seed, content))
        return 0.0

    choose([{"value": 1}, {"value": 2}], note, validation_fraction=0.3)
    first, second = ([entry[1:] for entry in met if entry[0] == value] for value in (1, 2))
    assert first == second
    assert [seed for seed, _ in first] == SEEDS["selection_seeds"]
    expected = with_validation_stream(class_incremental(10), fraction=0.3, seed=10)
    content = [(float(x.sum()), int(y)) for e in expected.valid_stream for x, y, *_ in e.dataset]
    assert first[0][1] == content
    assert len(content) == CLASSES * 3


@pytest.mark.parametrize("make_benchmark", [class_incremental, domains, from_datasets])
@pytest.mark.parametrize(
    "ask",
    [
        lambda benchmark: benchmark.test_stream,
        lambda benchmark: benchmark.streams["test"],
        lambda benchmark: benchmark.streams.get("test"),
        lambda benchmark: benchmark.streams.get("test", None),
        lambda benchmark: benchmark.train_stream[0].origin_stream.benchmark.test_stream,
        lambda benchmark: with_validation_stream(benchmark, name="more").test_stream,
    ],
    ids=["attribute", "streams", "get", "with default", "through an experience", "copied"],
)
def test_the_test_stream_cannot_be_had(make_benchmark, ask):
    with pytest.raises(HiddenStreamError, match="not available while hyper-parameters are chosen"):
        choose([{"value": 1}], lambda benchmark, seed, value: ask(benchmark), make_benchmark)


@pytest.mark.parametrize("make_benchmark", [class_incremental, domains, from_datasets])
def test_whether_there_is_a_test_stream_may_be_asked(make_benchmark):
    def ask(benchmark, *, seed, value):
        assert not hasattr(benchmark, "test_stream")
        assert getattr(benchmark, "test_stream", None) is None
        assert "test" not in benchmark.streams
        assert benchmark.streams.get("valid") is benchmark.valid_stream
        return 0.0

    assert choose([{"value": 1}], ask, make_benchmark).scores[0].failure is None


def test_rows_of_the_test_data_are_hidden_too():
    assert class_incremental(0).test_exps_patterns_assignment
    with pytest.raises(HiddenStreamError):
        choose([{"value": 1}], lambda benchmark, seed, value: benchmark.test_exps_patterns_assignment)


def test_data_sets_can_be_pickled_and_the_benchmark_cannot():
    def look(benchmark, *, seed, value):
        data = pickle.loads(pickle.dumps(benchmark.valid_stream[0].dataset))
        assert torch.equal(data[0][0], benchmark.valid_stream[0].dataset[0][0])
        with pytest.raises((pickle.PicklingError, AttributeError)):
            pickle.dumps(benchmark)
        return 0.0

    assert choose([{"value": 1}], look).scores[0].failure is None


@pytest.mark.parametrize("make_benchmark", [class_incremental, domains])
def test_nothing_of_the_test_data_is_left(make_benchmark):
    def look(benchmark, *, seed, value):
        assert isinstance(benchmark, type(make_benchmark(0)))
        assert list(benchmark.stream_definitions) == ["train", "valid"]
        with pytest.raises(HiddenStreamError):
            _ = benchmark.original_test_dataset
        return 0.0

    choice = choose([{"value": 1}], look, make_benchmark)
    assert choice.scores[0].failure is None


def test_a_validation_stream_of_the_benchmark_gives_way_to_ours():
    def make_benchmark(seed):
        return with_validation_stream(class_incremental(seed), fraction=0.5)

    def look(benchmark, *, seed, value):
        return sum(len(experience.dataset) for experience in benchmark.valid_stream)

    choice = choose([{"value": 1}], look, make_benchmark, validation_fraction=0.2)
    assert choice.scores[0].by_seed == {10: CLASSES, 11: CLASSES}


def test_seeds_in_both_groups_are_refused():
    with pytest.raises(ValueError, match=r"`selection_seeds`.*\[1\] in both"):
        choose([{"value": 1}], selection_seeds=[1, 7], reported_seeds=[0, 1])


def test_a_fixed_class_order_is_refused_with_what_to_do():
    with pytest.raises(
        ValueError, match="seed 10, with the class order of the reported seed 0.*Take another seed"
    ):
        choose([{"value": 1}], make_benchmark=lambda seed: class_incremental(0))


def test_the_order_of_data_sets_is_an_order():
    pair = (torch.eye(8), [0, 1, 0, 1, 0, 1, 0, 1])
    parts = {"pets": (pair, pair, ["cat", "dog"]), "food": (pair, pair, ["pie", "soup"])}

    def make_benchmark(seed):
        return multi_dataset_benchmark({name: parts[name] for name in sorted(parts, reverse=seed < 10)})

    choice = choose_hyperparameters(
        [{"lr": 0.1}],
        make_benchmark=make_benchmark,
        train_and_score=lambda benchmark, *, seed, lr: lr,
        selection_seeds=[10],
        reported_seeds=[0],
        validation_fraction=0.25,
    )
    assert choice.class_orders_compared
    with pytest.raises(ValueError, match="selection_seeds"):
        choose_hyperparameters(
            [{"lr": 0.1}],
            make_benchmark=make_benchmark,
            train_and_score=lambda benchmark, *, seed, lr: lr,
            selection_seeds=[10],
            reported_seeds=[11],
        )


def test_an_order_that_coincides_by_chance_is_refused():
    def make_benchmark(seed):
        return class_incremental(2 if seed == 11 else seed)

    with pytest.raises(ValueError, match="seed 11, with the class order of the reported seed 2"):
        choose([{"value": 1}], make_benchmark=make_benchmark)


def test_where_classes_recur_only_the_seeds_are_compared():
    choice = choose([{"value": 1}], make_benchmark=domains)
    assert not choice.class_orders_compared
    assert "no order" in choice.describe()["class_orders_of_selection"]


def test_a_candidate_that_fails_is_recorded_and_the_others_go_on():
    def fail(benchmark, *, seed, value):
        if value == "raises":
            raise ZeroDivisionError("no step")
        if value == "late" and seed == 11:
            return float("nan")
        return {"fine": 0.5, "late": 0.9, "infinite": float("inf")}[value]

    choice = choose([{"value": v} for v in ("raises", "late", "infinite", "fine")], fail)
    assert choice.best == {"value": "fine"}
    failures = [each.failure for each in choice.scores]
    assert failures == [
        "ZeroDivisionError with seed 10: no step",
        "score nan with seed 11",
        "score inf with seed 10",
        None,
    ]
    assert choice.scores[1].by_seed == {10: 0.9}
    assert choice.scores[1].mean is None
    with pytest.raises(RuntimeError, match=r"All 2 candidates failed.*'raises'.*no step"):
        choose([{"value": "raises"}, {"value": "infinite"}], fail)


def test_the_first_error_is_the_cause_where_all_fail():
    def fail(benchmark, *, seed, value):
        if value == "nan":
            return float("nan")
        raise ZeroDivisionError(value)

    with pytest.raises(RuntimeError, match="All 3 candidates failed") as caught:
        choose([{"value": value} for value in ("nan", "first", "second")], fail)
    cause = caught.value.__cause__
    assert isinstance(cause, ZeroDivisionError)
    assert str(cause) == "first"
    assert "raise ZeroDivisionError(value)" in "".join(traceback.format_exception(cause))
    with pytest.raises(RuntimeError) as caught:
        choose([{"value": "nan"}], fail)
    assert caught.value.__cause__ is None


def test_a_failed_candidate_leaves_no_model_behind():
    models = []

    def fail(benchmark, *, seed, value):
        gc.collect()
        alive.append(sum(model() is not None for model in models))
        model = torch.nn.Linear(1, 1)
        models.append(weakref.ref(model))
        try:
            raise KeyError(value)
        except KeyError as error:
            raise ValueError(value) from error

    alive = []
    with pytest.raises(RuntimeError):
        choose([{"value": value} for value in range(3)], fail)
    assert alive == [0, 0, 0]


def test_an_error_may_be_its_own_cause():
    def fail(benchmark, *, seed, value):
        error = KeyError(value)
        raise error from error

    with pytest.raises(RuntimeError, match="All 1 candidates failed"):
        choose([{"value": 1}], fail)


@pytest.mark.parametrize(
    ("function", "candidate", "sentence"),
    [
        (lambda benchmark, seed: 0.0, {"lr": 1}, "seed=seed, lr=....*unexpected keyword argument 'lr'"),
        (lambda benchmark, lr: 0.0, {"lr": 1}, "unexpected keyword argument 'seed'"),
        (lambda benchmark, seed, lr, epochs: 0.0, {"lr": 1}, "missing a required argument: 'epochs'"),
        (lambda seed, lr: 0.0, {"lr": 1}, "multiple values for argument 'seed'"),
    ],
)
def test_a_function_that_cannot_take_a_candidate_is_refused_at_once(function, candidate, sentence):
    def never(seed):
        raise AssertionError("a benchmark was made")

    with pytest.raises(TypeError, match=f"`train_and_score` must be .*{sentence}"):
        choose([candidate], function, never)


def test_what_a_decorator_takes_counts_and_not_what_it_wraps():
    def with_epochs(function):
        @wraps(function)
        def wrapper(benchmark, *, seed, value):
            return function(benchmark, seed=seed, value=value, epochs=3)

        return wrapper

    @with_epochs
    def score(benchmark, *, seed, value, epochs):
        return value * epochs

    assert choose([{"value": 2}], score).scores[0].mean == 6


def test_what_a_run_changes_changes_no_record():
    given = {"value": 1, "head": {"layers": [1, 2]}}
    met = []

    def change(benchmark, *, seed, value, head):
        met.append(list(head["layers"]))
        head["layers"].append(seed)
        return 0.0

    choice = choose([given], change)
    assert met == [[1, 2], [1, 2]]
    given["head"]["layers"].clear()
    assert choice.best == choice.scores[0].hyperparameters == {"value": 1, "head": {"layers": [1, 2]}}


def test_the_record_is_json_and_a_table():
    def score(benchmark, *, seed, value, kind=None):
        return value / (seed - 9)

    choice = choose([{"value": 1, "kind": torch.float32}, {"value": 2}, {"value": "x"}], score)
    record = json.loads(json.dumps(choice.describe(), allow_nan=False))
    assert record["best"] == {"value": 2}
    assert record["candidates"][0]["hyperparameters"] == {"value": 1, "kind": "torch.float32"}
    assert record["candidates"][1]["scores"] == {"10": 2.0, "11": 1.0}
    assert record["candidates"][2]["mean"] is None
    assert (record["selection_seeds"], record["reported_seeds"]) == ([10, 11], [0, 1, 2])
    file = io.StringIO()
    Console(file=file, width=120).print(choice.table(title="lr"))
    lines = file.getvalue().splitlines()
    assert any("1.5 ± 0.71" in line and "chosen" in line for line in lines)
    assert any("TypeError" in line for line in lines)


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("candidates", {"value": 1}, TypeError),
        ("candidates", [], ValueError),
        ("candidates", [3], TypeError),
        ("candidates", [{"seed": 1}], ValueError),
        ("candidates", [{"value": (letter for letter in "abc")}], ValueError),
        ("make_benchmark", 3, TypeError),
        ("make_benchmark", lambda seed: seed, TypeError),
        ("train_and_score", 3, TypeError),
        ("selection_seeds", 3, TypeError),
        ("selection_seeds", [], ValueError),
        ("selection_seeds", [5, 5], ValueError),
        ("reported_seeds", [0.5], TypeError),
        ("validation_fraction", 1, ValueError),
        ("validation_fraction", 0, ValueError),
    ],
)
def test_wrong_arguments_are_named(argument, value, error):
    arguments = {"candidates": [{"value": 1}], argument: value}
    with pytest.raises(error, match=f"`{argument}`"):
        choose(**arguments)
