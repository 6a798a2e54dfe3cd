"""Engines in process: each holds what was put, and they take turns (bench/turns.py and below)."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from bench import engine_part
from bench.engine_process import Session
from bench.engines import APPLIED, BTREE, ENGINES, SQLITE, logged, missing
from bench.footprint import Footprint, processor_seconds, written_bytes
from bench.plan import QUICK
from bench.samples import Samples, write_keys
from bench.turns import in_turns, start_engines
from bench.workspace import BenchError
from tests.bench.places import is_stopped, wait_until, workspace_in

COUNT = 3_000


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    write_keys(str(tmp_path / "keys"), COUNT)
    return Samples(str(tmp_path / "keys"))


@pytest.mark.parametrize("name", [*ENGINES, *APPLIED.values()])
def test_an_engine_holds_what_was_put(name: str, samples: Samples, tmp_path: Path) -> None:
    if why := missing(name):
        pytest.skip(why)
    session = Session(name, samples, str(tmp_path))
    assert session.load(0, COUNT, 100).amount == COUNT
    session.verify()
    session.settle()
    session.verify()
    session.overwrite(0, COUNT, 130)
    session.put(1, 50, 16)
    for answer in (
        session.get(1, 200),
        session.miss(1, 200),
        session.range(1, 5),
        session.scan_keys(0.5, 100),
        session.scan_items(0.5, 100),
    ):
        assert answer.amount
        assert answer.seconds > 0
    session.verify()
    session.close()
    assert session.open().amount == 1


def test_other_values_than_were_put_are_noticed(samples: Samples, tmp_path: Path) -> None:
    session = Session(SQLITE, samples, str(tmp_path))
    session.load(0, COUNT, 1_000)
    session.overwrite(0, COUNT // 2, 1_000)
    session.verify()
    session.overwrite(COUNT // 2 + 1, COUNT // 2 - 1, 1_000)  # without the one in between
    with pytest.raises(BenchError, match="other values"):
        session.verify()
    session.close()


def test_missing_records_are_noticed(samples: Samples, tmp_path: Path) -> None:
    session = Session(BTREE, samples, str(tmp_path))
    session.load(0, COUNT // 2, 1_000)
    with pytest.raises(BenchError, match="other values"):
        session.verify()
    with pytest.raises(BenchError, match="another number"):
        session.scan_items(0.0, COUNT)
    session.close()


def test_every_record_is_overwritten_once(samples: Samples) -> None:
    assert sorted(samples.again(0, COUNT)) == [*range(COUNT)]
    assert len({samples.key(n) for n in range(COUNT)}) == COUNT
    assert samples.value(5, 0) != samples.value(5, 1)
    assert samples.absent(5) != samples.key(5)


def test_engines_take_turns_and_rest_between_them(tmp_path: Path) -> None:
    with workspace_in(tmp_path) as workspace:
        engines, _ = start_engines(workspace, [SQLITE, logged(BTREE)], 2_000)
        for what in ("load", "get", "scan_keys", "put_16"):
            done = in_turns(engines, QUICK.pairs, engine_part.burst_of(what, QUICK, 2_000))
            assert {len(answers) for answers in done.values()} == {QUICK.pairs}
        for engine in engines:
            engine.call("settle")
            assert engine.files > 2_000 * 100
            assert (engine.written > 0) == (written_bytes(str(tmp_path)) > 0)
            assert engine.memory.own > 1 << 20
            wait_until(partial(is_stopped, engine.pid))
        with pytest.raises(BenchError, match="sqlite3"):
            engines[0].call("scan_items", share=0.0, count=3_000)
        pids = [engine.pid for engine in engines]
    for pid in pids:
        assert not os.path.exists(f"/proc/{pid}")


def test_what_a_process_and_its_children_take(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'held = b\"1\" * (64 << 20); input()'])\n"
        "print('ready', flush=True)\n"
        "input()\n"
    )
    with workspace_in(tmp_path) as workspace:
        talker = workspace.converse("parent", ["python3", "-c", program])
        assert talker.receive() == "ready\n"
        footprint = Footprint(talker.pid)

        def child_has_grown() -> bool:
            footprint.sample()
            return footprint.child >= 64 << 20

        wait_until(child_has_grown)
        assert 0 < footprint.own < 64 << 20
        assert 0 < processor_seconds(talker.pid) < 30
    with pytest.raises(BenchError, match="memory of process"):
        footprint.sample()


def test_what_a_disk_has_written(tmp_path: Path) -> None:
    before = written_bytes(str(tmp_path))
    if not before:
        pytest.skip("the system doesn't tell of the disk of temporary files")
    with open(tmp_path / "data", "wb") as file:
        file.write(os.urandom(4 << 20))
        file.flush()
        os.fsync(file.fileno())
    assert written_bytes(str(tmp_path)) - before >= 4 << 20


def test_the_part_draws_its_tables_and_judges(tmp_path: Path) -> None:
    tiny = replace(
        QUICK,
        engine_sizes=(1_000,),
        pairs=2,
        single_commits=4,
        few_commits=64,
        small_batches=400,
        gets=200,
        ranges=20,
    )
    with workspace_in(tmp_path) as workspace:
        text = engine_part.run(tiny, workspace).render("- facts")
        assert not list(tmp_path.glob("*/*-engines"))  # as large as the data are
    assert "**1,000 records: microseconds an operation**" in text
    assert "**1,000 records: the state machine applies entries" in text
    for name in ENGINES:
        assert missing(name) in text
        assert missing(name) or f"\n| {name} | " in text
    assert "| can't tell |" in text  # of two pairs
