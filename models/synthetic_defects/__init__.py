"""Drawing defects on normal images, for the head to learn from."""
