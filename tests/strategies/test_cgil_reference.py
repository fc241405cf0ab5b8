"""`CGIL` and a plain reference written from the paper's equations are the same method."""

import pytest
import torch
from torch.nn import functional as F
from torch.optim import AdamW

from avalanche_vlm.models import CLIPClassifier, HybridPromptHead, OpenCLIPBackbone
from avalanche_vlm.sources.vae_networks import (
    VAEDecoder,
    VAEEncoder,
    code_divergence,
    drawn_code,
    negative_log_likelihood,
)
from tests.reference.cgil_reference import ReferenceCGIL, ReferencePrompts, ReferenceVAE

NAMES = ["red circle", "blue striped square", "green plain star", "crescent", "unheard of", "pink ring"]
SEEN = torch.tensor([0, 2, 3, 4])
BATCH_NORM = (1 + 1e-5) ** 0.5  # the constant that our affine layer leaves out


@pytest.fixture
def both():
    """Our classifier and the reference in float64, from the same start, which is not a fresh one."""
    torch.manual_seed(0)
    backbone = OpenCLIPBackbone("small-clip", pretrained="small-world").double()
    model = CLIPClassifier(backbone, HybridPromptHead(classes_at_once=3), class_names=NAMES).double()
    model.head.adapt(torch.isin(torch.arange(6), SEEN))
    reference = ReferencePrompts(backbone, NAMES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        reference.vectors.copy_(model.head.context[0].vectors)
        for name, parameter in network(reference).items():
            parameter.copy_(network(model)[name] * scale(name))
    return model.train(), reference


def network(model):
    part = model.head.context[1].network if isinstance(model, CLIPClassifier) else model.network
    return {name: parameter for name, parameter in part.named_parameters() if parameter.requires_grad}


def scale(name):
    return BATCH_NORM if name in ("1.weight", "4.weight", "7.weight") else 1.0


def batch():
    generator = torch.Generator().manual_seed(1)
    x = 3 * torch.randn(32, 128, generator=generator, dtype=torch.float64)
    return x, SEEN[torch.randint(len(SEEN), (32,), generator=generator)]


def close(first, second):
    torch.testing.assert_close(first, second, rtol=1e-7, atol=1e-9)


def test_class_weights_loss_and_gradients_are_equal(both):
    model, reference = both
    x, y = batch()
    close(F.normalize(model.head(model.backbone, SEEN), dim=1), reference.keys(SEEN))
    logits = model(x)[:, SEEN]
    close(logits, reference.logits(x, SEEN))
    targets = torch.searchsorted(SEEN, y)
    F.cross_entropy(logits, targets).backward()
    F.cross_entropy(reference.logits(x, SEEN), targets).backward()
    close(model.head.context[0].vectors.grad, reference.vectors.grad)
    assert float(reference.vectors.grad[SEEN].abs().amin(dim=(1, 2)).min()) > 0
    theirs = network(reference)
    assert len(theirs) == 14  # four linear layers and three affine ones
    for name, parameter in network(model).items():
        close(parameter.grad, theirs[name].grad * scale(name))
        assert float(theirs[name].grad.abs().max()) > 1e-6, name


def test_class_weights_stay_equal_over_steps(both):
    """Some steps of AdamW, in which the batch norms' constant is too small to be seen."""
    model, reference = both
    method = ReferenceCGIL.__new__(ReferenceCGIL)
    method.prompts, method.generators = reference, dict.fromkeys(SEEN.tolist())
    start = reference.keys(SEEN).detach()
    ours = AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    theirs = AdamW(reference.parameters(), lr=1e-3, weight_decay=0.0)
    x, y = batch()
    for rows in torch.arange(32).split(8):
        ours.zero_grad()
        logits = model(x[rows])[:, SEEN]
        F.cross_entropy(logits, torch.searchsorted(SEEN, y[rows])).backward()
        ours.step()
        method.step(theirs, x[rows], y[rows])
    end = reference.keys(SEEN).detach()
    weights = F.normalize(model.head(model.backbone, SEEN), dim=1)
    assert float((end - start).abs().max()) > 1e-2
    torch.testing.assert_close(weights.detach(), end, rtol=0, atol=1e-5)


def test_predictions_are_equal(both):
    model, reference = both
    method = ReferenceCGIL.__new__(ReferenceCGIL)
    method.prompts, method.generators, method.batch_size = reference, dict.fromkeys(SEEN.tolist()), 5
    x, _ = batch()
    with torch.no_grad():
        ours = SEEN[model.eval()(x)[:, SEEN].argmax(dim=1)]
    assert torch.equal(ours, method.predict(x))
    assert len(ours.unique()) > 1


def test_the_autoencoders_loss_and_gradients_are_equal():
    torch.manual_seed(0)
    theirs = ReferenceVAE(6, hidden=5, latent=3).double()
    encoder = VAEEncoder(1, 6, 5, 3, dtype=torch.float64)
    decoder = VAEDecoder(1, 3, 5, 6, dtype=torch.float64)
    pairs = [
        (encoder.first, theirs.encoder[0]),
        (encoder.first_norm, theirs.encoder[1]),
        (encoder.second, theirs.encoder[3]),
        (encoder.second_norm, theirs.encoder[4]),
        (encoder.last, theirs.encoder[6]),
        (decoder.first, theirs.decoder[0]),
        (decoder.second, theirs.decoder[2]),
        (decoder.last, theirs.decoder[4]),
    ]
    with torch.no_grad():
        for ours, layer in pairs:
            ours.weight.copy_(layer.weight.T[None] if layer.weight.ndim == 2 else layer.weight)
            ours.bias.copy_(layer.bias)
    x, noise = torch.randn(8, 6, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    mean, log_variance = encoder(x[None], torch.ones(1, 8, dtype=torch.bool))
    decoded = decoder(drawn_code(mean, log_variance, noise[None], "deviation"))
    loss = (negative_log_likelihood(x[None], decoded) + code_divergence(mean, log_variance)).mean()
    expected = theirs.loss(x, noise)
    close(loss, expected)
    loss.backward()
    expected.backward()
    for ours, layer in pairs:
        gradient = layer.weight.grad
        close(ours.weight.grad[0].squeeze(0), gradient.T if gradient.ndim == 2 else gradient)
        close(ours.bias.grad.flatten(), layer.bias.grad)


def test_the_reference_learns_and_draws_what_it_was_fitted_to():
    """On three clear clusters, with few passes: a reference that learns nothing would prove nothing."""
    torch.manual_seed(0)
    backbone = OpenCLIPBackbone("small-clip", pretrained="small-world")
    centres = F.normalize(torch.randn(3, 128), dim=1)
    y = torch.arange(60) % 3
    x = centres[y] + 0.02 * torch.randn(60, 128)
    method = ReferenceCGIL(
        backbone, NAMES[:3], epochs=2, vae_passes=20, samples_per_class=64, learning_rate=0.03
    )
    before = method.prompts.vectors.detach().clone()
    for labels in ([0, 1], [2]):
        rows = torch.isin(y, torch.tensor(labels))
        method.train(x[rows], y[rows])
    assert method.seen.tolist() == [0, 1, 2]
    drawn, labels = method.draw()
    assert drawn.shape == (192, 128)
    assert (F.normalize(drawn, dim=1) @ centres.T).argmax(dim=1).eq(labels).all()
    assert (method.prompts.vectors != before).all()
    assert float(method.predict(x).eq(y).float().mean()) > 0.9
