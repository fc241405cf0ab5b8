"""A small benchmark of real images that needs no download."""

from __future__ import annotations

import numpy as np
from avalanche.benchmarks.scenarios.deprecated.new_classes import NCScenario
from typing_extensions import Unpack

from avalanche_vlm.benchmarks.class_incremental import ClassIncrementalArguments, class_incremental
from avalanche_vlm.benchmarks.labelled_tensors import LabelledTensors
from avalanche_vlm.benchmarks.stratified_split import stratified_split
from avalanche_vlm.world import DIGIT_WORDS

DIGIT_NAMES = tuple(f"digit {word}" for word in DIGIT_WORDS)


def digits_benchmark(
    *, test_fraction: float = 0.2, split_seed: int = 0, **stream: Unpack[ClassIncrementalArguments]
) -> NCScenario:
    """Return a class-incremental benchmark of 1,797 handwritten digits, 8×8 pixels, from scikit-learn.

    Images come as uint8 tensors (3, 8, 8) with values from 0 to 255. The classes are named
    "digit zero" to "digit nine", so that "a photo of a {}." reads as a sentence.

    Args:
        test_fraction: share of each class that is kept for testing.
        split_seed: seed of that split.
        **stream: how the classes are dealt out: see `ClassIncrementalArguments`.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument is out of its range, or classes cannot be dealt out as asked.

    References:
        E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository, 1998 (CC BY 4.0).

    >>> benchmark = digits_benchmark(n_experiences=5)
    >>> x, y, task = benchmark.train_stream[0].dataset[0]
    >>> tuple(x.shape), x.dtype
    ((3, 8, 8), torch.uint8)
    """
    x, y = digits()
    train, test = stratified_split(
        y.tolist(), test_fraction=test_fraction, split_seed=split_seed, class_labels=DIGIT_NAMES
    )
    return class_incremental(
        LabelledTensors(x[train], y[train]), LabelledTensors(x[test], y[test]), DIGIT_NAMES, **stream
    )


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return all images, uint8 (N, 3, 8, 8), and their labels (N,)."""
    # Not at the top: scikit-learn takes long to import, and no other benchmark needs it.
    from sklearn.datasets import load_digits  # pyright: ignore[reportUnknownVariableType]

    pixels, labels = load_digits(return_X_y=True)
    grey = np.rint(np.asarray(pixels) * (255 / 16)).astype(np.uint8)
    return np.repeat(grey.reshape(-1, 1, 8, 8), 3, axis=1), np.asarray(labels)
