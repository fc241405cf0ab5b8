"""Text heads: class weights made of text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from avalanche.models import DynamicModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from avalanche_vlm._checks import close_names, wrong_value
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.text import DEFAULT_TEMPLATE, ClassNames, PromptTemplate, as_templates

_TEXTS_AT_ONCE = 256  # bounds the memory of encoding without gradient

Templates = str | PromptTemplate | Iterable[str | PromptTemplate]


class TextHead(DynamicModule, ABC):
    """Class weights (C, D) in the embedding space, by class id.

    A subclass says how names become weights (`encode`); this class keeps the result until
    something that it depends on changes: a parameter or buffer of the head or of the text tower
    (an edit in place, loaded weights, another device), the names, or automatic mixed precision.
    While something of it trains, weights are encoded anew at every call in training mode.

    A change that PyTorch does not count, made through ``parameter.data`` or by switching an adapter
    off, is noticed at the classifier's next ``train()`` or ``eval()`` if the parameter is one that
    trains; after such a change of a frozen one call `forget`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.class_names: ClassNames | None = None
        self._kept: Tensor | None = None
        self._kept_for: Any = None

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone) -> None:
        """Take the names of all classes; called by the classifier, again if names are added."""
        self.class_names = class_names
        self._kept = None

    @abstractmethod
    def encode(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Map class ids (K,) to class weights (K, D), with a gradient to whatever trains."""

    def forward(self, backbone: VisionLanguageBackbone) -> Tensor:
        """Return the weights (C, D) of all named classes."""
        ids = torch.arange(len(self.names_or_error()))
        tensors = [*self.parameters(), *self.buffers()]
        if backbone.text_tower is not None:
            tensors += [*backbone.text_tower.parameters(), *backbone.text_tower.buffers()]
        trains = any(t.requires_grad for t in tensors)
        if trains and torch.is_grad_enabled():
            self._kept = None  # a step may follow, and fused optimizers do not count theirs
            return self.encode(backbone, ids)
        device = backbone.logit_scale.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        state = [precision, *((t.data_ptr(), t._version) for t in tensors)]
        if self._kept is None or self._kept_for != state or (trains and self.training):
            with torch.no_grad():
                self._kept = torch.cat([self.encode(backbone, part) for part in ids.split(_TEXTS_AT_ONCE)])
            self._kept_for = state
        return self._kept

    def logits(self, backbone: VisionLanguageBackbone, embeddings: Tensor) -> Tensor:
        r"""Map un-normalised embeddings (B, D) to finite logits (B, C) over all named classes.

        .. math:: z_c = s \cos(x, w_c) + b

        with the backbone's scale s and bias b; a head that compares otherwise says how.
        """
        weights = F.normalize(self(backbone), dim=-1)
        cosine = F.normalize(embeddings, dim=-1) @ weights.T
        return backbone.logit_scale * cosine + backbone.logit_bias

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
        """Drop the kept weights; called where something trainable may have been edited unseen."""
        self._kept = None

    def __getstate__(self) -> dict[str, Any]:
        # Kept weights are cheap to make and keyed by memory addresses: no copy or pickle has them.
        return {**self.__dict__, "_kept": None, "_kept_for": None}

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return JSON-serialisable constructor arguments."""


class ZeroShotHead(TextHead):
    r"""Class weights from a template ensemble, without training.

    .. math:: w_c = \frac1{M_c} \sum_{m=1}^{M_c} \frac{f_T(t_m(c))}{\lVert f_T(t_m(c)) \rVert}

    Args:
        templates: one sentence or several, each with one ``{}`` for the class name; or, for streams
            over several data sets, a mapping from the name of each data set, as in
            ``class_names.datasets``, to its own. Data sets may have differently many.

    Raises:
        ValueError: no template, or one without or with two fields; when the names are set, a data
            set without templates, or templates by data set for names that belong to none.

    References:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021,
        section 3.1.4.

    Deviations:
        None.

    >>> ZeroShotHead(["a photo of a {}.", "a drawing of a {}."]).templates[1]("cat")
    'a drawing of a cat.'
    >>> head = ZeroShotHead({"pets": "a photo of a {}, a type of pet.", "digits": ["the digit {}", "a {}"]})
    >>> [template.text for template in head.templates_of("digits")]
    ['the digit {}', 'a {}']
    """

    templates: tuple[PromptTemplate, ...] | dict[str, tuple[PromptTemplate, ...]]
    _tokens: Tensor

    def __init__(self, templates: Templates | Mapping[str, Templates] = DEFAULT_TEMPLATE) -> None:
        super().__init__()
        if isinstance(templates, Mapping):
            by_dataset = cast("Mapping[str, Templates]", templates)
            self.templates = {dataset: as_templates(own) for dataset, own in by_dataset.items()}
            if not self.templates:
                raise wrong_value("templates", "templates of at least one data set", "an empty mapping")
        else:
            self.templates = as_templates(templates)
        self._prompt_counts: list[int] = []
        self.register_buffer("_tokens", torch.empty(0, dtype=torch.long), persistent=False)

    def templates_of(self, dataset: str) -> tuple[PromptTemplate, ...]:
        """Return the templates of the classes of a data set."""
        return self.templates[dataset] if isinstance(self.templates, dict) else self.templates

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone) -> None:
        """Tokenise every template of every class.

        Two classes of one data set that tokenise alike are refused.
        """
        self._check_datasets(class_names)
        super().set_classes(class_names, backbone)
        datasets = class_names.datasets or [""] * len(class_names)
        own = [self.templates_of(dataset) for dataset in datasets]
        prompts = [template(name) for name, given in zip(class_names, own, strict=True) for template in given]
        tokens = backbone.tokenize(prompts)
        counts = [len(given) for given in own]
        check_distinct(torch.stack([part[0] for part in tokens.split(counts)]), class_names)
        self._tokens, self._prompt_counts = tokens, counts

    def _check_datasets(self, class_names: ClassNames) -> None:
        if not isinstance(self.templates, dict):
            return
        if not class_names.datasets:
            raise wrong_value(
                "class_names",
                "names that belong to data sets (`class_names.datasets`), because the templates do",
                "names without data sets",
                "Give ZeroShotHead one list of templates, or ClassNames the data set of each class.",
            )
        for dataset in class_names.datasets:
            if dataset not in self.templates:
                raise wrong_value(
                    "templates",
                    "a mapping with templates for every data set of the class names",
                    f"none for {dataset!r}",
                    close_names(dataset, self.templates),
                )

    def encode(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Return the mean (K, D) of the normalised features of all templates of each class."""
        prompts = self._tokens.split(self._prompt_counts)
        ids = class_ids.tolist()
        tokens = torch.cat([prompts[index] for index in ids])
        features = torch.cat([backbone.encode_text(part) for part in tokens.split(_TEXTS_AT_ONCE)])
        counts = [self._prompt_counts[index] for index in ids]
        # Data sets with fewer templates than others are filled up with zeros, which add nothing.
        by_class = pad_sequence(list(F.normalize(features, dim=-1).split(counts)), batch_first=True)
        return by_class.sum(dim=1) / by_class.new_tensor(counts)[:, None]

    def config(self) -> dict[str, Any]:
        """Return the templates."""
        if isinstance(self.templates, dict):
            return {"templates": {name: [t.text for t in own] for name, own in self.templates.items()}}
        return {"templates": [template.text for template in self.templates]}


def adds_names(earlier: ClassNames | None, names: ClassNames) -> bool:
    """Return whether ``names`` are the earlier ones, possibly with more after them."""
    return earlier is not None and names.names[: len(earlier)] == earlier.names


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
