"""One training, from images to a published version."""
