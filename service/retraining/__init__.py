"""When to retrain, from what, and whether the new version takes over."""
