"""What all tests share: where real data is, and one thread."""

import os
from pathlib import Path

import pytest
import torch

# The models here are tiny: a second thread costs more than it brings, most of all on a busy machine, and in
# the processes that tests start beside each other.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real features and images; tests that need it are skipped without it."""
    folder = os.environ.get("AVALANCHE_VLM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("AVALANCHE_VLM_DATA names no folder with real data")
    return Path(folder)
