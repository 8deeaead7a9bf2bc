"""The report of an evaluation: one HTML page that needs no network. Only `tamis evaluate --report` loads it."""
