"""The words that the small CLIP's tokenizer knows; every other piece of text is spelled in bytes."""

from __future__ import annotations

_WORLD = """
circle square triangle diamond star heart cross ring crescent arrow hourglass bolt
red orange yellow green cyan blue purple pink
plain striped dotted checkered
photo sketch night blur negative mosaic rain fog blurry
"""

# What the usual prompt templates for CLIP are written with.
_TEMPLATES = """
a an the of in on at and that is it this these there are with my one for i to as by from like
image picture drawing painting rendering scene shape object thing something color texture style
art cartoon doodle sculpture graffiti tattoo toy plushie plastic origami embroidered video game
itap jpeg close up love many hard see seen low high resolution type kind
bad good nice cool weird small large big clean dirty bright dark light cropped corrupted pixelated
black white gray brown
"""

_PUNCTUATION = ". , : ; ! ? ' \" - _ ( ) [ ] { } / & + *"

WORDS: tuple[str, ...] = tuple((_WORLD + _TEMPLATES).split())
"""Single tokens that have a space before them unless said otherwise."""

PUNCTUATION: tuple[str, ...] = tuple(_PUNCTUATION.split())
"""Single tokens that have no space before them unless said otherwise."""
