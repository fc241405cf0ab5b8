"""Images of new classes, moved towards the old ones: where what is known is most at risk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm._checks import check_count, check_number, wrong_type, wrong_value
from avalanche_vlm._host import eval_loader, experience_classes, trained_experiences
from avalanche_vlm._processes import progress_line
from avalanche_vlm.functional import AnchorSet, dual_targeted_pgd, nearest_images
from avalanche_vlm.models import CLIPClassifier, WeightSnapshot
from avalanche_vlm.models.modes import in_eval_mode
from avalanche_vlm.regularizers.learned_classes import LearnedClasses
from avalanche_vlm.regularizers.pairs import ENCODED_AT_ONCE, PairBatch
from avalanche_vlm.regularizers.pooled_pairs import PooledPairs


@final
class AdversarialAnchors(PooledPairs):
    r"""Makes anchors before each experience, and shows them in batches; none outlives the experience.

    For each class learned before, the images of the experience that are likest to its text are taken as
    seeds, and moved towards its text, and its visual prototype if the model's head is a `DualPathHead`
    that has one: see `functional.dual_targeted_pgd`. All classes go at once. The model is asked as it is
    before the experience, in eval mode, and images come under their eval transform. In the first
    experience there are no old classes, and what is built on anchors adds nothing.

    Anchors are pairs of an image and the text of the class that it was moved towards, so any regularizer
    of pairs takes them: `AnchorDistillation` in the paper, and `CrossModalDistillation` as well.
    `PrototypeTransferPlugin` measures by them how far visual features have drifted. Parts that are given
    the same object share the anchors. It belongs to one run.

    Args:
        seeds_per_class: images that are taken as seeds for each old class; all of the experience where
            it has fewer.
        steps: K, of projected gradient descent. With 0 the anchors are the seeds.
        step_size: γ, in pixel values: 1 is the way from black to white.
        epsilon: ε, the farthest that a pixel may move, likewise.
        visual_weight: λ_p of the prototype beside the text.
        batch_size: anchors of a batch; all of them where there are fewer. Batches go through all anchors
            in a random order, and then again in another.
        images_at_once: images that gradients are taken of together, which bounds the memory.
        seed: of these orders.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a number out of its range; in training, a stream without images.

    References:
        SeGP-CL (arXiv 2603.12055), second-hand: K = 10, γ = 0.0015, 5 seeds a class, and that 20 steps
        hurt.

    Deviations:
        ε, λ_p and the number of anchors a step are in none of the sources: 4/255, 1 and 64. Batches come
        without replacement. The rest is said in `functional.dual_targeted_pgd`.
    """

    __slots__ = ("_pool_classes", "_weights")
    _weights: WeightSnapshot | None
    _pool_classes: Tensor | None

    def __init__(
        self,
        *,
        seeds_per_class: int = 5,
        steps: int = 10,
        step_size: float = 1.5e-3,
        epsilon: float = 4 / 255,
        visual_weight: float = 1.0,
        batch_size: int = 64,
        images_at_once: int = 64,
        seed: int = 0,
    ) -> None:
        check_count("seeds_per_class", seeds_per_class)
        check_count("steps", steps, at_least=0)
        check_number("step_size", step_size, above=0)
        check_number("epsilon", epsilon, at_least=0)
        check_number("visual_weight", visual_weight, at_least=0)
        check_count("batch_size", batch_size)
        check_count("images_at_once", images_at_once)
        check_count("seed", seed, at_least=0)
        super().__init__(batch_size=batch_size, seed=seed)
        self.seeds_per_class = seeds_per_class
        self.steps = steps
        self.step_size = step_size
        self.epsilon = epsilon
        self.visual_weight = visual_weight
        self.images_at_once = images_at_once
        self.learned = LearnedClasses()
        self._pool_classes = self._weights = None

    def make(self, model: CLIPClassifier, experience: Any, classes: Tensor) -> AnchorSet:
        """Return the anchors of an experience: what training on it would use, to be looked at.

        `logging.plot_anchors` draws them, `logging.anchor_table` says where they land.

        Args:
            model: before the experience; its weights, modes and gradients stay as they are.
            experience: whose images are the seeds.
            classes: int64 (K,), ids of the classes that anchors are moved towards.

        Raises:
            TypeError: ``classes`` is no tensor of whole numbers, or the experience has pictures that are
                not preprocessed.
            ValueError: the experience has no images, or the classes are none, or not different ones of
                the model.
        """
        _check_classes(model, classes)
        dataset: Any = experience.dataset.eval()
        _check_images(dataset)
        device = model.backbone.logit_scale.device
        classes = classes.to(device)
        count = len(classes) * min(self.seeds_per_class, len(dataset))
        with (
            in_eval_mode(model),
            torch.no_grad(),
            progress_line("anchors", count * max(self.steps, 1), "steps") as line,
        ):
            text = model.head.text_part(model.backbone).float()
            parts = [
                model.visual_features(x.to(device)).float() for x, *_ in eval_loader(dataset, ENCODED_AT_ONCE)
            ]
            embeddings = torch.cat(parts)
            targets = text[classes]
            cosines = F.normalize(embeddings, dim=1) @ F.normalize(targets, dim=1).T
            rows = nearest_images(cosines, self.seeds_per_class)
            of_target = torch.arange(len(classes), device=device).repeat_interleave(rows.shape[1])
            distinct, place = rows.flatten().unique(return_inverse=True)
            seeds = torch.stack([dataset[row][0] for row in distinct.tolist()]).to(device)[place]
            prototypes, weights = self._visual_targets(model, classes)
            moved = []
            for part in torch.arange(len(seeds), device=device).split(self.images_at_once):
                target = of_target[part]
                moved.append(
                    dual_targeted_pgd(
                        lambda images: _encoded(model, images),
                        seeds[part],
                        targets[target],
                        prototypes[target],
                        space=model.backbone.pixel_space,
                        visual_weight=weights[target],
                        epsilon=self.epsilon,
                        step_size=self.step_size,
                        steps=self.steps,
                    )
                )
                line.advance(len(part) * max(self.steps, 1))
            known = model.classes_seen.nonzero().flatten().to(device)
            seen = torch.cat([known, classes, experience_classes(experience).to(device)]).unique()
            own = torch.searchsorted(seen, classes[of_target])[:, None]

            def probabilities(features: Tensor) -> Tensor:
                logits = model.head.text_part.compare(model.backbone, features, text)[:, seen]
                return logits.softmax(dim=1).gather(1, own)[:, 0]

            return AnchorSet(
                seeds,
                torch.cat([each.images for each in moved]),
                classes[of_target],
                torch.cat([each.text_distances for each in moved], dim=1),
                torch.cat([each.visual_distances for each in moved], dim=1),
                probabilities(embeddings[rows.flatten()]),
                probabilities(torch.cat([each.embeddings for each in moved]).float()),
            )

    def _visual_targets(self, model: CLIPClassifier, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return a visual target (K, D') for each class, and its weight (K,), 0 where there is none."""
        prototypes, known = model.head.visual_prototypes(model.backbone, classes)
        return prototypes, self.visual_weight * known.to(prototypes.dtype)

    def pre_adapt(self, agent: Any, exp: Any) -> None:
        """Make the anchors of an experience; anew if the weights have changed, as after an interruption."""
        weights = WeightSnapshot.shared(agent)
        if weights is not self._weights:
            self._experience = None
        self._weights = weights
        super().pre_adapt(agent, exp)

    def _prepare(self, strategy: Any, model: CLIPClassifier) -> None:
        self._order = self._order[:0]
        self._pool = self._pool_classes = None
        _check_images(strategy.experience.dataset.eval())
        learned = self.learned.before(model, *trained_experiences(strategy))
        if len(learned) == 0:
            return
        anchors = self.make(model, strategy.experience, learned)
        distinct, text_of = anchors.classes.unique(return_inverse=True)
        self._pool, self._pool_classes = PairBatch(anchors.images, distinct, text_of), anchors.classes

    def _release(self, model: CLIPClassifier) -> None:
        self._pool = self._pool_classes = self._weights = None
        self.learned.note(model)

    @property
    def fixed_classes(self) -> Tensor | None:
        """The class (N,) that each anchor was moved towards."""
        return self._pool_classes

    def encode_texts(self, model: CLIPClassifier, texts: Tensor) -> Tensor:
        """Return the class weights (U, D) of classes (U,)."""
        return model.head.text_part(model.backbone, texts)

    @property
    def nbytes(self) -> int:
        """Number of bytes that are kept from one experience to the next: which classes were learned."""
        return self.learned.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Return which classes were learned, and the state of the random numbers."""
        return {"learned": self.learned.state_dict(), "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over such a state."""
        self.learned.load_state_dict(state["learned"])
        self._generator.set_state(state["generator"].cpu())


