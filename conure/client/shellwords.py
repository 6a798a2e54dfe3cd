"""A line of the shell as words.

1. A line is split as a POSIX shell does it, without variables, patterns and comments.
2. With one exception: a word that begins with ``{`` or ``[`` and is JSON from there is taken as it
   stands, spaces, quotes and all.
3. One that is none and has quotes is refused, because they would be lost.

Used by conuresh.py for lines of a script or a terminal. Nothing here knows a command. Any thread.
"""

from __future__ import annotations

import io
import json
import shlex

__all__ = ["NotWords", "split"]

_SPACES = " \t\r\n"
_JSON, _QUOTES = ("{", "["), "\"'\\"
_DECODER = json.JSONDecoder()


class NotWords(ValueError):
    """A line can't be split; says why, and what to do about it."""


def split(line: str) -> list[str]:
    """Return the words of a line. Raises NotWords."""
    words: list[str] = []
    rest = io.StringIO(line)
    lexer = shlex.shlex(rest, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    while True:
        start = rest.tell()
        while start < len(line) and line[start] in _SPACES:
            start += 1
        end = _end_of_json(line, start)
        if end is not None:
            words.append(line[start:end])
            rest.seek(end)
            continue
        try:
            word = lexer.get_token()
        except ValueError as error:
            raise NotWords(f"{str(error).lower()}; every quote needs its counterpart") from None
        if word is None:
            return words
        typed = line[start : rest.tell()].rstrip(_SPACES)
        if typed.startswith(_JSON) and any(char in typed for char in _QUOTES):
            raise NotWords(
                f"{typed}: this is no JSON, and its quotes would be lost; put '...' around it, "
                "or write it without quotes"
            )
        words.append(word)


def _end_of_json(line: str, start: int) -> int | None:
    """Return where the JSON ends that begins at a place of a line, None if there is none."""
    if not line.startswith(_JSON, start):
        return None
    try:
        _, end = _DECODER.raw_decode(line, start)
    except (ValueError, RecursionError):
        return None
    return end if line[end : end + 1] in _SPACES else None
