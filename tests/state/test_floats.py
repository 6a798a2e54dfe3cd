"""Numbers with a fraction: what Redis on x86 makes of them, without a float of the processor."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conure.state.floats import MAX_POWER, Float, add, format_float, parse_float


def total(one: bytes, other: bytes) -> bytes:
    a, b = parse_float(one), parse_float(other)
    assert a is not None
    assert b is not None
    return format_float(add(a, b))


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        # As redis-server 7.0.15 on x86-64 answers INCRBYFLOAT.
        (b"10.50", b"0.1", b"10.6"),
        (b"5.0e3", b"200", b"5200"),
        (b"3001", b"0.1", b"3001.10000000000000009"),
        (b"0.1", b"0.2", b"0.3"),
        (b"1e17", b"1", b"100000000000000001"),
        (b"1e30", b"1", b"1000000000000000000024696061952"),
        (b"-1e25", b"0.5", b"-10000000000000000000000000"),
        (b"-0", b"0", b"0"),
        (b"-1e-20", b"0", b"0"),
        (b"-1.5", b"1.25", b"-0.25"),
        (b"1", b"-1", b"0"),
        (b".5", b"5.", b"5.5"),
        (b"+5", b"00012.50", b"17.5"),
        (b"1E2", b"1e-2", b"100.01"),
        (b"9007199254740993", b"0", b"9007199254740993"),
        (b"18446744073709551617", b"0", b"18446744073709551616"),
        (b"0.000000000000000006", b"0", b"0.00000000000000001"),
        (b"0.000000000000000005", b"0", b"0"),  # which is less, as a binary number
    ],
)
def test_sums_are_those_of_redis(one: bytes, other: bytes, both: bytes) -> None:
    assert total(one, other) == both


@pytest.mark.parametrize(
    "text",
    [
        b"", b".", b"+", b"-", b"e5", b"1e", b"1e+", b"--1", b" 1", b"1 ", b"1\n", b"1\0", b"0x10",
        b"nan", b"in", b"1,5", b"1_0", b"1.2.3", "٣".encode(), b"1" * 257, b"1e1234567890",
    ],
)  # fmt: skip
def test_what_is_no_number(text: bytes) -> None:
    assert parse_float(text) is None


@pytest.mark.parametrize(
    "text", [b"inf", b"-Infinity", b"+INF", b"1e201", b"1e999999999", b"-9e201"]
)
def test_what_is_too_large(text: bytes) -> None:
    with pytest.raises(OverflowError):
        parse_float(text)


def test_a_sum_may_be_too_large() -> None:
    most = parse_float(b"9e200")
    assert most is not None
    with pytest.raises(OverflowError):
        add(most, most)
    assert parse_float(b"1e-202") == parse_float(b"1e-999999999") == Float(0, 0)


NUMBERS = st.builds(
    lambda digits, power: b"%de%d" % (digits, power),
    st.integers(-(10**20), 10**20),
    st.integers(-40, 40),
)


def exact(number: Float) -> Fraction:
    return number.mantissa * Fraction(2) ** number.exponent


@given(NUMBERS)
def test_a_number_is_read_as_the_nearest_of_64_bits(text: bytes) -> None:
    digits, power = text.split(b"e")
    meant = int(digits) * Fraction(10) ** int(power)
    number = parse_float(text)
    assert number is not None
    assert abs(number.mantissa) <= 1 << 64
    if meant:
        assert abs(number.mantissa).bit_length() >= 64  # the gap to the next one is an exponent
        assert abs(exact(number) - meant) <= Fraction(2) ** number.exponent / 2


@given(NUMBERS, NUMBERS)
def test_a_sum_is_the_nearest_and_shown_to_17_digits(one: bytes, other: bytes) -> None:
    a, b = parse_float(one), parse_float(other)
    assert a is not None
    assert b is not None
    found = add(a, b)
    assert found == add(b, a)
    meant = exact(a) + exact(b)
    assert abs(exact(found) - meant) <= abs(meant) / (1 << 64)
    text = format_float(found)
    assert b"e" not in text
    assert abs(Fraction(text.decode()) - exact(found)) <= Fraction(1, 2 * 10**17)
    assert text == b"0" or not (b"." in text and text.endswith((b"0", b".")))
    assert format_float(Float(-found.mantissa, found.exponent)).strip(b"-") == text.strip(b"-")


def test_numbers_end_where_the_head_of_the_file_says() -> None:
    assert parse_float(b"1e%d" % MAX_POWER) is not None
    assert len(total(b"1e%d" % MAX_POWER, b"0")) == MAX_POWER + 1
