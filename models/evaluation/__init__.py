"""Metrics, curves and their confidence, and the evaluation of a detector on labelled images."""
