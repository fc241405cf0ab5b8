"""The import law, and the gates on documentation, that no linter knows."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import avalanche_vlm

ROOT = Path(avalanche_vlm.__file__).parent
ORDER = [
    "_checks",
    "_checked_features",
    "_pictures",
    "_precision",
    "_stateful",
    "_files",
    "_processes",
    "functional",
    "_host",
    "_host_benchmarks",
    "_runs",
    "text",
    "models",
    "sources",
    "memory",
    "regularizers",
    "plugins",
    "strategies",
]
MAY_IMPORT = {part: set(ORDER[: index + 1]) for index, part in enumerate(ORDER)}
MAY_IMPORT |= {
    "__init__": {"_version"},
    "_version": set(),
    "world": {"world", "_checks"},
    "benchmarks": {
        *("benchmarks", "_checks", "_pictures", "_host", "_host_benchmarks", "functional", "text", "world"),
    },
    "metrics": {"metrics", "_checks", "_host", "_runs", "functional", "text"},
    "logging": {"logging", "_checks", "_files", "_host", "_host_benchmarks", "_runs", "functional", "text"},
}
# They stand beside strategies: everything below, and benchmarks.
for beside in ("presets", "selection", "embedding"):
    MAY_IMPORT[beside] = {beside, "benchmarks"} | (set(ORDER) - {"strategies"})
MAY_IMPORT["checkpointing"] = {"checkpointing", "logging", "metrics"} | set(ORDER)
MAY_IMPORT["comparison"] = {"comparison", "checkpointing", "benchmarks", "logging", "metrics"} | set(ORDER)
MAY_IMPORT["models"] |= {"_version"}
MAY_IMPORT["sources"] |= {"world"}
ANYTHING = {"testing"}
ONLY_IMPORTERS = {
    "open_clip": {"models/open_clip.py", "models/open_clip_loading.py", "testing/tiny_diffusion.py"},
    "diffusers": {"sources/diffusion_image_source.py", "testing/tiny_diffusion.py"},
}
FILES = sorted(ROOT.rglob("*.py"))


def imports(path):
    """Yield the dotted names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module == "avalanche_vlm":
                yield from (f"avalanche_vlm.{alias.name}" for alias in node.names)


def part_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_order(path):
    part = part_of(path)
    for module in imports(path):
        top, *rest = module.split(".")
        if top in ONLY_IMPORTERS:
            here = path.relative_to(ROOT).as_posix()
            assert here in ONLY_IMPORTERS[top], f"{module} may be imported in {ONLY_IMPORTERS[top]} only"
        if top != "avalanche_vlm" or part in ANYTHING:
            continue
        if rest[:1] != ["__version__"] and rest:
            assert rest[0] in MAY_IMPORT[part], f"{part} may not import {module}"


def test_the_law_knows_every_part():
    assert {part_of(path) for path in FILES} <= set(MAY_IMPORT) | ANYTHING


def public_objects():
    for path in FILES:
        module_name = "avalanche_vlm." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        module = importlib.import_module(module_name.removesuffix(".__init__"))
        for name in getattr(module, "__all__", ()):
            yield module.__name__, name, getattr(module, name)


def test_every_public_name_is_documented():
    bare = [
        f"{module}.{name}"
        for module, name, thing in public_objects()
        if (inspect.isclass(thing) or inspect.isfunction(thing)) and not inspect.getdoc(thing)
    ]
    assert not bare


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_prints_or_seeds_the_world(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{path}: print"


def test_examples_are_short_and_smokable():
    examples = sorted((ROOT.parent / "examples").glob("*.py"))
    for example in examples:
        text = example.read_text()
        assert len(text.splitlines()) <= 100, f"{example.name} has over 100 lines"
        assert "--smoke" in text
