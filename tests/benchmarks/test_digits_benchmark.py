import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from avalanche_vlm.benchmarks import class_names, digits_benchmark


def test_all_digits_come_once_with_their_own_labels():
    benchmark = digits_benchmark(n_experiences=5, seed=2)
    assert class_names(benchmark)[7] == "digit seven"
    pixels, labels = load_digits(return_X_y=True)
    wanted = {
        (row.round().astype(int).tobytes(), int(label)) for row, label in zip(pixels, labels, strict=True)
    }
    came = []
    for stream in (benchmark.train_stream, benchmark.test_stream):
        for experience in stream:
            for x, y, _ in experience.dataset:
                assert x.dtype == torch.uint8
                assert torch.equal(x[0], x[1])
                assert torch.equal(x[0], x[2])
                came.append((np.rint(x[0].numpy() * (16 / 255)).astype(int).ravel().tobytes(), y))
    assert len(came) == len(labels) == 1797
    assert set(came) == wanted
    assert max(int(x.max()) for x, _, _ in benchmark.test_stream[0].dataset) == 255


def test_the_split_keeps_shares_and_follows_its_seed():
    def targets(**arguments):
        return [list(experience.dataset.targets) for experience in digits_benchmark(**arguments).test_stream]

    def images(**arguments):
        return torch.stack(
            [x for x, _, _ in digits_benchmark(n_experiences=1, **arguments).test_stream[0].dataset]
        )

    per_class = [len(part) for part in targets(n_experiences=10)]
    assert min(per_class) >= 34
    assert max(per_class) <= 37
    assert torch.equal(images(), images())
    assert not torch.equal(images(), images(split_seed=1))
    assert len(images(test_fraction=0.5)) > 890
    with pytest.raises(ValueError, match=r"`test_fraction`"):
        digits_benchmark(n_experiences=1, test_fraction=1.0)
