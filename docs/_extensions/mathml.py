"""Formulas as MathML: browsers draw it without a script, a font or a network."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

_LOGGER = logging.getLogger(__name__)
# The converter has no larger form of these; they grow with what is between them anyway.
_SIZED_FENCE = re.compile(r"\\[bB]igg?[lrm]?\s*(?=\\[lr](?:angle|Vert|vert)\b)")


def mathml(latex: str, *, display: str) -> str:
    """Return a formula as MathML.

    Raises:
        ValueError: a command that the converter does not know.
    """
    found = convert(_SIZED_FENCE.sub("", latex), display=display)
    unknown = re.findall(r"\\[a-zA-Z]+", found)
    if unknown:
        raise ValueError(f"commands without a form in MathML: {' '.join(unknown)}")
    return found


def _converted(node: nodes.Element, display: str) -> str:
    try:
        return mathml(node.astext(), display=display)
    except Exception as error:  # the converter raises of many kinds, and pages should say where
        _LOGGER.warning("formula %r: %s", node.astext(), error, location=node)
        return f"<code>{node.astext()}</code>"


def _visit_inline(translator: Any, node: nodes.Element) -> None:
    translator.body.append(_converted(node, "inline"))
    raise nodes.SkipNode


def _visit_block(translator: Any, node: nodes.Element) -> None:
    translator.body.append(f'<div class="formula">{_converted(node, "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
