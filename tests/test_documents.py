"""What the documents show runs, what they name exists, and the reference has every public name."""

import ast
import importlib
import re
import sys
from pathlib import Path

import avalanche.training
import avalanche.training.plugins
import pytest

import avalanche_vlm

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("**/*.md"))]
DOCUMENTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(language):
    """Return a parameter (page, line of the code, code) for each block of a language."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in BLOCK.finditer(text):
            if block[1] == language:
                line = text[: block.start(2)].count("\n")
                found.append(pytest.param(page, line, block[2], id=f"{name_of(page)}:{line}"))
    return found


def prose(page):
    """Return a document without its blocks of code."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


each_document = pytest.mark.parametrize("page", DOCUMENTS, ids=name_of)


@pytest.fixture(scope="module")
def extension():
    """Import what writes the reference, which needs Sphinx and no build."""
    pytest.importorskip("sphinx")
    sys.path.insert(0, str(DOCS / "_extensions"))
    try:
        yield importlib.import_module("public_names")
    finally:
        sys.path.remove(str(DOCS / "_extensions"))


@pytest.mark.parametrize(("page", "line", "code"), blocks("python"))
def test_snippet_runs(page, line, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "snippet"}
    # With the lines of the page, so that an error says where it is.
    exec(compile("\n" * line + code, str(page), "exec"), names)
    for name, function in list(names.items()):
        if name.startswith("test_"):  # as pytest would call it
            function()


@pytest.mark.parametrize(("page", "line", "code"), blocks("py"))
def test_what_does_not_run_says_so_and_imports_what_exists(page, line, code):
    before = "\n".join(page.read_text(encoding="utf-8").splitlines()[:line])
    assert "not run" in re.split(r"^#+ ", before, flags=re.MULTILINE)[-1]
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            for each in node.names:
                assert hasattr(importlib.import_module(node.module), each.name), f"{node.module}.{each.name}"


def slug(heading):
    """Return the anchor of a heading, as GitHub and the documentation make it."""
    text = re.sub(r"[`*]|\[(.*?)\]\(.*?\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


@each_document
def test_links_lead_somewhere(page, extension):
    written = extension.pages()
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = page if not file else (page.parent / file).resolve()
        if there.parent == DOCS / extension.FOLDER:  # made when the documentation is built
            assert there.name in written, target
            continue
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", prose(there), flags=re.MULTILINE)
            assert anchor in map(slug, headings), target


@each_document
def test_files_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w./])((?:benchmarks|examples|tests|docs|avalanche_vlm)/[\w./-]*\w)", text)
    for path in named:
        assert (ROOT / path).exists(), path


@each_document
def test_classes_that_are_named_exist(page, extension):
    known = extension.links()
    hosts = [avalanche.training, avalanche.training.plugins, avalanche.training.storage_policy]
    elsewhere = {"DataLoader", "PyTorch", "MPLCONFIGDIR", "AdamW", "LoRA", "SI", "GEM"}
    # Names of classes have two capitals and a small letter; a call is named by what stands before it.
    for literal in re.findall(r"`([^`]+)`", prose(page)):
        name = re.match(r"[A-Z]\w*[a-z]\w*[A-Z]\w*$|[A-Z]\w*[a-z]\w*[A-Z]\w*(?=\()", literal)
        if name and name[0] not in elsewhere:
            assert name[0] in known or any(hasattr(host, name[0]) for host in hosts), name[0]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_page_is_finished(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"\b(TODO|FIXME|MEASURED|[A-Z]+_TABLE)\b", text)
    assert text.endswith("\n")


def test_every_page_can_be_reached():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = {
        name for tree in re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL) for name in tree.split()
    }
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    assert pages <= listed
    for name in pages - {"changelog", "contributing"}:
        assert f"]({name}.md)" in index


def test_every_public_constant_says_what_it_is(extension):
    bare = [
        f"{module}.{name}"
        for module in extension.public_subpackages()
        for name in extension.public_names(module)
        if extension._kind(getattr(importlib.import_module(module), name)) == "Constants and types"
        and not extension._comment(importlib.import_module(module), name)
    ]
    assert not bare


def test_the_reference_has_every_public_name(extension):
    pages = extension.pages()
    package = Path(avalanche_vlm.__file__).parent
    subpackages = [path.parent.name for path in sorted(package.glob("[!_]*/__init__.py"))]
    assert len(subpackages) > 10
    for subpackage in subpackages:
        page = pages[f"{subpackage}.rst"]
        assert f"\n   {subpackage}\n" in pages["index.rst"]
        module = f"avalanche_vlm.{subpackage}"
        names = importlib.import_module(module).__all__
        for name in names:
            entry = rf"^\.\. (auto\w+:: {module}\.{name}|py:data:: {name}\n   :module: {module})$"
            assert re.search(entry, page, re.MULTILINE), name
            assert re.search(rf"^   \* - `{name}`\n     - \S", page, re.MULTILINE), f"{name} has no summary"


def test_names_are_resolved_from_wherever_they_are_written(extension):
    links = extension.links()
    assert links["CLIPClassifier"] == links["models.CLIPClassifier"] == "avalanche_vlm.models.CLIPClassifier"
    assert "avalanche_vlm.models.CLIPClassifier.predict" in extension.full_names("CLIPClassifier.predict")


def test_formulas_have_a_form_without_a_script(extension):
    mathml = importlib.import_module("mathml")
    formula = r"z_c = s \Big\langle \frac{f}{\lVert f \rVert}, w_c \Big\rangle"
    assert mathml.mathml(formula, display="block").startswith("<math")
    with pytest.raises(ValueError, match="unheardof"):
        mathml.mathml(r"\unheardof{x}", display="inline")
