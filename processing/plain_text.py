"""Names from data, such as class names, in terminals, Markdown, CSV files and pictures; and counts in messages.

Names are free text: they may hold line breaks, Markdown, HTML, formulas or escape sequences of terminals.
"""

import re
from collections.abc import Sequence

# Control characters, among them line breaks and ANSI escapes; line separators, surrogates, and characters that
# reverse the text after them.
CONTROLS = "\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff"
UNPRINTABLE = re.compile(f"[{CONTROLS}]")
UNPRINTABLE_IN_LINES = re.compile(rf"(?![\n\t])[{CONTROLS}]")
# Punctuation of Markdown; "_" and "&" only where they mean something; the ":" and "." that make a link of a URL.
MARKDOWN = re.compile(
    r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)|(?<=http):|(?<=https):|(?<=ftp):|(?<=www)\.",
    re.IGNORECASE,
)
FORMULA_STARTS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # also as full-width characters


def printable(text: str) -> str:
    """Returns the text with a space for each control character; line breaks and tabs are kept."""
    return UNPRINTABLE_IN_LINES.sub(" ", text)


def one_line(text: str, length: int | None = None) -> str:
    """Returns the text in one printable line.

    Args:
        text: Any text. A run of white space and control characters becomes one space.
        length: Characters to keep; a longer text ends with "…". Default: all.
    """
    text = " ".join(UNPRINTABLE.sub(" ", text).split())
    return text if length is None or len(text) <= length else text[: length - 1].rstrip() + "…"


def markdown_text(text: str) -> str:
    """Returns the text as one line of Markdown that shows it as it is, also in a table cell."""
    return MARKDOWN.sub(r"\\\g<0>", one_line(text)).replace("<", "&lt;")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown, aligned as plain text too; all columns but the first hold numbers."""
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        for line in [header, rule, *rows]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)


def csv_text(text: str) -> str:
    """Returns the text in one line that spreadsheets do not evaluate: a formula gets an apostrophe before it."""
    line = one_line(text)
    return f"'{line}" if line.startswith(FORMULA_STARTS) else line


def counted(number: int, one: str, several: str) -> str:
    """Returns a number with its noun: "1 class", "9 classes"."""
    return f"{number} {one if number == 1 else several}"
