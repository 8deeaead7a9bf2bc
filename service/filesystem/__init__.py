"""Mounts, locks, opening without following links, writes that last."""
