"""What one can draw embeddings of a class from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from typing_extensions import Self

from avalanche_vlm._checked_features import check_features, is_whole
from avalanche_vlm._checks import check_choice, check_count, close_names, wrong_type, wrong_value

FLOAT_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_PLAIN = (bool, int, float, str, type(None))


class LatentGenerator(ABC):
    r"""A model of the embeddings of each class, fitted to them once and drawn from afterwards.

    A class becomes one *component*: one row of each tensor that the generator keeps. A class that comes
    again, in another experience, gets another component, and is drawn from its components in the ratio
    of their numbers of samples,

    .. math:: p(x \mid c) = \sum_r \frac{n_r}{\sum_{r'} n_{r'}} \, p_r(x)

    so that what was fitted first is not lost. No feature is kept after `fit`.

    Subclasses name the tensors that have one row a component in `per_component`, and those that all
    components share in `shared`; they set the shared ones (or None) in the constructor, and implement
    `_fit` and `_sample`. Kept tensors are replaced and never written into: a `state_dict` holds on.

    Args:
        dtype: how the tensors are kept, ``"float32"``, ``"float16"`` or ``"bfloat16"``; arithmetic is
            in float32 all the same.
        seed: of the random numbers that fitting and drawing take.

    Raises:
        TypeError: ``seed`` is no whole number.
        ValueError: an unknown ``dtype``, or a negative ``seed``.

    Attributes:
        embed_dim: width D of the features; 0 before the first `fit`.
        labels: class id (R,) of each component.
        counts: number (R,) of samples that each component was fitted to.
    """

    per_component: ClassVar[tuple[str, ...]]
    shared: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, dtype: str = "float32", seed: int = 0) -> None:
        check_choice("dtype", dtype, tuple(FLOAT_DTYPES))
        check_count("seed", seed, at_least=0)
        self.dtype = dtype
        self.seed = seed
        self.embed_dim = 0
        self.labels = torch.zeros(0, dtype=torch.int64)
        self.counts = torch.zeros(0, dtype=torch.int64)
        self._generator = torch.Generator().manual_seed(seed)
        for name in self.per_component:
            setattr(self, name, None)

    @abstractmethod
    def _fit(self, features: Tensor, positions: Tensor, counts: Tensor) -> Mapping[str, Tensor]:
        """Return the rows (K, ...) of each tensor of `per_component` for K new components.

        Args:
            features: float32 (N, D), finite.
            positions: int64 (N,), which of the K components each feature belongs to.
            counts: int64 (K,), how many features each has, at least one.
        """

    @abstractmethod
    def _sample(self, components: Tensor) -> Tensor:
        """Return one float32 feature (B, D) for each of the components int64 (B,), in their order."""

    def _normal(self, *shape: int) -> Tensor:
        """Return float32 numbers of this shape, drawn from N(0, 1)."""
        return torch.randn(shape, generator=self._generator, device=self.device)

    @property
    def classes(self) -> list[int]:
        """The ids of the classes that can be drawn, in ascending order."""
        return self.labels.unique().tolist()

    @property
    def device(self) -> torch.device:
        """Where features are fitted and drawn."""
        return self._generator.device

    @final
    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Take in the classes of an experience, all at once.

        Args:
            features: floats (N, D), un-normalised embeddings.
            labels: class ids (N,).

        Raises:
            TypeError: not tensors of floats and of whole numbers.
            ValueError: lengths or widths that do not agree, no feature, or one that is not finite.
        """
        check_features(features, labels, self.embed_dim)
        features = features.detach().to(self.device, torch.float32)
        labels = labels.to(self.device, torch.int64)
        classes, positions, counts = labels.unique(return_inverse=True, return_counts=True)
        before = {name: getattr(self, name) for name in self.shared}
        # Grad mode and inference mode of the caller do not matter: variational models train here.
        with torch.inference_mode(False), torch.no_grad():
            # Tensors made in the caller's inference mode can be used in no training: copies can.
            classes, counts = classes.clone(), counts.clone()
            try:
                rows = self._fit(features.clone(), positions.clone(), counts)
                self._append("features", rows, classes, counts)
            except BaseException:
                for name, value in before.items():
                    setattr(self, name, value)
                raise
            for name in self.shared:
                setattr(self, name, getattr(self, name).detach())
            self.embed_dim = features.shape[1]

    @final
    def merge(self, other: Self) -> None:
        """Take in what another generator of the same kind was fitted to, in another process say.

        Its components come after the own ones, as if its experiences had been fitted here next.

        Raises:
            TypeError: another kind of generator, or a kind whose classes share what cannot be joined.
            ValueError: the generator itself, or one whose rows have other shapes.
        """
        if type(other) is not type(self):
            raise wrong_type("other", f"a {type(self).__name__}", other)
        if other is self:
            raise wrong_value("other", "another generator", "the generator itself")
        if other.embed_dim == 0:
            return
        for name in self.per_component if self.embed_dim else ():
            own, new = getattr(self, name).shape[1:], getattr(other, name).shape[1:]
            if own != new:
                raise wrong_value("other", f"one whose {name} have rows of shape {tuple(own)}", tuple(new))
        with torch.inference_mode(False), torch.no_grad():
            shared = self._merged_shared(other)
            rows = {name: getattr(other, name).to(self.device) for name in self.per_component}
            self._append("other", rows, other.labels.to(self.device), other.counts.to(self.device))
            for name, value in shared.items():
                setattr(self, name, value)
            self.embed_dim = other.embed_dim

    def _merged_shared(self, other: Any) -> Mapping[str, Tensor]:
        """Return what all components share after a `merge`; a kind that can join it says how."""
        if self.shared:
            expected = f"of a kind without parts that all classes share ({', '.join(self.shared)})"
            raise wrong_type("other", expected, other)
        return {}

    def _append(self, argument: str, rows: Mapping[str, Tensor], labels: Tensor, counts: Tensor) -> None:
        kept = {name: rows[name].detach().to(FLOAT_DTYPES[self.dtype]) for name in self.per_component}
        for name, new in kept.items():
            if not new.isfinite().all():
                expected = f"of a size whose {name} can be kept as {self.dtype}"
                raise wrong_value(argument, expected, "numbers too large", "Scale them, or change dtype.")
        for name, new in kept.items():
            old = getattr(self, name)
            setattr(self, name, new if old is None else torch.cat([old, new]))
        self.labels = torch.cat([self.labels, labels])
        self.counts = torch.cat([self.counts, counts])

    @final
    def sample(self, classes: Iterable[int] | Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Draw ``count`` features of each class.

        Returns:
            Features float32 (K · count, D) and labels int64 (K · count,), class by class.

        Raises:
            TypeError: ``classes`` are not whole numbers.
            ValueError: a class that was not fitted, no class, or ``count`` below 1.
        """
        check_count("count", count)
        ids = classes.tolist() if isinstance(classes, Tensor) else classes
        ids = list(ids) if isinstance(ids, Iterable) else [ids]
        if not all(isinstance(each, Integral) for each in ids):
            raise wrong_type("classes", "the ids of classes, whole numbers", classes)
        known = self._fitted("classes", torch.tensor(ids, dtype=torch.int64, device=self.device))
        labels = known.repeat_interleave(count)
        return self.sample_for(labels), labels

    @final
    @torch.no_grad()
    def sample_for(self, labels: Tensor) -> Tensor:
        """Draw a feature for each label: float32 (B, D) for int64 (B,).

        Raises:
            TypeError: ``labels`` is no tensor of whole numbers.
            ValueError: a class that was not fitted, or no label at all.
        """
        if not isinstance(labels, Tensor) or not is_whole(labels):
            raise wrong_type("labels", "a tensor (B,) of whole numbers", labels)
        known = self._fitted("labels", labels.to(self.device, torch.int64))
        return self._sample(self._components_of(known))

    def _fitted(self, argument: str, labels: Tensor) -> Tensor:
        if labels.ndim != 1 or len(labels) == 0:
            raise wrong_value(argument, "a row of class ids, at least one", f"shape {tuple(labels.shape)}")
        unknown = labels[~torch.isin(labels, self.labels)]
        if len(unknown) > 0:
            expected = f"classes that were fitted ({len(self.classes)} of them)"
            advice = "Call fit with features of every class first."
            raise wrong_value(argument, expected, f"class {int(unknown[0])}", advice)
        return labels

    def _components_of(self, labels: Tensor) -> Tensor:
        """Return a component (B,) for each label, drawn where a class has several."""
        order = self.labels.argsort(stable=True)
        known, sizes = self.labels[order].unique_consecutive(return_counts=True)
        starts = sizes.cumsum(0) - sizes
        position = torch.searchsorted(known, labels)
        if len(known) == len(order):
            return order[position]
        # The inverse of the cumulated counts of all components, cut to those of the class.
        ends = self.counts[order].cumsum(0)
        begin = ends[starts[position]] - self.counts[order][starts[position]]
        total = ends[(starts + sizes - 1)[position]] - begin
        drawn = torch.rand(len(labels), generator=self._generator, device=self.device, dtype=torch.float64)
        return order[torch.searchsorted(ends, begin + (drawn * total).long(), right=True)]

    def describe(self) -> dict[str, Any]:
        """Return the kind and the arguments as plain values, for the provenance of runs."""
        kept = {*self.per_component, *self.shared, "embed_dim"}
        told = {name: value for name, value in vars(self).items() if isinstance(value, _PLAIN)}
        own = {name: value for name, value in told.items() if name not in kept and not name.startswith("_")}
        return {"kind": type(self).__name__, **own}

    @property
    def nbytes(self) -> int:
        """Number of bytes of the tensors that are kept, labels and counts included.

        The state of the random numbers (5 KB) knows nothing of the classes and is not counted.
        """
        tensors = [getattr(self, name) for name in (*self.per_component, *self.shared)]
        kept = [tensor for tensor in (self.labels, self.counts, *tensors) if tensor is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    @final
    def to(self, device: torch.device | str) -> Self:
        """Move what is kept; on another device the random numbers start anew, from the ones here."""
        generator = torch.Generator(device)  # its device has the index that "cuda" leaves out
        if generator.device != self.device:
            seed = torch.randint(2**62, (), generator=self._generator, device=self.device)
            self._generator = generator.manual_seed(int(seed))
        for name in ("labels", "counts", *self.per_component, *self.shared):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name).to(self.device))
        return self

    @final
    def state_dict(self) -> dict[str, Any]:
        """Return what is kept and the state of the random numbers."""
        kept = {name: getattr(self, name) for name in ("labels", "counts", *self.per_component, *self.shared)}
        return {**kept, "embed_dim": self.embed_dim, "generator": self._generator.get_state()}

    @final
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state of a generator of the same kind, and keep it in the own ``dtype``.

        Random numbers go on where they stood, bit for bit; if the state comes from another kind of
        device, which has other random numbers, they start anew from the seed.

        Raises:
            ValueError: the state of another kind of generator.
        """
        tensors = {"labels", "counts", *self.per_component, *self.shared}
        names = tensors | {"embed_dim", "generator"}
        if set(state) != names:
            odd = sorted(names ^ set(state))[0]
            raise wrong_value(
                "state",
                f"that of a {type(self).__name__}",
                f"one that differs in {odd!r}",
                close_names(odd, names | set(state)),
            )
        for name in tensors:
            value = state[name]
            if value is not None:
                value = value.to(
                    self.device, FLOAT_DTYPES[self.dtype] if name in self.per_component else None
                )
            setattr(self, name, value)
        self.embed_dim = state["embed_dim"]
        if len(state["generator"]) == len(self._generator.get_state()):
            self._generator.set_state(state["generator"].cpu())
        else:
            self._generator.manual_seed(self.seed)
