"""Sections of the results file (bench/report.py)."""

from __future__ import annotations

from pathlib import Path

from bench.pairs import of_medians
from bench.report import Section, write_results


def test_a_section_tells_targets_with_their_verdicts() -> None:
    section = Section("Something")
    pairs = of_medians([*range(1, 21)], [10] * 20)
    section.reaches("fast", pairs, 1.2)
    section.stays_within("late", pairs, 0.5)
    section.at_most("memory", 3.0, 4.0, "MiB")
    section.target("quiet", "-", "-", met=None)
    lines = section.render("- facts").splitlines()
    assert lines[0] == "## Something"
    measured = "1.05 x (0.60 - 1.50, 20 pairs)"
    assert lines[-4:] == [
        f"| fast | >= 1.2 x | {measured} | yes, by its interval |",
        f"| late | <= 0.5 x | {measured} | **no** |",
        "| memory | <= 4 MiB | 3 MiB | yes |",
        "| quiet | - | - | can't tell |",
    ]


def test_a_part_measured_again_replaces_its_own_section_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "RESULTS.md")
    write_results(path, [("One", "## One\n\nold\n"), ("Two", "## Two\n\nkept\n")])
    write_results(path, [("One", "## One\n\nnew\n")])
    text = Path(path).read_text()
    assert "old" not in text
    assert text.index("new") < text.index("kept")
