"""Serving the dashboard over HTTPS with the server's certificate."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

import uvicorn

from server.dashboard.app import build_app
from server.dashboard.board import Board
from server.dashboard.controls import CommandControls
from server.freshtls import context_factory
from server.home import ServerHome
from server.logs import log_as_json
from shared.errors import CertificateInvalid

_CONNECTIONS = 200
_KEEP_ALIVE_SECONDS = 30
_STOP_SECONDS = 2

logger = logging.getLogger("fedslm.dashboard")


def serve(folder: Path) -> None:
    """Serve the dashboard of a server folder until SIGTERM or SIGINT.

    Raises:
        FleetError: if the folder holds no server, or its people's file cannot be used.
        CertificateInvalid: if the server's certificate or key cannot be used.
    """
    home = ServerHome.open(folder)
    log_as_json()
    board = Board(home, controls=CommandControls(home.path))
    config = configuration(board)
    logger.info("dashboard on https://%s:%d", home.config.hosts[0], home.config.dashboard_port)
    if not board.users.users():
        logger.warning(
            "nobody can log in yet: fedslm server user add NAME --role operator --dir DIR"
        )
    uvicorn.Server(config).run()


def configuration(board: Board) -> uvicorn.Config:
    """Return the web server's configuration: TLS 1.2 or later, bounded, no word about itself.

    Raises:
        CertificateInvalid: if the server's certificate or key cannot be used.
    """
    home = board.home
    config = uvicorn.Config(
        build_app(board),
        host=home.config.bind,
        port=home.config.dashboard_port,
        ssl_certfile=home.server_certificate,
        ssl_keyfile=home.server_key,
        ssl_context_factory=context_factory(home),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        http="h11",
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_STOP_SECONDS,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        msg = "the server's certificate or key cannot be used."
        raise CertificateInvalid(msg, hint="Restore pki/ from a copy, or issue it anew.") from error
    return config
