import copy

import pytest
import torch
from torch import nn

from avalanche_vlm.models import CLIPClassifier, EmbeddingBackbone, LoRA, SeparateAttention
from avalanche_vlm.models.lora import add_lora, separate_attention
from avalanche_vlm.testing import TinyBackbone, tiny_classifier, tiny_images


def attention(width=16, heads=2, *, bias=True):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(width, heads, bias=bias, batch_first=True)
    if bias:
        nn.init.normal_(module.in_proj_bias)
        nn.init.normal_(module.out_proj.bias)
    return module


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask", ["none", "causal", "per head"])
def test_separate_attention_computes_the_same(bias, mask):
    fused = attention(bias=bias)
    separate = SeparateAttention(fused)
    x = torch.randn(3, 5, 16)
    causal = torch.full((5, 5), float("-inf")).triu(1)
    attn_mask = {"none": None, "causal": causal, "per head": causal.expand(6, 5, 5)}[mask]
    expected = fused(x, x, x, need_weights=False, attn_mask=attn_mask)[0]
    assert (separate(x, x, x, attn_mask=attn_mask)[0] - expected).abs().max() <= 1e-6
    assert not any(p.requires_grad for p in separate.parameters())


def test_towers_with_separate_projections_are_equal_within_1e_6():
    backbone = TinyBackbone()
    other = copy.deepcopy(backbone)
    assert separate_attention(other.image_tower) == separate_attention(other.text_tower) == 1
    images, tokens = tiny_images()[0], backbone.tokenize(["a photo of a cat."])
    with torch.no_grad():
        assert (backbone.encode_image(images) - other.encode_image(images)).abs().max() <= 1e-6
        assert (backbone.encode_text(tokens) - other.encode_text(tokens)).abs().max() <= 1e-6


def test_a_fresh_adapter_changes_nothing():
    images, _ = tiny_images()
    difference = tiny_classifier(trainable=LoRA(rank=2))(images) - tiny_classifier()(images)
    assert difference.abs().max() <= 1e-5  # logits are about ten times the features


@pytest.mark.parametrize("factors", [("A", "B"), ("B",)])
@pytest.mark.parametrize("targets", [("query", "value"), ("key", "output"), ("mlp_in", "mlp_out")])
def test_only_the_chosen_factors_of_the_chosen_layers_train(factors, targets):
    model = tiny_classifier(trainable=LoRA(rank=2, targets=targets, factors=factors, towers=("image",)))
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == len(factors) * len(targets)
    assert all(name.startswith("backbone.image_tower.") and "lora_" in name for name in names)
    assert {name.split("lora_")[1][0] for name in names} == set(factors)


def test_the_update_is_alpha_over_rank_times_b_a():
    tower = copy.deepcopy(TinyBackbone().image_tower)
    base = copy.deepcopy(tower)
    separate_attention(base)
    add_lora(tower, LoRA(rank=2, alpha=6.0, targets=("query",)))
    layer = tower.transformer.resblocks[0].attn.q_proj
    torch.manual_seed(0)
    nn.init.normal_(layer.lora_B.default.weight)
    delta = 3.0 * layer.lora_B.default.weight @ layer.lora_A.default.weight
    with torch.no_grad():
        base.transformer.resblocks[0].attn.q_proj.weight += delta
        images = tiny_images()[0]
        torch.testing.assert_close(tower(images), base(images), atol=1e-6, rtol=1e-6)


def test_the_published_count_of_b_only_weights():
    """Rank 32 on query, value and the MLP of both towers of a ViT-B/16 is 3,440,640 weights."""
    rank, per_layer = 32, 1 + 1 + 4 + 1  # widths of the outputs, in units of the tower's width
    assert (768 + 512) * 12 * per_layer * rank == 3_440_640
    model = tiny_classifier(trainable=LoRA(rank=3, factors=("B",)))
    assert sum(p.numel() for p in model.parameters()) == (16 + 16) * 1 * per_layer * 3


def test_the_seed_decides_a_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    first, same, other = (tiny_classifier(trainable=LoRA(rank=2, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    name = "backbone.text_tower.transformer.resblocks.0.attn.q_proj.lora_A.default.weight"
    assert torch.equal(first.state_dict()[name], same.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_dropout_acts_in_training_only():
    model = tiny_classifier(trainable=LoRA(rank=2, dropout=0.5, towers=("image",)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(1.0)
    images, _ = tiny_images()
    model.train()
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "`rank`"),
        ({"alpha": -1.0}, "`alpha`"),
        ({"targets": ("queries",)}, "Did you mean 'query'"),
        ({"targets": "query"}, "`targets`"),
        ({"targets": ()}, "`targets`"),
        ({"towers": ("audio",)}, "`towers`"),
        ({"factors": ("A",)}, "`factors`"),
        ({"dropout": 2}, "`dropout`"),
        ({"seed": -1}, "`seed`"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        LoRA(**arguments)


def test_a_tower_without_torch_attention_is_refused():
    with pytest.raises(ValueError, match="Sequential"):
        add_lora(nn.Sequential(nn.Linear(2, 2)), LoRA())
    with pytest.raises(ValueError, match="image tower"):
        CLIPClassifier(EmbeddingBackbone(4), trainable=LoRA())
