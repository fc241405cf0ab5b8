"""Whose weights a teacher has, over a run of three experiences, against copies of the whole model."""

from copy import deepcopy
from io import BytesIO

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch.optim import SGD

from avalanche_vlm.models import LinearHead, LoRA, WeightSnapshot, ZeroShotHead
from avalanche_vlm.plugins import RegularizerPlugin
from avalanche_vlm.regularizers import (
    CrossModalDistillation,
    CurrentPairs,
    InitialTeacher,
    InterpolatedTeacher,
    LastTeacher,
    SyntheticPairs,
)
from avalanche_vlm.sources import NamePrompts
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier
from avalanche_vlm.testing.running import differing, run, snapshot
from tests.reference.double_precision import in_double
from tests.reference.tiny_image_source import NAMES, Agent, TinyImageSource, moved

BENCHMARK = tiny_benchmark()
TEACHERS = {"last": LastTeacher, "initial": InitialTeacher, "between": InterpolatedTeacher}


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class Copies(SupervisedPlugin):
    """Copies the whole model before each experience, the only honest teacher."""

    def __init__(self):
        super().__init__()
        self.models = []

    def before_training_exp(self, strategy, *args, **kwargs):
        self.models.append(deepcopy(strategy.model))


class Noting:
    """Notes the weights that a teacher gives for each experience."""

    def __init__(self, teacher):
        self.given = []
        self.own = teacher.weights
        teacher.weights = self

    def __call__(self, strategy):
        self.given.append(self.own(strategy))
        return self.given[-1]


def strategy(plugins, model=None, **arguments):
    model = tiny_classifier(trainable="both") if model is None else model
    optimizer = SGD(model.parameters(), lr=0.05)
    return FineTune(
        **{"model": model, "optimizer": optimizer, "plugins": plugins, "train_mb_size": 4},
        **{"evaluator": None, **arguments},
    )


@pytest.mark.parametrize("name", TEACHERS)
def test_weights_are_those_of_copies(name):
    teacher, copies = TEACHERS[name](), Copies()
    noting = Noting(teacher)
    run(strategy([copies, RegularizerPlugin(CrossModalDistillation(CurrentPairs(), teacher))]), BENCHMARK)
    assert len(noting.given) == len(copies.models) == 3
    first = parameters(copies.models[0])
    for given, last in zip(noting.given, copies.models, strict=True):
        last = parameters(last)
        share = {"last": 0.0, "initial": 1.0, "between": 0.2}[name]
        for own in first:
            expected = (1 - share) * last[own].double() + share * first[own].double()
            torch.testing.assert_close(given.tensors[own].double(), expected, atol=1e-6, rtol=1e-5)
    assert differing(first, parameters(copies.models[2]))


@pytest.mark.parametrize("name", TEACHERS)
def test_what_is_kept(name):
    teacher = TEACHERS[name]()
    regularizer = CrossModalDistillation(CurrentPairs(), teacher)
    trained = strategy([RegularizerPlugin(regularizer)])
    trained.train(BENCHMARK.train_stream[0])
    size = WeightSnapshot.of(trained.model).nbytes
    assert teacher.nbytes == regularizer.nbytes == trained.plugins[0].nbytes == (name != "last") * size


@pytest.mark.parametrize("name", TEACHERS)
def test_the_state_is_read_back(name):
    first, second = TEACHERS[name](), TEACHERS[name]()
    agent = Agent(tiny_classifier(trainable="image"))
    first.weights(agent)
    moved(agent.model)
    file = BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert not differing(first.weights(agent).tensors, second.weights(agent).tensors)


