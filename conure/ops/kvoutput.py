"""What kvctl writes: values, lines, tables and JSON to standard output, errors to standard error.

1. A value goes to a pipe or a file as exactly the bytes that were stored, with nothing behind them.
2. A terminal can't be disturbed by what is stored: control characters appear as escapes there, and
   in lines, tables and errors wherever they go.
3. JSON is exact: keys and values that aren't UTF-8 are in base64, and ``encoding`` says so.
4. An error is one line on standard error.

Whoever reads the output may go away; that is a BrokenPipeError for the starter (kvctl.py). Nothing
here knows a command. For the main thread.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from conure.commands import as_text, as_texts

__all__ = [
    "Output",
    "complain",
    "fields_of",
    "printable",
    "shown_bytes",
    "shown_duration",
    "shown_key",
]

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB")
_PARTS: Final = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000))
_LONGEST: Final = 40  # characters of a key in a table
_SIZES: Final = ("_bytes", "_memory", "page_size")  # what is in the names of sizes


class Output:
    """Standard output, for people or with *as_json* for programs."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.is_terminal = sys.stdout.isatty()

    def write(self, data: str | bytes) -> None:
        """Write something; a terminal shows it at once. Raises BrokenPipeError and OSError."""
        if isinstance(data, str):
            data = data.encode("utf-8", "backslashreplace")
        sys.stdout.buffer.write(data)
        if self.is_terminal:
            sys.stdout.flush()

    def flush(self) -> None:
        """Let whoever reads the output have all of it."""
        sys.stdout.flush()

    def line(self, *columns: str | bytes) -> None:
        """Write a line of columns, with a tab between them and escapes in them (2)."""
        shown = [
            shown_key(each) if isinstance(each, bytes) else printable(each) for each in columns
        ]
        self.write("\t".join(shown) + "\n")

    def json(self, found: object) -> None:
        """Write a line of JSON (2, 3)."""
        text = json.dumps(found, ensure_ascii=False)
        if not text.isprintable():
            text = "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)
        self.write(text + "\n")

    def value(self, value: bytes) -> None:
        """Write a value (1, 2)."""
        if self.is_terminal:
            text = value.decode("utf-8", "backslashreplace")
            self.write(printable(text, keep="\n\t") + "\n")
        else:
            self.write(value)

    def pairs(self, facts: Mapping[str, Any]) -> None:
        """Write names and what they stand for; sizes in bytes, which names tell, as people read
        them."""
        self.table([(name, _fact(name, fact)) for name, fact in facts.items()])

    def table(
        self, rows: Sequence[Sequence[str]], heads: Sequence[str] = (), right: Sequence[int] = ()
    ) -> None:
        """Write aligned columns; those of the numbers *right* end in one line. Every row has as
        many columns as the first."""
        shown = [tuple(printable(cell) for cell in row) for row in ([heads] if heads else [])]
        shown += [tuple(printable(cell) for cell in row) for row in rows]
        if not shown:
            return
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        lines = []
        for row in shown:
            cells = [
                cell.rjust(width) if at in right else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip() + "\n")
        self.write("".join(lines))


def complain(line: str) -> None:
    """Write a line to standard error, if there is one."""
    if sys.stderr is None:  # closed; print would take standard output in its place
        return
    with suppress(OSError):  # there is no other place to say it
        print(f"kvctl: {printable(line)}", file=sys.stderr, flush=True)


def fields_of(key: bytes, value: bytes | None = None) -> dict[str, Any]:
    """Return a key, and its value if there is one, as they stand in an object of JSON (3)."""
    if value is None:
        (text,), is_base64 = as_texts(key)
        facts: dict[str, Any] = {"key": text}
    else:
        key_text, value_text, is_base64 = as_text(key, value)
        facts = {"key": key_text, "value": value_text}
    return {**facts, "encoding": "base64"} if is_base64 else facts


def shown_bytes(size: int) -> str:
    """Return a size as people read it, such as 1.2 MiB."""
    if size < 1024:
        return f"{size} B"
    power = min((size.bit_length() - 1) // 10, len(_UNITS))
    scaled = f"{size / (1 << 10 * power):.1f}"
    if scaled == "1024.0" and power < len(_UNITS):
        scaled, power = "1.0", power + 1
    return f"{scaled} {_UNITS[power - 1]}"


def shown_duration(milliseconds: int) -> str:
    """Return a duration as people write it, such as 1h30m5s or 250ms."""
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    shown = ""
    for unit, worth in _PARTS:
        if milliseconds >= worth:
            shown += f"{milliseconds // worth}{unit}"
            milliseconds %= worth
    seconds = f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".")
    return shown if seconds == "0" else f"{shown}{seconds}s"


def shown_key(key: bytes, longest: int = 0) -> str:
    """Return a key for people, with escapes for what isn't printable; cut at *longest* characters,
    unless that is 0."""
    text = printable(key.decode("utf-8", "backslashreplace"))
    return text if not longest or len(text) <= longest else f"{text[: longest - 1]}…"


def printable(text: str, keep: str = "") -> str:
    """Return *text* with escapes for all that a terminal could take for a command."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode()
        for char in text
    )


def _fact(name: str, fact: object) -> str:
    """Return what stands behind a name in a table."""
    if isinstance(fact, int) and any(part in name for part in _SIZES):
        size = shown_bytes(fact)
        return size if fact < 1024 else f"{size} ({fact:,})"
    return str(fact)
