"""What all tests share: where real data is, one thread, and what is drawn at random."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

# The models here are tiny: a second thread costs more than it brings, most of all on a busy machine, and in
# the processes that tests start beside each other.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A test that can fail by luck is a broken test: property tests draw the same examples in every run, on every
# machine. `pytest --hypothesis-profile=random` looks elsewhere. Tests that are slow on a busy machine are not
# wrong, and no run depends on what an earlier one has stored.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None, print_blob=True)
settings.register_profile("random", derandomize=False, deadline=None, database=None, print_blob=True)
settings.load_profile("fixed")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin each test, its fixtures included, with the same global generators, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder with real features and images; tests that need it are skipped without it."""
    folder = os.environ.get("AVALANCHE_VLM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("AVALANCHE_VLM_DATA names no folder with real data")
    return Path(folder)
