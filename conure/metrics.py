"""Counters, gauges and histograms, and the Prometheus text format they are read in.

The rendering follows version 0.0.4 of Prometheus' text exposition format::

    # HELP conure_http_requests_total Requests answered.
    # TYPE conure_http_requests_total counter
    conure_http_requests_total{method="GET",code="200"} 1027

Duties of whoever adds a metric:

1. Names begin with ``conure_`` (``process_`` is for this module, ``kvstore_`` for the few names
   by which the dashboards of another system ask) and end in the base unit: ``_seconds``,
   ``_bytes``; counters end in ``_total``.
2. Labels are fixed when the metric is made, and their values come from a small closed set
   (a route, never a key), because every combination is kept for ever.
3. What already is a number somewhere is not counted a second time: a callback reads it when
   the page is asked for.

Threads: everything may be called from any thread, and nothing is lost or counted twice. A counter
and a histogram keep a cell for each thread that has ever added to them; only that thread writes
it, so that adding takes no lock (half the price of one), and reading sums the cells. A thread
identifier that is used again goes on with the cell of the thread that is gone. A page made while
a thread is adding may show a histogram's buckets one step ahead of its sum. The hot path adds
once for a whole batch: ``inc(n)``, ``observe_many(values)``. Callbacks run in the thread that
renders; they take whatever lock their numbers need.
"""

from __future__ import annotations

import os
import platform
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from math import inf, isnan
from threading import Lock, get_ident
from typing import Generic, Protocol, TypeVar

__all__ = [
    "BATCH_SIZES",
    "CONTENT_TYPE",
    "LATENCY_SECONDS",
    "Counter",
    "Family",
    "Gauge",
    "Histogram",
    "Registry",
    "add_build_info",
    "add_process_metrics",
]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LATENCY_SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
BATCH_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0)

_NAME = re.compile(r"(conure|kvstore|process)(_[a-z0-9]+)+")
_LABEL = re.compile(r"[a-z][a-z0-9_]*")

# What a callback gives: a number, or None for "nothing to tell now"; with labels, the same for
# each combination of label values.
Reading = float | None
LabelledReadings = Iterable[tuple[Sequence[str], float]]


class Counter:
    """A number that only grows; made by a :class:`Registry`."""

    __slots__ = ("_cells",)

    def __init__(self) -> None:
        self._cells: dict[int, float] = {}

    def inc(self, amount: float = 1) -> None:
        """Add *amount*, which is not negative."""
        try:
            self._cells[get_ident()] += amount
        except KeyError:
            self._cells[get_ident()] = amount

    @property
    def value(self) -> float:
        return sum(list(self._cells.values()))

    def samples(self, name: str, labels: str) -> Iterator[str]:
        yield _sample(name, labels, self.value)


class Gauge:
    """A number that goes up and down; made by a :class:`Registry`."""

    __slots__ = ("_lock", "_value")

    def __init__(self) -> None:
        self._lock = Lock()
        self._value: float = 0

    def set(self, value: float) -> None:
        with self._lock:
            self._value = value

    def inc(self, amount: float = 1) -> None:
        """Add *amount*; a negative one takes away."""
        with self._lock:
            self._value += amount

    @property
    def value(self) -> float:
        return self._value

    def samples(self, name: str, labels: str) -> Iterator[str]:
        yield _sample(name, labels, self._value)


class Histogram:
    """How often values fell into which bucket, and their sum; made by a :class:`Registry`.

    ``bounds`` are the upper bounds, ascending and inclusive; one more bucket is above the last.
    """

    __slots__ = ("_cells", "bounds")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(map(float, bounds))
        # For each thread: how many values are in each bucket, and after them their sum.
        self._cells: dict[int, list[float]] = {}

    def observe(self, value: float) -> None:
        """Count one value."""
        cell = self._cells.get(get_ident()) or self._new_cell()
        cell[bisect_left(self.bounds, value)] += 1
        cell[-1] += value

    def observe_many(self, values: Iterable[float]) -> None:
        """Count several values; cheaper than one by one."""
        cell = self._cells.get(get_ident()) or self._new_cell()
        bounds = self.bounds
        total = 0.0
        for value in values:
            cell[bisect_left(bounds, value)] += 1
            total += value
        cell[-1] += total

    def observe_same(self, value: float, times: int) -> None:
        """Count *value* as often as *times*, at the price of one: a batch that took one time."""
        cell = self._cells.get(get_ident()) or self._new_cell()
        cell[bisect_left(self.bounds, value)] += times
        cell[-1] += value * times

    @property
    def count(self) -> int:
        return int(sum(self._totals()[:-1]))

    @property
    def sum(self) -> float:
        return self._totals()[-1]

    def samples(self, name: str, labels: str) -> Iterator[str]:
        *counts, total = self._totals()
        cumulative = list(accumulate(counts))
        for bound, count in zip((*self.bounds, inf), cumulative, strict=True):
            le = f'le="{_number(bound)}"'
            yield _sample(f"{name}_bucket", f"{labels},{le}" if labels else le, count)
        yield _sample(f"{name}_sum", labels, total)
        yield _sample(f"{name}_count", labels, cumulative[-1])

    def _new_cell(self) -> list[float]:
        cell = self._cells[get_ident()] = [0] * (len(self.bounds) + 2)
        return cell

    def _totals(self) -> list[float]:
        cells = [cell.copy() for cell in list(self._cells.values())]
        return [sum(column) for column in zip(*cells, strict=True)] or [0] * (len(self.bounds) + 2)


