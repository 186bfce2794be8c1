"""The node's worker with the tiny app in place of the installed client."""

from __future__ import annotations

from client.fleet.worker import serve
from tests.contract.fleetapp.tinyapp.client_app import app

if __name__ == "__main__":
    serve(app)
