"""One file per command of `tamis`; `service.cli` puts them together."""
