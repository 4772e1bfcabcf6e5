"""One HTML file from parts: it holds its script, its style and its data, and asks for nothing else."""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from labelemb import __version__
from labelemb.report.comparison import NOTHING

SCRIPTS = ("text.js", "theme.js", "charts.js", "labels.js", "page.js")


def document(
    title: str,
    parts: Sequence[dict[str, Any]],
    data: Sequence[dict[str, Any]],
    *,
    messages: Sequence[str] = (),
    version: str = "",
) -> bytes:
    """The page.

    Args:
        title: of the window.
        parts: what the template shows, a part for each recipe.
        data: what the charts of each part are drawn from.
        messages: what stands above all parts.
        version: of a page that is served while runs go on: it asks its server for it, and comes anew when it changes.
    """
    from plotly.offline import get_plotlyjs

    library = get_plotlyjs() if parts else ""
    script = "".join(map(_own, SCRIPTS))
    page = _template().render(
        title=title,
        parts=parts,
        messages=messages,
        version=__version__,
        nothing=NOTHING,
        style=_own("style.css"),
        data=_inert({"parts": data, "version": version}),
        library=library,
        script=script,
        policy=_policy([library, script], served=bool(version)),
    )
    return page.encode("utf-8", errors="replace")  # names from JSON may hold halves of letters


def _template() -> Template:
    """Every value in it is escaped, and one that is missing is an error."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(_own("template.html"))


def _own(name: str) -> str:
    return files("labelemb.report.page").joinpath(name).read_text(encoding="utf-8")


def _inert(value: Any) -> str:
    """JSON that no reader of HTML takes for the end of its block, nor for a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: Sequence[str], *, served: bool) -> str:
    """Which parts may act: our scripts by their sums, so that nothing that a name smuggles in does."""
    sums = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts if text]
    allowed = " ".join(f"'sha256-{each}'" for each in sums) or "'none'"
    connections = "; connect-src 'self'" if served else ""
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:{connections}; "
        "base-uri 'none'; form-action 'none'"
    )
