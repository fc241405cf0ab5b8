"""One run of each strategy on real data, from the file to the numbers."""

import zipfile

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from PIL import Image
from torch.optim import AdamW

from avalanche_vlm.benchmarks import class_names, domain_folder_benchmark, folder_benchmark, tensor_benchmark
from avalanche_vlm.functional import last_accuracy
from avalanche_vlm.metrics import AccuracyMatrixMetric
from avalanche_vlm.models import (
    CLIPClassifier,
    CosineHead,
    EmbeddingBackbone,
    OpenCLIPBackbone,
    TextFeatureHead,
)
from avalanche_vlm.strategies import FineTune, ZeroShot


@pytest.fixture(scope="module")
def features(real_data):
    """Return, for a set, (train, test, text features) of the classes that have text."""

    def load(name, train_parts=("train",)):
        with np.load(real_data / "clip_vitb32_features.npz", allow_pickle=False) as data:
            text = torch.from_numpy(data[f"{name}/text"]).float()
            kept = text.ne(0).any(dim=1)
            new_id = kept.cumsum(0) - 1

            def part(names):
                x = torch.cat([torch.from_numpy(data[f"{name}/{p}_x"]).float() for p in names])
                y = torch.cat([torch.from_numpy(data[f"{name}/{p}_y"]).long() for p in names])
                return x[kept[y]], new_id[y[kept[y]]]

            return part(train_parts), part(("test",)), text[kept]

    return load


def measure(strategy, metric, benchmark):
    """Return the pooled accuracy over the whole test stream in the last row, in percent."""
    for experience in benchmark.train_stream:
        strategy.train(experience, reset_optimizer_state=True)
    strategy.eval(benchmark.test_stream)
    return 100 * float(last_accuracy(metric.matrix(), metric.counts()))


@pytest.mark.parametrize(
    ("name", "published"), [("imagenet", 61.1), ("caltech101", 92.4), ("oxford_pets", 89.1)]
)
def test_zero_shot_on_real_features(features, name, published):
    train, test, text = features(name)
    names = [f"class {index}" for index in range(len(text))]
    benchmark = tensor_benchmark(train, test, class_names=names, n_experiences=5)
    model = CLIPClassifier(EmbeddingBackbone(512), TextFeatureHead(text), class_names=class_names(benchmark))
    metric = AccuracyMatrixMetric("all")
    strategy = ZeroShot(model=model, train_mb_size=512, evaluator=EvaluationPlugin(metric))
    assert measure(strategy, metric, benchmark) == pytest.approx(published, abs=0.3)


def test_naive_fine_tuning_on_real_features_forgets(features):
    train, test, text = features("oxford_pets")
    names = [f"class {index}" for index in range(len(text))]
    benchmark = tensor_benchmark(train, test, class_names=names, n_experiences=5)
    head = CosineHead(TextFeatureHead(text))
    model = CLIPClassifier(EmbeddingBackbone(512), head, class_names=class_names(benchmark))
    metric = AccuracyMatrixMetric("seen")
    strategy = FineTune(
        model=model,
        optimizer=AdamW(model.parameters(), lr=1e-3, weight_decay=0.0),
        train_mb_size=32,
        eval_mb_size=512,
        train_epochs=10,
        evaluator=EvaluationPlugin(metric),
    )
    assert measure(strategy, metric, benchmark) < 60  # zero-shot has 89
    last_experience = metric.matrix()[-1, -1]
    assert last_experience > 0.9


@pytest.fixture
def pictures(real_data, tmp_path):
    """Unpack some pictures of each class folder whose name passes."""

    def unpack(archive, wanted, per_class):
        counts = {}
        with zipfile.ZipFile(real_data / archive) as file:
            for name in file.namelist():
                folder = name.rsplit("/", 1)[0]
                counts[folder] = counts.get(folder, 0) + 1
                if wanted(folder) and counts[folder] <= per_class:
                    file.extract(name, tmp_path)
        return tmp_path

    return unpack


@pytest.mark.parametrize("archive", ["caltech101_128px.zip", "cifar10_25k.zip", "pacs_128px.zip"])
def test_photographs_through_the_image_path(pictures, archive):
    model = CLIPClassifier(OpenCLIPBackbone("small-clip", pretrained="small-world"), trainable="image")
    transforms = {"train_transform": model.train_transform, "eval_transform": model.eval_transform}
    if archive.startswith("pacs"):
        folder = pictures(archive, lambda name: "photo" in name or "sketch" in name, 4)
        benchmark = domain_folder_benchmark(folder, test_fraction=0.5, **transforms)
    else:
        classes = ("000_", "001_", "002_", "003_", "airplane", "truck", "cat", "dog")
        folder = pictures(archive, lambda name: name.split("/")[1].startswith(classes), 4)
        benchmark = folder_benchmark(folder / "train", folder / "test", n_experiences=2, **transforms)
    model.set_classes(class_names(benchmark))
    metric = AccuracyMatrixMetric("all")
    strategy = FineTune(
        model=model,
        optimizer=AdamW(model.parameters(), lr=1e-3),
        train_mb_size=8,
        evaluator=EvaluationPlugin(metric),
    )
    strategy.eval(benchmark.test_stream)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    assert metric.matrix().shape == (3, 2)
    assert metric.matrix().isfinite().all()
    with Image.open(next(folder.rglob("*.jpg"))) as picture:
        assert model.predict(picture).names[0][0] in model.class_names
