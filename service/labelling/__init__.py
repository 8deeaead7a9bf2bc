"""What people say of images, and the training set that comes of it."""
