"""The state of all global random generators."""

from __future__ import annotations

import random
import warnings
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_vlm._checks import wrong_value

# How many numbers NumPy's generators hold ready.
TWISTER_NUMBERS, PHILOX_NUMBERS = 624, 4


def random_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and PyTorch's generators, as plain values and tensors."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    # Half of PyTorch's state is the upper halves of numbers that have none.
    cpu = np.frombuffer(zlib.compress(torch.get_rng_state().numpy().tobytes()), dtype=np.uint8)
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "python": (version, _tensor(words), gauss),
        "numpy": (
            str(kind),
            _tensor(keys),
            int(position),
            int(has_gauss),
            float(cached),
        ),
        "torch": torch.from_numpy(cpu.copy()),
        "cuda": torch.cuda.get_rng_state_all() if used else [],
    }


def check_random_state(state: dict[str, Any]) -> None:
    """Raise if `set_random_state` would refuse a state; nothing is changed.

    Raises:
        ValueError: it would.
    """
    try:
        version, words, gauss = state["python"]
        random.Random().setstate((version, tuple(_numbers(words).tolist()), gauss))
        for own in state["cuda"]:
            if own.dtype != torch.uint8:
                raise ValueError(f"a state of a GPU of {own.dtype}")
        kind, keys, position, has_gauss, cached = state["numpy"]
        check_position(position, TWISTER_NUMBERS)
        np.random.RandomState().set_state((kind, _numbers(keys), position, has_gauss, cached))
        torch.Generator().set_state(_unpacked(state["torch"]))
    except Exception as error:
        raise wrong_value("path", "a checkpoint with the states of random generators", str(error)) from error


def check_position(position: Any, count: int) -> None:
    """Raise unless a position is one among the numbers that a generator of NumPy holds ready.

    It reads there without a look, also outside of its memory.

    Raises:
        ValueError: it is not.
    """
    if type(position) is not int or not 0 <= position <= count:
        raise ValueError(f"position {position!r:.40} of {count} numbers")


def set_random_state(state: dict[str, Any]) -> None:
    """Go back to what `random_state` returned; warn if the GPUs are others."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(_numbers(words).tolist()), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, _numbers(keys), position, has_gauss, cached))
    torch.set_rng_state(_unpacked(state["torch"]))
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if state["cuda"] and len(state["cuda"]) != present:
        warnings.warn(
            f"The run used {len(state['cuda'])} GPUs and there are {present} now: their random numbers go on "
            "from elsewhere, so the rest of the run will not be the one that was interrupted.",
            stacklevel=4,
        )
    elif state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _unpacked(packed: Tensor) -> Tensor:
    length = torch.get_rng_state().numel()
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(packed.numpy().tobytes(), length + 1)  # and no more, whatever there is
    if len(content) != length or not unpacker.eof:
        raise ValueError(f"the state of PyTorch's generator does not have {length} bytes")
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())


def _tensor(words: Any) -> Tensor:
    """Return numbers of 32 bits as bytes, in a tensor."""
    return torch.from_numpy(np.asarray(words, dtype=np.uint32).view(np.uint8).copy())


def _numbers(tensor: Tensor) -> Any:
    return tensor.numpy().view(np.uint32)
