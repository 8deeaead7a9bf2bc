"""The Tamis service: watch a folder, score what arrives, sort it, keep the record. See docs/architecture.md."""

__version__ = "0.1.0"
