"""Class weights from templates, without training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from avalanche_vlm._checks import close_names, wrong_value
from avalanche_vlm.models.backbone import VisionLanguageBackbone
from avalanche_vlm.models.heads import TEXTS_AT_ONCE, TextHead, check_distinct, scaled_products
from avalanche_vlm.text import DEFAULT_TEMPLATE, ClassNames, PromptTemplate, as_templates

Templates = str | PromptTemplate | Iterable[str | PromptTemplate]


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
        features = torch.cat([backbone.encode_text(part) for part in tokens.split(TEXTS_AT_ONCE)])
        counts = [self._prompt_counts[index] for index in ids]
        # Data sets with fewer templates than others are filled up with zeros, which add nothing.
        by_class = pad_sequence(list(self._summands(features).split(counts)), batch_first=True)
        return by_class.sum(dim=1) / by_class.new_tensor(counts)[:, None]

    def _summands(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1)

    def config(self) -> dict[str, Any]:
        """Return the templates."""
        if isinstance(self.templates, dict):
            return {"templates": {name: [t.text for t in own] for name, own in self.templates.items()}}
        return {"templates": [template.text for template in self.templates]}


class UnnormalisedZeroShotHead(ZeroShotHead):
    r"""Class weights from templates at the length that the text tower gives them, in the logits too.

    .. math:: w_c = \frac1{M_c} \sum_{m=1}^{M_c} f_T(t_m(c)), \qquad
              z_c = s \Big\langle \frac{f}{\lVert f \rVert}, w_c \Big\rangle + b

    CLIP's text features are much longer than 1, so logits of this head do not compare with cosines: as
    ``unseen`` of a `HybridPromptHead` it lifts the classes not seen yet above those seen.

    Args:
        templates: as in `ZeroShotHead`.

    Raises:
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
