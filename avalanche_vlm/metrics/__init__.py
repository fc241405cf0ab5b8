"""Metrics for the host's `EvaluationPlugin`."""

from __future__ import annotations

from avalanche_vlm.metrics.accuracy_matrix import AccuracyMatrixMetric, continual_metrics
from avalanche_vlm.metrics.class_accuracy import ClassAccuracyMetric
from avalanche_vlm.metrics.cost import CostMetric
from avalanche_vlm.metrics.memory import MemoryMetric
from avalanche_vlm.metrics.semantic_drift import SemanticDriftMetric
from avalanche_vlm.metrics.stored_bytes import stored_bytes

__all__ = [
    "AccuracyMatrixMetric",
    "ClassAccuracyMetric",
    "CostMetric",
    "MemoryMetric",
    "SemanticDriftMetric",
    "continual_metrics",
    "stored_bytes",
]
