"""Saved models from anywhere: nothing in them is called, fetched or believed before it is compared."""

import copy
import errno
import functools
import inspect
import json
import os
import random
import resource
import socket
import tempfile
import time
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import avalanche_vlm.models
from avalanche_vlm.models import (
    AdaptedTextHead,
    CLIPClassifier,
    CosineHead,
    DualPathHead,
    EmbeddingAdapter,
    EmbeddingBackbone,
    GaussianDiscriminantHead,
    GeneratedContext,
    HybridPromptHead,
    ImageConditionedPromptHead,
    LatestLearnedVectors,
    LearnedContextHead,
    LearnedVectors,
    LinearHead,
    LogLinearFusion,
    LoRA,
    NearestClassMeanHead,
    OpenCLIPBackbone,
    ProbabilityMixture,
    PromptContext,
    RandomProjection,
    ResidualAdapter,
    RidgeRegressionHead,
    TextFeatureHead,
    TextHead,
    TopKRescoring,
    UnnormalisedZeroShotHead,
    VisionLanguageBackbone,
    ZeroShotHead,
    saving,
)
from avalanche_vlm.models.saved_parts import SAVED_PARTS, Sizes, part_needs
from avalanche_vlm.models.small_clip import SMALL_CLIP_CONFIG
from avalanche_vlm.testing import TinyBackbone

NAMES = ["red circle", "blue square", "green ring"]
CONFIGURATION = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 4, "heads": 2, "layers": 1},
}


def named(head=None, **arguments):
    return CLIPClassifier(OpenCLIPBackbone("small-clip"), head, class_names=NAMES, **arguments)


def configured(head=None, **arguments):
    return CLIPClassifier(OpenCLIPBackbone(CONFIGURATION), head, class_names=NAMES, **arguments)


def embedded(head=None, **arguments):
    head = TextFeatureHead(torch.eye(3, 4)) if head is None else head
    return CLIPClassifier(EmbeddingBackbone(4), head, class_names=NAMES, **arguments)


HEADS = {
    "zero-shot": lambda: ZeroShotHead(["a {}.", "one {}."], training_templates="the {}."),
    "unnormalised": UnnormalisedZeroShotHead,
    "cosine": lambda: CosineHead(ZeroShotHead()),
    "linear": lambda: LinearHead(CosineHead(LearnedContextHead(context_length=2, sharing="per-class"))),
    "context": lambda: LearnedContextHead(context_length=3),
    "context per class": lambda: LearnedContextHead(context_length=3, sharing="per-class"),
    "context of words": lambda: LearnedContextHead(initial_context="a photo of a"),
    "hybrid": HybridPromptHead,
    "hybrid of many": lambda: HybridPromptHead(
        context=[LearnedVectors(2, sharing="shared"), LatestLearnedVectors(3), GeneratedContext()],
        unseen=UnnormalisedZeroShotHead(),
    ),
    "image conditioned": lambda: ImageConditionedPromptHead(reduction=5),
    "adapted": lambda: AdaptedTextHead(ZeroShotHead(), adapter=ResidualAdapter(reduction=3)),
    "dual path": DualPathHead,
    "dual path of embeddings": lambda: DualPathHead(HybridPromptHead(), visual_space="embedding"),
    "gaussian": lambda: GaussianDiscriminantHead(LearnedContextHead(context_length=1)),
    "gaussian by a rule": lambda: GaussianDiscriminantHead(
        fusion_weight=LogLinearFusion(1.0, 0.5), mean_prior="none"
    ),
    "ridge": RidgeRegressionHead,
    "ridge of a projection": lambda: RidgeRegressionHead(
        LearnedContextHead(context_length=1),
        projection=RandomProjection(9, 3, "cosine", 0.5),
        fusion_weight=TopKRescoring(2),
    ),
    "class means": NearestClassMeanHead,
    "class means as they are": lambda: NearestClassMeanHead(
        normalise_first=False, fusion_weight=ProbabilityMixture(0.5)
    ),
}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "model"


def saved(model, folder):
    model.save_pretrained(str(folder))
    return folder


@functools.cache
def _made(make, head, trainable):
    with tempfile.TemporaryDirectory() as folder:
        arguments = {} if trainable is None else {"trainable": trainable}
        return read(saved(make(None if head is None else head(), **arguments), Path(folder)))


