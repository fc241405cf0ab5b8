"""What every generator takes from its base class."""

import copy
from typing import ClassVar

import pytest
import torch

from avalanche_vlm.sources import LatentGenerator


class Plain(LatentGenerator):
    """Keeps a mean and draws it; what it was called with can be read."""

    per_component: ClassVar = ("means",)

    def _fit(self, features, positions, counts):
        self.called = (features, positions, counts)
        sums = torch.zeros(len(counts), features.shape[1]).index_add_(0, positions, features)
        return {"means": sums / counts[:, None]}

    def _sample(self, components):
        return self.means[components].float()


class Counting(Plain):
    """Shares a total between all classes, and says nothing of how to join two."""

    shared: ClassVar = ("total",)

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.total = torch.zeros(())

    def _fit(self, features, positions, counts):
        self.total = self.total + len(features)
        return super()._fit(features, positions, counts)


def fitted(kind=Plain, **arguments):
    generator = kind(**arguments)
    generator.fit(torch.tensor([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]), torch.tensor([5, 5, 2]))
    return generator


def test_classes_become_components_in_ascending_order():
    generator = fitted()
    _, positions, counts = generator.called
    assert positions.tolist() == [1, 1, 0]
    assert counts.tolist() == [1, 2]
    assert generator.labels.tolist() == [2, 5]
    assert generator.classes == [2, 5]
    assert generator.means.tolist() == [[9.0, 9.0], [2.0, 3.0]]
    assert generator.embed_dim == 2
    assert generator.device == torch.device("cpu")


def test_draws_come_class_by_class_in_the_order_asked_for():
    drawn, labels = fitted().sample(iter([5, 2]), 2)
    assert labels.tolist() == [5, 5, 2, 2]
    assert drawn.tolist() == [[2.0, 3.0]] * 2 + [[9.0, 9.0]] * 2
    assert torch.equal(fitted().sample(torch.tensor([5, 2]), 2)[0], drawn)


def test_components_of_a_class_are_drawn_by_their_counts():
    generator = Plain(seed=3)
    # Three classes, whose components lie in disorder: 1 has 1 and 3 samples, 4 has 5, 0 has 2, 7 and 1.
    for value, (label, count) in enumerate([(1, 1), (0, 2), (4, 5), (0, 7), (1, 3), (0, 1)]):
        generator.fit(torch.full((count, 1), float(value)), torch.full((count,), label))
    draws = 20_000
    drawn, labels = generator.sample([4, 0, 1], draws)
    for label, shares in {4: {2: 1.0}, 0: {1: 0.2, 3: 0.7, 5: 0.1}, 1: {0: 0.25, 4: 0.75}}.items():
        values = drawn[labels == label, 0]
        for value, share in shares.items():
            # Five standard deviations of a share of 20,000 draws are at most 0.018.
            assert float((values == value).float().mean()) == pytest.approx(share, abs=0.018)
        assert set(values.tolist()) == set(shares)


def test_a_state_goes_on_in_the_dtype_of_who_takes_it():
    state = fitted(dtype="float16").state_dict()
    assert state["means"].dtype == torch.float16
    generator = Plain()
    generator.load_state_dict(state)
    assert generator.means.dtype == torch.float32
    generator.fit(torch.ones(1, 2), torch.tensor([7]))
    assert generator.classes == [2, 5, 7]


def test_a_state_is_not_changed_by_what_comes_later():
    generator = fitted(Counting)
    state = generator.state_dict()
    kept = copy.deepcopy(state)
    generator.fit(torch.ones(1, 2), torch.tensor([7]))
    generator.sample([2, 5], 3)
    assert all(torch.equal(torch.as_tensor(state[key]), torch.as_tensor(kept[key])) for key in kept)


def test_a_state_of_another_kind_of_device_starts_the_numbers_anew():
    generator = fitted(seed=4)
    state = {**generator.state_dict(), "generator": torch.zeros(16, dtype=torch.uint8)}  # as of a GPU
    other = Plain(seed=4)
    torch.rand(3, generator=other._generator)
    other.load_state_dict(state)
    assert torch.equal(other._generator.get_state(), generator._generator.get_state())


def test_moving_to_where_it_is_keeps_the_random_numbers():
    generator = fitted()
    before = generator._generator.get_state()
    assert generator.to("cpu") is generator
    assert torch.equal(generator._generator.get_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_moving_to_a_gpu_and_back():
    generator = fitted().to("cuda")
    assert generator.to("cuda").device == torch.device("cuda", 0)
    assert generator.sample([5], 2)[0].device.type == "cuda"
    generator.fit(torch.ones(1, 2), torch.tensor([7]))
    assert generator.to("cpu").sample([7], 1)[0].tolist() == [[1.0, 1.0]]


def test_bytes_are_those_of_the_tensors():
    assert Plain().nbytes == 0
    assert fitted().nbytes == 2 * (8 + 8 + 2 * 4)
    assert fitted(dtype="float16").nbytes == 2 * (8 + 8 + 2 * 2)
    assert fitted(Counting).nbytes == 2 * (8 + 8 + 2 * 4) + 4


def test_merged_equals_fitted_one_after_the_other():
    more = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]]), torch.tensor([7, 7, 5])
    expected = fitted()
    expected.fit(*more)
    for dtype in ("float32", "bfloat16"):
        first, second = fitted(), Plain(dtype=dtype, seed=8)
        second.fit(*more)
        first.merge(second)
        for name in ("labels", "counts", "means"):
            assert torch.equal(getattr(first, name), getattr(expected, name))
        assert second.classes == [5, 7]


