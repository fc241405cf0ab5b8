"""Text heads: class weights made of text."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from typing import Any, Literal, NamedTuple

import torch
from avalanche.models import DynamicModule
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.text import ClassNames, PromptTemplate

VisualSpace = Literal["raw", "embedding"]  # before the projection into the embedding space, or behind it
TEXTS_AT_ONCE = 256  # bounds the memory of encoding without gradient


class KeptBytes(NamedTuple):
    """Bytes that a head keeps of the data that it has seen.

    Attributes:
        by_class: what belongs to the classes that have rows, and grows with their number.
        shared: what belongs to all classes together.
    """

    by_class: int = 0
    shared: int = 0


class TextHead(DynamicModule, ABC):
    """Class weights (C, D) in the embedding space, by class id.

    A subclass says how names become weights (`encode`); this class keeps the result until
    something that it depends on changes: a parameter or buffer of the head or of the text tower
    (an edit in place, loaded weights, another device), the names, or automatic mixed precision.
    While something of it trains, weights are encoded anew at every call in training mode. A head whose
    weights differ between training mode and eval mode keeps those of each.

    A change that PyTorch does not count, made through ``parameter.data`` or by switching an adapter
    off, is noticed at the classifier's next ``train()`` or ``eval()`` if the parameter is one that
    trains; after such a change of a frozen one call `forget`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.class_names: ClassNames | None = None
        self._kept: dict[tuple[bool, ...], tuple[list[Any], Tensor]] = {}
        self._resting: tuple[Tensor, Tensor] | None = None
        self._step: _StepWeights | None = None

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone) -> None:
        """Take the names of all classes; called by the classifier, again if names are added."""
        self.class_names = class_names
        self._kept = {}

    @abstractmethod
    def encode(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Map class ids (K,) to class weights (K, D), with a gradient to whatever trains."""

    def forward(self, backbone: VisionLanguageBackbone, class_ids: Tensor | None = None) -> Tensor:
        """Return the weights (C, D) of all named classes, or those (K, D) of the classes given."""
        ids = torch.arange(len(self.names_or_error()))
        tensors = self._depends_on(backbone)
        trains = any(t.requires_grad for t in tensors)
        device = backbone.logit_scale.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        if trains and torch.is_grad_enabled():
            self._kept = {}  # a step may follow, and fused optimizers do not count theirs
            if class_ids is not None:
                shared = None if self._step is None else self._step.rows(class_ids, tensors)
                return self.encode(backbone, class_ids) if shared is None else shared
            live, weights = None, None
            if self._resting is not None:
                live, others = self._resting
                encoded = self.encode(backbone, live)
                if precision is None:
                    others = others.to(encoded.dtype)
                weights = others.index_copy(0, live, encoded.to(others.dtype))
            weights = self.encode(backbone, ids) if weights is None else weights
            if self._step is not None:
                self._step.note(weights, live, tensors)
            return weights
        state = [precision, *((t.data_ptr(), t._version, t.dtype) for t in tensors)]
        modes = tuple(head.training for head in self._heads() if head.depends_on_mode)
        kept_for, kept = self._kept.get(modes, (None, None))
        if kept is None or kept_for != state or (trains and self.training):
            # What is kept may meet a gradient later, which tensors of inference mode cannot.
            with torch.inference_mode(False), torch.no_grad():
                kept = torch.cat([self.encode(backbone, part) for part in ids.split(TEXTS_AT_ONCE)])
            self._kept[modes] = state, kept
        return kept if class_ids is None else kept[class_ids.to(kept.device)]

    @contextlib.contextmanager
    def encoding_only(self, class_ids: Tensor, others: Tensor) -> Generator[None]:
        """Let only some classes be encoded with a gradient for a while; the others have weights of before.

        Args:
            class_ids: int64 (K,), those to encode.
            others: weights (C, D) of all classes, without a gradient.
        """
        self._resting = class_ids, others
        try:
            yield
        finally:
            self._resting = None

    @contextlib.contextmanager
    def encoding_once(self) -> Generator[None]:
        """Let the weights of the first forward pass inside serve all who ask for rows of them afterwards.

        Between a forward pass and its backward pass several terms of a loss may ask ``head(backbone,
        class_ids)``: they get rows of the same weights, with their graph, as long as nothing that these
        depend on has changed.
        """
        self._step = _StepWeights()
        try:
            yield
        finally:
            self._step = None

    @property
    def text_part(self) -> TextHead:
        """The head whose class weights images are compared with: this one, or one inside that it fuses."""
        return self

    @property
    def reads_raw_features(self) -> bool:
        """Whether logits depend on the raw visual features too, so that `logits_with_raw` wants them."""
        return False

    @property
    def compares_by_cosine(self) -> bool:
        """Whether logits are the scaled cosines with this head's class weights, and nothing else.

        Then logits of some classes are those that `compare` makes of their weights alone. A subclass with
        `logits` or `compare` of its own is taken to do something else unless it overrides this.
        """
        return type(self).logits is TextHead.logits and type(self).compare is TextHead.compare

    @property
    def depends_on_mode(self) -> bool:
        """Whether the weights are others in training mode, those of heads inside this one aside."""
        return False

    @property
    def has_class_weights(self) -> bool:
        """Whether classes have weights apart from any image, so that `encode` returns some."""
        return True

    @property
    def kept_bytes(self) -> KeptBytes:
        """How many bytes this head and those inside it keep of data: sums, means, prototypes.

        Weights that train are the model's and do not count, nor do text features, which are made of names,
        and what can be computed again from what is kept.
        """
        own = [head.own_kept_bytes() for head in self._heads()]
        return KeptBytes(sum(each.by_class for each in own), sum(each.shared for each in own))

    def own_kept_bytes(self) -> KeptBytes:
        """Return `kept_bytes`, those of heads inside this one aside; most heads keep nothing of data."""
        return KeptBytes()

    def _depends_on(self, backbone: VisionLanguageBackbone) -> list[Tensor]:
        tensors = [*self.parameters(), *self.buffers()]
        if backbone.text_tower is not None:
            tensors += [*backbone.text_tower.parameters(), *backbone.text_tower.buffers()]
        return tensors

    def logits(self, backbone: VisionLanguageBackbone, embeddings: Tensor) -> Tensor:
        r"""Map un-normalised embeddings (B, D) to finite logits (B, C) over all named classes.

        .. math:: z_c = s \cos(x, w_c) + b

        with the backbone's scale s and bias b; a head that compares otherwise says how.
        """
        return self.compare(backbone, embeddings, self(backbone))

    def logits_with_raw(
        self, backbone: VisionLanguageBackbone, embeddings: Tensor, raw: Tensor | None
    ) -> Tensor:
        """Return `logits` where raw visual features (B, D_raw) are at hand; None where they are not."""
        return self.logits(backbone, embeddings)

    def visual_features(self, embeddings: Tensor, raw: Tensor | None) -> Tensor:
        """Return the features (B, D') of images that `visual_prototypes` are compared with.

        Args:
            embeddings: un-normalised (B, D), behind the image adapter if there is one.
            raw: raw visual features (B, D_raw), needed where `reads_raw_features`; None without such.
        """
        return embeddings

    def visual_prototypes(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return visual prototypes of classes, and which of them there are; most heads keep none.

        Args:
            backbone: of the model.
            class_ids: int64 (K,).

        Returns:
            Prototypes (K, D'), zeros for classes without one, and bool (K,), which classes have one.
        """
        none = torch.zeros(len(class_ids), backbone.embed_dim, device=class_ids.device)
        return none, torch.zeros(len(class_ids), dtype=torch.bool, device=class_ids.device)

    def frozen_text(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Return the text features (K, D) of classes before an adapter of text, if the head has one."""
        return self(backbone, class_ids)

    def adapted_text(self, features: Tensor) -> Tensor:
        """Return text features (K, D) behind the head's adapter of text; as they are if it has none."""
        return features

    def templates_of(self, dataset: str) -> tuple[PromptTemplate, ...]:
        """Return the templates of the classes of a data set; none where the head has no sentences."""
        return ()

    def compare(self, backbone: VisionLanguageBackbone, embeddings: Tensor, weights: Tensor) -> Tensor:
        """Return the logits (B, C) of un-normalised embeddings (B, D) for weights (C, D) of this head."""
        return scaled_products(backbone, embeddings, F.normalize(weights, dim=-1))

    def adapt(self, classes_seen: Tensor) -> None:
        """Take note of the classes (C,), bool, that training has met so far; most heads need not know.

        Called by the classifier when the classes are named, and when an experience is trained on before
        its first batch.
        """

    def names_or_error(self) -> ClassNames:
        """Return the names of all classes; the error says how to set them."""
        if self.class_names is None:
            raise RuntimeError(
                "The classes have no names yet. Call model.set_classes(class_names(benchmark)) before using "
                "the model."
            )
        return self.class_names

    def forget(self) -> None:
        """Drop the kept weights, those of heads inside this one too."""
        for head in self._heads():
            head._kept = {}

    def forget_what_trains(self, backbone: VisionLanguageBackbone) -> None:
        """Drop kept weights that depend on something that trains, and so may have been edited unseen."""
        for head in self._heads():
            if any(tensor.requires_grad for tensor in head._depends_on(backbone)):
                head._kept = {}

    def _heads(self) -> list[TextHead]:
        return [module for module in self.modules() if isinstance(module, TextHead)]

    def __getstate__(self) -> dict[str, Any]:
        # Kept weights are cheap to make and keyed by memory addresses: no copy or pickle has them.
        return {**self.__dict__, "_kept": {}, "_resting": None, "_step": None}

    def state_of_now(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the state that a saved model has, by the names and shapes of now."""
        return state

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return JSON-serialisable constructor arguments."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuild the head from what `config` returned; a state dict replaces its weights."""
        return cls(**config)


class _StepWeights:
    """The class weights of the first forward pass of a step, for whoever asks for rows of them."""

    def __init__(self) -> None:
        self._weights: Tensor | None = None
        self._live: Tensor | None = None
        self._versions: list[int] = []

    def note(self, weights: Tensor, live: Tensor | None, depends_on: list[Tensor]) -> None:
        """Keep the weights (C, D) of a forward pass, of which the classes ``live`` have a gradient."""
        if self._weights is None:  # the graph of a later pass may be gone when somebody asks
            self._weights, self._live = weights, live
            self._versions = [tensor._version for tensor in depends_on]

    def rows(self, class_ids: Tensor, depends_on: list[Tensor]) -> Tensor | None:
        """Return the rows of some classes; None where they are not there, or out of date."""
        if self._weights is None or self._versions != [tensor._version for tensor in depends_on]:
            return None
        class_ids = class_ids.to(self._weights.device)
        if self._live is not None and not torch.isin(class_ids, self._live).all():
            return None
        return self._weights.index_select(0, class_ids)


def scaled_products(backbone: VisionLanguageBackbone, embeddings: Tensor, weights: Tensor) -> Tensor:
    r"""Return :math:`s \langle f / \lVert f \rVert, w_c \rangle + b` for weights (C, D) as they are."""
    products = F.normalize(embeddings, dim=-1) @ weights.T
    return backbone.logit_scale * products + backbone.logit_bias


def adds_names(earlier: ClassNames | None, names: ClassNames) -> bool:
    """Return whether ``names`` are the earlier ones, possibly with more after them."""
    return earlier is not None and names.names[: len(earlier)] == earlier.names


def bytes_of_classes(buffers: Iterable[Tensor], counts: Tensor) -> int:
    """Return the bytes of buffers that have an axis of classes, for the classes that have rows.

    Args:
        buffers: an axis of each is C.
        counts: (C,), number of rows of each class.
    """
    total = sum(buffer.nbytes for buffer in buffers)
    return total // max(len(counts), 1) * int((counts > 0).sum())


def with_rows_kept(parameter: nn.Parameter | None, initial: Tensor, keep: bool) -> nn.Parameter:
    """Return ``initial`` (C, ...) as a parameter whose first rows are those learned so far.

    The same parameter if no row comes new; a fresh start unless ``keep``, because the rows belong
    to other names then.
    """
    if parameter is None or not keep:
        return nn.Parameter(initial)
    if len(parameter) == len(initial):
        return parameter
    return nn.Parameter(torch.cat([parameter.detach(), initial[len(parameter) :].to(parameter)]))


def check_distinct(tokens: Tensor, class_names: ClassNames) -> None:
    """Refuse two classes of one data set that the tokenizer cannot tell apart."""
    # Classes of different data sets may share a name: the label space "dataset" keeps them apart.
    numbers = {dataset: number for number, dataset in enumerate(dict.fromkeys(class_names.datasets))}
    datasets = [numbers[dataset] for dataset in class_names.datasets] or [0] * len(class_names)
    marked = torch.cat([tokens, tokens.new_tensor(datasets)[:, None]], dim=1)
    unique, index = marked.unique(dim=0, return_inverse=True)
    if len(unique) < len(tokens):
        duplicate = int(index.bincount().argmax())
        first, second = (index == duplicate).nonzero().flatten()[:2].tolist()
        raise wrong_value(
            "class_names",
            "names that the model's tokenizer can tell apart",
            f"{class_names[first]!r} and {class_names[second]!r}, which give the same tokens",
            "Reword one of them; a name that is cut at the context length loses its end.",
        )
