"""The orthogonality of prompts, against loops in float64."""

import pytest
import torch

from avalanche_vlm.models import (
    GeneratedContext,
    HybridPromptHead,
    ImageConditionedPromptHead,
    LatestLearnedVectors,
    LearnedVectors,
)
from avalanche_vlm.plugins import RegularizerPlugin
from avalanche_vlm.regularizers import PromptOrthogonality
from avalanche_vlm.sources import DiagonalGaussian
from avalanche_vlm.strategies import CGIL
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier
from tests.reference.tiny_image_source import Agent


def loop(rows):
    """Return the mean of (V Vᵀ - I)² and its gradient 4 (V Vᵀ - I) V / K², number by number."""
    rows = [[float(value) for value in row] for row in rows]
    count = len(rows)
    gram = [
        [sum(a * b for a, b in zip(u, v, strict=True)) - (i == j) for j, v in enumerate(rows)]
        for i, u in enumerate(rows)
    ]
    value = sum(entry**2 for line in gram for entry in line) / count**2
    width = len(rows[0])
    gradient = [
        [4 * sum(gram[i][j] * rows[j][d] for j in range(count)) / count**2 for d in range(width)]
        for i in range(count)
    ]
    return value, torch.tensor(gradient, dtype=torch.float64)


@pytest.mark.parametrize(
    ("parts", "rows_of"),
    [
        (lambda: [LearnedVectors(), GeneratedContext()], lambda v: v[[0, 1, 4]].flatten(0, 1)),
        (lambda: [LatestLearnedVectors(2)], lambda v: v[[0, 1, 4]].flatten(0, 1)),
        (lambda: [LearnedVectors(3, sharing="shared")], lambda v: v.flatten(0, 1)),
    ],
)
@pytest.mark.parametrize("kind", [HybridPromptHead, ImageConditionedPromptHead])
def test_value_and_gradient_are_those_of_the_equation(kind, parts, rows_of):
    model = tiny_classifier(kind(context=parts()))
    model.classes_seen[[0, 1, 4]] = True
    model.head.adapt(model.classes_seen)
    vectors = model.head.context[0].vectors
    with torch.no_grad():
        vectors.copy_(torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0)) / 3)
    term = PromptOrthogonality()
    term.pre_adapt(Agent(model), object())
    found = term(model, torch.zeros(0), torch.zeros(0), torch.zeros(0))
    (gradient,) = torch.autograd.grad(found, [vectors])
    value, expected = loop(rows_of(vectors.detach()))
    assert found.item() == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(rows_of(gradient).double(), expected, rtol=1e-4, atol=1e-7)
    untouched = gradient.clone()
    if len(gradient) > 1:
        untouched[[0, 1, 4]] = 0
        assert not untouched.any()


def test_beside_cgil_it_draws_vectors_apart():
    def spread(weight):
        model = tiny_classifier(HybridPromptHead())
        strategy = CGIL(
            model=model,
            optimizer=torch.optim.AdamW(model.parameters(), lr=0.003, weight_decay=0.0),
            generator=DiagonalGaussian(),
            samples_per_class=4,
            train_epochs=3,
            plugins=[RegularizerPlugin(PromptOrthogonality(), weight)],
            evaluator=None,
        )
        for experience in tiny_benchmark().train_stream:
            strategy.train(experience)
        rows = model.head.context[0].vectors.detach().flatten(0, 1)
        return float((rows @ rows.T - torch.eye(len(rows))).square().mean())

    assert spread(5.0) < spread(0.0)


def test_a_head_without_learned_vectors_is_refused():
    for head in (None, HybridPromptHead(context=[GeneratedContext()])):
        with pytest.raises(ValueError, match="with learned prompt vectors.*HybridPromptHead"):
            PromptOrthogonality().pre_adapt(Agent(tiny_classifier(head)), object())
