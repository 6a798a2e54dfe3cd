"""metrics.py: the page is read back with Prometheus' own parsers, and counting is exact."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from conure.metrics import LATENCY_SECONDS, Registry, add_build_info, add_process_metrics


def parsed(registry: Registry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    page = registry.render().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_counter_and_gauge_show_what_was_added() -> None:
    registry = Registry()
    counter = registry.counter("conure_writes_total", "Writes.")
    gauge = registry.gauge("conure_waiting", "Waiting.")
    counter.inc()
    counter.inc(41)
    gauge.set(5)
    gauge.inc(-2)
    assert counter.value == 42
    assert gauge.value == 3
    assert registry.render() == (
        b"# HELP conure_writes_total Writes.\n# TYPE conure_writes_total counter\n"
        b"conure_writes_total 42\n"
        b"# HELP conure_waiting Waiting.\n# TYPE conure_waiting gauge\n"
        b"conure_waiting 3\n"
    )


def test_a_counter_that_was_never_increased_is_shown_as_zero() -> None:
    registry = Registry()
    registry.counter("conure_writes_total", "Writes.")
    assert parsed(registry) == {("conure_writes_total", ()): 0}


def test_labels_keep_children_apart_and_cached() -> None:
    registry = Registry()
    family = registry.counter_family("conure_requests_total", "Requests.", ("method", "code"))
    family.labels("GET", "200").inc(3)
    family.labels("PUT", "503").inc()
    assert family.labels("GET", "200") is family.labels("GET", "200")
    assert parsed(registry) == {
        ("conure_requests_total", (("code", "200"), ("method", "GET"))): 3,
        ("conure_requests_total", (("code", "503"), ("method", "PUT"))): 1,
    }
    with pytest.raises(AssertionError):
        family.labels("GET")


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(codec="utf-8")))
def test_any_label_value_is_read_back_as_it_was(value: str) -> None:
    registry = Registry()
    registry.gauge_family("conure_x", "X.", ("name", "other")).labels(value, "y").set(1)
    assert parsed(registry) == {("conure_x", (("name", value), ("other", "y"))): 1}
    assert registry.render().count(b"\n") == 3


def test_help_is_one_line_whatever_is_in_it() -> None:
    registry = Registry()
    registry.gauge("conure_x", 'A \\ and\na "line".').set(1.5)
    (family,) = text_string_to_metric_families(registry.render().decode())
    assert family.documentation == 'A \\ and\na "line".'


def test_histogram_buckets_are_cumulative_and_inclusive() -> None:
    registry = Registry()
    histogram = registry.histogram("conure_wait_seconds", "Wait.", (0.1, 1, 10))
    histogram.observe(0.1)  # a bound belongs to its bucket
    histogram.observe_many([0.05, 0.5, 11])
    histogram.observe_same(2.0, 4)
    assert histogram.count == 8
    assert histogram.sum == pytest.approx(19.65)
    values = parsed(registry)
    buckets = {
        dict(labels)["le"]: value for (name, labels), value in values.items() if "bucket" in name
    }
    assert buckets == {"0.1": 2, "1.0": 3, "10.0": 7, "+Inf": 8}
    assert values["conure_wait_seconds_count", ()] == 8
    assert values["conure_wait_seconds_sum", ()] == pytest.approx(19.65)


def test_empty_histogram_and_labelled_histogram() -> None:
    registry = Registry()
    registry.histogram("conure_a_seconds", "A.")
    family = registry.histogram_family("conure_b_seconds", "B.", ("route",), (1, 2))
    family.labels("/kv").observe(1.5)
    values = parsed(registry)
    assert values["conure_a_seconds_count", ()] == 0
    assert values["conure_a_seconds_bucket", (("le", str(LATENCY_SECONDS[0])),)] == 0
    assert values["conure_b_seconds_bucket", (("le", "1.0"), ("route", "/kv"))] == 0
    assert values["conure_b_seconds_bucket", (("le", "2.0"), ("route", "/kv"))] == 1


def test_callbacks_are_read_when_the_page_is_made() -> None:
    registry = Registry()
    numbers: dict[str, float | None] = {"applied": 1, "contact": None}
    registry.gauge_callback("conure_applied", "Applied.", lambda: numbers["applied"])
    registry.counter_callback("conure_syncs_total", "Syncs.", lambda: numbers["applied"])
    registry.gauge_callback("conure_contact_seconds", "Contact.", lambda: numbers["contact"])
    registry.labelled_callback(
        "conure_peer_lag", "gauge", "Lag.", ("peer",), lambda: [(("n2",), 7), (("n3",), 0.5)]
    )
    assert ("conure_contact_seconds", ()) not in parsed(registry)
    numbers.update(applied=9, contact=0.25)
    values = parsed(registry)
    assert values["conure_applied", ()] == values["conure_syncs_total", ()] == 9
    assert values["conure_contact_seconds", ()] == 0.25
    assert values["conure_peer_lag", (("peer", "n2"),)] == 7


def test_numbers_outside_the_ordinary() -> None:
    registry = Registry()
    for name, value in (("up", math.inf), ("down", -math.inf), ("large", 2**63), ("tiny", 1e-9)):
        registry.gauge(f"conure_{name}", "X.").set(value)
    registry.gauge("conure_nan", "X.").set(math.nan)
    values = {name: value for (name, _), value in parsed(registry).items()}
    assert math.isnan(values.pop("conure_nan"))
    assert values == {
        "conure_up": math.inf,
        "conure_down": -math.inf,
        "conure_large": 2.0**63,
        "conure_tiny": 1e-9,
    }


@pytest.mark.parametrize("name", ["writes_total", "conure_Writes_total", "conure_writes", "x"])
def test_a_name_against_the_rules_is_a_bug(name: str) -> None:
    with pytest.raises(AssertionError):
        Registry().counter(name, "Writes.")


def test_a_name_is_taken_once() -> None:
    registry = Registry()
    registry.gauge("conure_x", "X.")
    with pytest.raises(AssertionError, match="exists"):
        registry.gauge("conure_x", "X.")
    with pytest.raises(AssertionError):
        registry.histogram("conure_y", "Y.", (2, 1))


def test_nothing_is_lost_or_counted_twice_between_threads() -> None:
    registry = Registry()
    counter = registry.counter("conure_n_total", "N.")
    gauge = registry.gauge("conure_g", "G.")
    histogram = registry.histogram("conure_h_seconds", "H.", (1, 2))
    family = registry.counter_family("conure_f_total", "F.", ("a",))
    start = threading.Barrier(9)
    done = threading.Event()

    def add() -> None:
        start.wait()
        for _ in range(2_000):
            counter.inc()
            gauge.inc()
            histogram.observe(1.5)
            family.labels("x").inc(2)

    def read() -> None:
        start.wait()
        before = 0.0
        while not done.is_set():
            assert before <= counter.value, "a counter never goes back"
            before = counter.value
            registry.render()

    threads = [threading.Thread(target=add) for _ in range(8)]
    reader = threading.Thread(target=read)
    for thread in (*threads, reader):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    reader.join()
    assert counter.value == gauge.value == histogram.count == 16_000
    assert histogram.sum == 24_000
    assert family.labels("x").value == 32_000


def test_cells_of_dead_threads_stay_counted_and_few() -> None:
    registry = Registry()
    counter = registry.counter("conure_n_total", "N.")
    for _ in range(50):
        thread = threading.Thread(target=counter.inc)
        thread.start()
        thread.join()
    assert counter.value == 50
    assert len(counter._cells) < 10, "who has the identifier of one that is gone has its cell"


def test_process_metrics_tell_about_this_process() -> None:
    registry = Registry()
    add_process_metrics(registry)
    before = parsed(registry)
    assert 2**20 < before["process_resident_memory_bytes", ()] < 2**36
    assert before["process_resident_memory_bytes", ()] <= before["process_virtual_memory_bytes", ()]
    assert before["process_start_time_seconds", ()] <= time.time()
    assert before["process_start_time_seconds", ()] > time.time() - 86_400
    assert before["process_cpu_seconds_total", ()] > 0
    descriptors = [os.dup(0) for _ in range(20)]
    try:
        assert parsed(registry)["process_open_fds", ()] >= before["process_open_fds", ()] + 10
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    assert before["process_max_fds", ()] >= before["process_open_fds", ()]


def test_process_metrics_are_absent_without_proc(tmp_path: Path) -> None:
    registry = Registry()
    add_process_metrics(registry, str(tmp_path))
    assert registry.render() == b""


def test_a_limitless_process_and_a_name_with_brackets(tmp_path: Path) -> None:
    (tmp_path / "self" / "fd").mkdir(parents=True)
    fields = " ".join(str(field) for field in range(3, 53))
    (tmp_path / "self" / "stat").write_text(f"7 (a) b) c ({fields}\n".replace("c (", "c) "))
    (tmp_path / "self" / "limits").write_text("Max open files   unlimited  unlimited  files\n")
    (tmp_path / "stat").write_text("cpu 1 2 3\nbtime 1000\n")
    registry = Registry()
    add_process_metrics(registry, str(tmp_path))
    values = parsed(registry)
    ticks = os.sysconf("SC_CLK_TCK")
    assert values["process_max_fds", ()] == math.inf
    assert values["process_virtual_memory_bytes", ()] == 23
    assert values["process_cpu_seconds_total", ()] == pytest.approx(29 / ticks)
    assert values["process_start_time_seconds", ()] == pytest.approx(1000 + 22 / ticks)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_complain_about() -> None:
    registry = Registry()
    registry.counter_family("conure_requests_total", "Requests.", ("method",)).labels("GET").inc()
    registry.histogram("conure_wait_seconds", "Wait.").observe(0.1)
    add_build_info(registry, "0.1.0")
    add_process_metrics(registry)
    result = subprocess.run(
        ["promtool", "check", "metrics"], input=registry.render(), capture_output=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
