"""Examples run as a user runs them, and so do the snippets of the README."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(example, tmp_path):
    command = [sys.executable, str(example), "--smoke", "--output", str(tmp_path / "results")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    noise = ("no QP solver found", "warnings.warn(")  # of a package that the host imports
    assert not [line for line in run.stderr.splitlines() if not any(words in line for words in noise)]
    with (tmp_path / "results" / "results.csv").open(newline="") as file:
        methods = {row["method"] for row in csv.DictReader(file)}
    assert methods == {"zero-shot", "naive fine-tuning", "LwF", "replay", "joint training"}
    for picture in ("accuracy_matrices.png", "accuracy_over_experiences.png"):
        assert (tmp_path / "results" / picture).stat().st_size > 1000
    assert "Transfer" in run.stdout
    assert "LastAccuracy_seen" in (tmp_path / "results" / "log.txt").read_text()


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_readme_snippet_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(SNIPPETS[number], f"README snippet {number}", "exec"), {"__name__": "readme"})


def test_the_readme_is_finished():
    text = (ROOT / "README.md").read_text()
    assert not re.search(r"\b(TODO|FIXME|MEASURED|[A-Z]+_TABLE)\b", text)
    for path in re.findall(r"`((?:benchmarks|examples|avalanche_vlm)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path
