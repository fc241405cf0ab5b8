"""A benchmark of images -> a benchmark of embeddings, with its cache on disk.

Every method and run that keeps the image tower frozen shares it: each image is encoded once.
"""

from avalanche_vlm.embedding.embed import embed

__all__ = ["embed"]
