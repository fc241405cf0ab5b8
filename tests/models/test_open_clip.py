import warnings

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from avalanche_vlm.models import OpenCLIPBackbone
from avalanche_vlm.models.small_clip import SmallTokenizer
from avalanche_vlm.testing import TinyBackbone

VOCABULARY = SmallTokenizer().vocab_size


def configuration(*, vision=(), text=(), **rest):
    return {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 8,
            "layers": 2,
            "width": 16,
            "head_width": 8,
            "patch_size": 4,
            **dict(vision),
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": VOCABULARY,
            "width": 24,
            "heads": 2,
            "layers": 2,
            **dict(text),
        },
        **rest,
    }


SIGLIP = configuration(
    text={"no_causal_mask": True, "pool_type": "last", "proj_bias": True}, init_logit_bias=-10.0
)
FAMILIES = {
    "CLIP, causal, argmax": (configuration(), True),
    "CLIP, causal, eos": (configuration(text={"pool_type": "eos", "eos_id": VOCABULARY - 1}), True),
    "no projection": (configuration(text={"width": 16, "proj_type": "none"}), True),
    "SigLIP, no mask, last": (SIGLIP, False),
    "MobileCLIP2, no mask, argmax": (configuration(text={"no_causal_mask": True}), False),
}


def tiny(config, **arguments):
    torch.manual_seed(0)
    return OpenCLIPBackbone(config, tokenizer=SmallTokenizer(), **arguments).eval()


@pytest.fixture
def prompts():
    return SmallTokenizer()(["a photo of a cat.", "a drawing of one small red circle, seen from above."])


@pytest.mark.parametrize("name", FAMILIES)
def test_text_features_are_those_of_open_clip(name, prompts):
    config, causal = FAMILIES[name]
    backbone = tiny(config)
    reference = CustomTextCLIP(**config).eval()
    reference.text.load_state_dict(backbone.text_tower.state_dict())
    assert backbone.is_causal == causal
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.encode_text(prompts), reference.encode_text(prompts), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_text_is_cut_exactly_where_no_one_can_see_the_rest(name, prompts):
    config, causal = FAMILIES[name]
    backbone = tiny(config)
    lengths = []
    backbone.text_tower.transformer.register_forward_pre_hook(
        lambda module, inputs: lengths.append(inputs[0].shape[1])
    )
    backbone.encode_text(prompts)
    end = int(backbone.text_lengths(prompts).max())
    assert lengths == [end]
    assert (end < 77) == causal


def test_what_stands_after_the_end_matters_only_without_a_causal_mask(prompts):
    changed = prompts.clone()
    changed[:, -1] = 5
    for config, causal in FAMILIES.values():
        backbone = tiny(config)
        same = torch.equal(backbone.encode_text(prompts), backbone.encode_text(changed))
        assert same == causal


def test_token_embeddings_are_an_equal_way_in(prompts):
    for config, _ in FAMILIES.values():
        backbone = tiny(config)
        embedded = backbone.encode_token_embeddings(backbone.embed_tokens(prompts), prompts)
        assert torch.equal(embedded, backbone.encode_text(prompts))


def test_both_families_are_loaded_with_the_same_result(tmp_path):
    torch.manual_seed(0)
    clip = CLIP(**configuration()).eval()
    save_file(clip.state_dict(), tmp_path / "clip.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in clip.state_dict().items()}}, tmp_path / "clip.pt")
    tokens, images = SmallTokenizer()(["a photo of a cat."]), torch.rand(2, 3, 8, 8)
    for file in ("clip.safetensors", "clip.pt"):
        backbone = tiny(configuration(), pretrained=tmp_path / file)
        with torch.no_grad():
            torch.testing.assert_close(
                backbone.encode_text(tokens), clip.encode_text(tokens), atol=1e-6, rtol=0
            )
            torch.testing.assert_close(
                backbone.encode_image(images), clip.encode_image(images), atol=1e-6, rtol=0
            )
        assert float(backbone.logit_scale) == pytest.approx(float(clip.logit_scale.detach().exp()))


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("code was run",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="`pretrained`"):
        tiny(configuration(), pretrained=tmp_path / "evil.pt")


def test_a_pickle_is_never_loaded_without_that_limit(tmp_path, monkeypatch):
    asked = []

    def load(*_, **arguments):
        asked.append(arguments)
        raise TypeError("what a hostile pickle may raise")

    monkeypatch.setattr(torch, "load", load)
    (tmp_path / "weights.pt").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="`pretrained`"):
        tiny(configuration(), pretrained=tmp_path / "weights.pt")
    assert asked
    assert all(arguments.get("weights_only") for arguments in asked)


