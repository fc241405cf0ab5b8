"""What the learned generators share: normalisation, groups of rows, the optimizer, a line of progress."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Adam

from avalanche_vlm._processes import progress_line

_SMALLEST = 1e-6


def normalisation(samples: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return shift and scale (K, D) of a min-max scaling followed by a z-score.

    .. math::
        \tilde x = \frac{(x - \min) / r - \mu}{\sigma} = \frac{x - s}{a}, \qquad
        r = \max - \min, \; s = \min + r \mu, \; a = r \sigma

    with the unbiased deviation :math:`\sigma`, of n - 1, and r and :math:`\sigma` at least 1e-6, so that one
    sample or a constant dimension gives zeros.

    Args:
        samples: (K, N, D), padded at the end of each class.
        counts: int64 (K,), how many samples of each class are none of the padding.
    """
    inside = (torch.arange(samples.shape[1], device=samples.device) < counts[:, None])[..., None]
    low = samples.masked_fill(~inside, torch.inf).amin(dim=1, keepdim=True)
    high = samples.masked_fill(~inside, -torch.inf).amax(dim=1, keepdim=True)
    span = (high - low).clamp(min=_SMALLEST)
    scaled = ((samples - low) / span).masked_fill(~inside, 0)
    mean = scaled.sum(dim=1, keepdim=True) / counts[:, None, None]
    squares = (scaled - mean).square().masked_fill(~inside, 0)
    others = (counts - 1).clamp(min=1)[:, None, None]
    deviation = (squares.sum(dim=1, keepdim=True) / others).sqrt().clamp(min=_SMALLEST)
    return (low + span * mean)[:, 0], (span * deviation)[:, 0]


def rows_in_a_pass(counts: Tensor, batch_size: int) -> Tensor:
    """Return how many rows (K,) of each class a pass in batches reads: all but a last one left alone.

    A batch norm over a single row gives its bias, whatever the row is: such a step would teach a decoder
    that codes do not matter. Each pass is in another order, so that it leaves out another row. A class of a
    single row keeps it: there is no spread to be learned.
    """
    return torch.where((counts % batch_size == 1) & (counts > 1), counts - 1, counts)


def grouped_rows(
    components: Tensor, *, components_at_once: int, rows_at_once: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the rows of each component side by side, as blocks of bounded size.

    Args:
        components: int64 (B,).
        components_at_once: most components (G) in a block.
        rows_at_once: most rows (m) of a component in a block.

    Yields:
        The components (G,), the positions (G, m) of their rows, and bool (G, m), False where a
        component has fewer rows and the position is a filler.
    """
    order = components.argsort(stable=True)
    members, counts = components[order].unique_consecutive(return_counts=True)
    ends = counts.cumsum(0)
    for first in range(0, len(members), components_at_once):
        group = slice(first, first + components_at_once)
        starts, sizes = (ends - counts)[group, None], counts[group, None]
        widest = int(sizes.max())
        for begin in range(0, widest, rows_at_once):
            slots = torch.arange(begin, min(begin + rows_at_once, widest), device=components.device)
            inside = slots < sizes
            yield members[group], order[starts + slots.minimum(sizes - 1)], inside


def adam(parameters: Iterable[nn.Parameter], learning_rate: float) -> Adam:
    """Return Adam, which memory limits: fused, where there is such, it reads and writes each weight once."""
    parameters = list(parameters)
    return Adam(parameters, lr=learning_rate, fused=parameters[0].device.type in ("cpu", "cuda"))


@contextmanager
def fit_progress(title: str, total: int) -> Generator[Callable[[], object], None, None]:
    """Give a function that counts one step of ``total``; shown at a terminal only."""
    with progress_line(title, total, "steps") as line:
        yield line.advance


def shared_normalisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return shift and scale (D,) that features (N, D) of classes to come are divided by too.

    A scale is at least a tenth of the root mean square over dimensions, so that what is constant in the
    first experience does not become huge in the next.
    """
    shift = features.mean(dim=0)
    scale = (features - shift).square().mean(dim=0).sqrt()
    floor = 0.1 * scale.square().mean().sqrt()
    if floor < _SMALLEST:
        floor = features.square().mean().sqrt().clamp(min=_SMALLEST)
    return shift, scale.maximum(floor)
