"""Text heads: class weights made of text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Literal

import torch
from avalanche.models import DynamicModule
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_vlm._checks import check_choice, check_count, wrong_type, wrong_value
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.text import DEFAULT_TEMPLATE, ClassNames, PromptTemplate, as_templates

_TEXTS_AT_ONCE = 256  # bounds the memory of encoding without gradient


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

    .. math:: w_c = \frac1M \sum_{m=1}^M \frac{f_T(t_m(c))}{\lVert f_T(t_m(c)) \rVert}

    Args:
        templates: one sentence or several, each with one ``{}`` for the class name.

    Raises:
        ValueError: no template, or one without or with two fields.

    References:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021,
        section 3.1.4.

    Deviations:
        None.

    >>> ZeroShotHead(["a photo of a {}.", "a drawing of a {}."]).templates[1]("cat")
    'a drawing of a cat.'
    """

    _tokens: Tensor

    def __init__(
        self, templates: str | PromptTemplate | Iterable[str | PromptTemplate] = DEFAULT_TEMPLATE
    ) -> None:
        super().__init__()
        self.templates = as_templates(templates)
        self.register_buffer("_tokens", torch.empty(0, dtype=torch.long), persistent=False)

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone) -> None:
        """Tokenise every template of every class; two classes that tokenise alike are refused."""
        super().set_classes(class_names, backbone)
        prompts = [template(name) for name in class_names for template in self.templates]
        tokens = backbone.tokenize(prompts)
        _check_distinct(tokens[:: len(self.templates)], class_names)
        self._tokens = tokens.unflatten(0, (len(class_names), len(self.templates)))

    def encode(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Return the mean (K, D) of the normalised features of all templates of each class."""
        tokens = self._tokens[class_ids.to(self._tokens.device)].flatten(0, 1)
        features = torch.cat([backbone.encode_text(part) for part in tokens.split(_TEXTS_AT_ONCE)])
        return F.normalize(features, dim=-1).unflatten(0, (len(class_ids), -1)).mean(dim=1)

    def config(self) -> dict[str, Any]:
        """Return the templates."""
        return {"templates": [template.text for template in self.templates]}


class LearnedContextHead(TextHead):
    r"""Prompts whose context is learned: ``[v_1] ... [v_n] name.`` (CoOp).

    Args:
        context_length: n; with ``initial_context`` it must be left out.
        initial_context: words whose token embeddings start the context (``"a photo of a"``); None
            starts at N(0, 0.02²).
        sharing: ``"shared"``, one context for all classes, or ``"per-class"``.
        suffix: what follows the name.
        seed: of the random start.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: both or neither of ``context_length`` and ``initial_context``, an unknown
            ``sharing``, or a name too long for the model's context.

    References:
        Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022, equations 3 and 4.

    Deviations:
        Names stand at the end of the prompt only.

    >>> LearnedContextHead(context_length=4).sharing
    'shared'
    """

    _tokens: Tensor

    def __init__(
        self,
        *,
        context_length: int | None = None,
        initial_context: str | None = None,
        sharing: Literal["shared", "per-class"] = "shared",
        suffix: str = ".",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if (context_length is None) == (initial_context is None):
            raise wrong_value(
                "context_length",
                "given, unless initial_context is",
                f"context_length={context_length} with initial_context={initial_context!r}",
            )
        if context_length is not None:
            check_count("context_length", context_length)
        if initial_context is not None and (
            not isinstance(initial_context, str) or not initial_context.strip()
        ):
            raise wrong_type("initial_context", "words such as 'a photo of a'", initial_context)
        if not isinstance(suffix, str):
            raise wrong_type("suffix", "text", suffix)
        check_choice("sharing", sharing, ("shared", "per-class"))
        check_count("seed", seed, at_least=0)
        self.context_length = context_length
        self.initial_context = initial_context
        self.sharing = sharing
        self.suffix = suffix
        self.seed = seed
        self.context: nn.Parameter | None = None
        self.register_buffer("_tokens", torch.empty(0, dtype=torch.long), persistent=False)

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone) -> None:
        """Make the contexts (1 or C, n, W); contexts of earlier classes are kept when names are added."""
        initial = self._initial_context(len(class_names), backbone)
        tokens = self._prompt_tokens(class_names, backbone, initial.shape[1])
        # All contexts exist before the caller makes an optimizer of model.parameters().
        keep = self.sharing == "shared" or adds_names(self.class_names, class_names)
        self.context = with_rows_kept(self.context, initial, keep)
        super().set_classes(class_names, backbone)
        self._tokens = tokens

    def _initial_context(self, class_count: int, backbone: VisionLanguageBackbone) -> Tensor:
        contexts = 1 if self.sharing == "shared" else class_count
        if self.initial_context is None:
            generator = torch.Generator().manual_seed(self.seed)
            shape = (contexts, self.context_length or 0, backbone.token_dim)
            return (torch.randn(shape, generator=generator) * 0.02).to(_device(backbone))
        # The words' tokens are those in which the two texts agree before the second one ends.
        alone, followed = backbone.tokenize([self.initial_context, f"{self.initial_context} x"])
        length = int((alone == followed).int().cumprod(0).sum())
        words = alone[backbone.start_length : length]
        return backbone.embed_tokens(words[None]).detach().float().expand(contexts, -1, -1).clone()

    def _prompt_tokens(
        self, class_names: ClassNames, backbone: VisionLanguageBackbone, length: int
    ) -> Tensor:
        """Return the tokens of ``name.`` with ``length`` fillers (any word) put before them."""
        tokens = backbone.tokenize([name + self.suffix for name in class_names])
        _check_distinct(tokens, class_names)
        start = backbone.start_length
        # What the fillers push out at the end must be padding, which ends an empty text.
        padding = backbone.tokenize([""])[0, -1]
        room = max(tokens.shape[1] - length, 0)
        lost = (tokens[:, room:] != padding).any(dim=1)
        if lost.any():
            name = class_names[int(lost.nonzero()[0, 0])]
            raise wrong_value(
                "class_names",
                f"names that fit beside {length} context tokens in {tokens.shape[1]} positions",
                repr(name),
                "Shorten the name or the context.",
            )
        filler = tokens[:, start : start + 1].expand(-1, length)
        return torch.cat([tokens[:, :start], filler, tokens[:, start : tokens.shape[1] - length]], dim=1)

    def encode(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Return the features (K, D) of the prompts with their learned context."""
        if self.context is None:  # forward has checked that names are set
            raise RuntimeError("set_classes comes first")
        tokens = self._tokens[class_ids.to(self._tokens.device)]
        context = self.context if len(self.context) == 1 else self.context[class_ids.to(self.context.device)]
        embeddings = backbone.embed_tokens(tokens)
        start, length = backbone.start_length, self.context.shape[1]
        context = context.expand(len(tokens), -1, -1).to(embeddings.dtype)
        embeddings = torch.cat([embeddings[:, :start], context, embeddings[:, start + length :]], dim=1)
        return backbone.encode_token_embeddings(embeddings, tokens)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "context_length": self.context_length,
            "initial_context": self.initial_context,
            "sharing": self.sharing,
            "suffix": self.suffix,
            "seed": self.seed,
        }


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


def _device(backbone: VisionLanguageBackbone) -> torch.device:
    return backbone.logit_scale.device


def _check_distinct(tokens: Tensor, class_names: ClassNames) -> None:
    """Refuse two classes that the tokenizer cannot tell apart."""
    unique, index = tokens.unique(dim=0, return_inverse=True)
    if len(unique) < len(tokens):
        duplicate = int(index.bincount().argmax())
        first, second = (index == duplicate).nonzero().flatten()[:2].tolist()
        raise wrong_value(
            "class_names",
            "names that the model's tokenizer can tell apart",
            f"{class_names[first]!r} and {class_names[second]!r}, which give the same tokens",
            "Reword one of them; a name that is cut at the context length loses its end.",
        )
