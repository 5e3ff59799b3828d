"""Names of images as text: in lists and tables that others open, and on a screen.

A file name may hold anything but a slash: line ends, quotes, bytes that are no text, and what a spreadsheet runs as a
formula. Plain names are written as they are. Any other is written as a JSON string in double quotes, from which
`meant` gives the very same name back.
"""

from __future__ import annotations

import json
import re

from maskwright.errors import UNSHOWN

_FORMULA = re.compile(r"(?:^|[;|])[=+\-@\uff1d\uff0b\uff0d\uff20]")
"""What a spreadsheet takes for a formula, also where it splits cells at semicolons."""


def written(name: str, *, spreadsheet: bool = False) -> str:
    """A name as one line of a list, or as a cell of a table; `meant` undoes it.

    Args:
        name: any name.
        spreadsheet: write names that begin with = + - @ as JSON strings too, so that no spreadsheet runs them.

    Returns:
        The name itself, or a JSON string in double quotes.
    """
    odd = not name or name != name.strip() or name[0] == '"' or UNSHOWN.search(name) is not None
    if not odd and not (spreadsheet and _FORMULA.search(name)):
        return name
    text = json.dumps(name)
    # Escaped, because a cell that is split there would begin with what follows.
    return text.replace(";", "\\u003b").replace("|", "\\u007c") if spreadsheet else text


def meant(text: str) -> str:
    """The name that `written` wrote; any other text is itself."""
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    try:
        name = json.loads(text)
    except ValueError:
        return text
    return name if isinstance(name, str) else text
