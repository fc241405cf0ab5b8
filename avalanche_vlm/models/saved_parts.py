"""The parts that a file may name: which arguments each takes, and which tensors it then has.

Nothing else is built from what a file says. Both are known before anything is built, so that the tensors can
be compared with those that the file has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.models._fields import (
    Check,
    check_fields,
    choice,
    count,
    flag,
    listed,
    number,
    optional,
    text,
    wrong_field,
)

Shape = tuple[int, ...]
_DEEPEST = 8  # parts in parts in parts; real ones are three deep
_MOST_PARTS = 64
_LONGEST = 4096  # positions of a context
_TOKENS = 77 * 8  # bytes of the tokens of a prompt


class Sizes(NamedTuple):
    """What the sizes of parts depend on.

    Attributes:
        classes: C, how many names there are.
        embed: D, width of embeddings.
        token: W, width of a token.
        raw: width of raw visual features, None where there are none.
        name_length: characters of all names.
    """

    classes: int
    embed: int
    token: int
    raw: int | None
    name_length: int


@dataclass(frozen=True)
class Needs:
    """What building a part takes: tensors by name that are in the file, and bytes beside these."""

    shapes: dict[str, Shape] = field(default_factory=dict[str, Shape])
    beside: int = 0

    def __add__(self, other: Needs) -> Needs:
        """Return both together."""
        return Needs({**self.shapes, **other.shapes}, self.beside + other.beside)


def _named(prefix: str, needs: Needs) -> Needs:
    return Needs({f"{prefix}.{name}": shape for name, shape in needs.shapes.items()}, needs.beside)


def _without_tensors(needs: Needs) -> Needs:
    """Return the needs of a part that is built and whose tensors are not in the file."""
    return Needs(beside=needs.beside + 8 * sum(map(_entries, needs.shapes.values())))


def _entries(shape: Shape) -> int:
    return math.prod(side if side >= 0 else _LONGEST for side in shape)


Own = Callable[[Mapping[str, Any], Sizes], Needs]


@dataclass(frozen=True)
class SavedPart:
    """A kind of part.

    Attributes:
        base: the class in `avalanche_vlm.models` that it is an instance of.
        fields: checks of its own arguments.
        parts: arguments that are parts, by the class that they are an instance of.
        optional: arguments that need not be there.
        own: arguments and sizes -> its tensors, those of its parts aside.
        kept: whether the tensors of its parts are in the file, beside its own.
    """

    base: str
    fields: Mapping[str, Check]
    parts: Mapping[str, str] = field(default_factory=dict[str, str])
    optional: frozenset[str] = frozenset()
    own: Own = lambda config, sizes: Needs()
    kept: bool = True


_AT_ONCE = optional(count(at_most=2**31))
_SEED = count(at_least=0)
_POSITIVE = number(above=0)
_SENTENCES = listed(text(), 1)


def _templates(name: str, value: Any) -> None:
    if isinstance(value, Mapping) and value:
        for dataset, own in value.items():
            _SENTENCES(f"{name}[{str(dataset)[:40]!r}]", own)
        return
    _SENTENCES(name, value)


def _zero_shot(config: Mapping[str, Any], sizes: Sizes) -> Needs:
    """Return the bytes of the prompts of all classes, as text and as tokens."""
    beside = 0
    for key in ("templates", "training_templates"):
        templates = config.get(key) or []
        lists = list(templates.values()) if isinstance(templates, Mapping) else [templates]
        # For each class the longest list at worst.
        letters, most = max(sum(map(len, own)) for own in lists), max(map(len, lists))
        beside += sizes.classes * (letters + most * _TOKENS) + most * sizes.name_length
    return Needs(beside=beside)


def _prompts(config: Mapping[str, Any], sizes: Sizes) -> int:
    return sizes.classes * (len(config["suffix"]) + 2 * _TOKENS) + sizes.name_length


def _hybrid(config: Mapping[str, Any], sizes: Sizes) -> Needs:
    return Needs({"classes_seen": (sizes.classes,)}, _prompts(config, sizes))


def _image_conditioned(config: Mapping[str, Any], sizes: Sizes) -> Needs:
    hidden = max(sizes.embed // config.get("reduction", 16), 1)
    network = {**_layer("network.0", sizes.embed, hidden), **_layer("network.2", hidden, sizes.token)}
    return _hybrid(config, sizes) + Needs(network)


def _layer(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _generated_context(config: Mapping[str, Any], sizes: Sizes) -> Needs:
    shapes: dict[str, Shape] = {}
    for index, outputs in ((0, sizes.embed), (3, sizes.embed), (6, sizes.token)):
        shapes |= _layer(f"network.{index}", sizes.embed, outputs)
        shapes |= {f"network.{index + 1}.weight": (outputs,), f"network.{index + 1}.bias": (outputs,)}
    shapes |= _layer("network.9", sizes.token, sizes.token)
    return Needs(shapes) + _zero_shot({"templates": [config.get("template", "")]}, sizes)


def _rows(config: Mapping[str, Any], sizes: Sizes) -> int:
    return 1 if config.get("sharing", "per-class") == "shared" else sizes.classes


def _learned_vectors(config: Mapping[str, Any], sizes: Sizes) -> Needs:
    return Needs({"vectors": (_rows(config, sizes), config.get("length", 1), sizes.token)})


def _latest_learned_vectors(config: Mapping[str, Any], sizes: Sizes) -> Needs:
    return _learned_vectors(config, sizes) + Needs({"classes_latest": (sizes.classes,)})


def _learned_context(config: Mapping[str, Any], sizes: Sizes) -> Needs:
    rows = 1 if config.get("sharing", "shared") == "shared" else sizes.classes
    length = config.get("context_length")
    # How many tokens words are, the tokenizer says; here it is what the file has.
    return Needs({"context": (rows, -1 if length is None else length, sizes.token)}, _prompts(config, sizes))


def _dual_path(config: Mapping[str, Any], sizes: Sizes) -> Needs:
    width = sizes.embed if config.get("visual_space", "raw") == "embedding" else sizes.raw
    if width is None:
        raise wrong_field("visual_space", "'embedding' for a backbone without raw features", "raw")
    return Needs({"prototypes": (sizes.classes, width), "counts": (sizes.classes,)})


def _gaussian(config: Mapping[str, Any], sizes: Sizes) -> Needs:
    if "mean_prior" not in config:  # written before there were folds
        shapes: dict[str, Shape] = {"counts": (sizes.classes,), "sums": (sizes.classes, sizes.embed)}
        return Needs({**shapes, "second_moment": (sizes.embed, sizes.embed)})
    folds, pairs = config["folds"], 75 if config["folds"] > 1 else 0
    return Needs(
        {
            "fold_counts": (folds, sizes.classes),
            "fold_sums": (folds, sizes.classes, sizes.embed),
            "fold_moments": (folds, sizes.embed, sizes.embed),
            "sketches": (sizes.classes, config["sketch"], sizes.embed),
            "sketch_signs": (sizes.classes, config["sketch"]),
            "left_out_sums": (2, pairs),
            "left_out_products": (pairs, pairs),
            "left_out_weights": (2,),
            "scored_rows": (),
            "text": (sizes.classes, sizes.embed) if config["mean_prior"] == "text" else (0, 0),
        }
    )


def _ridge(config: Mapping[str, Any], sizes: Sizes) -> Needs:
    projection = config["projection"]
    width = sizes.embed if projection is None else projection["width"]
    shapes: dict[str, Shape] = {"class_counts": (sizes.classes,), "sums": (sizes.classes, width)}
    # The projection is drawn from its seed.
    beside = 0 if projection is None else 4 * sizes.embed * width
    return Needs({**shapes, "second_moment": (width, width)}, beside)


def _class_means(config: Mapping[str, Any], sizes: Sizes) -> Needs:
    return Needs({"class_counts": (sizes.classes,), "sums": (sizes.classes, sizes.embed)})


def _projection(name: str, value: Any) -> None:
    """Check the arguments of a `RandomProjection`, or none."""
    if value is not None:
        check_fields(name, value, _PROJECTION)


_RULES: dict[str, dict[str, Check]] = {
    "LogLinearFusion": {"weight": number(at_least=0), "temperature": number(at_least=0)},
    "ProbabilityMixture": {"weight": number(at_least=0, at_most=1)},
    "TopKRescoring": {"k": count(), "weight": number(at_least=0)},
}


def _number_or_rule(name: str, value: Any) -> None:
    """Check a weight: none, a number, or a rule of fusion."""
    if not isinstance(value, Mapping):
        optional(number(at_least=0))(name, value)
        return
    rest = {key: each for key, each in value.items() if key != "kind"}
    fields = _RULES.get(str(value.get("kind")))
    if fields is None:
        raise wrong_field(name, f"a rule of {sorted(_RULES)}", value.get("kind"))
    check_fields(name, rest, fields, required=list(fields))
    return


def _given_number_or_rule(name: str, value: Any) -> None:
    """Check a weight: a number, or a rule of fusion."""
    if value is None:
        raise wrong_field(name, "a number, or a rule of fusion", value)
    _number_or_rule(name, value)


def _text_feature(config: Mapping[str, Any], sizes: Sizes) -> Needs:
    shape = tuple(config["shape"])
    if shape != (sizes.classes, sizes.embed):
        raise wrong_field("shape", f"[{sizes.classes}, {sizes.embed}], classes and width", config["shape"])
    return Needs({"features": shape})


def _adapter(config: Mapping[str, Any], sizes: Sizes) -> Needs:
    hidden = max(sizes.embed // config.get("reduction", 4), 1)
    shapes = {"bottleneck.0.weight": (hidden, sizes.embed), "bottleneck.2.weight": (sizes.embed, hidden)}
    return Needs(shapes)


def _from_text(bias: bool) -> Own:
    def own(config: Mapping[str, Any], sizes: Sizes) -> Needs:
        shapes: dict[str, Shape] = {"weight": (sizes.classes, sizes.embed)}
        return Needs({**shapes, "bias": (sizes.classes,)} if bias else shapes)

    return own


_PROJECTION: dict[str, Check] = {
    "width": count(at_most=2**16),
    "seed": _SEED,
    "activation": choice("relu", "cosine"),
    "bandwidth": _POSITIVE,
}
_ZERO_SHOT: dict[str, Check] = {"templates": _templates, "training_templates": optional(_templates)}
_PROMPT: dict[str, Check] = {"suffix": text(1000), "classes_at_once": _AT_ONCE}
_HYBRID_PARTS = {"context": "PromptContext", "unseen": "TextHead"}
_VECTORS: dict[str, Check] = {"length": count(at_most=2**16), "seed": _SEED}
_SHARING = choice("per-class", "shared")
_TRAINING_TEMPLATES = frozenset({"training_templates"})
_CHOSEN = {
    "targets": ("query", "key", "value", "output", "mlp_in", "mlp_out"),
    "towers": ("image", "text"),
    "factors": ("A", "B"),
}


def _backbone(name: str, config: Mapping[str, Any]) -> None:
    from avalanche_vlm.models.open_clip_loading import check_saved_backbone

    check_saved_backbone(config, name)


SAVED_PARTS: dict[str, SavedPart] = {
    "OpenCLIPBackbone": SavedPart("VisionLanguageBackbone", {}),
    "EmbeddingBackbone": SavedPart(
        "VisionLanguageBackbone",
        {"embed_dim": count(at_most=2**20), "logit_scale": _POSITIVE},
        own=lambda config, sizes: Needs({"_scale": ()}),
    ),
    "ZeroShotHead": SavedPart("TextHead", _ZERO_SHOT, optional=_TRAINING_TEMPLATES, own=_zero_shot),
    "UnnormalisedZeroShotHead": SavedPart(
        "TextHead", _ZERO_SHOT, optional=_TRAINING_TEMPLATES, own=_zero_shot
    ),
    "TextFeatureHead": SavedPart(
        "TextHead", {"shape": listed(count(at_most=2**40), 2, 2)}, own=_text_feature
    ),
    "CosineHead": SavedPart("TextHead", {}, {"initial": "TextHead"}, own=_from_text(False), kept=False),
    "LinearHead": SavedPart("TextHead", {}, {"initial": "TextHead"}, own=_from_text(True), kept=False),
    "LearnedContextHead": SavedPart(
        "TextHead",
        {
            **_PROMPT,
            "context_length": optional(count(at_most=2**16)),
            "initial_context": optional(text()),
            "sharing": _SHARING,
            "seed": _SEED,
        },
        own=_learned_context,
    ),
    "HybridPromptHead": SavedPart("TextHead", _PROMPT, _HYBRID_PARTS, own=_hybrid),
    "ImageConditionedPromptHead": SavedPart(
        "TextHead",
        {
            "suffix": _PROMPT["suffix"],
            "reduction": count(),
            "prompts_at_once": count(at_most=2**31),
            "seed": _SEED,
        },
        _HYBRID_PARTS,
        own=_image_conditioned,
    ),
    "AdaptedTextHead": SavedPart("TextHead", {}, {"text": "TextHead", "adapter": "EmbeddingAdapter"}),
    "DualPathHead": SavedPart(
        "TextHead",
        {"fusion_weight": _number_or_rule, "visual_space": choice("raw", "embedding")},
        {"text": "TextHead"},
        own=_dual_path,
    ),
    "GaussianDiscriminantHead": SavedPart(
        "TextHead",
        {
            "fusion_weight": _number_or_rule,
            "mean_prior": choice("text", "classes", "none"),
            "ridge": _POSITIVE,
            "prior": choice("uniform", "counts"),
            "sketch": count(at_least=0, at_most=16),
            "sketch_share": number(above=0, at_most=1),
            "folds": choice(1, 4),
        },
        {"zero_shot": "TextHead"},
        frozenset({"mean_prior", "sketch", "sketch_share", "folds"}),
        own=_gaussian,
    ),
    "RidgeRegressionHead": SavedPart(
        "TextHead",
        {
            "projection": _projection,
            "ridge": number(at_least=1e-9),
            "scale": _POSITIVE,
            "fusion_weight": _given_number_or_rule,
        },
        {"zero_shot": "TextHead"},
        own=_ridge,
    ),
    "NearestClassMeanHead": SavedPart(
        "TextHead",
        {"normalise_first": flag, "fusion_weight": _given_number_or_rule},
        {"zero_shot": "TextHead"},
        own=_class_means,
    ),
    "LearnedVectors": SavedPart("PromptContext", {**_VECTORS, "sharing": _SHARING}, own=_learned_vectors),
    "LatestLearnedVectors": SavedPart("PromptContext", _VECTORS, own=_latest_learned_vectors),
    "GeneratedContext": SavedPart(
        "PromptContext", {"template": text(), "seed": _SEED}, own=_generated_context
    ),
    "ResidualAdapter": SavedPart(
        "EmbeddingAdapter", {"reduction": count(), "ratio": _POSITIVE, "seed": _SEED}, own=_adapter
    ),
    "LoRA": SavedPart(
        "LoRA",
        {
            "rank": count(at_most=2**20),
            "alpha": optional(_POSITIVE),
            "dropout": number(at_least=0, at_most=1),
            "seed": _SEED,
            **{name: listed(choice(*known), 1, len(known)) for name, known in _CHOSEN.items()},
        },
    ),
}
"""The parts that a file may name, by the name of their class in `avalanche_vlm.models`."""


def check_part(config: Any, base: str, name: str, argument: str, depth: int = 1) -> None:
    """Check the description of a part, and those of the parts in it.

    Args:
        config: what the file says.
        base: name of the class that the part must be an instance of.
        name: where it stands, for errors.
        argument: with which a part of another package can be given instead.
        depth: of the part in others.

    Raises:
        ValueError: an unknown kind, a field that is unknown, missing or out of its bounds.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("kind"), str):
        raise wrong_field(name, "an object with a text 'kind'", config)
    kind = SAVED_PARTS.get(config["kind"])
    if kind is None or kind.base != base:
        what = "because the saved one is not part of this package"
        raise wrong_value(argument, f"given, {what}", f"{config['kind'][:200]!r} as {name!r}")
    if depth > _DEEPEST:
        raise wrong_value(name, f"at most {_DEEPEST} parts deep", "more of them in each other")
    rest = {key: value for key, value in config.items() if key != "kind"}
    if config["kind"] == "OpenCLIPBackbone":
        return _backbone(name, rest)
    parts: dict[str, Check] = {key: lambda name, value: None for key in kind.parts}
    known = {**kind.fields, **parts}
    check_fields(name, rest, known, required=[key for key in known if key not in kind.optional])
    for key, inner in kind.parts.items():
        for place, each in _listed_parts(f"{name}.{key}", config[key]):
            check_part(each, inner, place, argument, depth + 1)
    return None


def _listed_parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return the descriptions of an argument that is a part, or of parts in a list, with their places."""
    if not isinstance(value, list):
        return [(name, value)]
    listed(lambda name, value: None, 1, _MOST_PARTS)(name, value)
    return [(f"{name}.{index}", each) for index, each in enumerate(value)]


def part_needs(config: Mapping[str, Any], sizes: Sizes) -> Needs:
    """Return the tensors of a part whose description was checked, without those of an `OpenCLIPBackbone`.

    A side that only the tokenizer knows is -1.
    """
    kind = SAVED_PARTS[config["kind"]]
    needs = kind.own(config, sizes)
    for key in kind.parts:
        for place, each in _listed_parts(key, config[key]):
            inner = _named(place, part_needs(each, sizes))
            needs += inner if kind.kept else _without_tensors(inner)
    return needs
