"""Media types in header fields: what ``Content-Type`` names, and what ``Accept`` prefers.

As RFC 9110 has them (sections 8.3.1 and 12.5.1), but for quoted strings with separators in them,
which no media type that is told apart here has. What clients may make long is looked at up to a
bound. Nothing here has state: any thread may call anything.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from conure.errors import BadRequest
from conure.service.quoting import shortened

__all__ = ["ContentType", "parse_content_type", "prefers"]

_MOST: Final = 64
"""Parameters of a media type, and elements of an Accept, that are looked at."""

_WORD = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_is_media_type = re.compile(f"{_WORD}/{_WORD}").fullmatch
_is_quality = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?").fullmatch
_SPACE = " \t"


class ContentType(NamedTuple):
    """A media type in small letters, such as ``application/json``, and its ``charset``, empty if it
    names none."""

    name: str
    charset: str


def parse_content_type(field: str) -> ContentType:
    """Read the value of a ``Content-Type``. Raises BadRequest."""
    name, *parameters = field.split(";", _MOST)
    name = name.strip(_SPACE).lower()
    if not _is_media_type(name):
        raise BadRequest(
            f"Content-Type is {shortened(field)}; it has to be one media type, such as "
            "application/json"
        )
    return ContentType(name, _parameter(parameters, "charset").strip('"'))


def prefers(accept: str, usual: str, other: str) -> bool:
    """Tell whether the value of an ``Accept`` prefers the media type *other* to the *usual* one.

    Both are of one kind, ``application``. The greater quality counts, and of equal ones that of the
    range that is more exact; else it is the usual one. What can't be read prefers nothing.
    """
    accept = accept.lower()
    if usual not in accept and other not in accept:  # what is said of one holds for the other
        return False
    ranges = [_weighted(element) for element in accept.split(",", _MOST)[:_MOST]]
    found = _rank(ranges, other)
    return found[0] > 0 and found > _rank(ranges, usual)


def _weighted(element: str) -> tuple[str, float]:
    """Return a media range and its quality, 0 if that can't be read."""
    name, *parameters = element.split(";", _MOST)
    quality = _parameter(parameters, "q") or "1"
    return name.strip(_SPACE), float(quality) if _is_quality(quality) else 0.0


def _rank(ranges: list[tuple[str, float]], name: str) -> tuple[float, int]:
    """Return the quality that the most exact range gives a media type, and how exact that is."""
    kind = name.partition("/")[0]
    for exactness, text in ((3, name), (2, f"{kind}/*"), (1, "*/*")):
        qualities = [quality for found, quality in ranges if found == text]
        if qualities:
            return max(qualities), exactness
    return 0.0, 0


def _parameter(parameters: list[str], wanted: str) -> str:
    """Return the value of a parameter in small letters, empty if there is none."""
    for parameter in parameters[:_MOST]:
        name, _, value = parameter.partition("=")
        if name.strip(_SPACE).lower() == wanted:
            return value.strip(_SPACE).lower()
    return ""
