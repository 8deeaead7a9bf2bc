"""`tamis web`: the page and its API, on one address, in one process, until SIGTERM."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service import settings as settings_module
from service.commands.options import Root
from service.daemon.systemd import Notifier
from service.errors import ConfigurationError, TamisError
from service.logs import configure, fields
from service.settings import Settings

if TYPE_CHECKING:
    from types import FrameType

log = logging.getLogger(__name__)

LIBRARIES = ("fastapi", "itsdangerous", "jinja2", "python_multipart", "uvicorn")
BACKLOG = 128
KEEP_ALIVE_S = 15
STOP_S = 10


def web(
    root: Root,
    host: Annotated[str | None, typer.Option(help="Address to listen on; the setting web_host if not given.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; the setting web_port if not given.")] = None,
    log_format: Annotated[str | None, typer.Option(help="plain or json.")] = None,
) -> None:
    _require_libraries()
    root = root.resolve()
    settings = settings_module.load(root, web_host=host, web_port=port, log_format=log_format)
    _refuse_open_door(settings)
    configure(settings.log_format, settings.log_level)
    _serve(root, settings)


def _require_libraries() -> None:
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"tamis web: expected the packages {', '.join(LIBRARIES)}; found no {', no '.join(missing)}."
            " Install them: pip install 'tamis[web]'"
        )


def _refuse_open_door(settings: Settings) -> None:
    """Raise ConfigurationError where anybody on the network could label and promote without a password."""
    from service.web.security import is_loopback

    if settings.web_password is not None and not settings.web_password.get_secret_value():
        raise ConfigurationError("setting web_password: expected a password, or none at all; found an empty one")
    if is_loopback(settings.web_host) or settings.web_password is not None or settings.web_user_header is not None:
        return
    raise ConfigurationError(
        f"setting web_host: expected this machine's own address, such as 127.0.0.1; found {settings.web_host!r}, which"
        " others can reach, without web_password or web_user_header. Set TAMIS_WEB_PASSWORD, or put a reverse proxy"
        " before it (docs/deployment.md)"
    )


def _serve(root: Path, settings: Settings) -> None:
    import uvicorn

    from service.web.app import create_app
    from service.web.connections import BoundedConnection, SeldomInvalid

    class Server(uvicorn.Server):
        """uvicorn's server, except that a signal ends it with exit code 0, not by that signal."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            def stop(number: int, frame: FrameType | None) -> None:
                notifier.send("STOPPING=1")
                self.handle_exit(number, frame)

            before = {one: signal.signal(one, stop) for one in (signal.SIGTERM, signal.SIGINT)}
            try:
                yield
            finally:
                for one, handler in before.items():
                    signal.signal(one, handler)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            host = f"[{settings.web_host}]" if ":" in settings.web_host else settings.web_host
            log.info(
                "serving",
                extra=fields(root=root, address=f"http://{host}:{settings.web_port}{settings.web_path_prefix}"),
            )
            notifier.send("READY=1")

    logging.getLogger("uvicorn.error").addFilter(SeldomInvalid())
    notifier = Notifier()
    listening = _listening(settings)
    config: dict[str, Any] = {
        "log_config": None,
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "http": BoundedConnection,
        "ws": "none",
        "lifespan": "on",
        # So many at most are taken at once, before any of them can make room.
        "backlog": BACKLOG,
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": STOP_S,
    }
    try:
        Server(uvicorn.Config(create_app(root, settings), **config)).run(sockets=[listening])
    finally:
        listening.close()
    log.info("stopped")


def _listening(settings: Settings) -> socket.socket:
    """Return a socket that listens where the settings say. Raises TamisError where that is taken or not ours."""
    host, port = settings.web_host, settings.web_port
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConfigurationError(
            f"setting web_host: expected an address of this machine; found {host!r}: {error}"
        ) from None
    family, *_, address = found[0]
    both = family == socket.AF_INET6
    try:
        return socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        message = f"web page: expected {host} port {port} to be free; found: {os.strerror(error.errno or 0)}"
        # A taken port may become free and a missing address appear; permission will not come.
        if error.errno in (errno.EACCES, errno.EPERM):
            raise ConfigurationError(f"{message}. Ports below 1024 need a reverse proxy before the page") from None
        raise TamisError(message) from None
