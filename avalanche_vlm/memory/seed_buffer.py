"""A storage policy of the host whose memory is seeds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.storage_policy import ExemplarsBuffer
from avalanche.training.templates.base import BaseTemplate
from torch import Tensor
from torch.nn import functional as F

from avalanche_vlm._checked_features import check_features
from avalanche_vlm._checks import check_choice, check_count, check_number, check_type, wrong_value
from avalanche_vlm._host import DatasetForm, dataset_of_embeddings, eval_loader
from avalanche_vlm._runs import claim
from avalanche_vlm.functional import kept_apart
from avalanche_vlm.memory._seed_description import seed_description
from avalanche_vlm.memory._seed_draws import SeedDraw, around, rows_of_each_class
from avalanche_vlm.memory._seed_store import SeedNumbers, SeedStore
from avalanche_vlm.memory._stored_rows import STORED_DTYPES
from avalanche_vlm.memory.generated_seeds import GeneratedSeeds
from avalanche_vlm.memory.pruning import RedundancyPruning, SeedPruning
from avalanche_vlm.memory.seed_source import SeedSource

_READ_AT_ONCE = 4096


@final
class SeedBuffer(ExemplarsBuffer):
    r"""A class-balanced memory of at most K generated seeds in place of samples.

    A seed is a pair (v, w) of unit length in the frozen embedding space, near the visual and the textual
    embeddings of its class. After an experience the source makes seeds of it, and the embeddings are let go
    of; then each class has at most its share of K, ⌈(K - i) / C⌉ for the i-th of C classes, and the pruning
    chooses which of its seeds stay. A class that comes again gets further seeds.

    Under the host's ``ReplayPlugin``, on a stream of embeddings, what is replayed is draws around seeds,

    .. math:: \hat x = \ell_c \, \overline{v_r + \gamma \sigma_c \epsilon}, \qquad p(r \mid c) \propto n_r

    with the number n of embeddings that the seed is nearest to in its class, their mean length ℓ and
    deviation σ in each dimension from the nearest seed, both of the class at that time, and normal ε; a bar
    stands for unit length. Draws are made anew after each update of the memory. On a stream of images
    `plugins.FeatureReplayPlugin` replays from it, if the image tower is frozen or its drift compensated.

    No seed is nearer to an embedding of its experience than the embeddings of that class come to any other
    one, a class with one image included, whose seed may therefore be far from it: see
    `functional.kept_apart`. This is a bound on copying of seeds, not a proof of privacy. Until the next
    update (see ``update_every``) embeddings wait in the memory.

    Args:
        max_size: K; None for no limit. The host's ``ReplayPlugin`` wants the same number as ``mem_size``.
        source: where seeds come from; None for `GeneratedSeeds` with its defaults, which needs a
            `CLIPClassifier`. It belongs to one buffer.
        pruning: which seeds of a class stay; None for `RedundancyPruning`.
        jitter: γ; 0 for the seeds themselves.
        samples_per_class: draws of each class that `buffer` has; None for each seed once, without jitter.
        dtype: how seeds are kept: ``"int8"`` with a scale a seed, which is as accurate as floats,
            ``"float16"``, ``"bfloat16"`` or ``"float32"``.
        update_every: how many embeddings are waited for before seeds are made of them. The default makes
            seeds after each experience, however small; in an online stream of a few samples an experience,
            a few hundred are better, and cheaper. Up to so many real embeddings are then in the memory, and
            count in `nbytes`; `flush` makes seeds of them.
        seed: of the random numbers.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a number out of its range; in training, samples that are no embeddings.

    References:
        Auto-Seed VL2, a design brief that exists as fragments only, without code or verifiable results.

    Deviations:
        The realisation is ours, and none of its numbers is claimed. What is kept in eight bits, the distance
        from real features, the deviation, and pruning by the share of a class are not in the brief.

    >>> from avalanche.training.plugins import ReplayPlugin
    >>> plugins = [ReplayPlugin(mem_size=400, storage_policy=SeedBuffer(max_size=400))]
    """

    # In slots, which checkpoints pass over: made anew of the seeds, always the same.
    __slots__ = ("_made",)
    _made: AvalancheDataset[Any] | None

    def __init__(
        self,
        max_size: int | None = 400,
        source: SeedSource | None = None,
        *,
        pruning: SeedPruning | None = None,
        jitter: float = 1.0,
        samples_per_class: int | None = 32,
        dtype: str = "int8",
        update_every: int = 1,
        seed: int = 0,
    ) -> None:
        if max_size is not None:
            check_count("max_size", max_size)
        check_type("source", source, (SeedSource, type(None)))
        check_type("pruning", pruning, (SeedPruning, type(None)))
        check_number("jitter", jitter, at_least=0)
        if samples_per_class is not None:
            check_count("samples_per_class", samples_per_class)
        check_choice("dtype", dtype, STORED_DTYPES)
        check_count("update_every", update_every)
        check_count("seed", seed, at_least=0)
        super().__init__(max_size)  # pyright: ignore[reportArgumentType]
        self.max_size: int | None = max_size  # pyright: ignore[reportIncompatibleVariableOverride]
        self.source = GeneratedSeeds(seed=seed) if source is None else source
        self.pruning = RedundancyPruning() if pruning is None else pruning
        self.jitter = jitter
        self.samples_per_class = samples_per_class
        self.dtype = dtype
        self.update_every = update_every
        self.seed = seed
        self.updates = 0
        self._store = SeedStore(dtype)
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._held_out: list[tuple[Tensor, Tensor]] = []
        self._form = DatasetForm(has_tensor_labels=False, has_task_labels=False)
        self._task_labels: dict[int, int] = {}
        self._float = torch.zeros(0)
        self._made = None

    def __len__(self) -> int:
        return len(self._store)

    def __bool__(self) -> bool:
        return True  # a memory without seeds is a memory all the same

    def _random(self, purpose: int) -> torch.Generator:
        """Return a generator that depends on the seed and the updates so far, unlike any of users."""
        mixed = (
            int(self.seed) * 6_364_136_223_846_793_005 + self.updates * 1_442_695_040_888_963_407 + purpose
        )
        return torch.Generator().manual_seed((mixed ^ 0x9E37_79B9_7F4A_7C15) % 2**63)

    # What the memory holds.

    @property
    def visual(self) -> Tensor:
        """The visual seeds float32 (M, D), of unit length but for rounding; their classes are ``labels``."""
        return self._store.visual.rows()

    @property
    def textual(self) -> Tensor | None:
        """The textual seeds (M, D); None where a seed's text is that of its class."""
        return None if self._store.textual is None else self._store.textual.rows()

    def textual_rows(self, rows: Tensor) -> Tensor | None:
        """Return some textual seeds, (K, D) for int64 (K,); None without such."""
        return None if self._store.textual is None else self._store.textual.rows(rows)

    @property
    def labels(self) -> Tensor:
        """The class int64 (M,) of each seed."""
        return self._store.numbers.labels

    @property
    def counts(self) -> Tensor:
        """How many embeddings (M,) each seed stands for."""
        return self._store.numbers.counts

    @property
    def spreads(self) -> Tensor:
        """The deviation (M,) of the embeddings of its class from the nearest seed, in each dimension."""
        return self._store.numbers.spreads

    @property
    def lengths(self) -> Tensor:
        """The mean length (M,) of the embeddings of its class."""
        return self._store.numbers.lengths

    @property
    def classes(self) -> list[int]:
        """The ids of the classes that have a seed, in ascending order."""
        return self.labels.unique().tolist()

    @property
    def nbytes(self) -> int:
        """Number of bytes of seeds, of embeddings that wait, and of what the source keeps."""
        parts = [x for pair in (*self._waiting, *self._held_out) for x in pair]
        return sum(part.nbytes for part in parts) + self._store.nbytes + self.source.nbytes

    # Drawing.

    def sample(self, count: int, generator: torch.Generator) -> SeedDraw:
        """Draw around seeds of all classes, each class as often as the others.

        Args:
            count: B.
            generator: of the random numbers, on the CPU.

        Raises:
            ValueError: an empty memory, or ``count`` below 1.
        """
        check_count("count", count)
        if len(self) == 0:
            advice = "Train an experience first."
            raise wrong_value("count", "drawn from a memory that has seeds", "one without", advice)
        rows = torch.multinomial(self._store.shares, count, replacement=True, generator=generator)
        return around(self._store, rows, self.jitter, generator)

    @property
    def buffer(self) -> AvalancheDataset[Any]:
        """A data set of the host with draws, whose samples have the form of those of the stream."""
        if len(self) == 0:
            return self._buffer
        if self._made is None:
            if self.samples_per_class is None:
                draw = around(self._store, torch.arange(len(self)), 0, self._random(1))
            else:
                # The same draws for the same memory, whoever asks for them: a run that resumes has them too.
                generator = self._random(1)
                rows = rows_of_each_class(self._store, self.samples_per_class, generator)
                draw = around(self._store, rows, self.jitter, generator)
            visual = draw.visual.to(self._float.dtype)
            self._made = dataset_of_embeddings(visual, draw.labels, self._form, self._task_labels)
        return self._made

    @buffer.setter
    def buffer(self, new_buffer: Any) -> None:
        raise wrong_value(
            "buffer", "left to the seeds that it is drawn from", f"a {type(new_buffer).__name__}"
        )

    # Updates.

    def post_adapt(self, agent_state: Any, exp: Any) -> None:
        """Make seeds of the embeddings of an experience; the host's ``ReplayPlugin`` asks for it.

        Args:
            agent_state: the strategy.
            exp: the experience.

        Raises:
            ValueError: its samples are no embeddings (D,), or the memory has served another strategy.
        """
        if isinstance(agent_state, BaseTemplate):
            advice = "Build a new SeedBuffer for each strategy."
            claim(self, agent_state, argument="storage_policy", advice=advice)
        self.check_samples(exp)
        dataset: Any = exp.dataset.eval()
        batches = [(x, y) for x, y, *_ in eval_loader(dataset, _READ_AT_ONCE)]
        features, labels = (torch.cat(part) for part in zip(*batches, strict=True))
        self.note_form(dataset)
        self.update_from_features(getattr(agent_state, "model", None), features, labels)

    def check_samples(self, exp: Any) -> None:
        """Raise unless the samples of an experience are embeddings; our strategies ask before they train.

        Args:
            exp: the experience.

        Raises:
            ValueError: its samples are not embeddings (D,).
        """
        sample = exp.dataset.eval()[0][0]
        if not isinstance(sample, Tensor) or sample.ndim != 1:
            shape = tuple(sample.shape) if isinstance(sample, Tensor) else type(sample).__name__
            raise wrong_value(
                "exp",
                "an experience of embeddings (D,), where a plugin of the host keeps seeds",
                f"samples {shape}",
                "For images take avalanche_vlm.plugins.FeatureReplayPlugin(SeedBuffer(...)), which encodes "
                "them. Or, if no other plugin needs images, embed the benchmark with "
                "avalanche_vlm.embedding.embed(benchmark, backbone, cache_dir=...).",
            )

    def note_form(self, dataset: Any) -> None:
        """Note what samples of the stream look like, and the task labels of their classes."""
        self._form = DatasetForm.of(dataset)
        x = dataset[0][0]
        self._float = x.new_zeros(0, device="cpu") if x.is_floating_point() else self._float
        if self._form.has_task_labels:
            pairs = zip(list(dataset.targets), list(dataset.targets_task_labels), strict=True)
            self._task_labels.update({int(label): int(task) for label, task in pairs})

    def update_from_features(
        self, model: Any, features: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Make seeds of embeddings, or let them wait for more.

        Args:
            model: the strategy's model; sources that ask no model take None.
            features: floats (N, D), un-normalised.
            labels: int64 (N,).
            validation: features (V, D) and labels (V,) that were held out of training, or None.

        Raises:
            TypeError: not tensors of floats and of whole numbers.
            ValueError: lengths or widths that do not agree, no feature, or one that is not finite.
        """
        width = self._store.visual.values.shape[1] or (self._waiting[0][0].shape[1] if self._waiting else 0)
        check_features(features, labels, width)
        self._waiting.append((features.detach().float().cpu().clone(), labels.long().cpu().clone()))
        if validation is not None:
            x, y = validation
            self._held_out.append((x.detach().float().cpu().clone(), y.long().cpu().clone()))
        if sum(len(x) for x, _ in self._waiting) >= self.update_every:
            self.flush(model)

    def flush(self, model: Any) -> None:
        """Make seeds of the embeddings that wait, and let go of them; the model is that of the strategy."""
        if not self._waiting:
            return
        features = torch.cat([x for x, _ in self._waiting])
        labels = torch.cat([y for _, y in self._waiting])
        lengths, unit = features.norm(dim=1), F.normalize(features, dim=1)
        validation = None
        if self._held_out:
            x = torch.cat([x for x, _ in self._held_out])
            validation = F.normalize(x, dim=1), torch.cat([y for _, y in self._held_out])
        new = self.source.make(model, unit, labels, validation)
        if len(self) > 0 and (new.textual is None) != (self._store.textual is None):
            expected = "one that always makes textual seeds, or never"
            raise wrong_value("source", expected, f"a {type(self.source).__name__} that does now and then")
        visual, done = kept_apart(new.visual.detach(), unit, labels, self._random(2))
        numbers = seed_description(new.visual.detach(), new.labels, unit, labels, lengths)
        self._warn_of_lost(new.labels, done)
        textual = None if new.textual is None else new.textual.detach()[done]
        self._store.append(visual[done], textual, SeedNumbers(*(each[done] for each in numbers)))
        self._waiting, self._held_out = [], []
        self._prune()
        self._note_change()

    def _warn_of_lost(self, labels: Tensor, done: Tensor) -> None:
        lost = sorted(set(labels.tolist()) - set(labels[done].tolist()) - set(self.classes))
        if lost:
            warnings.warn(
                f"No seed of the classes {lost[:8]} could be kept apart from real features: the embedding "
                "space has too few dimensions for so many of them. They are not replayed.",
                stacklevel=4,
            )

    def resize(self, strategy: Any, new_size: int | None) -> None:
        """Change K, and prune; arguments as the host has them."""
        if new_size is not None:
            check_count("new_size", new_size)
        self.max_size = new_size
        self._prune()
        self._note_change()

    def move(self, moved: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Put other features in the place of the seeds, after an image tower has changed.

        Args:
            moved: maps features (M, D) and classes int64 (M,) to features (M, D), as
                ``plugins.DriftCompensator.moved`` does.
        """
        if len(self) == 0:
            return
        features = moved(self.visual * self.lengths[:, None], self.labels).float().cpu()
        self._store.turn(F.normalize(features, dim=1), features.norm(dim=1))
        self._note_change()

    def _note_change(self) -> None:
        """Let what is drawn of other seeds go."""
        self.updates += 1
        self._made = None

    def _prune(self) -> None:
        """Let each class have its share; what a seed that goes stood for, the nearest one takes over."""
        if self.max_size is None or len(self) == 0:
            return
        arrived = list(dict.fromkeys(self.labels.tolist()))
        if len(arrived) > self.max_size:
            warnings.warn(
                f"`max_size` is {self.max_size}, and there are {len(arrived)} classes: the last of them have "
                "no seed and are not replayed. Give SeedBuffer a larger one.",
                stacklevel=4,
            )
        visual, counts, kept = self.visual, self.counts.clone(), []
        for position, label in enumerate(arrived):
            rows = (self.labels == label).nonzero().flatten()
            share = max((self.max_size - position + len(arrived) - 1) // len(arrived), 0)
            if share == 0:
                continue
            if len(rows) > share:
                own = visual[rows]
                stay = self.pruning.kept(own, counts[rows], share)
                nearest = (own @ own[stay].T).argmax(dim=1)
                nearest[stay] = torch.arange(share)
                taken = torch.zeros(share).index_add_(0, nearest, counts[rows])
                rows = rows[stay]
                counts[rows] = taken
            kept.append(rows)
        index = torch.cat(kept).sort().values
        if len(index) < len(self):
            self._store.keep(index, counts)

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Return all that is kept."""
        return {
            **self._store.state(),
            "waiting": [list(pair) for pair in self._waiting],
            "held_out": [list(pair) for pair in self._held_out],
            "source": self.source.state_dict(),
            "updates": self.updates,
            "max_size": self.max_size,
            "form": list(self._form),
            "task_labels": dict(self._task_labels),
            "float": self._float,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over such a state.

        Raises:
            ValueError: the state of something else, or of seeds kept as another dtype.
        """
        if set(state) != set(self.state_dict()):
            raise wrong_value("state", "that of a SeedBuffer", f"one with {sorted(state)}")
        self._store.check(state)
        self.source.load_state_dict(state["source"])
        self._store.load(state)
        self._waiting = [(x.cpu(), y.cpu()) for x, y in state["waiting"]]
        self._held_out = [(x.cpu(), y.cpu()) for x, y in state["held_out"]]
        self.updates, self.max_size = state["updates"], state["max_size"]
        self._form, self._task_labels = DatasetForm(*state["form"]), dict(state["task_labels"])
        self._float = state["float"].cpu()
        self._made = None