def _encoded(model: CLIPClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return embeddings and visual features of images, as the model's head sees them."""
    head = model.head
    if not head.reads_raw_features:
        embeddings = model.visual_features(images)
        return embeddings, head.visual_features(embeddings, None)
    embeddings, raw = model.encode_with_raw(images)
    embeddings = model.adapted(embeddings)
    return embeddings, head.visual_features(embeddings, raw)


def _check_classes(model: CLIPClassifier, classes: Any) -> None:
    if not isinstance(classes, Tensor) or classes.is_floating_point():
        raise wrong_type("classes", "a tensor (K,) of class ids", classes)
    ids = classes.tolist()
    count = len(model.class_names)
    if not ids or len(set(ids)) < len(ids) or min(ids) < 0 or max(ids) >= count:
        raise wrong_value("classes", f"different ids in 0..{count - 1}, at least one", ids)


def _check_images(dataset: Any) -> None:
    first: Any = dataset[0][0]
    if not isinstance(first, Tensor):
        advice = "Give the benchmark train_transform=model.train_transform and eval_transform likewise."
        raise wrong_type("experience", "one with images as tensors", first, advice)
    if first.ndim != 3:
        raise wrong_value(
            "experience",
            "one with images (3, H, W), because anchors are images",
            f"one with tensors {tuple(first.shape)}",
            "Train on the images and not on their embeddings.",
        )
