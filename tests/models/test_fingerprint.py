"""The fingerprint of weights, and what a classifier tells of itself."""

import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn

from avalanche_vlm.models import (
    CLIPClassifier,
    CosineHead,
    EmbeddingBackbone,
    LoRA,
    TextFeatureHead,
    ZeroShotHead,
)
from avalanche_vlm.models.fingerprint import fingerprint
from avalanche_vlm.testing import tiny_classifier


def by_definition(tensors):
    """Names, dtypes, shapes and bytes in the order of the names, written with numpy alone."""
    parts = b""
    for name in sorted(tensors):
        tensor = tensors[name]
        parts += json.dumps([name, str(tensor.dtype), [int(size) for size in tensor.shape]]).encode()
        parts += np.ascontiguousarray(tensor.resolve_conj().numpy()).tobytes()
    return hashlib.sha256(parts).hexdigest()


def test_it_is_the_hash_of_names_dtypes_shapes_and_bytes():
    tensors = {
        "b": torch.randn(3, 4),
        "a": torch.arange(6).reshape(2, 3).T,
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
        "complex": torch.randn(2, dtype=torch.complex64).conj(),
        "half": torch.randn(5).half()[::2],
    }
    assert fingerprint(tensors) == by_definition(tensors)
    assert fingerprint(dict(reversed(tensors.items()))) == fingerprint(tensors)
    linear = nn.Linear(3, 2)
    state = {name: tensor.detach() for name, tensor in linear.state_dict().items()}
    assert fingerprint(linear) == by_definition(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8])
def test_any_bit_dtype_shape_and_name_counts(dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 100, (4, 6), generator=generator).to(dtype)
    found = {fingerprint({"w": values})}
    bits = values.contiguous().view(torch.uint8)
    for index in range(bits.numel()):
        for bit in range(8):
            changed = bits.clone()
            changed.view(-1)[index] ^= 1 << bit
            found.add(fingerprint({"w": changed.view(dtype)}))
    assert len(found) == 1 + 8 * bits.numel()
    found.add(fingerprint({"w": values.reshape(6, 4)}))
    found.add(fingerprint({"v": values}))
    found.add(fingerprint({"w": values[:2], "w2": values[2:]}))
    found.add(fingerprint({"w": values, "x": values[:0]}))
    if dtype.itemsize == 2:
        found.add(fingerprint({"w": values.view(torch.int16)}))
    assert len(found) == 5 + (dtype.itemsize == 2) + 8 * bits.numel()
    assert fingerprint({"w": values.T.contiguous().T}) == fingerprint({"w": values})
    assert fingerprint({"w": nn.Parameter(values.float())}) == fingerprint({"w": values.float()})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_device_does_not_count():
    values = torch.randn(5, 3)
    assert fingerprint({"w": values.cuda()}) == fingerprint({"w": values})


def test_what_has_no_plain_bytes_is_refused():
    for wrong, error, sentence in (
        (3, TypeError, "`module_or_tensors` must be a module or tensors by name"),
        ({"w": [1.0]}, TypeError, r"`module_or_tensors\['w'\]` must be a tensor"),
        ({"w": torch.eye(2).to_sparse()}, ValueError, "must be a dense tensor with data"),
        ({"w": torch.empty(2, device="meta")}, ValueError, "must be a dense tensor with data"),
    ):
        with pytest.raises(error, match=sentence):
            fingerprint(wrong)


def test_a_classifier_describes_itself():
    model = tiny_classifier(ZeroShotHead(["a {}.", "the {}."]), trainable=LoRA(rank=2, towers=("image",)))
    facts = model.describe()
    assert json.loads(json.dumps(facts))["trainable"]["towers"] == ["image"]
    assert facts["kind"] == "CLIPClassifier"
    assert facts["backbone"]["kind"] == "TinyBackbone"
    assert facts["backbone"]["model"] == "custom"
    assert set(facts["backbone"]) >= {"pretrained", "configuration", "preprocess"}
    assert facts["head"]["templates"] == ["a {}.", "the {}."]
    assert facts["trainable"]["rank"] == 2
    assert (
        facts
        == tiny_classifier(
            ZeroShotHead(["a {}.", "the {}."]), trainable=LoRA(rank=2, towers=("image",))
        ).describe()
    )
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    changed = model.describe()
    assert changed["backbone"].pop("fingerprint") != facts["backbone"].pop("fingerprint")
    assert changed == facts


def test_heads_and_files_of_weights_are_told_by_what_they_hold():
    backbone = EmbeddingBackbone(4)
    names = ["a", "b", "c", "d"]
    heads = [TextFeatureHead(torch.eye(4) + shift) for shift in (0.0, 0.5)]
    models = [CLIPClassifier(backbone, CosineHead(head), class_names=names) for head in heads]
    first, second = (model.describe()["head"] for model in models)
    assert first.pop("fingerprint") != second.pop("fingerprint")
    assert first == second
    model = tiny_classifier()
    model.backbone.pretrained = "/some/where/weights.safetensors"
    assert model.describe()["backbone"]["pretrained"] == "weights.safetensors"
