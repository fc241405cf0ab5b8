"""Equal transforms are told alike, and unlike transforms unlike."""

import functools
import json

import numpy as np
import pytest
import torch
from avalanche.benchmarks.utils.transforms import MultiParamCompose, TupleTransform
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as F

from avalanche_vlm.embedding.transform_description import describe_transform
from avalanche_vlm.models import OpenCLIPBackbone
from avalanche_vlm.testing import TinyBackbone


def told(transform):
    return json.dumps(describe_transform(transform), sort_keys=True)


def test_a_description_holds_class_and_parameters():
    assert describe_transform(transforms.Compose([transforms.Resize(4), transforms.ToTensor()])) == {
        "class": "torchvision.transforms.transforms.Compose",
        "transforms": [
            {
                "class": "torchvision.transforms.transforms.Resize",
                "size": 4,
                "max_size": None,
                "interpolation": ["InterpolationMode", "BILINEAR"],
                "antialias": True,
                "modules": {},
                "state": {},
            },
            {"class": "torchvision.transforms.transforms.ToTensor"},
        ],
    }
    assert describe_transform(None) is None


DIFFERENT = [
    None,
    transforms.Resize(4),
    transforms.Resize(5),
    transforms.Resize((4, 4)),
    transforms.Resize(4, interpolation=InterpolationMode.NEAREST),
    transforms.CenterCrop(4),
    transforms.Compose([transforms.Resize(4)]),
    transforms.Compose([transforms.Resize(4), transforms.CenterCrop(4)]),
    transforms.Compose([transforms.CenterCrop(4), transforms.Resize(4)]),
    transforms.RandomApply([transforms.CenterCrop(4)], p=0.3),
    transforms.RandomApply([transforms.CenterCrop(4)], p=0.4),
    transforms.RandomApply(torch.nn.ModuleList([transforms.CenterCrop(5)]), p=0.4),
    transforms.Normalize([0.5], [0.5]),
    transforms.Normalize([0.5], [0.25]),
    transforms.Normalize(torch.tensor([0.5]), [0.25]),
    transforms.Normalize(np.array([0.25]), [0.25]),
    transforms.LinearTransformation(torch.eye(3), torch.zeros(3)),
    transforms.LinearTransformation(2 * torch.eye(3), torch.zeros(3)),
    transforms.RandAugment(),
    transforms.RandAugment(num_ops=3),
    v2.Resize(4),
    v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
    v2.Compose([v2.ToImage(), v2.ToDtype(torch.float16, scale=True)]),
    F.hflip,
    F.vflip,
    functools.partial(F.resize, size=[4]),
    functools.partial(F.resize, size=[5]),
    MultiParamCompose([TupleTransform([transforms.Resize(4)])]),
    TinyBackbone().eval_transform,
    TinyBackbone().train_transform,
    OpenCLIPBackbone("small-clip", pretrained="small-world").eval_transform,
]


def test_unlike_transforms_are_told_unlike():
    assert len({told(transform) for transform in DIFFERENT}) == len(DIFFERENT)


def test_equal_transforms_are_told_alike():
    assert told(TinyBackbone().train_transform) == told(TinyBackbone().train_transform)
    assert told(transforms.Resize(4).eval()) == told(transforms.Resize(4))
    assert told(TupleTransform([transforms.Resize(4), str])) == told(transforms.Resize(4))
    assert told(TupleTransform([None, str])) == "null"


class Own:
    """A transform of a user."""

    def __call__(self, image):
        return image


class OwnResize(transforms.Resize):
    """A known class, changed."""


@pytest.mark.parametrize(
    "unknown",
    [
        Own(),
        OwnResize(4),
        lambda image: image,
        functools.partial(lambda image, size: image, size=3),
        transforms.Lambda(lambda image: image),
        transforms.Compose([transforms.Resize(4), Own()]),
        transforms.RandomApply([Own()]),
        Own().__call__,
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_unknown_code_is_refused(unknown):
    with pytest.raises(TypeError, match="to have a name; got .* Set `transform.transform_name"):
        describe_transform(unknown)


def test_a_name_tells_unknown_code_at_any_depth():
    own = Own()
    own.transform_name = "mine"
    chain = transforms.Compose([transforms.Resize(4), own])
    assert describe_transform(chain)["transforms"][1] == {"transform_name": "mine"}

    def flip(image):
        return image

    flip.transform_name = "flip, 1"
    assert describe_transform(transforms.Lambda(flip))["lambd"] == {"transform_name": "flip, 1"}
