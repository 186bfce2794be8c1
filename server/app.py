"""The Flower ServerApp: wiring only."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp


def make_server_app(main: Callable[[Grid, Context], None]) -> ServerApp:
    """Build the ServerApp around what a run does with a grid.

    Args:
        main: the composition root's function; the same one serves every engine.
    """
    app = ServerApp()

    @app.main()
    def run(grid: Grid, context: Context) -> None:
        main(grid, context)

    return app
