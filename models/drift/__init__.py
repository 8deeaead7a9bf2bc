"""Tests for drift and their p-values."""