def made(make, head=None, trainable=None):
    """Return what is in the file of a model, which is made once for all tests."""
    config, weights = _made(make, head, trainable)
    return copy.deepcopy(config), {name: tensor.clone() for name, tensor in weights.items()}


def read(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    return json.loads(metadata["avalanche_vlm"]), load_file(folder / "model.safetensors")


def written(folder, config, weights, **metadata):
    """Write a file with its right checksum, as somebody could who knows how it is made."""
    told = config if isinstance(config, str) else json.dumps(config)
    checksum = saving._checksum(told, weights)
    metadata = {"avalanche_vlm": told, "checksum": checksum, **metadata}
    metadata = {name: text for name, text in metadata.items() if text is not None}
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata=metadata)
    return folder


def load(folder, **given):
    return CLIPClassifier.from_pretrained(str(folder), **given)


def refused(folder, message=None, **given):
    with pytest.raises(ValueError, match=message) as caught:
        load(folder, **given)
    assert str(folder) in str(caught.value)
    return str(caught.value)


# What may be built


def test_the_list_of_parts_is_that_of_the_package():
    bases = {
        "TextHead": TextHead,
        "EmbeddingAdapter": EmbeddingAdapter,
        "PromptContext": PromptContext,
        "VisionLanguageBackbone": VisionLanguageBackbone,
        "LoRA": LoRA,
    }
    exported = {name: getattr(avalanche_vlm.models, name) for name in avalanche_vlm.models.__all__}
    concrete = {
        name
        for name, kind in exported.items()
        if inspect.isclass(kind) and issubclass(kind, tuple(bases.values())) and not inspect.isabstract(kind)
    }
    assert set(SAVED_PARTS) == concrete
    for name, part in SAVED_PARTS.items():
        assert issubclass(exported[name], bases[part.base])


@pytest.mark.parametrize("kind", HEADS)
def test_the_tensors_of_a_part_are_known_before_it_is_built(kind):
    model = named(HEADS[kind](), image_adapter=ResidualAdapter(reduction=7))
    backbone = model.backbone
    sizes = Sizes(3, backbone.embed_dim, backbone.token_dim, backbone.raw_dim, 30)
    for part in (model.head, model.image_adapter):
        described = json.loads(json.dumps(avalanche_vlm.models.parts.part_config(part)))
        shapes = {name: tuple(tensor.shape) for name, tensor in part.state_dict().items()}
        expected = part_needs(described, sizes).shapes
        if kind == "context of words" and part is model.head:
            assert expected == {"context": (1, -1, backbone.token_dim)}
            expected = {"context": (1, 4, backbone.token_dim)}
        assert shapes == expected


@pytest.mark.parametrize("kind", HEADS)
def test_every_head_comes_back(kind, folder):
    model = named(HEADS[kind](), trainable=LoRA(rank=2, targets=("query", "mlp_out")))
    loaded = load(saved(model, folder))
    expected = model.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


class LinearHeadOfSomebody(CosineHead):
    """A head of another package, which has the name of one here."""


LinearHeadOfSomebody.__name__ = LinearHeadOfSomebody.__qualname__ = "LinearHead"


def test_a_part_of_another_package_is_not_taken_for_one_of_this(folder):
    saved(embedded(LinearHeadOfSomebody(TextFeatureHead(torch.eye(3, 4)))), folder)
    refused(folder, "`head` must be given.*LinearHead")
    given = LinearHeadOfSomebody(TextFeatureHead(torch.ones(3, 4)))
    assert torch.equal(load(folder, head=given).head.weight, torch.eye(3, 4))


@pytest.mark.parametrize(
    "kind",
    [
        "CLIPClassifier",
        "TextHead",
        "fingerprint",
        "os.system",
        "torch.nn.Linear",
        "__class__",
        "LearnedVectors",
    ],
)
@pytest.mark.parametrize("part", ["head", "backbone", "image_adapter", "trainable"])
def test_no_other_name_is_called(part, kind, folder):
    config, weights = made(embedded)
    config[part] = {"kind": kind}
    refused(written(folder, config, weights), f"`{part}[`.]")


# Nothing is fetched


