"""The reference: one page for each public subpackage, with every name of its ``__all__``.

The pages are written from the package itself when a build begins, so that no name can be forgotten.
Names in single backticks link to their entry, in docstrings and in the guides.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import pprint
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

PACKAGE = "avalanche_vlm"
FOLDER = "reference"
_WITHOUT_LINK = (nodes.reference, addnodes.pending_xref, addnodes.desc_signature, nodes.title)
_LONGEST_VALUE = 400


def public_subpackages() -> list[str]:
    """Return the full names of the public subpackages, in alphabetical order."""
    package = importlib.import_module(PACKAGE)
    return sorted(
        f"{PACKAGE}.{found.name}"
        for found in pkgutil.iter_modules(package.__path__)
        if found.ispkg and not found.name.startswith("_")
    )


def public_names(subpackage: str) -> list[str]:
    """Return the names of the ``__all__`` of a subpackage."""
    return list(importlib.import_module(subpackage).__all__)


def pages() -> dict[str, str]:
    """Return the text of every page of the reference, by file name."""
    subpackages = public_subpackages()
    written = {f"{name.rpartition('.')[2]}.rst": _page(name) for name in subpackages}
    return {"index.rst": _index(subpackages), **written}


def _index(subpackages: list[str]) -> str:
    lines = [
        *_title("Reference"),
        "Every public name, by the subpackage that it is imported from. What is not here is not public.",
        "",
        ".. list-table::",
        "   :widths: 30 70",
        "",
    ]
    for name in subpackages:
        short, purpose = name.rpartition(".")[2], _first_line(importlib.import_module(name))
        lines += [f"   * - :doc:`{name} <{short}>`", f"     - {purpose}"]
    lines += ["", ".. toctree::", "   :hidden:", ""]
    return "\n".join([*lines, *(f"   {name.rpartition('.')[2]}" for name in subpackages), ""])


def _page(subpackage: str) -> str:
    module = importlib.import_module(subpackage)
    kinds: dict[str, list[str]] = {"Classes": [], "Functions": [], "Constants and types": []}
    for name in public_names(subpackage):
        value = getattr(module, name)
        kinds[_kind(value)].append(name)
    lines = [*_title(subpackage), f".. automodule:: {subpackage}", "   :no-members:", ""]
    for kind, names in kinds.items():
        if not names:
            continue
        lines += [f".. rubric:: {kind}", "", ".. list-table::", "   :widths: 35 65", "   :class: names", ""]
        for name in names:
            lines += [f"   * - `{name}`", f"     - {_summary(module, name)}"]
        lines.append("")
    for kind, names in kinds.items():
        if names:
            lines += _title(kind, "-")
        for name in names:
            lines += [*_entry(module, name, kind), ""]
    return "\n".join(lines)


def _kind(value: Any) -> str:
    if inspect.isclass(value):
        return "Classes"
    return "Functions" if inspect.isfunction(value) else "Constants and types"


def _entry(module: Any, name: str, kind: str) -> list[str]:
    full = f"{module.__name__}.{name}"
    if kind == "Functions":
        return [f".. autofunction:: {full}"]
    if kind == "Classes":
        bases = getattr(module, name).__bases__
        shown = [] if bases == (object,) else ["   :show-inheritance:"]
        return [f".. autoclass:: {full}", "   :members:", *shown]
    value = getattr(module, name)
    lines = [f".. py:data:: {name}", f"   :module: {module.__name__}", ""]
    lines += [f"   {line}" for line in _comment(module, name)]
    text = pprint.pformat(value, width=90, compact=True, sort_dicts=False)
    if len(text) > _LONGEST_VALUE:
        keys = ", ".join(f"``{key}``" for key in value) if isinstance(value, Mapping) else ""
        return [*lines, "", f"   A {type(value).__name__} of {len(value)}{': ' if keys else '.'}{keys}"]
    return [*lines, "", "   .. code-block:: python", "", *(f"      {line}" for line in text.splitlines())]


def _summary(module: Any, name: str) -> str:
    value = getattr(module, name)
    if _kind(value) == "Constants and types":
        return " ".join(_comment(module, name)) or _what_it_is(value)
    return _first_line(value)


def _what_it_is(value: Any) -> str:
    if isinstance(value, (tuple, Mapping)):
        kinds = {type(each).__name__ for each in (value.values() if isinstance(value, Mapping) else value)}
        of = f", each of type ``{kinds.pop()}``" if len(kinds) == 1 else ""
        return f"{len(value)} entries{of}."
    return f"``{value!r}``" if len(repr(value)) < 60 else "A type."


def _skip(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what a class has from elsewhere: a flag of the host, and the fields of a named tuple."""
    field = (getattr(member, "__doc__", None) or "").startswith("Alias for field number")
    return True if name == "supports_distributed" or field else None


