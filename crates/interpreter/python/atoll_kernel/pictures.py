"""Figures and images: as pictures, with a font for East Asian characters; plotly's as HTML."""

from __future__ import annotations

import functools
import os
import sys

from .imports import when_imported

# Fonts that have these characters, the first that is installed.
FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK TC",
    "Noto Sans CJK KR",
    "Source Han Sans CN",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "Unifont",
)


def register(shell) -> None:
    """Sets up what concerns pictures."""
    png = shell.display_formatter.formatters["image/png"]
    # pyplot replaces this with its own; it is for figures made without it.
    png.for_type_by_name("matplotlib.figure", "Figure", _png)
    when_imported("matplotlib.font_manager", _add_fonts)
    when_imported("PIL.Image", _show_saved)
    when_imported("plotly.io._renderers", _as_page)


def _png(figure):
    from IPython.core.pylabtools import print_figure

    return print_figure(figure, base64=True)


def _add_fonts(manager) -> None:
    """Characters that a figure's fonts lack are taken from one that has them, in any style."""
    find = manager.FontManager._find_fonts_by_props

    @functools.wraps(find)
    def find_with_fallback(self, prop, *args, **options):
        found = find(self, prop, *args, **options)
        fallback = _fallback(self)
        return found if fallback is None or fallback in found else [*found, fallback]

    manager.FontManager._find_fonts_by_props = find_with_fallback


def _fallback(fonts) -> str | None:
    """The file of the fallback, looked for once a font manager."""
    if not hasattr(fonts, "_atoll_fallback"):
        files = {font.name: font.fname for font in reversed(fonts.ttflist)}
        fonts._atoll_fallback = next((files[name] for name in FONTS if name in files), None)
    return fonts._atoll_fallback


def _as_page(renderers) -> None:
    """plotly's figures are also HTML that stands by itself: this is the renderer that makes it."""
    if "PLOTLY_RENDERER" not in os.environ:
        renderers.renderers.default = "plotly_mimetype+colab"


def _show_saved(module) -> None:
    """An image that a cell saves is shown too, and `show` opens no viewer."""
    save = module.Image.save

    @functools.wraps(save)
    def save_and_show(self, fp, format=None, **params):
        save(self, fp, format, **params)
        caller = sys._getframe(1).f_globals.get("__name__") or ""
        # A figure that matplotlib saves is shown by itself.
        if isinstance(fp, str) and caller.partition(".")[0] != "matplotlib":
            from IPython.display import display

            display(self)

    module.Image.save = save_and_show
    module.Image.show = lambda self, *args, **options: None
