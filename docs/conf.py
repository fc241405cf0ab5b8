"""Settings of the documentation: ``sphinx-build -W --keep-going -q -b html docs OUT``, without a network."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "avalanche-vlm"
version = release = installed_version("avalanche-vlm")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "myst_parser",
    "mathml",
    "public_names",
]
exclude_patterns = ["_extensions"]
nitpicky = False
default_role = "py:obj"  # single backticks link where they name a public object, and are code elsewhere

# Markdown
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # CHANGELOG.md and CONTRIBUTING.md are pages of their own as well

# Docstrings
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["References", "Deviations"]
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False

# Formulas are MathML, which browsers draw themselves: nothing is fetched, and there is no script.
html_math_renderer = "mathml"

html_theme = "furo"
html_title = f"avalanche-vlm {version}"
html_static_path = ["_static"]
html_css_files = ["own.css"]
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
pygments_style = "friendly"