@pytest.fixture
def asked(monkeypatch):
    """What was asked of the network or of a hub."""
    calls = []

    def note(*arguments, **_):
        calls.append(arguments)
        raise ConnectionError("asked")

    monkeypatch.setattr(socket, "getaddrinfo", note)
    monkeypatch.setattr(socket, "create_connection", note)
    monkeypatch.setattr(socket.socket, "connect", note)
    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, note)
    monkeypatch.setattr(timm.models, "load_pretrained", note, raising=False)
    return calls


SOURCES = [
    ("model", "hf-hub:somebody/model"),
    ("model", "local-dir:/somewhere"),
    ("model", "hf-hub:"),
    ("model", "../small-clip"),
    ("model", "coca_ViT-B-32"),
    ("model", "roberta-ViT-B-32"),
    ("vision_cfg.timm_model_name", "hf-hub:somebody/model"),
    ("vision_cfg.timm_model_name", "hf_hub:somebody/model"),
    ("vision_cfg.timm_model_name", "local-dir:/somewhere"),
    ("vision_cfg.timm_model_name", "somebody/model"),
    ("vision_cfg.timm_model_name", "/etc/passwd"),
    ("vision_cfg.timm_model_name", ["hf-hub:somebody/model"]),
    ("vision_cfg.timm_model_pretrained", True),
    ("vision_cfg.pretrained", "https://somewhere/weights.pt"),
    ("vision_cfg.checkpoint_path", "/etc/passwd"),
    ("text_cfg.hf_model_name", "hf-hub:somebody/model"),
    ("text_cfg.hf_model_name", "roberta-base"),
    ("text_cfg.hf_model_name", "timm/model"),
    ("text_cfg.hf_tokenizer_name", ["somebody/model"]),
    ("text_cfg.tokenizer_kwargs", {"trust_remote_code": True}),
    ("text_cfg.tokenizer_kwargs", {"cache_dir": "/etc"}),
    ("text_cfg.trust_remote_code", True),
    ("multimodal_cfg", {"hf_model_name": "somebody/model"}),
    ("pretrained_image", True),
    ("cast_dtype", "float16"),
    ("preprocess.mode", "hf-hub:somebody/model"),
    ("vision_cfg.act_kwargs", {"approximate": "hf-hub:somebody/model"}),
    ("vision_cfg.norm_kwargs", {"device": "cuda"}),
    ("cache_dir", "/etc"),
]


def placed(config, place, value):
    *parts, last = place.split(".")
    if parts == ["preprocess"] or place == "model":
        inner = config["backbone"]
    else:
        inner = config["backbone"]["configuration"]
    for part in parts:
        inner = inner.setdefault(part, {})
    inner[last] = value


@pytest.mark.parametrize(("place", "value"), SOURCES, ids=str)
def test_no_name_in_a_file_is_asked_for(place, value, folder, asked):
    config, weights = made(configured)
    placed(config, place, value)
    message = refused(written(folder, config, weights))
    assert not asked
    assert "backbone" in message
    assert place.split(".")[-1] in message or place in ("model", "multimodal_cfg")


def test_a_tokenizer_that_a_file_names_is_not_used(folder, asked):
    config, weights = made(configured)
    placed(config, "text_cfg.hf_tokenizer_name", "somebody/model")
    config["backbone"]["pretrained"] = "hf-hub:somebody/model"  # where the weights came from once
    load(written(folder, config, weights))
    assert not asked


def test_what_a_file_says_of_a_known_model_must_be_so(folder, asked):
    config, weights = made(named)
    for place, value in (("text_cfg.hf_tokenizer_name", "somebody/model"), ("embed_dim", 64)):
        other = copy.deepcopy(config)
        placed(other, place, value)
        refused(written(folder, other, weights), "'small-clip' as this version of open_clip knows it")
    assert not asked
    other = {**config, "backbone": {**config["backbone"], "model": "custom"}}
    assert load(written(folder, other, weights)).backbone.model_name == "custom"


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("vision_cfg", "timm_model_name", "hf-hub:somebody/model"),
        ("vision_cfg", "timm_model_pretrained", True),
        ("text_cfg", "hf_model_name", "timm/model"),
    ],
)
def test_a_configuration_of_the_caller_fetches_nothing_either(part, field, value, asked):
    configuration = copy.deepcopy(CONFIGURATION)
    configuration[part][field] = value
    with pytest.raises(ValueError, match=f"`model.*{field}|HFTextEncoder"):
        OpenCLIPBackbone(configuration)
    assert not asked


