"""What importing costs, told by what is imported: seconds differ from machine to machine."""

import subprocess
import sys


def packages_after(statement):
    """Return the packages that a new process has after an import."""
    code = f"import sys; {statement}; print('packages', *{{name.split('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-W", "ignore", "-c", code]
    # What is imported may print lines of its own.
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return set(next(line for line in lines if line.startswith("packages ")).split()[1:])


def test_the_package_itself_imports_nothing():
    assert packages_after("import avalanche_vlm") - packages_after("pass") == {"avalanche_vlm"}


def test_what_one_function_needs_is_imported_there():
    parts = ("benchmarks", "logging", "metrics", "models", "plugins", "strategies")
    statement = "import avalanche.training, " + ", ".join(f"avalanche_vlm.{part}" for part in parts)
    code = (
        f"import avalanche.training; known = set(sys.modules); {statement}; ours = set(sys.modules) - known"
    )
    found = packages_after(f"{code}; sys.modules = dict.fromkeys(ours)")
    assert "open_clip" in found  # or nothing was measured
    assert not found & {"peft", "accelerate", "sklearn", "diffusers"}