class _Child(Protocol):
    def samples(self, name: str, labels: str) -> Iterator[str]: ...


ChildT = TypeVar("ChildT", bound=_Child)


class Family(Generic[ChildT]):
    """The metrics of one name, one for each combination of label values."""

    __slots__ = ("_children", "_labels", "_lock", "_make")

    def __init__(self, labels: Sequence[str], make: Callable[[], ChildT]) -> None:
        self._labels = tuple(labels)
        self._make = make
        self._lock = Lock()
        self._children: dict[tuple[str, ...], ChildT] = {}

    def labels(self, *values: str) -> ChildT:
        """Return the metric with these label values, in the order of the labels' names.

        It is the same object every time; hot callers keep it.
        """
        child = self._children.get(values)
        if child is None:
            _label_text(self._labels, values)
            with self._lock:
                child = self._children.setdefault(values, self._make())
        return child

    def children(self) -> list[tuple[tuple[str, ...], ChildT]]:
        """Return the metrics that there are, each with its label values."""
        return list(self._children.copy().items())

    def samples(self, name: str, labels: str) -> Iterator[str]:
        assert not labels
        for values, child in sorted(self._children.copy().items(), key=lambda item: item[0]):
            yield from child.samples(name, _label_text(self._labels, values))


class Registry:
    """The metrics of one process, rendered in the order in which they were made."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._metrics: dict[str, tuple[str, _Child]] = {}

    def counter(self, name: str, help_text: str) -> Counter:
        return self._add(name, "counter", help_text, Counter())

    def counter_family(self, name: str, help_text: str, labels: Sequence[str]) -> Family[Counter]:
        return self._add(name, "counter", help_text, Family(_checked(labels), Counter))

    def counter_callback(self, name: str, help_text: str, read: Callable[[], Reading]) -> None:
        """Show what *read* returns, a number that only grows; None shows nothing."""
        self._add(name, "counter", help_text, _Callback(read))

    def gauge(self, name: str, help_text: str) -> Gauge:
        return self._add(name, "gauge", help_text, Gauge())

    def gauge_family(self, name: str, help_text: str, labels: Sequence[str]) -> Family[Gauge]:
        return self._add(name, "gauge", help_text, Family(_checked(labels), Gauge))

    def gauge_callback(self, name: str, help_text: str, read: Callable[[], Reading]) -> None:
        """Show what *read* returns; None shows nothing."""
        self._add(name, "gauge", help_text, _Callback(read))

    def labelled_callback(
        self,
        name: str,
        kind: str,
        help_text: str,
        labels: Sequence[str],
        read: Callable[[], LabelledReadings],
    ) -> None:
        """Show pairs of label values and number; *kind* is ``counter`` or ``gauge``."""
        self._add(name, kind, help_text, _LabelledCallback(_checked(labels), read))

    def histogram(
        self, name: str, help_text: str, bounds: Sequence[float] = LATENCY_SECONDS
    ) -> Histogram:
        return self._add(name, "histogram", help_text, Histogram(_ascending(bounds)))

    def histogram_family(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str],
        bounds: Sequence[float] = LATENCY_SECONDS,
    ) -> Family[Histogram]:
        bounds = _ascending(bounds)
        return self._add(
            name, "histogram", help_text, Family(_checked(labels), lambda: Histogram(bounds))
        )

    def render(self) -> bytes:
        """Return the page, to be sent as :data:`CONTENT_TYPE`.

        An exception of a callback comes through: a page with silent holes would be worse.
        """
        with self._lock:
            metrics = list(self._metrics.items())
        lines: list[str] = []
        for name, (header, metric) in metrics:
            lines.append(header)
            lines.extend(metric.samples(name, ""))
        return "".join(lines).encode()

    def _add(self, name: str, kind: str, help_text: str, metric: ChildT) -> ChildT:
        assert _NAME.fullmatch(name), f"{name} is no name for a metric"
        assert kind in ("counter", "gauge", "histogram"), kind
        assert (kind == "counter") == name.endswith("_total"), f"{name}: counters end in _total"
        escaped = help_text.replace("\\", "\\\\").replace("\n", "\\n")
        header = f"# HELP {name} {escaped}\n# TYPE {name} {kind}\n"
        with self._lock:
            assert name not in self._metrics, f"{name} exists already"
            self._metrics[name] = (header, metric)
        return metric


class _Callback:
    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read

    def samples(self, name: str, labels: str) -> Iterator[str]:
        value = self._read()
        if value is not None:
            yield _sample(name, labels, value)


class _LabelledCallback:
    def __init__(self, labels: Sequence[str], read: Callable[[], LabelledReadings]) -> None:
        self._labels = labels
        self._read = read

    def samples(self, name: str, labels: str) -> Iterator[str]:
        assert not labels
        for values, value in self._read():
            yield _sample(name, _label_text(self._labels, values), value)


def _sample(name: str, labels: str, value: float) -> str:
    return f"{name}{{{labels}}} {_number(value)}\n" if labels else f"{name} {_number(value)}\n"


def _number(value: float) -> str:
    if value in (inf, -inf):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if isnan(value) else repr(value)


def _label_text(labels: Sequence[str], values: Sequence[str]) -> str:
    assert len(labels) == len(values), f"labels {labels} got the values {values}"
    return ",".join(
        f'{label}="{_escaped(value)}"' for label, value in zip(labels, values, strict=True)
    )


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _checked(labels: Sequence[str]) -> Sequence[str]:
    assert labels
    assert all(_LABEL.fullmatch(label) and label != "le" for label in labels), labels
    return labels


def _ascending(bounds: Sequence[float]) -> Sequence[float]:
    assert bounds
    assert all(low < high for low, high in pairwise(bounds)), bounds
    return bounds


# -- this process ----------------------------------------------------------------------------------


def add_build_info(registry: Registry, version: str) -> None:
    """Add ``conure_build_info``: always 1, with the version and the Python in its labels."""
    family = registry.gauge_family(
        "conure_build_info", "The version that runs; the value is always 1.", ("version", "python")
    )
    family.labels(version, platform.python_version()).set(1)


def add_process_metrics(registry: Registry, proc: str = "/proc") -> None:
    """Add Prometheus' standard ``process_*`` figures, read from Linux' *proc* (see proc(5)).

    On a system without it nothing is added.
    """
    if not os.path.exists(f"{proc}/self/stat"):
        return
    ticks = os.sysconf("SC_CLK_TCK")
    page = os.sysconf("SC_PAGE_SIZE")

    def stat(field: int) -> int:
        # Fields are numbered as in proc(5); the second one, the name, may hold spaces.
        with open(f"{proc}/self/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[field - 3])

    with open(f"{proc}/stat", "rb") as file:
        boot = next(int(line.split()[1]) for line in file if line.startswith(b"btime"))
    start = boot + stat(22) / ticks

    registry.counter_callback(
        "process_cpu_seconds_total",
        "Processor time used, user and system, in seconds.",
        lambda: (stat(14) + stat(15)) / ticks,
    )
    registry.gauge_callback(
        "process_resident_memory_bytes", "Memory resident in RAM.", lambda: stat(24) * page
    )
    registry.gauge_callback(
        "process_virtual_memory_bytes", "Size of the address space.", lambda: stat(23)
    )
    registry.gauge_callback(
        "process_open_fds", "Open file descriptors.", lambda: len(os.listdir(f"{proc}/self/fd"))
    )
    registry.gauge_callback(
        "process_max_fds",
        "Limit of open file descriptors; +Inf if there is none.",
        lambda: _max_fds(f"{proc}/self/limits"),
    )
    registry.gauge_callback(
        "process_start_time_seconds", "Start of this process, in Unix time.", lambda: start
    )


def _max_fds(limits: str) -> Reading:
    with open(limits, "rb") as file:
        for line in file:
            if line.startswith(b"Max open files"):
                soft = line.split()[3]
                return inf if soft == b"unlimited" else int(soft)
    return None
