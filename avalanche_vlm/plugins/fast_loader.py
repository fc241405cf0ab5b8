"""The batches of a loader, indexed at once instead of fetched sample by sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader, MultiDatasetSampler
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from avalanche_vlm.plugins._indexed_samples import IndexedSamples, NotIndexable, indexed_samples

# The host's methods that decide what is in a batch: a subclass with others keeps its own batches.
_MAKES_BATCHES = ("__iter__", "_get_loader", "_create_samplers", "_make_pytorch_loader")
_CHECKED = 8  # samples, spread over the data, that are compared with the host's


class FastLoader:
    """A loader that gives the batches of another, and answers for it; made by `fast_loader`.

    Args:
        host_loader: the loader that is asked for everything but batches.
        torch_loader: what it makes for an epoch, with the sampler that decides what is in a batch.
        samples: the samples that the sampler chooses from.
    """

    def __init__(self, host_loader: Any, torch_loader: DataLoader[Any], samples: IndexedSamples) -> None:
        self.host_loader = host_loader
        self._torch_loader = torch_loader
        self._samples = samples

    def __iter__(self) -> Iterator[list[Tensor]]:
        # Torch's loader draws a seed for its workers here, whether it has any or not.
        torch.empty((), dtype=torch.int64).random_(generator=self._torch_loader.generator)
        return self._batches()

    def _batches(self) -> Iterator[list[Tensor]]:
        sampler: Any = self._torch_loader.batch_sampler
        # As in torch's loader, which pins nothing where there is no GPU to copy to.
        pins = self._torch_loader.pin_memory and torch.cuda.is_available()
        for indices in sampler:
            batch = self._samples.batch(indices)
            yield [part.pin_memory() for part in batch] if pins else batch

    def __len__(self) -> int:
        return len(self.host_loader)

    def __getattr__(self, name: str) -> Any:
        # Plugins may ask the loader for its data set. A copy in the making has nothing to ask yet.
        if name.startswith("_") or "host_loader" not in vars(self):
            raise AttributeError(name)
        return getattr(self.host_loader, name)


def fast_loader(loader: Any) -> Any:
    """Return a loader with the same batches that indexes tensors, or ``loader`` where that cannot be.

    A batch is indexed at once if every sample comes from `LabelledTensors` (embedded benchmarks
    have them too) or from torch's ``TensorDataset``, through subsets and concatenations of the host
    or of torch, and no transform of the current group touches it but a class mapping of the host.
    The samplers stay those of ``loader``: the host's task-balanced, class-balanced and replay
    loaders give the same batches in the same order, and the same random numbers are drawn. Data are
    indexed where they lie, so tensors that are mapped from disk stay there.

    Whatever is not as expected (a data set of another class, which may change any of its samples,
    another transform, samples with further parts, another collate function, worker processes, ffcv,
    distributed training) keeps ``loader``, and a few samples are compared with what the data set
    itself returns, bit for bit.

    Args:
        loader: a loader of the host, or torch's ``DataLoader``.

    >>> from torch.utils.data import TensorDataset
    >>> loader = DataLoader(TensorDataset(torch.eye(3), torch.arange(3)), batch_size=2)
    >>> [y.tolist() for _, y in fast_loader(loader)]
    [[0, 1], [2]]
    """
    torch_loader = _loader_of_torch(loader)
    if type(torch_loader) is not DataLoader or not _is_plain(torch_loader):
        return loader
    try:
        samples = indexed_samples(torch_loader.dataset)
        _check(samples, torch_loader.dataset)
    except (NotIndexable, IndexError):  # an index beyond the data: for the host to say so
        return loader
    return FastLoader(loader, torch_loader, samples)


def _loader_of_torch(loader: Any) -> Any:
    """Return the loader that a loader of the host makes for an epoch, or what was given."""
    if not isinstance(loader, MultiDatasetDataLoader):
        return loader
    kind: Any = type(loader)
    if any(getattr(kind, name) is not getattr(MultiDatasetDataLoader, name) for name in _MAKES_BATCHES):
        return loader
    # As `_get_loader` does, but for a walk over all samples that looks for ffcv: see `indexed_samples`.
    own: Any = loader
    samplers = own._create_samplers(
        own.datasets, own.batch_sizes, own.distributed_sampling, own.loader_kwargs
    )
    if len(samplers) == 1 and not own.never_ending:
        # What the sampler of several data sets gives for one, without its work on every batch.
        return own._make_pytorch_loader(own.datasets, samplers[0])
    sampler = MultiDatasetSampler(
        own.datasets,
        samplers,
        termination_dataset_idx=own.termination_dataset,
        oversample_small_datasets=own.oversample_small_datasets,
        never_ending=own.never_ending,
    )
    return own._make_pytorch_loader(own.datasets, sampler)


def _is_plain(loader: DataLoader[Any]) -> bool:
    """Return whether a loader of torch collates batches in this process, in the usual way."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (
        loader.num_workers == 0
        and loader.batch_sampler is not None
        and loader.collate_fn is default_collate
        and not distributed
    )


def _check(samples: IndexedSamples, dataset: Any) -> None:
    """Raise `NotIndexable` unless some samples of each part are those of the data set."""
    spread = np.linspace(0, len(samples) - 1, min(_CHECKED, len(samples))).astype(int).tolist()
    indices = sorted({*spread, *samples.first_of_each_part})
    try:
        expected = default_collate([dataset[index] for index in indices])
    except (TypeError, RuntimeError):  # samples that make no batch: for the host to say so, if it comes to it
        raise NotIndexable from None
    batch = samples.batch(indices)
    if not isinstance(expected, (list, tuple)) or len(expected) != len(batch):
        raise NotIndexable
    for ours, theirs in zip(batch, expected, strict=True):
        alike = isinstance(theirs, Tensor) and ours.dtype == theirs.dtype and ours.device == theirs.device
        if not (alike and ours.stride() == theirs.stride() and torch.equal(ours, theirs)):
            raise NotIndexable
