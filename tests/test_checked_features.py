"""What is refused as features and labels, and as a number within bounds."""

import pytest
import torch

from avalanche_vlm._checked_features import check_features
from avalanche_vlm._checks import check_number

X, Y = torch.ones(3, 4), torch.tensor([0, 1, 1])


@pytest.mark.parametrize(
    ("features", "labels", "options", "error", "message"),
    [
        (X.long(), Y, {}, TypeError, "`x` must be a float tensor"),
        (X, Y > 0, {}, TypeError, "`labels` must be a tensor .* of whole numbers"),
        (X, Y + 0j, {}, TypeError, "`labels` must be a tensor .* of whole numbers"),
        (X[:, :3], Y, {}, ValueError, r"`x` must be of shape \(N, 4\), at least one; got \(3, 3\)"),
        (X[0], Y, {}, ValueError, r"`x` must be of shape \(N, 4\)"),
        (X[:0], Y[:0], {}, ValueError, "`x` must be .*, at least one"),
        (X, Y[:2], {}, ValueError, "`labels` must be one for each of the 3 x"),
        (X, Y + 1, {"class_count": 2}, ValueError, r"`labels` must be in 0\.\.1; got from 1 to 2"),
        (X, Y - 1, {"class_count": 2}, ValueError, r"`labels` must be in 0\.\.1; got from -1 to 0"),
        (X / 0, Y, {"at_least": 0}, ValueError, "`x` must be finite; got rows .* of classes"),
    ],
)
def test_what_is_wrong_with_features_is_named(features, labels, options, error, message):
    with pytest.raises(error, match=message):
        check_features(features, labels, 4, argument="x", **options)


def test_what_is_right_passes():
    check_features(X, Y, 0)
    check_features(X, Y.short(), 4, class_count=2)
    check_features(X[:0], Y[:0], 4, class_count=2, at_least=0)


def test_a_number_is_below_its_bound():
    check_number("share", 0.999, at_least=0, below=1)
    for value in (1, 1.5):
        with pytest.raises(ValueError, match="`share` must be a finite number .* and below 1; got 1"):
            check_number("share", value, at_least=0, below=1)
