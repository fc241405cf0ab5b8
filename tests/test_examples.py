"""Examples run as a user runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

from avalanche_vlm.logging import read_results
from avalanche_vlm.strategies import host_baselines

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


# What each example leaves behind, and the methods in its file of results.
WRITES = {
    "quickstart.py": (
        ["results.csv", "log.txt", "accuracy_matrices.png", "accuracy_over_experiences.png"],
        {"zero-shot", "naive fine-tuning", "LwF", "replay", "joint training"},
    ),
    "own_images.py": (["results.csv", "results.runs.jsonl", "model"], {"zero-shot", "replay"}),
    "from_embeddings.py": (
        ["results.csv", "results.runs.jsonl", "accuracy_over_experiences.png"],
        {"zero-shot", "naive fine-tuning", "LwF", "replay"},
    ),
    "cgil.py": (
        ["results.csv", "accuracy_over_experiences.png"],
        {"zero-shot", "naive fine-tuning", "Gaussian discriminant", "CGIL"},
    ),
    "auto_seed.py": (
        ["results.csv", "seeds.png", "accuracy_over_experiences.png"],
        {"no memory", "Auto-Seed", "Replay of seeds", "Replay of embeddings"},
    ),
    "gift.py": (["results.csv", "matrices.png"], {"zero-shot", "fine-tuning", "GIFT"}),
    "segp_cl.py": (
        ["results.csv", "results.runs.jsonl", "anchors.png", "drift.png"],
        {"zero-shot", "LoRA fine-tuning", "SeGP-CL"},
    ),
    "compare.py": (
        [
            *("runs", "runs.csv", "comparison.md"),
            *("overview_small-world-embedded.png", "curves_small-world-embedded.png"),
        ],
        {
            *("zero-shot", "closed form", "CGIL", "seeds", "seeds, LwF"),
            *host_baselines(memory_size=1, n_experiences=1),
        },
    ),
}


def run_example(name, *arguments, cwd):
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, check=False)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(example, tmp_path, request):
    if example.name == "from_embeddings.py":
        request.getfixturevalue("real_data")  # skips without it
    run = run_example(example.name, "--smoke", "--output", "out", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    noise = ("no QP solver found", "warnings.warn(")  # of a package that the host imports
    assert not [line for line in run.stderr.splitlines() if not any(words in line for words in noise)]
    files, methods = WRITES[example.name]
    for name in files:
        path = tmp_path / "out" / name
        assert path.is_dir() or path.stat().st_size > (1000 if path.suffix == ".png" else 0), name
    assert {row.method for row in read_results(tmp_path / "out")} == methods
    assert "Transfer" in run.stdout
    if "log.txt" in files:
        assert "LastAccuracy_seen" in (tmp_path / "out" / "log.txt").read_text()


def test_what_a_user_without_network_sees(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # otherwise it tries for tens of seconds
    streams = ("setting-a:cifar100", "mtil:I")
    run = run_example("compare.py", "--streams", *streams, "--methods", "zero-shot", cwd=tmp_path)
    assert run.returncode != 0
    for stream in streams:
        (line,) = [line for line in run.stderr.splitlines() if f"zero-shot, {stream}" in line]
        assert "could not be downloaded" in line
