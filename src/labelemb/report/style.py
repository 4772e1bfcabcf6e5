"""What all pictures share: type, colours, how a figure becomes a file. Without pyplot: no window, no state."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure

from labelemb.files import write_atomically
from labelemb.losses.catalogue import MODES

# Okabe and Ito's colours, which colour-blind readers tell apart, in the order of the catalogue of modes.
COLORS = ("#4D4D4D", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#56B4E9")

# From the place after the last colour on, each place has a pattern of its own, so that a copy without colours tells
# lines apart too: lengths of dashes and gaps in line widths. None is dotted, which unfinished runs are.
DASHES = (
    (6.0, 2.0),
    (6.0, 2.0, 1.5, 2.0),
    (3.0, 1.5),
    (12.0, 3.0),
    (6.0, 2.0, 1.5, 2.0, 1.5, 2.0),
    (12.0, 2.0, 3.0, 2.0),
    (6.0, 5.0),
    (12.0, 2.0, 1.5, 2.0),
    (6.0, 2.0, 6.0, 2.0, 1.5, 2.0),
    (12.0, 2.0, 3.0, 2.0, 3.0, 2.0),
    (3.0, 4.0),
    (12.0, 2.0, 1.5, 2.0, 1.5, 2.0, 1.5, 2.0),
    (12.0, 8.0),
)

# The first draws Latin, Greek, Vietnamese; the others are where systems keep Chinese, Japanese and Korean.
FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "Arial Unicode MS",
)

FIGURES = ("svg", "png")  # what is always written

STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#404040",
    "xtick.color": "#404040",
    "ytick.color": "#404040",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "savefig.dpi": 200,
    "svg.fonttype": "none",  # letters stay letters: searchable, and a reader's own fonts fill in what ours lack
    "svg.hashsalt": "labelemb",  # the same runs give the same bytes
    "text.parse_math": False,  # a label may contain dollar signs
}


class Look(NamedTuple):
    """How the lines of one mode are drawn, in every picture."""

    color: str
    pattern: str | tuple[float, tuple[float, ...]]
    """A line style of matplotlib's."""


def looks(names: Sequence[str]) -> dict[str, Look]:
    """The look of each name: by its place in the catalogue of modes, for all others the next free ones after it."""
    places = {name: place for place, name in enumerate(MODES)}
    others = [name for name in names if name not in places]
    places |= {name: len(MODES) + number for number, name in enumerate(others)}
    return {name: _look(places[name]) for name in names}


def _look(place: int) -> Look:
    dashed = place - len(COLORS)
    return Look(COLORS[place % len(COLORS)], "-" if dashed < 0 else (0.0, DASHES[dashed % len(DASHES)]))


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for our pictures, for as long as one is built or saved."""
    installed = set(font_manager.get_font_names())
    families = [name for name in FONTS if name in installed]
    with matplotlib.rc_context({**STYLE, "font.family": families or ["sans-serif"]}), warnings.catch_warnings():
        # Where no installed font has a letter the PNG shows a box; the SVG still holds the letter itself.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield


def save_figure(figure: Figure, stem: Path, kinds: Sequence[str] = FIGURES) -> None:
    """Write STEM.svg, STEM.png and whatever else is asked for."""
    for kind in kinds:
        write_atomically(stem.with_suffix(f".{kind}"), render(figure, kind))


def render(figure: Figure, kind: str) -> bytes:
    """The figure as the bytes of a `svg`, `png` or `pdf` file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    dateless = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with style():
        figure.savefig(buffer, format=kind, metadata=dateless.get(kind, {"Software": None}))
    return buffer.getvalue()
