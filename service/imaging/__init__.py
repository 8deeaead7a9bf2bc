"""Decoding under limits, anomaly maps drawn over images, drawn parts for the demo."""
