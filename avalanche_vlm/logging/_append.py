"""The former place of `append_lines` and `file_lock`."""

from avalanche_vlm._files import append_lines, file_lock

__all__ = ["append_lines", "file_lock"]
