"""What all pictures share: type, colours, how a figure becomes a file. Without pyplot: no window, no state."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure

from labelemb.files import write_atomically

# Okabe and Ito's colours, which colour-blind readers tell apart; a mode has the same one in every picture.
COLORS = {
    "baseline": "#4D4D4D",
    "smoothing": "#E69F00",
    "online-smoothing": "#009E73",
    "tfkd": "#CC79A7",
    "emb": "#0072B2",
    "emb-start": "#D55E00",
    "emb-frozen": "#56B4E9",
}
OTHER_COLOR = "#8C6D31"

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


def color(mode: str) -> str:
    """The mode's colour in every picture."""
    return COLORS.get(mode, OTHER_COLOR)


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for our pictures, for as long as one is built or saved."""
    installed = set(font_manager.get_font_names())
    families = [name for name in FONTS if name in installed]
    with matplotlib.rc_context({**STYLE, "font.family": families or ["sans-serif"]}), warnings.catch_warnings():
        # Where no installed font has a letter the PNG shows a box; the SVG still holds the letter itself.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield


def save_figure(figure: Figure, stem: Path) -> bytes:
    """Write STEM.svg and STEM.png; returns the bytes of the first."""
    svg = render(figure, "svg")
    write_atomically(stem.with_suffix(".svg"), svg)
    write_atomically(stem.with_suffix(".png"), render(figure, "png"))
    return svg


def render(figure: Figure, kind: str) -> bytes:
    """The figure as the bytes of a `svg` or `png` file."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return buffer.getvalue()
