"""`tamis run`: the daemon."""

from __future__ import annotations

import typer

from service import settings as settings_module
from service.commands.options import Root


def run(
    root: Root,
    instance: str | None = typer.Option(None, help="Name of this daemon; its claims lie in processing/<instance>."),
    log_format: str | None = typer.Option(None, help="plain or json."),
) -> None:
    """Watch ROOT/incoming, score what arrives, sort it and keep the record; until SIGTERM."""
    from service import daemon

    root = root.resolve()
    settings = settings_module.load(root, instance=instance, log_format=log_format)
    raise typer.Exit(daemon.run(root, settings))