# Sizes


BOMBS = {
    "200,000 layers of images": ("vision_cfg.layers", 200_000),
    "200,000 layers of text": ("text_cfg.layers", 200_000),
    "1,000 layers": ("vision_cfg.layers", 1000),
    "layers of a ResNet": ("vision_cfg.layers", [1000, 1000, 1000, 1000]),
    "a width of 10^9": ("vision_cfg.width", 10**9),
    "a width of 2^16": ("vision_cfg.width", 2**16),
    "a text of 10^9": ("text_cfg.context_length", 10**9),
    "a text of 4096": ("text_cfg.context_length", 4096),
    "a vocabulary of 2^24": ("text_cfg.vocab_size", 2**24),
    "pictures of 10^9": ("vision_cfg.image_size", 10**9),
    "pictures of 8192": ("vision_cfg.image_size", 8192),
    "a hidden layer": ("vision_cfg.mlp_ratio", 1e9),
    "a hidden layer of 64": ("text_cfg.mlp_ratio", 64),
    "an embedding of 2^16": ("embed_dim", 2**16),
    "pooling": ("vision_cfg.attn_pooler_queries", 10**9),
    "sines": ("vision_cfg.pos_embed_type", "sin_cos_2d"),
    "a large architecture": ("vision_cfg.timm_model_name", "vit_giant_patch14_clip_224"),
    "heads": ("vision_cfg.head_width", 1e9),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_backbone_is_not_built_before_its_sizes_are_compared(bomb, folder):
    config, weights = made(configured)
    placed(config, *BOMBS[bomb])
    if bomb == "sines":
        placed(config, "vision_cfg.image_size", 8192)
        placed(config, "vision_cfg.patch_size", 1)
    if "image_size" in BOMBS[bomb][0] or bomb == "sines":
        config["backbone"]["preprocess"]["size"] = config["backbone"]["configuration"]["vision_cfg"][
            "image_size"
        ]
    written(folder, config, weights)
    start = time.monotonic()
    refused(folder)
    assert time.monotonic() - start < 20


def test_a_known_model_is_not_built_for_a_file_without_its_weights(folder):
    config, weights = made(named)
    config["backbone"]["model"] = "ViT-bigG-14"
    config["backbone"]["configuration"] = avalanche_vlm.models.open_clip_loading.known_configuration(
        "ViT-bigG-14"
    )
    config["backbone"]["preprocess"]["size"] = 224
    refused(written(folder, config, weights), "layers|lacks|has the shape")


def huge(field, value):
    def change(config):
        inner = config
        *parts, last = field.split(".")
        for part in parts:
            inner = inner[int(part)] if part.isdigit() else inner[part]
        inner[last] = value

    return change


def beside():
    return HybridPromptHead(unseen=TextFeatureHead(torch.eye(3, 16)))


def from_features():
    return CosineHead(TextFeatureHead(torch.eye(3, 16)))


def from_embeddings():
    return CosineHead(TextFeatureHead(torch.eye(3, 4)))


def from_templates():
    return CosineHead(ZeroShotHead())


def context():
    return LearnedContextHead(context_length=2)


SENTENCES = ["{}"] * 300_000
VECTORS = {"kind": "LearnedVectors", "length": 1, "sharing": "shared", "seed": 0}
HUGE = {
    "context": (context, "head.context_length", 10**9),
    "context that is not there": (context, "head.context_length", 60),
    "vectors": (HybridPromptHead, "head.context.0.length", 10**9),
    "vectors that are not there": (HybridPromptHead, "head.context.0.length", 50),
    "features": (beside, "head.unseen.shape", [10**6, 10**6]),
    "initial features": (from_features, "head.initial.shape", [10**6, 10**6]),
    "templates": (ZeroShotHead, "head.templates", ["{}" + "x" * 9000] * 10_000),
    "many templates": (ZeroShotHead, "head.templates", SENTENCES),
    "templates by data set": (ZeroShotHead, "head.templates", {"a": SENTENCES}),
    "templates of a start": (from_templates, "head.initial.templates", SENTENCES),
    "many parts": (HybridPromptHead, "head.context", [VECTORS] * 10_000),
    "names": (ZeroShotHead, "class_names", [f"{number}" for number in range(200_000)]),
    "rank": (ZeroShotHead, "trainable.rank", 2**20),
    "rank of 10^9": (ZeroShotHead, "trainable.rank", 10**9),
    "seed": (ZeroShotHead, "trainable.seed", 10**30),
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_part_is_not_built_before_its_sizes_are_compared(kind, folder):
    make, field, value = HUGE[kind]
    config, weights = made(configured, make, LoRA(rank=1))
    huge(field, value)(config)
    written(folder, config, weights)
    start = time.monotonic()
    refused(folder)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("width", [10**5, 10**9, 2**20])
@pytest.mark.parametrize("head", [GaussianDiscriminantHead, AdaptedTextHead, CosineHead])
def test_a_width_of_embeddings_that_the_file_has_not(head, width, folder):
    config, weights = read(saved(embedded(head(TextFeatureHead(torch.eye(3, 4)))), folder))
    config["backbone"]["embed_dim"] = width
    for part in ("text", "initial", "zero_shot"):
        if part in config["head"]:
            config["head"][part]["shape"] = [3, width]
    refused(written(folder, config, weights))


def test_parts_in_parts_end(folder):
    config, weights = made(embedded, from_embeddings)
    for _ in range(50):
        config["head"] = {"kind": "CosineHead", "initial": config["head"]}
    refused(written(folder, config, weights), "parts deep")
    told = json.dumps({**config, "head": 0}).replace('"head": 0', '"head": ' + "[" * 50_000 + "]" * 50_000)
    refused(written(folder, told, weights), "nested too deeply|damaged")


def test_a_context_that_does_not_fit_is_refused_before_it_is_made():
    for sharing in ("shared", "per-class"):
        with pytest.raises(ValueError, match="`class_names`.*context"):
            named(LearnedContextHead(context_length=10**12, sharing=sharing))


# Damage


def test_no_flipped_bit_loads_other_weights(folder):
    model = embedded(CosineHead(TextFeatureHead(torch.eye(3, 4))), image_adapter=ResidualAdapter())
    path = saved(model, folder) / "model.safetensors"
    content = path.read_bytes()
    expected, names = model.state_dict(), model.class_names
    generator, messages = random.Random(0), []
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        try:
            loaded = load(folder)
        except ValueError as error:
            messages.append(str(error))
            continue
        assert loaded.class_names == names
        assert loaded.describe() == model.describe()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert all(str(folder) in message for message in messages)
    assert len(messages) > 0.9 * len(content)  # spaces at the end of the header may be others


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 100, 0.5, -1])
def test_a_cut_or_longer_file_is_refused(cut, folder):
    path = saved(embedded(), folder) / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut) if isinstance(cut, float) else cut])
    refused(folder, "another or damaged")
    path.write_bytes(content + b"\0" * 64)
    refused(folder, "another or damaged")


