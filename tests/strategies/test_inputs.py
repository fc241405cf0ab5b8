"""Embeddings, images, models and labels of other types than the usual work, or are named."""

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training import Naive
from avalanche.training.plugins import EWCPlugin, ReplayPlugin
from torch.optim import SGD
from torch.utils.data import Dataset

from avalanche_vlm.memory import ClassMeanSeeds, SeedBuffer
from avalanche_vlm.models import (
    CosineHead,
    DualPathHead,
    GaussianDiscriminantHead,
    LearnedContextHead,
    LoRA,
    ResidualAdapter,
    ZeroShotHead,
)
from avalanche_vlm.plugins import (
    FeatureReplayPlugin,
    GaussianDiscriminantPlugin,
    GenerativeLatentReplayPlugin,
    LabelSpaceCrossEntropy,
    MASPlugin,
    PrototypePlugin,
    SynapticIntelligencePlugin,
)
from avalanche_vlm.sources import DiagonalGaussian
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated function:DeprecationWarning")
TYPES = (torch.float64, torch.float16, torch.bfloat16)


class Samples(Dataset):
    """Any data set of the user, which gives x and y as they are."""

    def __init__(self, x, y, targets=None):
        self.x, self.y = x, y
        self.targets = [int(label) for label in y] if targets is None else targets

    def __getitem__(self, index):
        return self.x[index], self.y[index]

    def __len__(self):
        return len(self.x)


def samples(embedded, x=lambda x: x, y=lambda y: y):
    """Return two experiences of three classes each."""
    benchmark = tiny_benchmark(n_experiences=2, embedded=tiny_classifier() if embedded else None)
    made = []
    for stream in (benchmark.train_stream, benchmark.test_stream):
        parts = []
        for experience in stream:
            pairs = [(torch.as_tensor(each[0]), int(each[1])) for each in experience.dataset]
            labels = torch.tensor([label for _, label in pairs])
            data = Samples(x(torch.stack([each for each, _ in pairs])), y(labels), labels.tolist())
            parts.append(as_classification_dataset(data))
        made.append(parts)
    return benchmark_from_datasets(train=made[0], test=made[1])


MODELS = {
    "text LoRA": (lambda: (ZeroShotHead(), {"trainable": LoRA(rank=2, towers=("text",))}), ()),
    "prompts": (lambda: (LearnedContextHead(context_length=2), {}), ()),
    "cosine": (lambda: (CosineHead(ZeroShotHead()), {}), (lambda: ReplayPlugin(6), lambda: EWCPlugin(1.0))),
    "adapter": (lambda: (ZeroShotHead(), {"image_adapter": ResidualAdapter()}), ()),
    "importances": (
        lambda: (CosineHead(ZeroShotHead()), {}),
        (lambda: SynapticIntelligencePlugin(1.0), lambda: MASPlugin(1.0)),
    ),
    "generators": (
        lambda: (CosineHead(ZeroShotHead()), {}),
        (lambda: GenerativeLatentReplayPlugin(DiagonalGaussian(), samples_per_class=4),),
    ),
    "seeds": (
        lambda: (CosineHead(ZeroShotHead()), {}),
        (lambda: FeatureReplayPlugin(SeedBuffer(max_size=6, source=ClassMeanSeeds()), batch_size=4),),
    ),
    "discriminant": (
        lambda: (GaussianDiscriminantHead(ZeroShotHead()), {"trainable": LoRA(rank=2, towers=("text",))}),
        (GaussianDiscriminantPlugin,),
    ),
    "prototypes": (
        lambda: (
            DualPathHead(ZeroShotHead(), visual_space="embedding"),
            {"trainable": LoRA(rank=2, towers=("text",))},
        ),
        (PrototypePlugin,),
    ),
}