def test_raw_features_are_what_the_projection_takes():
    backbone = tiny(configuration(vision={"width": 24}))
    images = torch.rand(2, 3, 8, 8)
    raw = backbone.encode_image_raw(images)
    assert raw.shape == (2, 24)
    torch.testing.assert_close(backbone.project_image(raw), backbone.image_tower(images))
    torch.testing.assert_close(backbone.encode_image(images), backbone.image_tower(images))


def test_a_resnet_encodes_images_and_refuses_raw_features_by_name():
    config = configuration(vision={"layers": [1, 1, 1, 1], "width": 8, "image_size": 32})
    config["vision_cfg"].pop("patch_size")
    backbone = tiny(config)
    images = torch.rand(1, 3, 32, 32)
    assert backbone.encode_image(images).shape == (1, 16)
    with pytest.raises(ValueError, match="ModifiedResNet"):
        backbone.encode_image_raw(images)


def test_a_timm_tower_gives_raw_and_projected_features():
    config = configuration()
    config["vision_cfg"] = {
        "timm_model_name": "resnet10t",
        "timm_proj": "linear",
        "timm_pool": "",
        "image_size": 32,
    }
    config["vision_cfg"]["timm_pool"] = "avg"
    backbone = tiny(config)
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_image(images), backbone.image_tower(images))
    assert backbone.encode_image_raw(images).shape == (1, 512)


def test_siglip_has_a_bias_and_others_have_none():
    assert float(tiny(SIGLIP).logit_bias) == -10.0
    assert float(tiny(configuration()).logit_bias) == 0.0


def activations(backbone):
    return {type(block.mlp.gelu).__name__ for block in backbone.text_tower.transformer.resblocks}


