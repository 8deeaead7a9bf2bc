"""Evaluating versions on labelled images, and the reports."""
