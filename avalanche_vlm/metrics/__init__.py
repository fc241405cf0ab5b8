"""Metrics for the host's `EvaluationPlugin`."""

from __future__ import annotations

from avalanche_vlm.metrics.accuracy_matrix import AccuracyMatrixMetric, continual_metrics

__all__ = ["AccuracyMatrixMetric", "continual_metrics"]
