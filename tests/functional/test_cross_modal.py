"""The losses between images and texts against loops in float64, written from the equations."""

import math

import pytest
import torch

from avalanche_vlm.functional import (
    contrastive_distillation,
    cosine_logits,
    feature_distance,
    image_text_alignment,
    shared_targets,
    soft_label_divergence,
)


def numbers(*shape, seed=0):
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(values):
    highest = max(values)
    exponentials = [math.exp(value - highest) for value in values]
    return [each / sum(exponentials) for each in exponentials]


def divergence(student, teacher, temperature):
    """τ² / B Σ_i KL(teacher_i ‖ student_i), by lists of rows."""
    total = 0.0
    for row, taught in zip(student, teacher, strict=True):
        p = softmax([value / temperature for value in row])
        q = softmax([value / temperature for value in taught])
        total += sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (1, 2), (1, 1)])
def test_divergences_are_those_of_the_equation(shape, temperature):
    student, teacher = numbers(*shape), numbers(*shape, seed=1)
    rows = divergence(student.tolist(), teacher.tolist(), temperature)
    columns = divergence(student.T.tolist(), teacher.T.tolist(), temperature)
    found = soft_label_divergence(student, teacher, temperature=temperature)
    assert float(found) == pytest.approx(rows, rel=1e-10, abs=1e-12)
    found = soft_label_divergence(student.T, teacher.T, temperature=temperature)
    assert float(found) == pytest.approx(columns, rel=1e-10, abs=1e-12)
    found = contrastive_distillation(student, teacher, temperature=temperature)
    assert float(found) == pytest.approx(rows + columns, rel=1e-10, abs=1e-12)


def test_the_gradient_is_that_of_the_cross_entropy_with_soft_labels():
    student, teacher = numbers(4, 6).requires_grad_(), numbers(4, 6, seed=1)
    (found,) = torch.autograd.grad(soft_label_divergence(student, teacher, temperature=2.0), student)
    entropy = -(softmax_rows(teacher / 2) * torch.log_softmax(student / 2, dim=1)).sum() * 4 / 4
    (expected,) = torch.autograd.grad(entropy, student)
    torch.testing.assert_close(found, expected)


def softmax_rows(logits):
    return torch.tensor([softmax(row) for row in logits.tolist()], dtype=torch.float64)


def test_the_teacher_gets_no_gradient_and_agreement_is_the_lowest_point():
    teacher = numbers(5, 5).requires_grad_()
    student = teacher.detach().clone().requires_grad_()
    loss = contrastive_distillation(student, teacher)
    loss.backward()
    assert teacher.grad is None
    assert loss.item() == pytest.approx(0, abs=1e-14)
    assert float(student.grad.abs().max()) < 1e-15


def test_the_direction_of_the_divergence():
    """KL(teacher ‖ student): a class that the student misses costs more than one that it adds."""
    sure, unsure = torch.tensor([[8.0, -8.0]]), torch.tensor([[0.0, 0.0]])
    missed = soft_label_divergence(sure, unsure, temperature=1.0)
    added = soft_label_divergence(unsure, sure, temperature=1.0)
    assert missed > 5 > 1 > added


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("captions", [[0, 1, 2, 3], [4, 4, 7, 4], [5, 5, 5, 5], [3]])
def test_alignment_is_that_of_the_equation(captions, smoothing):
    size = len(captions)
    logits, ids = numbers(size, size), torch.tensor(captions)
    targets = [
        [
            (1 - smoothing) * (a == b) / sum(a == other for other in captions) + smoothing / size
            for b in captions
        ]
        for a in captions
    ]
    expected = 0.0
    for rows in (logits.tolist(), logits.T.tolist()):
        for row, target in zip(rows, targets, strict=True):
            logs = [math.log(p) for p in softmax(row)]
            expected -= sum(t * log for t, log in zip(target, logs, strict=True)) / size
    found = image_text_alignment(logits, ids, label_smoothing=smoothing)
    assert float(found) == pytest.approx(expected, rel=1e-6)  # the targets are made in fp32
    shared = shared_targets(ids, label_smoothing=smoothing)
    torch.testing.assert_close(shared, torch.tensor(targets, dtype=torch.float32))
    torch.testing.assert_close(shared.sum(dim=1), torch.ones(size))


def test_alignment_pays_for_a_caption_only_where_it_differs():
    logits = torch.tensor([[9.0, 9.0, 0.0], [9.0, 9.0, 0.0], [0.0, 0.0, 18.0]])
    same, other = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2])
    # Two rows and two columns of a half each: 4 log 2 / 3.
    assert float(image_text_alignment(logits, same)) == pytest.approx(4 * math.log(2) / 3, abs=1e-3)
    assert image_text_alignment(logits, same) == pytest.approx(float(image_text_alignment(logits, other)))
    logits = torch.tensor([[18.0, 0.0, 0.0], [0.0, 18.0, 0.0], [0.0, 0.0, 18.0]])
    assert image_text_alignment(logits, other) < 1e-6 < 5 < image_text_alignment(logits, same)


def test_feature_distance_is_that_of_the_equation():
    student, teacher = numbers(3, 4).requires_grad_(), numbers(3, 4, seed=1)
    expected = 0.0
    for f, g in zip(student.tolist(), teacher.tolist(), strict=True):
        lengths = math.sqrt(sum(v * v for v in f)), math.sqrt(sum(v * v for v in g))
        expected += sum((a / lengths[0] - b / lengths[1]) ** 2 for a, b in zip(f, g, strict=True)) / 3
    assert feature_distance(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    loss = feature_distance(student, student.detach() * 4)
    loss.backward()
    assert loss.item() == 0
    assert float(student.grad.abs().max()) == 0


def test_logits_are_scaled_cosines_also_under_autocast():
    images, texts = torch.randn(4, 16), torch.randn(5, 16)
    expected = [
        [
            50 * sum(a * b for a, b in zip(f, g, strict=True)) / (norm(f) * norm(g)) - 3
            for g in texts.double().tolist()
        ]
        for f in images.double().tolist()
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cosine_logits(images, texts, torch.tensor(50.0), -3.0)
        halved = cosine_logits(images.bfloat16(), texts.bfloat16(), 50.0)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=1e-5)
    assert halved.dtype == torch.float32
    assert cosine_logits(images.double(), texts.double(), 50.0).dtype == torch.float64


def norm(values):
    return math.sqrt(sum(value * value for value in values))


def test_wrong_arguments_are_named():
    square = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="`teacher` must be logits"):
        soft_label_divergence(square, torch.zeros(2, 3))
    for temperature in (0, -1, math.inf):
        with pytest.raises(ValueError, match="`temperature`"):
            contrastive_distillation(square, square, temperature=temperature)
    with pytest.raises(ValueError, match="`logits` must be .*a pair; got .*3 captions"):
        image_text_alignment(square, torch.zeros(3))
    with pytest.raises(ValueError, match="`label_smoothing`"):
        image_text_alignment(square, torch.zeros(2), label_smoothing=1.5)
