"""A CLIP-like model as an image classifier that an Avalanche strategy can train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from avalanche.models import DynamicModule
from torch import Tensor, nn

from avalanche_vlm._checks import (
    check_type,
    wrong_value,
)
from avalanche_vlm._host import experience_classes
from avalanche_vlm.models.adapters import EmbeddingAdapter
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.fingerprint import fingerprint
from avalanche_vlm.models.heads import TextHead, VisualSpace, adds_names
from avalanche_vlm.models.known_names import check_known_names
from avalanche_vlm.models.lora import LoRA
from avalanche_vlm.models.modes import is_frozen
from avalanche_vlm.models.parts import part_config
from avalanche_vlm.models.prediction import Prediction, predict
from avalanche_vlm.models.trained_towers import (
    Trainable,
    adapt_towers,
    check_trainable,
    set_tower_modes,
    thaw_backbone,
    trainable_config,
)
from avalanche_vlm.models.zero_shot_head import ZeroShotHead
from avalanche_vlm.text import ClassNames


class CLIPClassifier(DynamicModule):
    r"""Classifies images, or embeddings of images, by their cosine with class weights made of text.

    .. math:: z_c = s \cos(f_I(x), w_c) + b

    with the backbone's scale s and bias b and the head's class weights w (a head may compare in another
    way). Logits are finite for all named classes; which of them count is chosen by the criterion and the
    metrics.

    `parameters()` and `named_parameters()` list what *trains*, and only that: the host's
    optimizer update, EWC, SI, MAS and others take every parameter that they are shown, so this is
    what keeps a frozen tower out of them under any strategy that is given this module itself (a
    wrapper such as ``torch.compile`` or ``nn.Sequential`` lists everything). `state_dict()`, `to()`
    and ``model.backbone.parameters()`` cover everything. Classifiers may share a backbone in which
    nothing trains; a head belongs to one.

    Args:
        backbone: the two towers.
        head: how names become class weights; None for `ZeroShotHead` with "a photo of a {}.".
        class_names: the names of all classes, now or later by `set_classes`.
        trainable: what trains apart from the head's own parameters: ``"nothing"``, ``"image"``,
            ``"text"``, ``"both"`` towers, or a `LoRA`.
        train_logit_scale: whether the scale s (and bias b) train too.
        image_adapter: a trainable map that embeddings of images, stored ones too, pass on their way to
            the head, e.g. `ResidualAdapter`; what `encode` returns lies before it. It belongs to one
            classifier.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an unknown ``trainable``, or a tower that the backbone does not have.

    References:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021,
        section 3.1.2.

    Deviations:
        None.

    >>> from avalanche_vlm.models import OpenCLIPBackbone
    >>> backbone = OpenCLIPBackbone("small-clip", pretrained="small-world")
    >>> model = CLIPClassifier(backbone, class_names=["red circle", "blue square"])
    >>> model(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 2])
    """

    classes_seen: Tensor

    def __init__(
        self,
        backbone: VisionLanguageBackbone,
        head: TextHead | None = None,
        *,
        class_names: Sequence[str] | None = None,
        trainable: Trainable | LoRA = "nothing",
        train_logit_scale: bool = False,
        image_adapter: EmbeddingAdapter | None = None,
    ) -> None:
        super().__init__()
        check_type(
            "backbone",
            backbone,
            VisionLanguageBackbone,
            "Wrap a model name: OpenCLIPBackbone('ViT-B-16', pretrained='openai').",
        )
        check_type("head", head, (TextHead, type(None)))
        if not is_frozen(backbone):
            raise wrong_value(
                "backbone",
                "one in which nothing trains yet",
                "one that another classifier trains, or that was unfrozen by hand",
                "Build a new backbone, and say what trains with `trainable`.",
            )
        check_type("train_logit_scale", train_logit_scale, bool)
        check_type("image_adapter", image_adapter, (EmbeddingAdapter, type(None)))
        self.backbone = backbone
        self.head = ZeroShotHead() if head is None else head
        self.trainable: Trainable | LoRA = trainable
        self.train_logit_scale = train_logit_scale
        self.image_adapter = image_adapter
        if image_adapter is not None:
            image_adapter.set_width(backbone.embed_dim, backbone.logit_scale.device)
        check_trainable(trainable)
        adapt_towers(backbone, trainable, train_logit_scale)
        self.backbone.requires_grad_(False)
        thaw_backbone(backbone, trainable, train_logit_scale)
        self.register_buffer("classes_seen", torch.zeros(0, dtype=torch.bool))
        if class_names is not None:
            self.set_classes(class_names)
        self.train(self.training)

    def requires_grad_(self, requires_grad: bool = True) -> CLIPClassifier:
        """Freeze everything, or let exactly that train which the constructor's arguments say."""
        self.backbone.requires_grad_(False)
        for part in (self.head, self.image_adapter):
            if part is not None:
                part.requires_grad_(requires_grad)
        if requires_grad:
            thaw_backbone(self.backbone, self.trainable, self.train_logit_scale)
        return self

    @property
    def class_names(self) -> ClassNames:
        """The names of all classes; an error says how to set them."""
        return self.head.names_or_error()

    def set_classes(self, class_names: Sequence[str]) -> None:
        """Name all classes, by class id.

        There may be more names than the benchmark has classes: all of them compete. Names may be
        added later; those that exist must stay, because class ids and what was learned for them
        belong together.

        Raises:
            TypeError: not a list of text.
            ValueError: duplicates, or names that differ from those set earlier.
        """
        names = class_names if isinstance(class_names, ClassNames) else ClassNames(class_names)
        earlier = self.head.class_names
        if earlier is not None and not adds_names(earlier, names) and bool(self.classes_seen.any()):
            raise wrong_value(
                "class_names",
                f"a list that begins with the {len(earlier)} names set earlier, some of which were trained",
                f"{len(names)} others",
                "Make a new model for another set of classes.",
            )
        self.head.set_classes(names, self.backbone)
        seen = torch.zeros(len(names), dtype=torch.bool, device=self.classes_seen.device)
        kept = min(len(self.classes_seen), len(names))
        seen[:kept] = self.classes_seen[:kept]
        self.classes_seen = seen
        self.head.adapt(seen)

    def adaptation(self, experience: Any) -> None:
        """Record the classes of a training experience as seen; an eval experience changes nothing.

        Raises:
            ValueError: as in `check_experience`.
        """
        classes = self.check_experience(experience)
        if self.training:
            self.classes_seen[classes.to(self.classes_seen.device)] = True
            self.head.adapt(self.classes_seen)

    def check_experience(self, experience: Any) -> Tensor:
        """Return the class ids of an experience (K,), in order, if they mean what the model's ids mean.

        Whatever works on the data of an experience before the host adapts the model to it asks first.

        Raises:
            ValueError: the experience is empty, has labels outside the names, or its data were named (see
                `avalanche_vlm.benchmarks.class_names`) and mean other classes by the same ids.
        """
        classes = experience_classes(experience)
        if classes[0] < 0 or classes[-1] >= len(self.class_names):
            raise wrong_value(
                "experience",
                f"labels in 0..{len(self.class_names) - 1}",
                f"labels from {int(classes[0])} to {int(classes[-1])}",
                "Name all classes of the benchmark with model.set_classes(class_names(benchmark)).",
            )
        check_known_names(experience, self.class_names)
        return classes

    def encode(self, x: Tensor) -> Tensor:
        """Return embeddings (B, D) of images (B, 3, H, W); embeddings (B, D) pass through.

        What has another precision than the model's weights is brought to theirs.

        Raises:
            TypeError: ``x`` is not a float tensor.
            ValueError: ``x`` has neither shape, or another image size or width than the model's.
        """
        images, x = self._are_images(x), self._in_own_precision(x)
        return self.backbone.encode_image(x) if images else x

    def encode_with_raw(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return embeddings (B, D), and the raw visual features (B, D_raw) that they are projected from.

        Embeddings pass through, and come without raw features. Errors are those of `encode`.
        """
        images, x = self._are_images(x), self._in_own_precision(x)
        if not images:
            return x, None
        raw = self.backbone.encode_image_raw(x)
        return self.backbone.project_image(raw), raw

    def _are_images(self, x: Tensor) -> bool:
        """Return whether ``x`` is images or embeddings: the one place that decides it."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"The model takes float images (B, 3, H, W) or embeddings (B, D); got {got}. Give the "
                "benchmark train_transform=model.train_transform and eval_transform=model.eval_transform, or "
                "call model.predict, which preprocesses."
            )
        size = self.backbone.image_size
        if x.ndim == 2 and x.shape[1] == self.backbone.embed_dim:
            return False
        if x.ndim == 4 and (size is None or tuple(x.shape[1:]) == (3, *size)):
            return True
        images = "no images" if size is None else f"images (B, 3, {size[0]}, {size[1]})"
        raise wrong_value(
            "x",
            f"embeddings (B, {self.backbone.embed_dim}) or {images}",
            tuple(x.shape),
            "Preprocess images with model.eval_transform.",
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C) over all named classes for images (B, 3, H, W) or embeddings (B, D)."""
        if not self.head.reads_raw_features:
            return self.logits_from_embeddings(self.encode(x))
        embeddings, raw = self.encode_with_raw(x)
        return self.head.logits_with_raw(self.backbone, self.adapted(embeddings), raw)

    def logits_from_embeddings(self, embeddings: Tensor) -> Tensor:
        """Return logits (B, C) over all named classes for un-normalised embeddings (B, D)."""
        return self.head.logits(self.backbone, self.adapted(embeddings))

    def adapted(self, embeddings: Tensor) -> Tensor:
        """Return embeddings (B, D) as the head sees them, behind the image adapter if there is one."""
        embeddings = self._in_own_precision(embeddings)
        return embeddings if self.image_adapter is None else self.image_adapter(embeddings)

    def _in_own_precision(self, x: Tensor) -> Tensor:
        # Under autocast each operation chooses, between all types but float64.
        free = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
        return x if free else x.to(self.backbone.logit_scale.dtype)

    def visual_features(self, x: Tensor, space: VisualSpace = "embedding") -> Tensor:
        """Return visual features (B, D') of images (B, 3, H, W) or embeddings (B, D).

        Args:
            x: images or embeddings.
            space: ``"embedding"``, un-normalised and as the head sees them, behind the image adapter if
                there is one; ``"raw"``, before the projection into the embedding space.

        Raises:
            TypeError: ``x`` is not a float tensor.
            ValueError: ``x`` has a wrong shape, or raw features of embeddings are asked for.
        """
        if space == "embedding":
            return self.adapted(self.encode(x))
        raw = self.encode_with_raw(x)[1]
        if raw is None:
            raise wrong_value("x", "images, because raw visual features are asked for", "embeddings")
        return raw

    def similarities(self, x: Tensor) -> Tensor:
        r"""Return :math:`s \cos(f_I(x), w_c) + b`, (B, C), whatever else the head takes into its logits.

        Args:
            x: images (B, 3, H, W) or embeddings (B, D).

        Raises:
            RuntimeError: the head makes its class weights of each image, so that there are none to compare.
        """
        text = self.head.text_part
        return text.compare(self.backbone, self.visual_features(x), text(self.backbone))

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate over the parameters that train; see the class documentation."""
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            if parameter.requires_grad:
                yield name, parameter

    def train(self, mode: bool = True) -> CLIPClassifier:
        """Set the mode of what trains; frozen towers stay in eval mode."""
        super().train(mode)
        set_tower_modes(self.backbone, self.trainable, mode)
        self.head.forget_what_trains(self.backbone)
        return self

    @property
    def eval_transform(self) -> Callable[[Any], Tensor]:
        """The backbone's preprocessing without augmentation."""
        return self.backbone.eval_transform

    @property
    def train_transform(self) -> Callable[[Any], Tensor]:
        """The backbone's preprocessing with its training augmentation."""
        return self.backbone.train_transform

    def predict(
        self,
        images: Any,
        *,
        top_k: int = 1,
        space: Literal["all", "seen"] = "all",
        batch_size: int = 64,
    ) -> Prediction:
        """Name images, with probabilities.

        Args:
            images: one picture or a list of them (PIL, uint8 tensors or arrays), which are
                preprocessed; or a float tensor of preprocessed images (B, 3, H, W) or of
                embeddings (B, D).
            top_k: how many classes to return for each image.
            space: ``"all"`` named classes compete, or those ``"seen"`` in training.
            batch_size: how many images go through the tower at once.

        Returns:
            Names (B lists of k), probabilities (B, k) and class ids (B, k), best first.

        Raises:
            ValueError: more classes asked for than there are, or none seen yet; logits that are not finite,
                of images with NaN or of a model with NaN weights, because NaN names no class.
        """
        return predict(self, images, top_k=top_k, space=space, batch_size=batch_size)

    def describe(self) -> dict[str, Any]:
        """Return what tells this model from others, as plain values that fit into JSON.

        The fingerprints are those of the weights *as they are now*: `ResultsLogger` asks before
        anything is trained, so that they name what a run started from. Of a file of weights only
        its name is told, which is the same on every machine.
        """
        backbone = part_config(self.backbone)
        if backbone.get("pretrained") is not None:
            backbone["pretrained"] = Path(backbone["pretrained"]).name
        adapter = self.image_adapter
        return {
            "kind": type(self).__name__,
            "backbone": {**backbone, "fingerprint": fingerprint(self.backbone)},
            "head": {**part_config(self.head), "fingerprint": fingerprint(self.head)},
            "image_adapter": None
            if adapter is None
            else {**part_config(adapter), "fingerprint": fingerprint(adapter)},
            "trainable": trainable_config(self.trainable),
            "train_logit_scale": self.train_logit_scale,
        }

    def save_pretrained(self, path: str) -> None:
        """Write the adapted model to a folder, to be used without any strategy.

        Args:
            path: the folder, made if it does not exist; an earlier model in it is replaced as a whole.

        Raises:
            ValueError: ``path`` is a file or holds other files, or a weight is NaN or infinite.
            OSError: the file could not be written; the error names it, and an earlier model stays.
        """
        from avalanche_vlm.models.saving import save_classifier

        save_classifier(self, path)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        backbone: VisionLanguageBackbone | None = None,
        head: TextHead | None = None,
        image_adapter: EmbeddingAdapter | None = None,
    ) -> CLIPClassifier:
        """Read a model that `save_pretrained` wrote, in eval mode.

        Args:
            path: the folder.
            backbone: needed only if the saved one is not of this package; freshly built.
            head: needed only if the saved one is not of this package; freshly built.
            image_adapter: likewise.

        Raises:
            ValueError: the folder holds no saved model, or one that is damaged, says what cannot be, or has a
                part that must be given; the message says which. The folder may come from anywhere: nothing
                in it is called, and nothing is fetched for it but the tokenizer of a model that open_clip
                knows by name, if it has one of a hub.
        """
        from avalanche_vlm.models.saving import load_classifier

        return load_classifier(cls, path, backbone=backbone, head=head, image_adapter=image_adapter)
