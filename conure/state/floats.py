"""Numbers with a fraction, as text: added as Redis does it on x86, whatever machine this is.

Redis keeps such a number as an x87 extended double, of 64 significant bits, and shows 17 digits
behind the point, without zeros at the end. Here the same is done with whole numbers alone: a number
is ``mantissa * 2**exponent`` with a mantissa of 64 bits at most, each result is rounded to the
nearest such number, to even in between, and shown exactly. No float of the processor, no library of
the system and no locale has a part in it, so all replicas come to the same bytes (R7).

Numbers are below ``10**(MAX_POWER + 1)``, and 0 or about ``10**-MAX_POWER`` at least; smaller ones
are 0. Redis takes larger ones, and hexadecimal ones. Nothing here has state: any thread may call
anything.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["MAX_POWER", "MAX_TEXT", "Float", "add", "format_float", "parse_float"]

MAX_POWER: Final = 200
MAX_TEXT: Final = 256
"""Bytes of the text of a number."""

_PRECISION = 64
_DIGITS = 17  # behind the point
_NUMBER = re.compile(rb"([+-]?)([0-9]*)(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]{1,9}))?", re.ASCII)
_INFINITE = re.compile(rb"[+-]?inf(inity)?", re.ASCII | re.IGNORECASE)
_SCALE = 10**_DIGITS
_LIMIT = 10 ** (MAX_POWER + 1)


class Float(NamedTuple):
    """The number ``mantissa * 2**exponent``."""

    mantissa: int
    exponent: int


def parse_float(text: bytes) -> Float | None:
    """Return the number that a text says; None if it says none. Raises OverflowError for one that
    is too large, or infinite."""
    if len(text) > MAX_TEXT:
        return None
    match = _NUMBER.fullmatch(text)
    if match is None:
        if _INFINITE.fullmatch(text):
            raise OverflowError
        return None
    sign, whole, fraction, power = match.groups(b"")
    digits = whole + fraction
    if not digits:
        return None
    number = int(digits)
    scale = int(power or b"0") - len(fraction)
    size = len(digits.lstrip(b"0")) + scale  # digits before the point
    if not number or size < -MAX_POWER:
        return Float(0, 0)
    if size > MAX_POWER + 1:
        raise OverflowError
    if sign == b"-":
        number = -number
    return _checked(_rounded(number * 10**scale, 1) if scale > 0 else _rounded(number, 10**-scale))


def add(one: Float, other: Float) -> Float:
    """Return the sum. Raises OverflowError for one that is too large."""
    exponent = min(one.exponent, other.exponent)
    total = (one.mantissa << one.exponent - exponent) + (
        other.mantissa << other.exponent - exponent
    )
    mantissa, shift = _rounded(total, 1)
    return _checked(Float(mantissa, shift + exponent))


def format_float(number: Float) -> bytes:
    """Return a number as text."""
    mantissa, exponent = number
    scaled = abs(mantissa) * _SCALE
    scaled = scaled << exponent if exponent >= 0 else _divided(scaled, 1 << -exponent)
    whole, fraction = divmod(scaled, _SCALE)
    sign = b"-" if mantissa < 0 and scaled else b""
    if not fraction:
        return b"%b%d" % (sign, whole)
    return b"%b%d.%b" % (sign, whole, (b"%017d" % fraction).rstrip(b"0"))


def _checked(number: Float) -> Float:
    mantissa, exponent = number
    if exponent > 0 and abs(mantissa) << exponent >= _LIMIT:
        raise OverflowError
    return number


def _rounded(numerator: int, denominator: int) -> Float:
    """Return the number nearest to a fraction."""
    size = abs(numerator)
    exponent = size.bit_length() - denominator.bit_length() - _PRECISION
    # The quotient has one bit more than it may have, or as many.
    quotient = _shifted(size, denominator, exponent)
    if quotient.bit_length() > _PRECISION:
        exponent += 1
        quotient = _shifted(size, denominator, exponent)
    if numerator == 0:
        return Float(0, 0)
    return Float(-quotient if numerator < 0 else quotient, exponent)


def _shifted(size: int, denominator: int, exponent: int) -> int:
    """Return a fraction by 2**exponent, rounded to the nearest whole number."""
    if exponent >= 0:
        return _divided(size, denominator << exponent)
    return _divided(size << -exponent, denominator)


def _divided(numerator: int, denominator: int) -> int:
    """Return the whole number that is nearest to a fraction, the even one of two."""
    quotient, rest = divmod(numerator, denominator)
    twice = 2 * rest
    return quotient + (twice > denominator or (twice == denominator and quotient & 1))
