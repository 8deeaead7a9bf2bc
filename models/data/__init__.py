"""Layouts of data sets, the selection of images, and the list of those a version learned from."""
