"""Exact resume: a run that is interrupted goes on as if it had never stopped."""

from avalanche_vlm.checkpointing._allowed import allow_in_checkpoints
from avalanche_vlm.checkpointing.checkpoint_plugin import CheckpointPlugin
from avalanche_vlm.checkpointing.resume import resume
from avalanche_vlm.checkpointing.save import save

__all__ = ["CheckpointPlugin", "allow_in_checkpoints", "resume", "save"]
