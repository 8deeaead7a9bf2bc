"""The process: signals, threads, the order of starting and stopping, background jobs."""
