"""A model does not take the data of one class for those of another: names are compared id by id."""

import unicodedata

import pytest
import torch
from avalanche.benchmarks import nc_benchmark, split_online_stream
from avalanche.training import LwF, Naive, OnlineNaive, Replay
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from avalanche_vlm.benchmarks import class_names, tensor_benchmark, with_class_names, with_validation_stream
from avalanche_vlm.models import (
    CLIPClassifier,
    CosineHead,
    EmbeddingBackbone,
    GaussianDiscriminantHead,
    TextFeatureHead,
    ZeroShotHead,
)
from avalanche_vlm.plugins import LabelSpaceCrossEntropy
from avalanche_vlm.strategies import FineTune, GaussianDiscriminant, ZeroShot
from avalanche_vlm.testing import TINY_CLASSES, tiny_benchmark, tiny_classifier, tiny_images

NAMES = list(TINY_CLASSES)
SWAPPED = [*NAMES[1:], NAMES[0]]


def untrained(model, **arguments):
    return {"model": model, "train_mb_size": 4, "eval_mb_size": 4, **arguments}


def trained(model, **arguments):
    return {**untrained(model, **arguments), "optimizer": SGD(nn.Module.parameters(model), lr=0.1)}


def of_the_host(kind, **arguments):
    return lambda model: kind(**trained(model, criterion=LabelSpaceCrossEntropy("seen"), **arguments))


STRATEGIES = {
    "Naive": of_the_host(Naive),
    "LwF": of_the_host(LwF, alpha=1.0, temperature=2.0),
    "Replay": of_the_host(Replay, mem_size=4),
    "ZeroShot": lambda model: ZeroShot(**untrained(model)),
    "GaussianDiscriminant": lambda model: GaussianDiscriminant(**untrained(model)),
    "FineTune": lambda model: FineTune(**trained(model)),
}


def classifier(names, head=None, trainable="image"):
    model = tiny_classifier(head, trainable=trainable)
    model.set_classes(names)
    return model


@pytest.mark.parametrize("kind", STRATEGIES)
def test_names_in_another_order_are_refused_before_anything_is_computed(kind):
    discriminant = kind == "GaussianDiscriminant"
    head = GaussianDiscriminantHead(ZeroShotHead()) if discriminant else None
    benchmark, model = tiny_benchmark(), classifier(NAMES, head, "nothing" if discriminant else "image")
    strategy = STRATEGIES[kind](model)
    model.set_classes(SWAPPED)
    model.forward = None  # nothing is computed
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for call in (
        lambda: strategy.train(benchmark.train_stream[0]),
        lambda: strategy.eval(benchmark.test_stream),
    ):
        with pytest.raises(
            ValueError, match="id 0 as 'cat' in the data and 'dog' in the model, and 5 more.*set_classes"
        ):
            call()
    after = model.state_dict()
    assert not [name for name in before if not torch.equal(before[name], after[name])]
    assert not model.classes_seen.any()


def test_it_says_how_to_map():
    kind = "FineTune"
    benchmark, model = tiny_benchmark(), classifier(SWAPPED)
    with pytest.raises(ValueError, match="knows these names under other ids"):
        STRATEGIES[kind](model).eval(benchmark.test_stream)
    # Before training: the names of the data.
    model.set_classes(class_names(benchmark))
    STRATEGIES[kind](model).eval(benchmark.test_stream)
    # Afterwards: the ids of the model.
    model = classifier(SWAPPED)
    names = class_names(benchmark)
    pairs = [
        (x, torch.tensor([list(model.class_names).index(names[int(y)]) for y in ys]))
        for x, ys in [tiny_images()]
    ]
    mapped = tensor_benchmark(*pairs, *pairs, class_names=list(model.class_names), n_experiences=3)
    strategy = STRATEGIES[kind](model)
    strategy.train(mapped.train_stream[0])
    strategy.eval(mapped.test_stream)
    # Other words for the same classes.
    model = classifier([f"a {name}" for name in NAMES])
    with pytest.raises(
        ValueError, match=r"only the words differ.*with_class_names\(benchmark, list\(model.class_names\)\)"
    ):
        STRATEGIES[kind](model).eval(benchmark.test_stream)
    STRATEGIES[kind](model).eval(with_class_names(benchmark, model.class_names).test_stream)


def test_a_new_class_is_not_trained_under_the_id_of_an_old_one():
    model = classifier(NAMES)
    strategy = STRATEGIES["FineTune"](model)
    strategy.train(tiny_benchmark().train_stream[0])
    model.set_classes([*NAMES, "bee", "ant"])
    x, y = tiny_images()
    later = tensor_benchmark(
        (x[y < 2], y[y < 2]), (x[y < 2], y[y < 2]), class_names=["bee", "ant"], n_experiences=1
    )
    strategy = STRATEGIES["FineTune"](model)
    with pytest.raises(ValueError, match="'bee' in the data and 'cat' in the model.*labels begin|other ids"):
        strategy.train(later.train_stream[0])
    pair = (x[y < 2], y[y < 2] + 6)
    later = tensor_benchmark(
        pair, pair, class_names=[*NAMES, "bee", "ant"], class_order=[6, 7], n_experiences=1
    )
    STRATEGIES["FineTune"](model).train(later.train_stream[0])
    assert model.classes_seen.tolist() == [True] * 2 + [False] * 4 + [True] * 2


def test_streams_that_were_cut_are_asked_too():
    benchmark, model = tiny_benchmark(), classifier(SWAPPED)
    online = split_online_stream(benchmark.train_stream, experience_size=4)
    host = of_the_host(OnlineNaive, train_passes=1)(model)
    with pytest.raises(ValueError, match="`experience` must be data whose class ids mean what"):
        host.train(next(iter(online)))
    split = with_validation_stream(benchmark, fraction=0.5)
    with pytest.raises(ValueError, match="`experience` must be data whose class ids mean what"):
        STRATEGIES["FineTune"](model).eval(split.valid_stream)
    with pytest.raises(ValueError, match="`experience` must be data whose class ids mean what"):
        STRATEGIES["FineTune"](model).train(split.train_stream[1])


@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        [*NAMES, "bee"],
        [name.upper() for name in NAMES],
        [f" {name} " for name in NAMES],
    ],
)
def test_what_means_the_same_passes(names):
    STRATEGIES["FineTune"](classifier(names)).eval(tiny_benchmark().test_stream)


def test_composition_of_letters_does_not_count():
    names = ["café", "crème", "garçon", "fox", "hen", "owl"]
    model = classifier([unicodedata.normalize("NFD", name) for name in names])
    STRATEGIES["FineTune"](model).eval(with_class_names(tiny_benchmark(), names).test_stream)


def test_data_without_names_pass():
    x, y = tiny_images()
    data = TensorDataset(x, y)
    plain = nc_benchmark(data, data, 3, task_labels=False, seed=0)
    STRATEGIES["FineTune"](classifier(SWAPPED)).train(plain.train_stream[0])


def test_given_text_features_follow_their_names():
    """As the refusal advises: model.set_classes(class_names(benchmark)), before anything is trained."""
    features = torch.eye(3, 16)
    for head in (TextFeatureHead(features), CosineHead(TextFeatureHead(features))):
        model = CLIPClassifier(EmbeddingBackbone(16), head, class_names=["cat", "dog", "cow"])
        model.set_classes(["cow", "Cat", "dog"])
        assert model.predict(features).names == [["Cat"], ["dog"], ["cow"]]
