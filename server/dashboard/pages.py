"""Templates: escaping on, undefined names are errors, one frame around every page."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

from server.dashboard.calls import Call, Trouble
from server.dashboard.forms import FIELD
from server.dashboard.words import FILTERS, ago

TEMPLATES = Path(__file__).parent / "templates"
STATIC = Path(__file__).parent / "static"

SECTIONS = (
    ("/", "Overview"),
    ("/runs", "Runs"),
    ("/nodes", "Nodes"),
    ("/budget", "Budget"),
    ("/audits", "Audits"),
    ("/adapters", "Adapters"),
    ("/activity", "Activity"),
)


def environment() -> Environment:
    """Return the template environment of the pages."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(FILTERS)
    made.globals["sections"] = SECTIONS
    return made


_ENVIRONMENT = environment()


def page(call: Call, template: str, *, status: int = 200, **values: object) -> HTMLResponse:
    """Fill a template for one person.

    Args:
        call: who asks.
        template: without its ending.
        status: of the answer.
        **values: of the template.
    """
    session = call.session
    first = call.path.split("/")[1]
    common: dict[str, object] = {
        "server": call.board.home.config.name,
        "session": session,
        "operator": call.operator,
        "csrf_field": FIELD,
        "csrf": "" if session is None else call.board.seal.of("form", session.ref),
        "notice": None if session is None or values.get("quiet") else _notice(call, session.ref),
        "here": f"/{first}",
        "now": call.now,
        "ago": _ago(call.now),
        "live": False,
    }
    text = _ENVIRONMENT.get_template(f"{template}.html.j2").render(**{**common, **values})
    return HTMLResponse(text, status)


def trouble_page(call: Call, trouble: Trouble) -> HTMLResponse:
    """Return an error as a page that says what to do."""
    titles = {400: "That did not work", 403: "Not allowed", 404: "Not found", 409: "Refused"}
    title = titles.get(trouble.status, "Something is out of order")
    return page(call, "trouble", status=trouble.status, title=title, trouble=trouble)


def _notice(call: Call, ref: str) -> str | None:
    """Return what the last action left to say, unless the page refreshes itself."""
    return call.board.sessions.told(ref)


def _ago(now: float) -> Callable[[object], str]:
    """Return :func:`ago` for one moment."""
    return partial(ago, now=now)
