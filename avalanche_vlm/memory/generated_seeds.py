"""Seeds that a hypernetwork makes of gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from avalanche_vlm._checks import check_count, check_number, check_type, wrong_value
from avalanche_vlm.functional import multi_positive_contrast
from avalanche_vlm.memory.conditions import GradientCondition, SeedCondition
from avalanche_vlm.memory.seed_generator import SeedGenerator
from avalanche_vlm.memory.seed_source import CountedSeedSource, NewSeeds
from avalanche_vlm.models import CLIPClassifier
from avalanche_vlm.models.modes import in_eval_mode


class _Experience(NamedTuple):
    """What the generator is trained on, K classes of an experience."""

    model: CLIPClassifier
    classes: Tensor
    features: Tensor
    positions: Tensor
    text: Tensor
    conditions: Tensor
    group_of: Tensor
    validation: tuple[Tensor, Tensor] | None


@final
class GeneratedSeeds(CountedSeedSource):
    r"""Trains a `SeedGenerator` for a few steps on an experience, and keeps what it then makes.

    .. math::
        L = \rho L_{def} + \lambda_{con} L_{con} + \lambda_{gm} L_{gm} + \lambda_{out} L_{out}

    - :math:`L_{def} = E(1 - \cos(v, x)) + E(1 - \cos(w, \tau))`, what a seed is: near the features that it
      stands for (those of its group; all of its class where the class has one group), and near the text;
    - :math:`L_{con}`, contrast of visual seeds with features, and half as much of textual seeds with texts
      (`functional.multi_positive_contrast`, temperature 0.1);
    - :math:`L_{gm} = 1 - \cos(\nabla_P CE(seeds), \nabla_P CE(features))`, the mean over the model's trained
      parameters P: matching of gradients;
    - :math:`L_{out} = CE(D_{val}; \theta - \eta \nabla_\theta CE(seeds))`, the outer term: seeds after a step
      on which the model is right about features that were held out; without such it is left out.

    The network makes the seeds after n steps of Adam, and begins the next experience at
    :math:`\phi_0 + \epsilon (\phi_n - \phi_0)`, the first-order way of meta-learning. The model
    does not change.

    On features of a real CLIP the last three terms made seeds worse, and weigh 0 unless asked for: gradient
    matching and contrast pull seeds towards the few samples that the model is wrong about, away from where
    the class lies (see ``benchmarks/auto_seed_features.md``).

    Args:
        seeds_per_class: m.
        condition: what the network is told of each class; None for `GradientCondition` with its defaults.
        steps: n; a network trained to convergence on each experience needs no condition.
        learning_rate: of Adam.
        definition_weight: ρ.
        contrast_weight: λ_con.
        matching_weight: λ_gm; second derivatives of the model are taken.
        outer_weight: λ_out; likewise.
        inner_rate: η.
        meta_rate: ε, in [0, 1]. With 0 the network starts anew for each experience, and is
            not kept.
        trained_experiences: in how many experiences the network trains; None for all, 1 for the ablation
            without updates of the generator.
        hidden: width of the network's hidden layers.
        seed: of first weights and other random numbers.

    Raises:
        TypeError: an argument has a wrong type; in training, a model that is no `CLIPClassifier`.
        ValueError: a number out of its range; in training, a head without class weights, or matching where
            nothing trains that seeds reach.

    References:
        Auto-Seed VL2, a design brief without code or verifiable results, of which only names, directions of
        ablations and the definition of a seed are known; nothing of it is reproduced here. von Oswald et
        al., ICLR 2020; Zhao, Mopuri and Bilen, ICLR 2021; Nichol et al., On First-Order Meta-Learning
        Algorithms, 2018, for the update of the network.

    Deviations:
        The realisation is ours, and so are all numbers. See `GradientCondition` for where gradients are
        taken.
    """

    def __init__(
        self,
        seeds_per_class: int = 4,
        *,
        condition: SeedCondition | None = None,
        steps: int = 20,
        learning_rate: float = 2e-3,
        definition_weight: float = 2.0,
        contrast_weight: float = 0.0,
        matching_weight: float = 0.0,
        outer_weight: float = 0.0,
        inner_rate: float = 1e-2,
        meta_rate: float = 0.0,
        trained_experiences: int | None = None,
        hidden: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(seeds_per_class, seed=seed)
        check_type("condition", condition, (SeedCondition, type(None)))
        check_count("steps", steps, at_least=0)
        check_number("learning_rate", learning_rate, above=0)
        for name, value in (
            ("definition_weight", definition_weight),
            ("contrast_weight", contrast_weight),
            ("matching_weight", matching_weight),
            ("outer_weight", outer_weight),
        ):
            check_number(name, value, at_least=0)
        check_number("inner_rate", inner_rate, above=0)
        check_number("meta_rate", meta_rate, at_least=0, at_most=1)
        if trained_experiences is not None:
            check_count("trained_experiences", trained_experiences, at_least=0)
        check_count("hidden", hidden)
        self.condition = GradientCondition() if condition is None else condition
        self.steps = steps
        self.learning_rate = learning_rate
        self.definition_weight = definition_weight
        self.contrast_weight = contrast_weight
        self.matching_weight = matching_weight
        self.outer_weight = outer_weight
        self.inner_rate = inner_rate
        self.meta_rate = meta_rate
        self.trained_experiences = trained_experiences
        self.hidden = hidden
        self.network: SeedGenerator | None = None
        self._trained = 0

    def check(self, model: Any) -> None:
        """Raise unless the classes of a classifier have weights."""
        check_type("model", model, CLIPClassifier, "Or take seeds that ask no model: KMeansSeeds().")
        if not model.head.has_class_weights:
            expected = "a head whose classes have weights, for gradients of seeds"
            raise wrong_value("model", expected, f"a {type(model.head).__name__}", "Or take KMeansSeeds().")

    def make(
        self, model: Any, features: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor] | None = None
    ) -> NewSeeds:
        """Train the network on the experience, and return m seeds of each class."""
        self.check(model)
        home, device = features.device, model.backbone.logit_scale.device
        # Whatever mode the caller is in: the network trains here.
        with torch.inference_mode(False), torch.enable_grad(), in_eval_mode(model):
            experience = self._experience(model, features.to(device), labels.to(device), validation)
            if self.network is None:
                width = features.shape[1]
                self.network = SeedGenerator(width, self.seeds_per_class, hidden=self.hidden, seed=self.seed)
            self.network.to(device)
            start = [parameter.detach().clone() for parameter in self.network.parameters()]
            if self.trained_experiences is None or self._trained < self.trained_experiences:
                self._train(experience)
                self._trained += 1
            with torch.no_grad():
                visual, textual = self.network(experience.conditions, experience.text)
                if self.meta_rate == 0:
                    self.network = None  # where it goes on is where its seed starts it
                else:
                    for parameter, before in zip(self.network.parameters(), start, strict=True):
                        parameter.lerp_(before, 1 - self.meta_rate)
        found = experience.classes.repeat_interleave(self.seeds_per_class)
        return NewSeeds(visual.flatten(0, 1).to(home), found.to(home), textual.flatten(0, 1).to(home))

    @torch.no_grad()
    def _experience(
        self,
        model: CLIPClassifier,
        features: Tensor,
        labels: Tensor,
        validation: tuple[Tensor, Tensor] | None,
    ) -> _Experience:
        features = features.clone()  # one of inference mode could be used in no training
        classes, positions = labels.unique(return_inverse=True)
        classes, positions = classes.clone(), positions.clone()
        head, backbone = model.head.text_part, model.backbone
        weights = F.normalize(head(backbone, classes).float(), dim=1)
        text = F.normalize(head.frozen_text(backbone, classes).float(), dim=1)
        scale = float(backbone.logit_scale)
        conditions = self.condition(
            features, positions, weights, scale, self.seeds_per_class, self._generator
        )
        held_out = None
        if validation is not None:
            x, y = (part.to(features.device) for part in validation)
            known = torch.isin(y, classes)
            if known.any():
                held_out = x[known].clone(), torch.searchsorted(classes, y[known])
        return _Experience(model, classes, features, positions, text, *conditions, held_out)

    def _train(self, experience: _Experience) -> None:
        assert self.network is not None
        parameters = list(self.network.parameters())
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        for _ in range(self.steps):
            loss = self._loss(experience, *self.network(experience.conditions, experience.text))
            # Of the network alone: the model's gradients stay as they were.
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _loss(self, experience: _Experience, visual: Tensor, textual: Tensor) -> Tensor:
        loss = self.definition_weight * _definition(experience, visual, textual)
        flat, count = visual.flatten(0, 1), len(experience.classes)
        positions = torch.arange(count, device=flat.device).repeat_interleave(visual.shape[1])
        if self.contrast_weight > 0:
            own = torch.arange(count, device=flat.device)
            among = multi_positive_contrast(flat, experience.features, positions, experience.positions)
            texts = multi_positive_contrast(textual.flatten(0, 1), experience.text, positions, own)
            loss = loss + self.contrast_weight * (among + 0.5 * texts)
        has_outer = self.outer_weight > 0 and experience.validation is not None
        if self.matching_weight > 0 or has_outer:
            with sdpa_kernel(SDPBackend.MATH):  # the only attention that can be differentiated twice
                loss = loss + self._terms_of_gradients(experience, flat, positions, has_outer)
        return loss

    def _terms_of_gradients(
        self, experience: _Experience, flat: Tensor, positions: Tensor, has_outer: bool
    ) -> Tensor:
        model, classes = experience.model, experience.classes
        named = dict(model.named_parameters())
        names, parameters = list(named), list(named.values())
        name = "matching_weight" if self.matching_weight > 0 else "outer_weight"
        nothing = wrong_value(name, "0 where nothing trains that embeddings reach", getattr(self, name))
        if not parameters:
            raise nothing

        def error(features: Tensor, right: Tensor) -> Tensor:
            return F.cross_entropy(model.logits_from_embeddings(features)[:, classes], right)

        of_seeds = torch.autograd.grad(
            error(flat, positions), parameters, create_graph=True, allow_unused=True
        )
        total = flat.new_zeros(())
        if self.matching_weight > 0:
            wanted = torch.autograd.grad(
                error(experience.features, experience.positions), parameters, allow_unused=True
            )
            cosines = [
                F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
                for ours, theirs in zip(of_seeds, wanted, strict=True)
                if ours is not None and theirs is not None and bool(theirs.any())
            ]
            if not cosines:
                raise nothing
            total = total + self.matching_weight * (1 - torch.stack(cosines).mean())
        if has_outer and experience.validation is not None:
            moved = {
                name: parameter if step is None else parameter - self.inner_rate * step
                for name, parameter, step in zip(names, parameters, of_seeds, strict=True)
            }
            x, right = experience.validation
            logits = torch.func.functional_call(model, moved, (x,))[:, classes]
            total = total + self.outer_weight * F.cross_entropy(logits, right)
        return total

    @property
    def nbytes(self) -> int:
        """Number of bytes of the network, if it goes on from one experience to the next."""
        return 0 if self.network is None else sum(each.nbytes for each in self.network.parameters())

    def state_dict(self) -> dict[str, Any]:
        """Return the network's weights and the state of the random numbers."""
        network = None if self.network is None else self.network.state_dict()
        return {**super().state_dict(), "network": network, "trained": self._trained}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        weights, network = state.get("network"), None
        if weights is not None:
            embed_dim, *sizes = SeedGenerator.sizes_of(weights)
            if sizes != [self.seeds_per_class, self.hidden]:
                expected = f"that of a network of {self.seeds_per_class} seeds and width {self.hidden}"
                raise wrong_value("state", expected, f"one of {sizes[0]} seeds and width {sizes[1]}")
            network = SeedGenerator(embed_dim, self.seeds_per_class, hidden=self.hidden, seed=self.seed)
            network.load_state_dict(weights)
        super().load_state_dict(state)
        self._trained, self.network = int(state["trained"]), network


def _definition(experience: _Experience, visual: Tensor, textual: Tensor) -> Tensor:
    """Return how far seeds (K, m, D) are from what they stand for, a scalar."""
    cosines = torch.einsum("nmd,nd->nm", visual[experience.positions], experience.features)
    stands = experience.group_of.clamp(min=0)[:, None]
    own = cosines.gather(1, stands).squeeze(1)
    near = torch.where(experience.group_of < 0, cosines.mean(dim=1), own)
    texts = (textual * experience.text[:, None]).sum(dim=2)
    return (1 - near).mean() + (1 - texts).mean()
