"""Weights of another moment: shared, applied for a while, and gone."""

import gc
import weakref
from copy import deepcopy

import pytest
import torch
from torch import nn

from avalanche_vlm.models import CLIPClassifier, LearnedContextHead, LoRA, OpenCLIPBackbone, WeightSnapshot
from avalanche_vlm.models.small_clip import SmallTokenizer
from avalanche_vlm.testing import check_modes, tiny_classifier, tiny_images
from avalanche_vlm.testing.running import differing, snapshot


class Strategy:
    """All that a snapshot asks of a strategy."""

    def __init__(self, model):
        self.model = model


def moved(model, amount=0.1):
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter += amount * torch.randn(parameter.shape, generator=generator)
    return model


def with_batch_norm(**arguments):
    tokenizer = SmallTokenizer()
    configuration = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": {
            **{"context_length": 77, "vocab_size": tokenizer.vocab_size},
            **{"width": 16, "heads": 2, "layers": 1},
        },
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = OpenCLIPBackbone(configuration, tokenizer=tokenizer)
    return CLIPClassifier(backbone, class_names=["cat", "dog"], **arguments)


MODELS = {
    "both towers": lambda: tiny_classifier(trainable="both"),
    "image tower and scale": lambda: tiny_classifier(trainable="image", train_logit_scale=True),
    "LoRA": lambda: tiny_classifier(trainable=LoRA(rank=2, dropout=0.5)),
    "prompts": lambda: tiny_classifier(LearnedContextHead(context_length=2)),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_trains_is_copied_and_nothing_else(name):
    model = MODELS[name]()
    taken = WeightSnapshot.of(model)
    assert set(taken.tensors) == {own for own, _ in model.named_parameters()}
    assert taken.nbytes == sum(p.numel() * p.element_size() for p in model.parameters())
    before = {own: p.detach().clone() for own, p in model.named_parameters()}
    moved(model)
    assert not differing(before, taken.tensors)
    assert len(differing(dict(model.named_parameters()), taken.tensors)) == len(before)


@pytest.mark.parametrize("name", MODELS)
def test_applied_it_speaks_as_the_model_did(name):
    model, (images, _) = MODELS[name](), tiny_images()
    moved(model)
    twin = deepcopy(model).eval()
    taken = WeightSnapshot.of(model)
    moved(model).train()
    held = snapshot(model)
    with taken.applied(model) as before, torch.no_grad():
        assert torch.equal(before(images), twin(images))
        assert not any(module.training for module in model.modules())
    assert not differing(held, snapshot(model))
    with torch.no_grad():
        assert not torch.equal(model.eval()(images), twin(images))


def test_everything_is_put_back_also_after_an_exception():
    model, (images, _) = tiny_classifier(trainable=LoRA(rank=2, dropout=0.5)), tiny_images()
    taken = WeightSnapshot.of(moved(model))
    moved(model).train()
    held, modes = snapshot(model), [module.training for module in model.modules()]
    storages = [p.data_ptr() for p in model.parameters()]

    def fail():
        with taken.applied(model):
            assert not torch.is_grad_enabled()
            assert model(images).grad_fn is None
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert torch.is_grad_enabled()
    assert not differing(held, snapshot(model))
    assert [p.data_ptr() for p in model.parameters()] == storages
    assert [module.training for module in model.modules()] == modes

    def use():
        with taken.applied(model):
            model.encode(images)

    check_modes(use, [model])


def test_a_graph_made_before_still_has_the_live_weights():
    """A teacher speaks between the forward and the backward pass of its student."""
    grads = []
    for between in (False, True):
        model, (images, labels) = tiny_classifier(trainable="both"), tiny_images()
        taken = WeightSnapshot.of(model)
        loss = nn.functional.cross_entropy(moved(model)(images), labels)
        if between:
            with taken.applied(model):
                model(images)
        grads.append(torch.autograd.grad(loss, list(model.parameters())))
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


def test_under_autocast_student_and_teacher_have_their_own_weights():
    """Autocast keeps a copy of each weight by its tensor, so that values that change behind it are missed."""
    model, (images, _) = tiny_classifier(trainable="both"), tiny_images()
    taken = WeightSnapshot.of(model)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        first = model.encode(images)
    moved(model)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        second = model.encode(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        student = model.encode(images)
        with taken.applied(model):
            teacher = model.encode(images)
        again = model.encode(images)
    assert torch.equal(teacher, first)
    assert torch.equal(student, second)
    assert torch.equal(again, second)
    for encoded in (student, again):
        gradients = torch.autograd.grad(
            encoded.float().sum(), list(model.backbone.image_tower.parameters()), allow_unused=True
        )
        assert all(gradient is not None for gradient in gradients)


def test_all_who_ask_at_one_moment_get_one_copy_and_later_another():
    strategy = Strategy(tiny_classifier(trainable="both"))
    first, second = WeightSnapshot.shared(strategy), WeightSnapshot.shared(strategy)
    assert first is second
    moved(strategy.model)
    third = WeightSnapshot.shared(strategy)
    assert third is not first
    assert third is WeightSnapshot.shared(strategy)
    assert not differing(dict(strategy.model.named_parameters()), third.tensors)
    other = Strategy(strategy.model)
    assert WeightSnapshot.shared(other) is not third


def test_it_lives_as_long_as_somebody_holds_it():
    strategy = Strategy(tiny_classifier(trainable="both"))
    taken = WeightSnapshot.shared(strategy)
    tensor = weakref.ref(next(iter(taken.tensors.values())))
    gone = weakref.ref(strategy)
    del taken
    gc.collect()
    assert tensor() is None
    assert WeightSnapshot.shared(strategy).tensors
    del strategy
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_mixed_weights_lie_on_the_line_between(share):
    model = tiny_classifier(trainable="image")
    first = WeightSnapshot.of(model)
    second = WeightSnapshot.of(moved(model))
    mixed = second.mixed(first, share)
    for name, tensor in mixed.tensors.items():
        expected = (1 - share) * second.tensors[name].double() + share * first.tensors[name].double()
        torch.testing.assert_close(tensor.double(), expected, atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="`share`"):
        second.mixed(first, 1.5)


def test_running_statistics_belong_to_a_tower_that_trains():
    model, images = with_batch_norm(trainable="image"), torch.randn(4, 3, 32, 32)
    assert any("running_mean" in name for name in WeightSnapshot.of(model).tensors)
    assert any("running_mean" in name for name in WeightSnapshot.of(model.eval()).tensors)
    frozen = WeightSnapshot.of(with_batch_norm(trainable="text"))
    assert not any("running_mean" in name for name in frozen.tensors)
    model.train()
    taken, twin = WeightSnapshot.of(model), deepcopy(model).eval()
    model.encode(images)  # moves the statistics
    held = snapshot(model)
    with taken.applied(model), torch.no_grad():
        assert torch.equal(model.encode(images), twin.encode(images))
    assert not differing(held, snapshot(model))
    assert differing(held, snapshot(twin))


def test_a_weight_of_another_shape_is_refused():
    model = tiny_classifier(LearnedContextHead(context_length=2))
    taken = WeightSnapshot.of(model)
    other = tiny_classifier(LearnedContextHead(context_length=3))
    with pytest.raises(ValueError, match="`model` must be one whose head.context has the shape"):
        taken.applied(other).__enter__()


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="`strategy.model` must be a CLIPClassifier.*; got Linear"):
        WeightSnapshot.shared(Strategy(nn.Linear(2, 2)))