def test_a_tag_decides_the_activation(monkeypatch):
    """OpenAI's weights need QuickGELU although the architecture says GELU; open_clip only warns."""
    made = {}

    def fake_create_model(name, pretrained=None, *, force_quick_gelu=False, **rest):
        made.update(name=name, quick_gelu=force_quick_gelu)
        small = {**open_clip.get_model_config(name), "quick_gelu": force_quick_gelu}
        small["vision_cfg"] = {**small["vision_cfg"], "layers": 1}
        small["text_cfg"] = {**small["text_cfg"], "layers": 1}
        model = CustomTextCLIP(**small)
        model.visual.preprocess_cfg = {"size": 224}
        return model

    monkeypatch.setattr(open_clip, "create_model", fake_create_model)
    assert activations(OpenCLIPBackbone("ViT-B-16", pretrained="openai")) == {"QuickGELU"}
    assert made == {"name": "ViT-B-16", "quick_gelu": True}
    assert activations(OpenCLIPBackbone("ViT-B-16", pretrained="laion2b_s34b_b88k")) == {"GELU"}
    with pytest.raises(ValueError, match="quick_gelu"):
        OpenCLIPBackbone("ViT-B-16", pretrained="openai", quick_gelu=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OpenCLIPBackbone("ViT-B-32", pretrained="openai")


def test_the_activation_for_a_file_is_an_argument():
    assert activations(tiny(configuration(), quick_gelu=True)) == {"QuickGELU"}
    assert activations(tiny(configuration())) == {"GELU"}


def test_everything_is_frozen_and_nothing_random_is_left_behind():
    before = torch.get_rng_state()
    backbone = TinyBackbone(seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(p.requires_grad for p in backbone.parameters())
    assert torch.equal(
        backbone.text_tower.positional_embedding, TinyBackbone(seed=3).text_tower.positional_embedding
    )
    assert not torch.equal(
        backbone.text_tower.positional_embedding, TinyBackbone(seed=4).text_tower.positional_embedding
    )


def test_preprocessing_is_open_clips_own():
    backbone = OpenCLIPBackbone("small-clip")
    picture = Image.effect_noise((50, 40), 80).convert("RGB")
    facts = open_clip.transform.PreprocessCfg(**backbone.config()["preprocess"])
    expected = open_clip.transform.image_transform_v2(facts, is_train=False)(picture)
    assert torch.equal(backbone.eval_transform(picture), expected)
    array = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(40, 50, 3)
    assert torch.equal(backbone.eval_transform(array.permute(2, 0, 1)), expected)
    assert torch.equal(backbone.eval_transform(array.numpy()), expected)
    assert backbone.train_transform(picture).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "ViT-B-61"}, "Did you mean .*ViT-B-16"),
        ({"model": "ViT-B-16", "pretrained": "openia"}, "Did you mean 'openai'"),
        ({"model": "small-clip", "pretrained": "smal-world"}, "Did you mean 'small-world'"),
        ({"model": "small-clip", "pretrained": "/no/such/file.safetensors"}, "existing file"),
        ({"model": "ViT-B/32", "pretrained": "openia"}, "Did you mean 'openai'"),
        ({"model": "vit-b-16"}, "Did you mean 'ViT-B-16'"),
        ({"model": "hf-hub:somebody/model"}, "model name of open_clip"),
        ({"model": configuration(nonsense=1)}, "`model`.*nonsense"),
        ({"model": "small-clip", "preprocess": {"means": (0, 0, 0)}}, "Did you mean 'mean'"),
        ({"model": "coca_ViT-B-32"}, "CoCa"),
        ({"model": "roberta-ViT-B-32"}, "HFTextEncoder"),
        ({"model": {"embed_dim": 3}}, "vision_cfg"),
        ({"model": 3}, "`model`"),
        ({"model": "small-clip", "pretrained": 3}, "`pretrained`"),
        ({"model": "small-clip", "quick_gelu": 1}, "`quick_gelu`"),
        ({"model": "small-clip", "tokenizer": "x"}, "`tokenizer`"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        OpenCLIPBackbone(**arguments)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    save_file(nn.Linear(2, 2).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="fit 'small-clip'"):
        OpenCLIPBackbone("small-clip", pretrained=tmp_path / "other.safetensors")


def test_a_failed_download_says_what_to_do(monkeypatch):
    def offline(*_, **__):
        raise RuntimeError("Failed to download weights for tag 'openai': no route")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(RuntimeError, match=r"pass its path as `pretrained` \(with `quick_gelu=True`\)"):
        OpenCLIPBackbone("ViT-B-16", pretrained="openai")


def test_weights_without_a_tag_take_the_preprocessing_that_the_tags_agree_on(monkeypatch):
    small = {"vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4}}
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: _with_facts(configuration(**small)))
    facts = OpenCLIPBackbone("ViT-B-16-SigLIP").config()["preprocess"]
    assert (tuple(facts["mean"]), facts["resize_mode"]) == ((0.5, 0.5, 0.5), "squash")
    facts = OpenCLIPBackbone("ViT-B-16-SigLIP", preprocess={"resize_mode": "shortest"}).config()["preprocess"]
    assert facts["resize_mode"] == "shortest"


def _with_facts(config):
    config["vision_cfg"] = dict(config["vision_cfg"])
    model = CustomTextCLIP(**config)
    model.visual.preprocess_cfg = {"size": 8}
    return model


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_an_unreadable_file_is_not_called_a_misfit(tmp_path):
    (tmp_path / "junk.pt").write_bytes(b"junk")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), tmp_path / "script.pt")
    for name in ("junk.pt", "list.pt", "script.pt"):
        with pytest.raises(ValueError, match="which is neither") as caught:
            OpenCLIPBackbone("small-clip", pretrained=tmp_path / name)
        assert "set to `False`" not in str(caught.value)