def headed(folder, header, data=b""):
    folder.mkdir(exist_ok=True)
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    return folder


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b"{}",
        b"[]",
        b"null",
        b'{"__metadata__": 3}',
        b'{"__metadata__": {"avalanche_vlm": 3}}',
        b'{"__metadata__": {"avalanche_vlm": "3"}}',
        b'{"__metadata__": {"avalanche_vlm": "{"}}',
        b'{"__metadata__": {"avalanche_vlm": "{}", "avalanche_vlm": "{}"}}',
        {"a": 3},
        {"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 2**64]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}},
        {"a": {"dtype": "F32", "shape": [0, 2**70], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [1] * 1000, "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": "04"}},
        {"a": {"dtype": "F32", "shape": [1]}},
    ],
    ids=lambda header: str(header)[:40],
)
def test_a_header_that_cannot_be_is_refused(header, folder):
    refused(headed(folder, header, b"\0\0\0\0"), "another or damaged")


def test_a_header_beyond_its_bound_is_not_read(folder):
    path = headed(folder, b"{}") / "model.safetensors"
    with path.open("r+b") as file:
        file.write((2**40).to_bytes(8, "little"))
    refused(folder, "is cut")
    with path.open("r+b") as file:
        file.write((2**26).to_bytes(8, "little"))
        file.truncate(2**26 + 100)  # a file with a hole, which takes no room
    refused(folder, "its header takes 67108864 bytes")


