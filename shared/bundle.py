"""The one bundle that fedslm's runs name, known by its digest to both sides.

It holds no code of its own: its two modules import the apps that are installed. A node that is
offered any other bundle refuses it.
"""

from __future__ import annotations

from typing import Final

BUNDLE_ID: Final = "fedslm/fedslm-fleet"
BUNDLE_VERSION: Final = "1.0.0"
BUNDLE_DIGEST: Final = "37bc4623e5b51f8053bb3f5d98e02dc778a69f31b8e5308c76501e9714713069"
"""SHA-256 of the bundle, hexadecimal; ``server.bundle`` builds it, a test pins it."""
