"""The page at `/`: files that a browser gets as they are, and that reach the server by its endpoints alone."""

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript") for name in ("page", "adapter", "api", "elements")},
}
_HEADERS = {
    # Nothing from elsewhere, nothing inline: a description or an answer can never become code.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


PATHS = frozenset(_FILES)


def routes(*, framed: bool) -> list[Route]:
    """The page's files; if it may be `framed`, a page of another site can show it inside."""
    headers = dict(_HEADERS)
    if not framed:
        headers["Content-Security-Policy"] += "; frame-ancestors 'none'"
    return [_route(path, *file, headers) for path, file in _FILES.items()]


def _route(path: str, name: str, kind: str, headers: dict[str, str]) -> Route:
    async def send(request: Request) -> Response:
        return Response(content, headers=headers, media_type=kind)

    content = files("t2l_jax.serving").joinpath("static", name).read_bytes()
    return Route(path, send)