def test_tensors_that_overlap_or_leave_gaps_are_refused(folder):
    one = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    refused(headed(folder, {"a": one, "b": one}, b"\0" * 8), "overlap|gap")
    other = {**one, "data_offsets": [5, 9]}
    refused(headed(folder, {"a": one, "b": other}, b"\0" * 9), "overlap|gap")


# What a file says


WRONG = [None, True, -1, 0, 10**12, 10**40, 1.5, -1e308, "x", "", [], {}, [[]], {"kind": "ZeroShotHead"}]


def places(value, at=()):
    yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*at, key))
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*at, index))


def changed(config, at, change):
    config = copy.deepcopy(config)
    if not at:
        return None
    inner = config
    for key in at[:-1]:
        inner = inner[key]
    change(inner, at[-1])
    return config


def mutations(config):
    for at in places(config):
        for value in WRONG:
            yield changed(config, at, lambda inner, key, value=value: inner.__setitem__(key, value))
        yield changed(config, at, lambda inner, key: inner.__delitem__(key))
        yield changed(
            config,
            at,
            lambda inner, key: inner.append(3) if isinstance(inner, list) else inner.update(unknown=3),
        )


MUTATED = {
    "embeddings": lambda: embedded(
        GaussianDiscriminantHead(AdaptedTextHead(TextFeatureHead(torch.eye(3, 4)))),
        image_adapter=ResidualAdapter(),
    ),
    "ridge": lambda: embedded(
        RidgeRegressionHead(
            TextFeatureHead(torch.eye(3, 4)), projection=RandomProjection(5), fusion_weight=TopKRescoring(2)
        )
    ),
    "lora": lambda: named(trainable=LoRA(rank=1)),
    "hybrid": lambda: named(HybridPromptHead(unseen=LinearHead(LearnedContextHead(context_length=1)))),
}


@pytest.mark.parametrize("kind", MUTATED)
def test_a_wrong_field_is_refused_or_makes_a_model_that_runs(kind, folder, asked):
    model = MUTATED[kind]()
    config, weights = read(saved(model, folder))
    generator = random.Random(0)
    every = [config for config in mutations(config) if config is not None]
    of_embeddings = kind in ("embeddings", "ridge")
    x = torch.ones(1, 4) if of_embeddings else torch.ones(1, 128)
    built, messages = 0, []
    for changed_config in every if of_embeddings else generator.sample(every, 40):
        written(folder, changed_config, weights)
        try:
            loaded = load(folder)
        except ValueError as error:
            messages.append(str(error))
            continue
        built += 1
        with torch.no_grad():
            assert loaded(x).shape == (1, len(loaded.class_names))
    assert all(str(folder) in message for message in messages)
    assert built < len(messages) / 3
    assert not asked


def test_a_field_that_is_missing_or_unknown_is_named(folder):
    config, weights = made(embedded)
    for name in config:
        if name != "format":
            lacking = {key: value for key, value in config.items() if key != name}
            refused(written(folder, lacking, weights), f"`{name}` must be there")
    refused(written(folder, {**config, "hook": "os.system"}, weights), "`hook` must be left out")


@pytest.mark.parametrize("other", [1, 3, "2", None, 2.0, True])
def test_another_format_is_refused_by_its_number(other, folder):
    config, weights = made(embedded)
    refused(written(folder, {**config, "format": other}, weights), "`format`.*avalanche-vlm")


# Checksums


def test_the_checksum_covers_weights_names_and_settings(folder):
    config, weights = made(embedded)
    right = saving._checksum(json.dumps(config), weights)
    assert load(written(folder, config, weights, checksum=right))
    for name in weights:
        other = {**weights, name: weights[name].clone()}
        other[name].reshape(-1)[0] = not other[name].reshape(-1)[0]
        refused(written(folder, config, other, checksum=right), "checksum is another")
    names = {**config, "class_names": NAMES[::-1]}
    refused(written(folder, names, weights, checksum=right), "checksum is another")