class Elsewhere(torch.Tensor):
    """Weights that were read to another device, and are of use only where they were asked to."""

    def to(self, device):
        return self.as_subclass(torch.Tensor).to(device)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function.__name__ == "lerp":
            raise RuntimeError("Expected all tensors to be on the same device")
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("kind", [InitialTeacher, InterpolatedTeacher])
def test_weights_that_were_read_to_another_device_come_to_that_of_the_model(kind):
    agent = Agent(tiny_classifier(trainable="image"))
    first, teacher = kind(), kind()
    first.weights(agent)
    state = {name: tensor.as_subclass(Elsewhere) for name, tensor in first.state_dict()["initial"].items()}
    teacher.load_state_dict({"initial": state})
    moved(agent.model)
    found = teacher.weights(agent).tensors
    assert not differing(first.weights(agent).tensors, found)
    assert {type(tensor) for tensor in found.values()} == {torch.Tensor}


def test_the_extremes_of_interpolation():
    agent = Agent(tiny_classifier(trainable="both"))
    teachers = [InterpolatedTeacher(0.0), LastTeacher(), InterpolatedTeacher(1.0), InitialTeacher()]
    for teacher in teachers:
        teacher.weights(agent)
    moved(agent.model)
    last, plain_last, initial, plain_initial = (teacher.weights(agent).tensors for teacher in teachers)
    assert not differing(last, plain_last)
    assert not differing(initial, plain_initial)
    assert differing(last, initial)
    with pytest.raises(ValueError, match="`initial_share`"):
        InterpolatedTeacher(1.2)


@pytest.mark.parametrize("trainable", ["both", LoRA(rank=2, dropout=0.3)])
@pytest.mark.parametrize("name", TEACHERS)
def test_asked_once_about_a_pool_or_at_each_step_it_says_the_same(name, trainable):
    ends = []
    for kind in (SyntheticPairs, Untold):
        pairs = kind(TinyImageSource(), NamePrompts(NAMES), count=9, batch_size=4)
        regularizer = CrossModalDistillation(pairs, TEACHERS[name]())
        model = in_double(moved(tiny_classifier(trainable=trainable)))
        ends.append(run(strategy([RegularizerPlugin(regularizer)], model), BENCHMARK))
        assert pairs.images.drawn
    for own in ends[0]:
        torch.testing.assert_close(ends[0][own], ends[1][own], atol=1e-9, rtol=0)


class Untold(SyntheticPairs):
    """The same pairs, which do not tell that they stay the same: the teacher is asked at each step."""

    fixed_images = fixed_texts = None

    def batch(self, model, x, y):
        return super().batch(model, x, y)._replace(image_rows=None, text_rows=None)


def test_a_layer_of_another_shape_by_now_is_refused_with_what_to_do():
    model = tiny_classifier(LinearHead(ZeroShotHead()), trainable="both")
    agent, teacher = Agent(model), InitialTeacher()
    teacher.weights(agent)
    model.set_classes((*model.class_names, "bee"))
    with pytest.raises(ValueError, match="`model` must be.*shape.*set_classes before the first training"):
        teacher.weights(agent).applied(model).__enter__()


def test_an_interrupted_experience_is_begun_again():
    class Interrupting(SupervisedPlugin):
        armed = True

        def after_update(self, strategy, *args, **kwargs):
            if self.armed:
                self.armed = False
                raise KeyboardInterrupt

    copies, teacher = Copies(), LastTeacher()
    noting = Noting(teacher)
    pairs = SyntheticPairs(TinyImageSource(), NamePrompts(NAMES), count=9, batch_size=4)
    regularizer = CrossModalDistillation(pairs, teacher)
    trained = strategy([copies, RegularizerPlugin(regularizer), Interrupting()])
    with pytest.raises(KeyboardInterrupt):
        trained.train(BENCHMARK.train_stream[0])
    # One step was made, in the same iteration by the host's clock.
    trained.train(BENCHMARK.train_stream[0])
    trained.train(BENCHMARK.train_stream[1])
    for given, model in zip(noting.given, copies.models, strict=True):
        assert not differing(given.tensors, parameters(model))
    assert differing(parameters(copies.models[0]), parameters(copies.models[1]))
    assert not any(value.isnan().any() for value in snapshot(trained.model).values())
