import pickle

import numpy as np
import pytest
import torch

from avalanche_vlm.benchmarks import LabelledTensors, tensor_benchmark


def doubled(x):
    return 2 * x


def halved(x):
    return x / 2


@pytest.mark.parametrize(
    ("x", "shape", "dtype"),
    [
        (np.zeros((4, 3, 5, 6), dtype=np.uint8), (3, 5, 6), torch.uint8),
        (np.zeros((4, 5, 6, 3), dtype=np.uint8), (3, 5, 6), torch.uint8),
        (torch.zeros(4, 3, 5, 6, dtype=torch.uint8), (3, 5, 6), torch.uint8),
        (torch.zeros(4, 5, 6, 3), (3, 5, 6), torch.float32),
        (np.zeros((4, 3, 3, 3)), (3, 3, 3), torch.float32),
        (np.zeros((4, 8), dtype=np.float16), (8,), torch.float32),
        (np.zeros((4, 8), dtype=">f8"), (8,), torch.float32),
        (np.zeros((8, 8), dtype=np.float32)[::-2], (8,), torch.float32),
        (torch.zeros(4, 8, dtype=torch.bfloat16), (8,), torch.float32),
        (torch.zeros(4, 8, requires_grad=True), (8,), torch.float32),
        (np.broadcast_to(np.zeros(8, dtype=np.float32), (4, 8)), (8,), torch.float32),
    ],
)
def test_inputs_become_tensors(x, shape, dtype):
    data = LabelledTensors(x, [0, 1, 2, 3])
    assert data.x.shape == (4, *shape)
    assert data.x.dtype == dtype
    assert not data.x.requires_grad
    assert data[2][0].shape == shape
    assert isinstance(data[2][1], int)


def test_channels_last_are_turned():
    x = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    data = LabelledTensors(x, [0, 1])
    assert data.x.is_contiguous()
    assert all(int(data.x[n, c, h, w]) == x[n, h, w, c] for n, h, w, c in np.ndindex(x.shape))


@pytest.mark.parametrize(
    "y",
    [[1, 0], (1, 0), np.array([1, 0], dtype=np.uint16), np.array([1, 0], dtype=">i2"), torch.tensor([1, 0])],
)
def test_labels_become_numbers(y):
    data = LabelledTensors(np.eye(2), y)
    assert data.targets == [1, 0]
    assert data.y.dtype == torch.int64


def test_what_fits_is_not_copied():
    x, y = torch.randn(4, 3), torch.arange(4)
    data = LabelledTensors(x, y)
    assert data.x.data_ptr() == x.data_ptr()
    assert data.y.data_ptr() == y.data_ptr()


@pytest.mark.parametrize(
    ("x", "y", "error", "sentence"),
    [
        ([[0.0]], [0], TypeError, "`data x` must be a numpy array or a tensor"),
        (torch.zeros(2, 5, 5), [0, 1], ValueError, r"`data x`.*shape \(2, 5, 5\).*grey images three times"),
        (torch.zeros(2, 1, 5, 5), [0, 1], ValueError, "grey images three times"),
        (torch.zeros(2, 4, 5, 6), [0, 1], ValueError, "`data x` must be images"),
        (torch.zeros(2, 3, 5, 6, dtype=torch.int32), [0, 1], ValueError, "of torch.int32"),
        (np.zeros((2, 3, 5, 6), dtype=np.int64), [0, 1], ValueError, "of int64"),
        (np.zeros((2, 3, 5, 6), dtype=np.uint16), [0, 1], ValueError, "`data x` must be images"),
        (torch.zeros(2, 4, dtype=torch.uint8), [0, 1], ValueError, "Convert embeddings to floats"),
        (np.array([["a"]]), [0], ValueError, "an array of <U1"),
        (
            torch.zeros(0, 7),
            [],
            ValueError,
            r"at least one; got no samples: shape \(0, 7\) of torch.float32\.$",
        ),
        (np.zeros((0, 3, 5, 6), np.uint8), [], ValueError, r"got no samples: shape \(0, 3, 5, 6\)"),
        (torch.zeros(2, 0), [0, 1], ValueError, r"`data x`.*shape \(2, 0\) of torch.float32\.$"),
        (torch.zeros(2, 4), [0, 1, 2], ValueError, "x and y of one length; got 2 inputs and 3 labels"),
        (
            torch.tensor([[0.0], [float("nan")]]),
            [0, 1],
            ValueError,
            r"finite numbers; got NaN.*1 samples \(1\)",
        ),
        (
            torch.tensor([[float("inf")], [0.0]]),
            [0, 1],
            ValueError,
            r"finite numbers; got NaN.*1 samples \(0\)",
        ),
        (torch.zeros(2, 4), [0.0, 1.0], ValueError, "`data y` must be whole numbers.*float64"),
        (torch.zeros(2, 4), torch.tensor([0.0, 1.0]), ValueError, "`data y` must be whole numbers"),
        (torch.zeros(2, 4), torch.tensor([True, False]), ValueError, "`data y` must be whole numbers"),
        (torch.zeros(2, 4), torch.eye(2).long(), ValueError, r"`data y`.*\(2, 2\)"),
        (torch.zeros(2, 4), ["cat", "dog"], ValueError, "`data y` must be whole numbers"),
        (torch.zeros(2, 4), "ab", TypeError, "`data y` must be an array, a tensor or a list"),
    ],
)
def test_wrong_data_are_named(x, y, error, sentence):
    with pytest.raises(error, match=sentence):
        LabelledTensors(x, y)