def test_merging_with_one_that_is_not_fitted():
    generator = fitted()
    generator.merge(Plain())
    assert generator.classes == [2, 5]
    empty = Plain()
    empty.merge(generator)
    assert empty.embed_dim == 2
    assert empty.sample([2], 1)[0].tolist() == [[9.0, 9.0]]


def test_what_cannot_be_merged():
    generator = fitted()
    with pytest.raises(TypeError, match="`other`.*Plain"):
        generator.merge(Counting())
    with pytest.raises(ValueError, match="`other`.*itself"):
        generator.merge(generator)
    wide = Plain()
    wide.fit(torch.ones(1, 3), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"`other`.*means.*\(2,\).*\(3,\)"):
        generator.merge(wide)
    with pytest.raises(TypeError, match="`other`.*total"):
        fitted(Counting).merge(fitted(Counting))


def test_an_error_while_fitting_leaves_what_is_shared():
    generator = fitted(Counting, dtype="float16")
    with pytest.raises(ValueError, match="`features`.*means.*float16"):
        generator.fit(torch.full((1, 2), 1e5), torch.tensor([7]))
    assert generator.total == 3
    assert generator.classes == [2, 5]


@pytest.mark.parametrize(
    ("features", "labels", "error", "argument"),
    [
        ([[1.0]], torch.tensor([0]), TypeError, "features"),
        (torch.ones(1, 2, dtype=torch.int64), torch.tensor([0]), TypeError, "features"),
        (torch.ones(2), torch.tensor([0, 0]), ValueError, "features"),
        (torch.ones(0, 2), torch.zeros(0, dtype=torch.int64), ValueError, "features"),
        (torch.ones(3, 0), torch.tensor([0, 0, 0]), ValueError, "features"),
        (torch.full((1, 2), 1e300, dtype=torch.float64), torch.tensor([0]), ValueError, "features"),
        (torch.ones(1, 3), torch.tensor([0]), ValueError, "features"),
        (torch.ones(1, 2), [0], TypeError, "labels"),
        (torch.ones(1, 2), torch.tensor([0.0]), TypeError, "labels"),
        (torch.ones(1, 2), torch.tensor([True]), TypeError, "labels"),
        (torch.ones(1, 2), torch.tensor([0, 1]), ValueError, "labels"),
    ],
)
def test_fit_names_what_is_wrong(features, labels, error, argument):
    with pytest.raises(error, match=f"^`{argument}`"):
        fitted().fit(features, labels)


def test_fit_names_rows_and_classes_that_are_not_finite():
    features = torch.ones(4, 2)
    features[2, 1] = float("inf")
    with pytest.raises(ValueError, match=r"`features`.*rows \[2\].*classes \[8\]"):
        Plain().fit(features, torch.tensor([6, 7, 8, 9]))


@pytest.mark.parametrize(
    ("classes", "count", "error", "argument"),
    [
        ([2, 3], 1, ValueError, "classes"),
        ([], 1, ValueError, "classes"),
        ([1.5], 1, TypeError, "classes"),
        (["cat"], 1, TypeError, "classes"),
        ([2], 0, ValueError, "count"),
        ([2], 1.0, TypeError, "count"),
    ],
)
def test_sample_names_what_is_wrong(classes, count, error, argument):
    with pytest.raises(error, match=f"^`{argument}`"):
        fitted().sample(classes, count)


@pytest.mark.parametrize(
    ("labels", "error"),
    [([2], TypeError), (torch.tensor([2.0]), TypeError), (torch.tensor([[2]]), ValueError)],
)
def test_sample_for_names_what_is_wrong(labels, error):
    with pytest.raises(error, match="^`labels`"):
        fitted().sample_for(labels)
    with pytest.raises(ValueError, match=r"^`labels`.*2 of them.*class 3"):
        fitted().sample_for(torch.tensor([2, 3]))


def test_constructor_and_state_name_what_is_wrong():
    for dtype in ("int8", [1], torch.float16):
        with pytest.raises(ValueError, match="`dtype`.*float16"):
            Plain(dtype=dtype)
    with pytest.raises(ValueError, match="`seed`"):
        Plain(seed=-1)
    with pytest.raises(ValueError, match="`state`.*Plain.*total"):
        fitted().load_state_dict(fitted(Counting).state_dict())


def test_what_it_is_and_how_it_was_made_is_described_whatever_it_was_fitted_to():
    told = {"kind": "Plain", "dtype": "float16", "seed": 3}
    assert Plain(dtype="float16", seed=3).describe() == fitted(dtype="float16", seed=3).describe() == told
    assert "total" not in fitted(Counting).describe()