def test_a_file_of_before_is_read_and_one_that_lost_its_checksum_is_not(folder):
    model = embedded(CosineHead(TextFeatureHead(torch.eye(3, 4))))
    config, weights = read(saved(model, folder))
    refused(written(folder, config, weights, checksum=None), "checksum is missing")
    del config["format"]
    config["version"] = "0.1.0"
    loaded = load(written(folder, config, weights, checksum=None))
    assert torch.equal(loaded.head.weight, model.head.weight)
    assert list(loaded.class_names) == NAMES
    del config["image_adapter"]  # which the first files had not
    assert load(written(folder, config, weights, checksum=None)).head.weight.shape == (3, 4)
    refused(written(folder, config, weights, checksum="0" * 64), "checksum is another")


def test_other_things_told_beside_are_refused(folder):
    config, weights = made(embedded)
    refused(written(folder, config, weights, other="text"), "also says.*other")


# Weights


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_neither_written_nor_read(value, folder):
    model = embedded(CosineHead(TextFeatureHead(torch.eye(3, 4))))
    config, weights = read(saved(model, folder))
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        model.head.weight[1, 2] = value
    with pytest.raises(ValueError, match="`model`.*'head.weight'"):
        model.save_pretrained(str(folder))
    assert (folder / "model.safetensors").read_bytes() == before
    weights["head.weight"][1, 2] = value
    refused(written(folder, config, weights), "'head.weight'")


def test_masks_of_a_backbone_of_another_package_are_no_fault(folder):
    class Masked(TinyBackbone):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))

    model = CLIPClassifier(Masked(), class_names=NAMES)
    loaded = load(saved(model, folder), backbone=Masked())
    assert torch.equal(loaded.backbone.mask, model.backbone.mask)


def test_tensors_of_another_kind_are_refused(folder):
    head = GaussianDiscriminantHead(TextFeatureHead(torch.eye(3, 4)))
    config, weights = read(saved(embedded(head), folder))
    for name, dtype in (
        ("head.fold_counts", torch.float64),
        ("classes_seen", torch.uint8),
        ("head.fold_sums", torch.int64),
    ):
        refused(written(folder, config, {**weights, name: weights[name].to(dtype)}), f"'{name}' is of")
    half = {**weights, "head.zero_shot.features": weights["head.zero_shot.features"].half()}
    assert load(written(folder, config, half)).head.zero_shot.features.dtype == torch.float32


def test_truth_values_are_zero_or_one(folder):
    path = saved(embedded(), folder) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] = 7  # the last tensor is one of truth values
    path.write_bytes(content)
    refused(folder, "truth values")


def test_a_model_that_does_not_load_leaves_a_given_part_as_it_was(folder):
    model = CLIPClassifier(TinyBackbone(seed=1), class_names=NAMES)
    config, weights = read(saved(model, folder))
    weights["backbone.logit_scale_parameter"] = torch.zeros(2)
    written(folder, config, weights)
    backbone = TinyBackbone(seed=2)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    refused(folder, "logit_scale_parameter", backbone=backbone)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_models_of_half_precision_and_shared_tensors_are_saved(folder):
    model = configured().half()
    assert load(saved(model, folder)).state_dict().keys() == model.state_dict().keys()
    tied = embedded(CosineHead(TextFeatureHead(torch.eye(3, 4))))
    tied.head.weight = nn.Parameter(tied.head.weight.detach().T.contiguous().T)
    assert torch.equal(load(saved(tied, folder)).head.weight, tied.head.weight)


# Disks


def test_a_full_disk_names_the_file_and_leaves_the_earlier_model(folder):
    path = saved(embedded(), folder) / "model.safetensors"
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="left as it was") as caught:
            configured().save_pretrained(str(folder))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert path.read_bytes() == before
    assert os.listdir(folder) == ["model.safetensors"]


def test_what_is_in_the_place_of_a_file_is_refused(folder):
    (folder / "model.safetensors").mkdir(parents=True)
    refused(folder, "model.safetensors")
    (folder / "model.safetensors").rmdir()
    os.mkfifo(folder / "model.safetensors")
    refused(folder, "model.safetensors")


def test_a_file_is_one_that_its_library_reads(folder):
    model = configured(HybridPromptHead())
    loaded = load_file(saved(model, folder) / "model.safetensors")
    expected = model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())
    assert SMALL_CLIP_CONFIG["embed_dim"] == 128  # nobody has changed the configuration of the package
