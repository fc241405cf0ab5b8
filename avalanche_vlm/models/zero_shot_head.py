"""Class weights from templates, without training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from avalanche_vlm._checks import close_names, wrong_type, wrong_value
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.heads import TEXTS_AT_ONCE, TextHead, check_distinct, scaled_products
from avalanche_vlm.text import DEFAULT_TEMPLATE, ClassNames, PromptTemplate, as_templates

Templates = str | PromptTemplate | Iterable[str | PromptTemplate]
_Read = tuple[PromptTemplate, ...] | dict[str, tuple[PromptTemplate, ...]]


class ZeroShotHead(TextHead):
    r"""Class weights from a template ensemble, without training.

    .. math:: w_c = \frac1{M_c} \sum_{m=1}^{M_c} \frac{f_T(t_m(c))}{\lVert f_T(t_m(c)) \rVert}

    Args:
        templates: one sentence or several, each with one ``{}`` for the class name; or, for streams
            over several data sets, a mapping from the name of each data set, as in
            ``class_names.datasets``, to its own. Data sets may have differently many.
        training_templates: likewise, for the weights in training mode, while ``templates`` are for those
            in eval mode; None for the same in both. MTIL trains with one template and evaluates with an
            ensemble. Weights that nothing trains in are kept for each mode.

    Raises:
        TypeError: templates that are neither text nor a list of it.
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
    >>> head = ZeroShotHead(["a photo of a {}.", "a drawing of a {}."], training_templates="a photo of a {}.")
    """

    templates: _Read
    training_templates: _Read | None
    _tokens: Tensor
    _training_tokens: Tensor

    def __init__(
        self,
        templates: Templates | Mapping[str, Templates] = DEFAULT_TEMPLATE,
        *,
        training_templates: Templates | Mapping[str, Templates] | None = None,
    ) -> None:
        super().__init__()
        self.templates = _read("templates", templates)
        self._prompt_counts: list[int] = []
        self.register_buffer("_tokens", torch.empty(0, dtype=torch.long), persistent=False)
        self.training_templates = None
        if training_templates is not None:
            self.training_templates = _read("training_templates", training_templates)
            self._training_prompt_counts: list[int] = []
            self.register_buffer("_training_tokens", torch.empty(0, dtype=torch.long), persistent=False)

    @property
    def depends_on_mode(self) -> bool:
        """Whether there are templates for training."""
        return self.training_templates is not None

    def templates_of(self, dataset: str) -> tuple[PromptTemplate, ...]:
        """Return the templates of the classes of a data set, those of eval mode."""
        return _of(self.templates, dataset)

    def set_classes(self, class_names: ClassNames, backbone: VisionLanguageBackbone) -> None:
        """Tokenise every template of every class.

        Two classes of one data set that tokenise alike are refused.
        """
        prompts = _prompts("templates", self.templates, class_names, backbone)
        if self.training_templates is not None:
            training = _prompts("training_templates", self.training_templates, class_names, backbone)
            self._training_tokens, self._training_prompt_counts = training
        super().set_classes(class_names, backbone)
        self._tokens, self._prompt_counts = prompts

    def encode(self, backbone: VisionLanguageBackbone, class_ids: Tensor) -> Tensor:
        """Return the mean (K, D) of the normalised features of all templates of each class."""
        tokens, prompt_counts = self._tokens, self._prompt_counts
        if self.training and self.training_templates is not None:
            tokens, prompt_counts = self._training_tokens, self._training_prompt_counts
        prompts = tokens.split(prompt_counts)
        ids = class_ids.tolist()
        tokens = torch.cat([prompts[index] for index in ids])
        features = torch.cat([backbone.encode_text(part) for part in tokens.split(TEXTS_AT_ONCE)])
        counts = [prompt_counts[index] for index in ids]
        # Data sets with fewer templates than others are filled up with zeros, which add nothing.
        by_class = pad_sequence(list(self._summands(features).split(counts)), batch_first=True)
        return by_class.sum(dim=1) / by_class.new_tensor(counts)[:, None]

    def _summands(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1)

    def config(self) -> dict[str, Any]:
        """Return the templates, those for training if there are any."""
        config = {"templates": _texts(self.templates)}
        if self.training_templates is not None:
            config["training_templates"] = _texts(self.training_templates)
        return config


class UnnormalisedZeroShotHead(ZeroShotHead):
    r"""Class weights from templates at the length that the text tower gives them, in the logits too.

    .. math:: w_c = \frac1{M_c} \sum_{m=1}^{M_c} f_T(t_m(c)), \qquad
              z_c = s \Big\langle \frac{f}{\lVert f \rVert}, w_c \Big\rangle + b

    CLIP's text features are much longer than 1, so logits of this head do not compare with cosines: as
    ``unseen`` of a `HybridPromptHead` it lifts the classes not seen yet above those seen.

    Args:
        templates: as in `ZeroShotHead`.
        training_templates: as in `ZeroShotHead`.

    Raises:
        TypeError: as in `ZeroShotHead`.
        ValueError: as in `ZeroShotHead`.

    References:
        The code of Frascaroli et al., CLIP with Generative Latent Replay: a Strong Baseline for
        Incremental Learning, BMVC 2024, where it scores the classes not seen yet (CI-Transfer). The
        paper's equations are those of cosines.

    Deviations:
        That code has one template, "a photo of a {}" without full stop.

    >>> UnnormalisedZeroShotHead().templates[0]("cat")
    'a photo of a cat.'
    """

    def _summands(self, features: Tensor) -> Tensor:
        return features

    def compare(self, backbone: VisionLanguageBackbone, embeddings: Tensor, weights: Tensor) -> Tensor:
        """Return the logits (B, C) of embeddings (B, D), the weights (C, D) taken as they are."""
        return scaled_products(backbone, embeddings, weights)


def _read(argument: str, templates: Templates | Mapping[str, Templates]) -> _Read:
    """Return templates as they were given: the same for all classes, or by data set."""
    if isinstance(templates, Mapping):
        by_dataset = cast("Mapping[str, Templates]", templates)
        if not by_dataset:
            raise wrong_value(argument, "templates of at least one data set", "an empty mapping")
        return {dataset: _read_list(argument, own) for dataset, own in by_dataset.items()}
    return _read_list(argument, templates)


def _read_list(argument: str, templates: Templates) -> tuple[PromptTemplate, ...]:
    if isinstance(templates, (str, PromptTemplate)):
        return as_templates(templates)
    if not isinstance(templates, Iterable):
        raise wrong_type(argument, "a sentence with one {}, a list of them, or a mapping to them", templates)
    own = list(templates)
    if not own:
        raise wrong_value(argument, "at least one template", "an empty list")
    return as_templates(own)


def _of(templates: _Read, dataset: str) -> tuple[PromptTemplate, ...]:
    return templates[dataset] if isinstance(templates, dict) else templates


def _texts(templates: _Read) -> Any:
    if isinstance(templates, dict):
        return {dataset: [template.text for template in own] for dataset, own in templates.items()}
    return [template.text for template in templates]


def _prompts(
    argument: str, templates: _Read, class_names: ClassNames, backbone: VisionLanguageBackbone
) -> tuple[Tensor, list[int]]:
    """Return the tokens (P, L) of all templates of all classes, and the number of templates of each."""
    _check_datasets(argument, templates, class_names)
    datasets = class_names.datasets or [""] * len(class_names)
    own = [_of(templates, dataset) for dataset in datasets]
    tokens = backbone.tokenize(
        [template(name) for name, given in zip(class_names, own, strict=True) for template in given]
    )
    counts = [len(given) for given in own]
    check_distinct(torch.stack([part[0] for part in tokens.split(counts)]), class_names)
    return tokens, counts


def _check_datasets(argument: str, templates: _Read, class_names: ClassNames) -> None:
    if not isinstance(templates, dict):
        return
    if not class_names.datasets:
        raise wrong_value(
            "class_names",
            f"names that belong to data sets (`class_names.datasets`), because the {argument} do",
            "names without data sets",
            "Give ZeroShotHead one list of templates, or ClassNames the data set of each class.",
        )
    for dataset in class_names.datasets:
        if dataset not in templates:
            raise wrong_value(
                argument,
                "a mapping with templates for every data set of the class names",
                f"none for {dataset!r}",
                close_names(dataset, templates),
            )
