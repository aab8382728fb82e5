"""Names from data, such as class names, in terminals, Markdown, CSV files and pictures.

Names are free text: they may hold line breaks, Markdown, HTML, formulas or escape sequences of terminals.
"""

import re
import unicodedata

# Control and format characters (line breaks, ANSI escapes, reversed text), surrogates, line separators.
UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
MARKDOWN = re.compile(
    r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)|(?<=\bhttp):|(?<=\bhttps):|(?<=\bwww)\."
)
FORMULA_STARTS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # as ASCII and as full-width characters


def one_line(text: str, length: int | None = None) -> str:
    """Returns the text in one printable line.

    Args:
        text: Any text. Runs of white space, control and format characters become one space.
        length: Characters to keep; a longer text ends with "…". Default: all.
    """
    if not text.isascii() or not text.isprintable():
        text = "".join(
            " " if unicodedata.category(character) in UNPRINTABLE else character for character in text
        )
    text = " ".join(text.split())
    return text if length is None or len(text) <= length else text[: length - 1].rstrip() + "…"


def markdown_text(text: str) -> str:
    """Returns the text in one line of Markdown that renders as it is, also in a table cell."""
    return MARKDOWN.sub(r"\\\g<0>", one_line(text)).replace("<", "&lt;")


def csv_text(text: str) -> str:
    """Returns the text in one line that spreadsheets do not evaluate: a formula gets an apostrophe before it."""
    line = one_line(text)
    return f"'{line}" if line.startswith(FORMULA_STARTS) else line
