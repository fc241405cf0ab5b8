"""Sums of regularizers: what is added, what is shared and what is left out."""

from collections import Counter

import pytest
import torch

from avalanche_vlm.regularizers import (
    CrossModalDistillation,
    CurrentPairs,
    FeatureDistillation,
    ImageTextAlignment,
    PreviousWeightsPenalty,
    ReferenceDistillation,
    ReferencePairs,
    Regularizer,
    SumRegularizer,
    SyntheticPairs,
)
from avalanche_vlm.sources import LearnedClassPrompts, NamePrompts
from avalanche_vlm.testing import tiny_classifier, tiny_images
from tests.reference.tiny_image_source import NAMES, Agent, TinyImageSource, moved

X, Y = tiny_images(per_class=2)


def synthetic(**arguments):
    return SyntheticPairs(TinyImageSource(), NamePrompts(NAMES), **{"count": 8, "batch_size": 4, **arguments})


class Reads(Regularizer):
    """Reads the logits."""

    def __call__(self, model, x, y, logits):
        return logits.sum()


def value(regularizer, steps=1):
    model = moved(tiny_classifier(trainable="both"))
    regularizer.pre_adapt(Agent(model), object())
    moved(model, 0.2)
    return [regularizer(model, X, Y, torch.ones(3)).item() for _ in range(steps)]


def test_terms_with_the_same_pairs_see_one_batch_encoded_once():
    pairs = synthetic()
    terms = [CrossModalDistillation(pairs), ImageTextAlignment(pairs), FeatureDistillation(pairs)]
    total, model, calls = (
        SumRegularizer(terms, [1.0, 0.25, 2.0]),
        tiny_classifier(trainable="both"),
        Counter(),
    )
    total.pre_adapt(Agent(model), object())
    moved(model, 0.2)
    for name in ("encode_image", "encode_text"):
        own = getattr(model.backbone, name)
        setattr(model.backbone, name, lambda x, o=own, n=name: calls.update([n]) or o(x))
    batch = pairs.batch
    pairs.batch = lambda *arguments: calls.update(["batch"]) or batch(*arguments)
    found = total(model, X, Y, torch.zeros(0))
    assert calls == {"encode_image": 1, "encode_text": 1, "batch": 1}
    # Each term alone, over pairs of its own that draw the same.
    alone = [kind(synthetic()) for kind in (CrossModalDistillation, ImageTextAlignment, FeatureDistillation)]
    values = []
    for term in alone:
        model = tiny_classifier(trainable="both")
        term.pre_adapt(Agent(model), object())
        values.append(term(moved(model, 0.2), X, Y, torch.zeros(0)).item())
    assert found.item() == pytest.approx(values[0] + 0.25 * values[1] + 2 * values[2], rel=1e-5)
    assert min(values) > 1e-3


def test_other_pairs_get_their_own_batch():
    first, second = synthetic(), synthetic(seed=1)
    total = SumRegularizer([CrossModalDistillation(first), ImageTextAlignment(second)])
    expected = value(CrossModalDistillation(synthetic()))[0] + value(ImageTextAlignment(synthetic(seed=1)))[0]
    assert value(total)[0] == pytest.approx(expected, rel=1e-5)
    same = SumRegularizer([CrossModalDistillation(synthetic()), ImageTextAlignment(synthetic())])
    assert abs(value(same)[0] - expected) > 1e-3


def test_a_sum_in_a_sum_is_its_terms():
    pairs, penalty = synthetic(), PreviousWeightsPenalty()
    distillation, alignment = CrossModalDistillation(pairs), ImageTextAlignment(pairs)
    inner = SumRegularizer([distillation, penalty], [2.0, 3.0])
    outer = SumRegularizer([SumRegularizer([inner], [5.0]), alignment], [0.5, 7.0])
    assert outer.terms == [distillation, penalty, alignment]
    assert outer.weights == [5.0, 7.5, 7.0]


def test_a_term_with_weight_zero_is_neither_prepared_nor_computed():
    pairs = SyntheticPairs(TinyImageSource(), NamePrompts(NAMES), count=4)
    unused = CrossModalDistillation(pairs)
    unused.compare = None
    total = SumRegularizer([unused, ImageTextAlignment(CurrentPairs())], [0.0, 1.0])
    assert value(total) == value(ImageTextAlignment(CurrentPairs()))
    assert not pairs.images.drawn
    nothing = SumRegularizer([unused, PreviousWeightsPenalty()], [0.0, 0.0])
    assert not nothing.is_active


def test_what_is_inactive_is_left_out():
    learned = SyntheticPairs(TinyImageSource(), LearnedClassPrompts(), count=4)
    total = SumRegularizer([CrossModalDistillation(learned), ImageTextAlignment(CurrentPairs())])
    assert value(total) == value(ImageTextAlignment(CurrentPairs()))
    alone = SumRegularizer([CrossModalDistillation(learned)])
    alone.pre_adapt(Agent(tiny_classifier(trainable="both")), object())
    assert not alone.is_active


def test_a_term_may_read_the_logits():
    assert value(SumRegularizer([Reads()], [2.0])) == [6.0]


def test_states_are_those_of_the_terms():
    def make(seed):
        images = torch.zeros(4, 3, 8, 8)
        reference = ReferencePairs(images, NAMES, batch_size=2, texts_per_batch=2, seed=seed)
        return SumRegularizer(
            [CrossModalDistillation(synthetic(seed=seed)), ReferenceDistillation(reference)]
        )

    first, second = make(0), make(1)
    value(first, steps=3)
    second.load_state_dict(first.state_dict())
    assert second.nbytes == first.nbytes
    assert value(first, steps=3) == value(second, steps=3)
    assert value(make(0)) != value(make(1))


def test_wrong_terms_are_named():
    penalty = PreviousWeightsPenalty()
    for terms, weights, error, message in (
        (penalty, None, TypeError, "`terms` must be a list"),
        ([3], None, TypeError, "`terms` must be Regularizer"),
        ([], None, ValueError, "`terms` must be at least one"),
        ([penalty, penalty], None, ValueError, "`terms` must be different.*Add up"),
        ([penalty, SumRegularizer([penalty])], None, ValueError, "`terms` must be different"),
        ([penalty], [1.0, 2.0], ValueError, "`weights` must be a list of 1"),
        ([penalty], [-1.0], ValueError, "`weights` must be a finite number"),
    ):
        with pytest.raises(error, match=message):
            SumRegularizer(terms, weights)