def _first_line(documented: Any) -> str:
    """Return the first paragraph of a docstring, on one line."""
    paragraph = (inspect.getdoc(documented) or "").split("\n\n")[0]
    return " ".join(paragraph.split())


def _comment(module: Any, name: str) -> list[str]:
    """Return what is written about a constant where it is assigned."""
    for origin in _origins(module.__name__, name):
        found = ModuleAnalyzer.for_module(origin).find_attr_docs().get(("", name))
        if found:
            return [line for line in found if line.strip()]
    return []


def _origins(subpackage: str, name: str) -> Iterator[str]:
    """Yield the modules that a public name is imported from, the package's own first."""
    source = inspect.getsource(importlib.import_module(subpackage))
    for origin, imported in re.findall(r"^from (\S+) import (\([^)]*\)|.*)$", source, flags=re.MULTILINE):
        if re.search(rf"\b{name}\b", imported):
            yield origin


def _title(text: str, mark: str = "=") -> list[str]:
    return [text, mark * len(text), ""]


def write_pages(app: Sphinx) -> None:
    """Write the pages, those that changed only, and remove those of subpackages that are gone."""
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(exist_ok=True)
    texts = pages()
    for path in folder.glob("*.rst"):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def links() -> dict[str, str]:
    """Return the full name of each public name, and of each subpackage."""
    found: dict[str, str] = {}
    for subpackage in public_subpackages():
        short = subpackage.rpartition(".")[2]
        for name in public_names(subpackage):
            found.setdefault(name, f"{subpackage}.{name}")
            found[f"{short}.{name}"] = f"{subpackage}.{name}"
        found[subpackage] = subpackage
    return found


_links: dict[str, str] = {}


def full_names(written: str) -> list[str]:
    """Return under which names an object may be in the reference, the longest first."""
    _links.update(_links or links())
    written = written.removeprefix(f"{PACKAGE}.")
    parts = written.split(".")
    candidates = [f"{PACKAGE}.{written}"]
    for length in range(len(parts), 0, -1):
        head = ".".join(parts[:length])
        if head in _links:
            candidates.append(".".join([_links[head], *parts[length:]]))
    return candidates


def resolve(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: Any) -> Any:
    """Find a name of the package from wherever it is written."""
    if node.get("refdomain") != "py":
        return None
    objects = env.domains["py"].objects  # type: ignore[attr-defined]
    for name in full_names(node["reftarget"]):
        if name in objects and app.builder.format == "html":
            entry = objects[name]
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, [content], name)
    return None


class LinkNamesOfGuides(SphinxPostTransform):
    """Makes links of names in backticks in Markdown pages."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        """Wrap every literal that is a public name, or a call of one."""
        if not str(self.env.doc2path(self.env.docname)).endswith(".md"):
            return
        for literal in list(self.document.findall(nodes.literal)):
            if any(isinstance(parent, _WITHOUT_LINK) for parent in _parents(literal)):
                continue
            name = re.fullmatch(r"\.?([A-Za-z_][\w.]*)(\(.*\))?", literal.astext(), flags=re.DOTALL)
            if name is None:
                continue
            objects = self.env.domains["py"].objects  # type: ignore[attr-defined]
            full = next((each for each in full_names(name[1]) if each in objects), None)
            if full is None:
                continue
            entry, builder = objects[full], self.app.builder
            link = make_refnode(
                builder, self.env.docname, entry.docname, entry.node_id, [literal.deepcopy()], full
            )
            literal.replace_self(link)


def _parents(node: nodes.Node) -> Iterator[nodes.Node]:
    while node.parent is not None:
        node = node.parent
        yield node


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages, and resolve names."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-skip-member", _skip)
    app.connect("missing-reference", resolve)
    app.add_post_transform(LinkNamesOfGuides)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