def trained(name, benchmark, kind=FineTune, of_model=torch.float32, late=False):
    make, plugins = MODELS[name]
    head, arguments = make()
    torch.manual_seed(0)
    model = tiny_classifier(head, **arguments)
    if not late:
        model.to(of_model)
    strategy = kind(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.01),
        criterion=LabelSpaceCrossEntropy("seen"),
        train_mb_size=4,
        plugins=[plugin() for plugin in plugins],
        evaluator=None,
    )
    if late:
        strategy.model.to(of_model)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    strategy.eval(benchmark.test_stream)
    return strategy


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", MODELS)
def test_embeddings_of_any_precision_are_taken(name, dtype):
    """The result is that of the same embeddings, rounded likewise, in the precision of the model."""
    own = trained(name, samples(True, lambda x: x.to(dtype)))
    same = trained(name, samples(True, lambda x: x.to(dtype).float()))
    for given, expected in zip(own.model.parameters(), same.model.parameters(), strict=True):
        assert torch.allclose(given, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "embedded", "late"), [(FineTune, False, False), (FineTune, True, True), (Naive, True, False)]
)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_double_precision_trains_alike(name, late, embedded, kind):
    data = samples(embedded)
    double = trained(name, data, kind, torch.float64, late)
    single = trained(name, data, kind)
    for given, expected in zip(double.model.parameters(), single.model.parameters(), strict=True):
        assert given.dtype == torch.float64
        assert torch.allclose(given, expected.double(), atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_half_precision_trains(name, dtype):
    if name == "importances" and dtype == torch.bfloat16:
        with pytest.raises(
            TypeError, match="`model` must be one whose weights NumPy knows.*precision='bf16'"
        ):
            trained(name, samples(True), of_model=dtype)
        return
    strategy = trained(name, samples(True), of_model=dtype)
    assert all(each.dtype == dtype and each.isfinite().all() for each in strategy.model.parameters())


@pytest.mark.parametrize("form", [lambda y: y[:, None], lambda y: y[:, None].numpy()])
def test_labels_in_lists_of_one_are_named(form):
    with pytest.raises(ValueError, match=r"`y` must be whole numbers.*got \(4, 1\).*int\(y\)"):
        trained("cosine", samples(True, y=form))
    with pytest.raises(ValueError, match=r"`targets` must be int64 class ids \(B,\); got \(4, 1\)"):
        trained("cosine", samples(True, y=form), Naive)


def test_labels_of_other_whole_numbers_are_taken():
    plain = trained("cosine", samples(True))
    strategy = trained("cosine", samples(True, y=lambda y: y.to(torch.uint8)))
    for given, expected in zip(strategy.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(given, expected)


@pytest.mark.parametrize(
    ("form", "error", "sentence"),
    [
        (lambda y: y.float(), TypeError, r"`y` must be whole numbers.*\(4,\) of torch.float32.*let y be"),
        (lambda y: torch.eye(6)[y], TypeError, r"`y` must be .*\(4, 6\) of torch.float32"),
        (lambda y: torch.eye(6)[y].long(), ValueError, r"`y` must be .*got \(4, 6\)"),
        (
            lambda y: [str(int(label)) for label in y],
            TypeError,
            "`y` must be whole numbers.*got (tuple|list)",
        ),
        (lambda y: [[int(label)] for label in y], TypeError, "`y` must be whole numbers.*got list"),
    ],
)
def test_labels_that_are_no_class_ids_are_named(form, error, sentence):
    with pytest.raises(error, match=sentence):
        trained("cosine", samples(True, y=form))


def test_autocast_and_double_precision():
    """Autocast takes embeddings of any precision, and no model in double precision."""
    head, arguments = MODELS["cosine"][0]()
    model = tiny_classifier(head, **arguments)
    settings = {"train_mb_size": 4, "precision": "bf16", "evaluator": None}
    strategy = FineTune(model=model, optimizer=SGD(model.parameters(), lr=0.01), **settings)
    for experience in samples(True, lambda x: x.double()).train_stream:
        strategy.train(experience)
    model.double()
    with pytest.raises(ValueError, match="`precision` must be 'fp32' for a model in double.*model.float"):
        FineTune(model=model, optimizer=SGD(model.parameters(), lr=0.01), **settings)
