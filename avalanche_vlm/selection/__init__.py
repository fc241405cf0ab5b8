"""Choosing hyper-parameters honestly: on validation data and class orders that are not reported."""

from avalanche_vlm.selection.choice import CandidateScores, Choice
from avalanche_vlm.selection.choose_hyperparameters import choose_hyperparameters
from avalanche_vlm.selection.hidden_streams import HiddenStreamError

__all__ = ["CandidateScores", "Choice", "HiddenStreamError", "choose_hyperparameters"]
