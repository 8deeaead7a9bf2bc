"""`tamis run`: the daemon."""

from __future__ import annotations

import typer

from service import settings as settings_module
from service.commands.options import Root
from service.daemon.run import run as run_daemon
from service.errors import RootMissing, TamisError


def run(
    root: Root,
    instance: str | None = typer.Option(None, help="Name of this daemon; its claims lie in processing/<instance>."),
    log_format: str | None = typer.Option(None, help="plain or json."),
) -> None:
    root = root.resolve()
    try:
        settings = settings_module.load(root, instance=instance, log_format=log_format)
    except RootMissing as error:
        # Not 78, after which systemd would not restart it: it must go on once the disk is there.
        raise TamisError(f"{error}; or, where it is a disk of its own, mount it") from None
    raise typer.Exit(run_daemon(root, settings))
