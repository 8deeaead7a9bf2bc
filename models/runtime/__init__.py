"""Scoring by a published version: OpenVINO, torch on a GPU, the export to a graph."""
