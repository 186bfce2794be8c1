"""Forms: read within bounds, and only from our own pages."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl

from starlette.requests import Request

from shared.errors import AccessDenied, InvalidValue

LARGEST = 16_384
FIELD = "csrf"

_MOST_FIELDS = 32
_TYPE = "application/x-www-form-urlencoded"
_INSIDE = re.compile(r"/[A-Za-z0-9._~-][A-Za-z0-9/._~-]*")


class Seal:
    """Makes the tokens that tie a form to a session, with the server's session key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, purpose: str, value: str) -> str:
        """Return the token of a value for one purpose, 64 hexadecimal digits."""
        text = f"fedslm-dashboard|{purpose}|{value}".encode("utf-8", "surrogatepass")
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()

    def fits(self, token: str, purpose: str, value: str) -> bool:
        """Compare a token in constant time."""
        return hmac.compare_digest(
            token.encode("utf-8", "replace"), self.of(purpose, value).encode()
        )


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form that one of our pages has sent.

    Raises:
        AccessDenied: if the request comes from another page.
        InvalidValue: if it is no form, too long, or names a field twice.
    """
    require_own_origin(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _TYPE:
        msg = f"content-type={kind[:80]!r}, expected {_TYPE}."
        raise InvalidValue(msg, hint="Use the dashboard's own pages.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST:
            msg = f"a form of more than {LARGEST} bytes."
            raise InvalidValue(msg, hint="Write less.")
    try:
        pairs = parse_qsl(
            body.decode("utf-8"),
            keep_blank_values=True,
            strict_parsing=bool(body),
            max_num_fields=_MOST_FIELDS,
        )
    except ValueError as error:
        msg = "the form cannot be read."
        raise InvalidValue(msg, hint="Use the dashboard's own pages.") from error
    fields = dict(pairs)
    if len(fields) != len(pairs):
        msg = "the form names a field twice."
        raise InvalidValue(msg, hint="Use the dashboard's own pages.")
    return fields


def require_own_origin(request: Request) -> None:
    """Refuse a request that was not made by a page of this server.

    Raises:
        AccessDenied: if ``Origin`` is missing or another, or the browser says it is cross-site.
    """
    own = f"https://{request.headers.get('host', '')}".lower()
    origin = request.headers.get("origin", "").lower()
    site = request.headers.get("sec-fetch-site", "same-origin")
    if origin != own or site != "same-origin":
        msg = "the request does not come from a page of this server."
        raise AccessDenied(msg, hint="Open the dashboard in a tab of its own and try again.")


def require_token(form: Mapping[str, str], seal: Seal, purpose: str, value: str) -> None:
    """Refuse a form without the token of the session it was made for.

    Raises:
        AccessDenied: if there is none, or another one.
    """
    if not seal.fits(form.get(FIELD, ""), purpose, value):
        msg = "the form is out of date or was not made by this server."
        raise AccessDenied(msg, hint="Load the page again and repeat the last step.")


def inside(path: str) -> str:
    """Return a path of this server to go to after login; ``/`` for anything else."""
    return path if _INSIDE.fullmatch(path) and "//" not in path and len(path) < 300 else "/"
