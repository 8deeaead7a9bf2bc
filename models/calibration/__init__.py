"""Thresholds and p-values from calibration scores: pure arithmetic."""
