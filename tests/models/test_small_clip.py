from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm.models import small_clip
from avalanche_vlm.models.small_clip import (
    SMALL_CLIP_CONFIG,
    SMALL_CLIP_PREPROCESS,
    SmallTokenizer,
    small_clip_weights,
)
from avalanche_vlm.text import DEFAULT_TEMPLATE
from avalanche_vlm.world import HELD_OUT, STYLES, TRAINING_STYLES, all_objects, render

CHANCE = 1 / len(HELD_OUT)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    from open_clip.model import CLIP

    built = CLIP(**SMALL_CLIP_CONFIG)
    built.load_state_dict(load_file(small_clip_weights()), strict=True)
    return built.eval()


@pytest.fixture(scope="module")
def class_features(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        tokens = SmallTokenizer()([DEFAULT_TEMPLATE(each.name) for each in HELD_OUT])
        return model.encode_text(tokens, normalize=True)


def predictions(model: torch.nn.Module, class_features: Tensor, style: str, each: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(77)
    pictures = render(list(HELD_OUT) * each, style=style, generator=generator).float() / 255.0
    mean = torch.tensor(SMALL_CLIP_PREPROCESS["mean"])[:, None, None]
    std = torch.tensor(SMALL_CLIP_PREPROCESS["std"])[:, None, None]
    with torch.no_grad():
        features = F.normalize(model.encode_image((pictures - mean) / std), dim=-1)
    return (features @ class_features.T).argmax(dim=1)


def accuracy(predicted: Tensor) -> float:
    labels = torch.arange(len(HELD_OUT)).repeat(len(predicted) // len(HELD_OUT))
    return float((predicted == labels).float().mean())


def test_the_weights_are_small_and_say_where_they_are_from():
    path = small_clip_weights()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()

    assert path.stat().st_size <= 4_000_000
    assert metadata["trained_on"] == "avalanche_vlm.world"
    assert {"steps", "seed", "batch_size", "learning_rate"} <= set(metadata)


def test_the_weights_are_finite_and_the_scale_is_bounded(model: torch.nn.Module):
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert 1.0 < model.logit_scale.exp().item() <= 100.0 + 1e-3


def test_missing_weights_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(small_clip, "__file__", str(tmp_path / "small_clip.py"))

    with pytest.raises(FileNotFoundError, match="come with the package"):
        small_clip_weights()


def test_unseen_objects_are_recognised(model: torch.nn.Module, class_features: Tensor):
    assert accuracy(predictions(model, class_features, "photo")) >= 0.82


def test_with_shuffled_names_recognition_falls_to_chance(model: torch.nn.Module, class_features: Tensor):
    predicted = predictions(model, class_features, "photo")
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(HELD_OUT), generator=generator) for _ in range(20)]
    mean = sum(accuracy(order[predicted]) for order in orders) / len(orders)

    assert abs(mean - CHANCE) < 0.02


@pytest.mark.parametrize("style", [style for style in STYLES if style not in TRAINING_STYLES])
def test_an_unseen_style_is_harder_and_not_hopeless(
    style: str, model: torch.nn.Module, class_features: Tensor
):
    assert 0.15 <= accuracy(predictions(model, class_features, style)) <= 0.65


def test_one_attribute_alone_can_be_asked_for(model: torch.nn.Module):
    from avalanche_vlm.world import SHAPES

    with torch.no_grad():
        tokens = SmallTokenizer()([f"a photo of a {shape}." for shape in SHAPES])
        shapes = model.encode_text(tokens, normalize=True)
    predicted = predictions(model, shapes, "photo")
    expected = torch.tensor([SHAPES.index(each.shape) for each in HELD_OUT]).repeat(6)

    assert float((predicted == expected).float().mean()) > 0.8


def test_all_names_have_features_of_their_own(model: torch.nn.Module):
    with torch.no_grad():
        tokens = SmallTokenizer()([DEFAULT_TEMPLATE(each.name) for each in all_objects()])
        features = model.encode_text(tokens, normalize=True)
    similarity = features @ features.T - 2.0 * torch.eye(len(features))

    assert float(similarity.max()) < 0.999


def test_the_configuration_is_plain_data():
    assert json.loads(json.dumps(SMALL_CLIP_CONFIG)) == SMALL_CLIP_CONFIG
    assert SMALL_CLIP_PREPROCESS["size"] == SMALL_CLIP_CONFIG["vision_cfg"]["image_size"]


def test_nothing_of_the_small_clip_imports_open_clip():
    folder = Path(small_clip.__file__).parent
    for name in ("small_clip.py", "small_tokenizer.py", "small_vocabulary.py"):
        for node in ast.walk(ast.parse((folder / name).read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(module.split(".")[0] == "open_clip" for module in modules), name
