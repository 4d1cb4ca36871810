"""The page at `/`: files that a browser gets as they are, and that reach the server by its endpoints alone."""

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/api.js": ("api.js", "text/javascript"),
}
_HEADERS = {
    # Nothing from elsewhere, nothing inline: a description or an answer can never become code.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def _route(path: str, name: str, kind: str) -> Route:
    async def send(request: Request) -> Response:
        return Response(content, headers=_HEADERS, media_type=kind)

    content = files("t2l_jax.serving").joinpath("static", name).read_bytes()
    return Route(path, send)


PATHS = frozenset(_FILES)
ROUTES = [_route(path, name, kind) for path, (name, kind) in _FILES.items()]
