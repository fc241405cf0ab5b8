"""Several draws of the train transform."""

import hashlib
import json
import random

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from torch.optim import SGD
from torchvision.transforms import Compose, RandomResizedCrop

from avalanche_vlm.benchmarks import tensor_benchmark
from avalanche_vlm.embedding import embed
from avalanche_vlm.embedding.seeding import seeded
from avalanche_vlm.models import CLIPClassifier, CosineHead, ZeroShotHead
from avalanche_vlm.models.preprocessing import ImageTransform
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import TINY_CLASSES

from .conftest import all_x, class_incremental, counting_backbone, pixels, transforms


def views(embedded):
    (node,) = {id(n): n for e in embedded.train_stream for n in e.dataset._flat_data._datasets}.values()
    return node._datasets[0].views


@pytest.fixture
def backbone():
    """A backbone whose train transform draws small crops."""
    backbone = counting_backbone()
    chain = backbone.train_transform.transform.transforms
    backbone.train_transform = ImageTransform(Compose([RandomResizedCrop(8, scale=(0.3, 0.6)), *chain[1:]]))
    return backbone


@pytest.fixture
def embedded(backbone, tmp_path):
    return embed(class_incremental(backbone, tmp_path), backbone, cache_dir=tmp_path, n_views=3)


def test_training_draws_a_view_and_evaluation_has_its_own(embedded):
    eval_view, *train_views = views(embedded)
    assert len(train_views) == 3
    experience = embedded.train_stream[0]
    row = experience.dataset._flat_data._indices[0]
    torch.manual_seed(0)
    drawn = torch.stack([experience.dataset[0][0] for _ in range(60)])
    counts = [int((drawn == view[row]).all(dim=1).sum()) for view in train_views]
    assert sum(counts) == 60
    assert min(counts) > 5
    assert torch.equal(experience.dataset.eval()[0][0], eval_view[row])
    assert torch.equal(experience.dataset.eval().train().eval()[0][0], eval_view[row])
    torch.manual_seed(0)
    assert torch.equal(torch.stack([experience.dataset[0][0] for _ in range(60)]), drawn)


def test_the_test_stream_has_the_eval_view_only(embedded, backbone, tmp_path):
    single = embed(class_incremental(backbone, tmp_path), backbone, cache_dir=tmp_path)
    for a, b in zip(embedded.test_stream, single.test_stream, strict=True):
        assert torch.equal(all_x(a), all_x(b))
    for a, b in zip(embedded.train_stream, single.train_stream, strict=True):
        assert torch.equal(torch.stack([a.dataset.eval()[i][0] for i in range(8)]), all_x(b))


def test_a_view_is_a_draw_of_the_train_transform(embedded, backbone):
    """Written from the definition: seeded by the SHA-256 of what the sample is, and the view."""
    eval_view, *train_views = views(embedded)
    backbone.eval()
    for number, view in enumerate(train_views, start=1):
        drawn = []
        for image in pixels(0)[0]:
            header = json.dumps(["torch.uint8", [3, 8, 8]]).encode()
            sample = hashlib.sha256(header + image.numpy().tobytes()).digest()
            seed = hashlib.sha256(sample + number.to_bytes(8, "little")).digest()[:8]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int.from_bytes(seed, "little") % 2**63)
                drawn.append(backbone.train_transform(image))
        with torch.no_grad():
            expected = backbone.encode_image(torch.stack(drawn))
        assert torch.allclose(view, expected, atol=1e-6)
        assert not torch.allclose(view, eval_view, atol=1e-2)


def test_views_depend_on_the_sample_alone(embedded, backbone, tmp_path):
    x, y = pixels(0)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    shuffled = tensor_benchmark(
        (x[order], y[order]), pixels(1), class_names=TINY_CLASSES, n_experiences=1, **transforms(backbone)
    )
    other = embed(shuffled, counting_backbone(), cache_dir=tmp_path / "new", n_views=2, batch_size=5)
    for known, found in zip(views(embedded), views(other), strict=False):
        assert torch.allclose(known[order], found, atol=1e-6)


def test_more_views_keep_the_first_ones(embedded, backbone, tmp_path):
    counting = counting_backbone()
    more = embed(class_incremental(backbone, tmp_path), counting, cache_dir=tmp_path, n_views=5)
    assert sum(counting.batches) == 2 * 24
    for known, found in zip(views(embedded), views(more), strict=False):
        assert torch.equal(known, found)


def test_a_changed_train_transform_is_a_miss_for_its_views(embedded, backbone, tmp_path):
    counting = counting_backbone()
    x = pixels(0), pixels(1)
    same = {"train_transform": backbone.eval_transform, "eval_transform": backbone.eval_transform}
    changed = tensor_benchmark(*x, class_names=TINY_CLASSES, n_experiences=1, **same)
    embed(changed, counting, cache_dir=tmp_path, n_views=3)
    assert sum(counting.batches) == 3 * 24


def test_a_strategy_trains_and_evaluates_on_it(embedded, backbone):
    backbone.eval()
    model = CLIPClassifier(backbone, CosineHead(ZeroShotHead()), class_names=TINY_CLASSES)
    before = model.head.weight.detach().clone()
    optimizer = SGD(model.parameters(), lr=0.1)
    strategy = FineTune(model=model, optimizer=optimizer, train_mb_size=4, evaluator=EvaluationPlugin)
    for experience in embedded.train_stream:
        strategy.train(experience)
    strategy.eval(embedded.test_stream)
    assert not torch.equal(model.head.weight, before)


def test_seeding_leaves_no_trace():
    def draws():
        return torch.rand(1).item(), random.random(), float(np.random.random())

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with seeded(5):
        first = draws()
    with pytest.raises(ZeroDivisionError), seeded(2**70 + 6):
        draws(), 1 / 0
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    with seeded(5):
        assert draws() == first
    with seeded(6):
        assert set(draws()).isdisjoint(first)