def test_mistakes_are_told_apart_by_stream(embeddings, names):
    good = embeddings()
    with pytest.raises(ValueError, match=r"`test` must be x and y of one length"):
        tensor_benchmark(good, (good[0], good[1][:-1]), class_names=names, n_experiences=1)
    with pytest.raises(ValueError, match=r"`train x` must be images"):
        tensor_benchmark((good[1], good[1]), good, class_names=names, n_experiences=1)
    for wrong in (good[0], good[:1], None):
        with pytest.raises(TypeError, match=r"`test` must be a pair \(x, y\)"):
            tensor_benchmark(good, wrong, class_names=names, n_experiences=1)


def test_train_and_test_have_inputs_of_one_shape(embeddings, names):
    x, y = embeddings()
    build = lambda train, test, **arguments: tensor_benchmark(  # noqa: E731
        (train, y), (test, y), class_names=names, n_experiences=1, **arguments
    )
    sentence = r"`test` must be inputs of the shape \(7,\), as those of `train`; got .* shape \(6,\)"
    for arguments in ({}, {"train_transform": doubled, "eval_transform": doubled}):
        with pytest.raises(ValueError, match=sentence):
            build(x, x[:, :-1], **arguments)
    small, large = torch.zeros(len(y), 3, 4, 4), torch.zeros(len(y), 3, 5, 5)
    with pytest.raises(ValueError, match=r"`test` must be inputs of the shape \(7,\)"):
        build(x, small, eval_transform=torch.flatten)
    with pytest.raises(ValueError, match=r"shape \(3, 4, 4\).*got .*\(3, 5, 5\).*Resize images alike"):
        build(small, large)
    # One transform is enough to bring images of two sizes to one.
    benchmark = build(small, large, eval_transform=lambda image: image[:, :4, :4])
    assert benchmark.test_stream[0].dataset[0][0].shape == (3, 4, 4)


def test_names_and_labels_must_fit(embeddings, names):
    good, fewer = embeddings(), embeddings(4)
    with pytest.raises(ValueError, match=r"`class_names` must be a name for every label of `train`.*label 5"):
        tensor_benchmark(good, good, class_names=names[:5], n_experiences=1)
    with pytest.raises(
        ValueError, match=r"`class_names` must be a name for every label of `test`.*labels 4, 5"
    ):
        tensor_benchmark(fewer, good, class_names=names[:4], n_experiences=1)
    with pytest.raises(ValueError, match=r"`class_names` must be a name for every label.*label -1"):
        tensor_benchmark((good[0], good[1] - 1), good, class_names=names, n_experiences=1)
    # Neither the number of experiences nor an order is blamed for names that do not fit.
    for arguments in ({"n_experiences": 2}, {"n_experiences": 1, "class_order": range(6)}):
        with pytest.raises(ValueError, match=r"`class_names` must be a name for every label of `train`"):
            tensor_benchmark(good, good, class_names=names[:5], **arguments)
    for n_experiences in (1, 2):
        with pytest.raises(
            ValueError,
            match=r"`class_names` must be names of classes with samples; got 7 names, and in `train` and "
            r"`test` no sample of 6 \('pig'\).*Remove the names",
        ):
            tensor_benchmark(good, good, class_names=[*names, "pig"], n_experiences=n_experiences)
    tensor_benchmark(good, good, class_names=[*names, "pig"], n_experiences=2, class_order=range(6))
    with pytest.raises(ValueError, match=r"`train` must be .*every class; got none of 6 \('pig'\)"):
        tensor_benchmark(good, good, class_names=[*names, "pig"], n_experiences=1, class_order=[0, 6])
    with pytest.raises(ValueError, match=r"`test` must be .*every class; got none of 4 \('hen'\)"):
        tensor_benchmark(good, fewer, class_names=names, n_experiences=4)
    with pytest.raises(
        ValueError, match=r"`test` must be .*every class; got none of 4 \('hen'\), 5 \('owl'\)"
    ):
        tensor_benchmark(good, fewer, class_names=names, n_experiences=1)
    with pytest.raises(ValueError, match=r"names without duplicates"):
        tensor_benchmark(good, good, class_names=["cat"] * 6, n_experiences=1)
    tensor_benchmark(good, fewer, class_names=names, n_experiences=2, class_order=[3, 1])


def test_images_without_transforms_come_as_they_are(names):
    x = torch.arange(6 * 3 * 2 * 2, dtype=torch.uint8).reshape(6, 3, 2, 2)
    y = torch.arange(6)
    benchmark = tensor_benchmark((x, y), (x, y), class_names=names, n_experiences=6)
    for label, experience in enumerate(benchmark.train_stream):
        assert torch.equal(experience.dataset[0][0], x[label])


def test_transforms_belong_to_their_stream(embeddings, names):
    pair = embeddings()
    benchmark = tensor_benchmark(
        pair, pair, class_names=names, n_experiences=6, train_transform=doubled, eval_transform=halved
    )
    train, test = benchmark.train_stream[2].dataset, benchmark.test_stream[2].dataset
    assert float(train[0][0][2]) == 2
    assert float(test[0][0][2]) == 0.5
    assert float(train.eval()[0][0][2]) == 0.5
    copy = pickle.loads(pickle.dumps(train))
    assert torch.equal(copy[0][0], train[0][0])


def test_any_data_set_with_targets_will_do(embeddings, names):
    class Plain(torch.utils.data.TensorDataset):
        targets = embeddings()[1]

    data = Plain(*embeddings())
    benchmark = tensor_benchmark(data, data, class_names=names, n_experiences=3)
    assert [len(experience.dataset) for experience in benchmark.train_stream] == [8, 8, 8]
    assert isinstance(benchmark.train_stream[0].dataset[0][1], (int, torch.Tensor))
