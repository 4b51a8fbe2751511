"""The leaderboard's table: what is written is read back, joined and checked (original 8.21)."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import DataError
from vcr.result_table import COLUMNS, find_problems, merge_tables, read_table, write_table

GOOD = ["0.1", "0.33333334", "0.56666666", "1e-08"]


def write(path: Path, kind: str, *ids: str, **changes: list[str]) -> Path:
    rows = {i: GOOD * (len(COLUMNS[kind]) // 4) for i in ids} | changes
    write_table(kind, [[i, *values] for i, values in rows.items()], path)
    return path


def test_columns():
    assert COLUMNS["Q2A"] == ("answer_0", "answer_1", "answer_2", "answer_3")
    assert len(COLUMNS["QA2R"]) == 16 and len(COLUMNS["Q2AR"]) == 20
    assert COLUMNS["QA2R"][:5] == (
        "rationale_conditioned_on_a0_0",
        "rationale_conditioned_on_a0_1",
        "rationale_conditioned_on_a0_2",
        "rationale_conditioned_on_a0_3",
        "rationale_conditioned_on_a1_0",
    )


@pytest.mark.parametrize("kind", COLUMNS)
def test_what_is_written_is_read_and_good(tmp_path, kind):
    table = read_table(write(tmp_path / "x.csv", kind, "test-1", "test-0"))
    assert table.kind == kind and [row.annot_id for row in table.rows] == ["test-1", "test-0"]
    assert table.rows[1].line == 3 and table.rows[1].values[:4] == GOOD
    assert find_problems(table, ["test-0", "test-1"]) == []


class TestMerge:
    def test_joined_by_id_with_the_same_text(self, tmp_path):
        answers = write(tmp_path / "a.csv", "Q2A", "x", "y", y=["1.000", "0", "0", "0E0"])
        rationales = write(tmp_path / "r.csv", "QA2R", "y", "x", y=["1.0e0", "0", "0", "0"] * 4)
        merge_tables(answers, rationales, tmp_path / "all.csv")
        lines = (tmp_path / "all.csv").read_text().splitlines()
        assert lines[0].split(",") == ["annot_id", *COLUMNS["Q2A"], *COLUMNS["QA2R"]]
        assert lines[1].split(",") == ["x", *GOOD * 5]
        assert lines[2].split(",") == ["y", "1.000", "0", "0", "0E0", *["1.0e0", "0", "0", "0"] * 4]

    def test_other_annotations_or_halves(self, tmp_path):
        answers, rationales = write(tmp_path / "a.csv", "Q2A", "x", "y"), write(tmp_path / "r.csv", "QA2R", "x", "z")
        with pytest.raises(DataError, match="not of the same annotations: 1 annotations are missing: y"):
            merge_tables(answers, rationales, tmp_path / "all.csv")
        with pytest.raises(DataError, match=r"r\.csv: a QA2R table, expected Q2A"):
            merge_tables(rationales, answers, tmp_path / "all.csv")
        assert not (tmp_path / "all.csv").exists()


class TestProblems:
    def problems(self, tmp_path: Path, *ids: str, **changes: list[str]) -> list[str]:
        return find_problems(read_table(write(tmp_path / "x.csv", "Q2A", *ids, **changes)), ["x", "y", "z"])

    def test_ids(self, tmp_path):
        path = write(tmp_path / "x.csv", "Q2A", "x", "q")
        path.write_text(path.read_text() + ",".join(["x", *GOOD]) + "\n")
        assert find_problems(read_table(path), ["x", "y", "z"]) == [
            "2 annotations are missing: y, z",
            "1 annotations are unknown: q (line 3)",
            "1 annotations are there more than once: x (lines 2, 4)",
        ]

    def test_only_some_of_many_are_named(self, tmp_path):
        table = read_table(write(tmp_path / "x.csv", "Q2A", *map(str, range(9))))
        assert find_problems(table, list("012345678") + [f"m{i}" for i in range(7)]) == [
            "7 annotations are missing: m0, m1, m2, m3, m4, ..."
        ]

    @pytest.mark.parametrize("text", ["", "x", "nan", "inf", "-0.1", "1.1"])
    def test_numbers(self, tmp_path, text):
        got = self.problems(tmp_path, "x", "y", "z", y=["0.2", text, "0.4", "0.4"])
        assert got == [f"line 3, column answer_1: {text!r}, expected a probability from 0 to 1"]

    def test_sums(self, tmp_path):
        got = self.problems(tmp_path, "x", "y", "z", z=["0.2", "0.2", "0.2", "0.3"])
        assert got == ["line 4, columns answer_0 to answer_3: the sum is 0.9, expected 1"]
        assert self.problems(tmp_path, "x", "y", "z", z=["0.2501", "0.25", "0.25", "0.25"]) == []

    def test_every_group_of_four(self, tmp_path):
        rows = GOOD * 2 + ["1", "1", "0", "0"] + GOOD
        table = read_table(write(tmp_path / "x.csv", "QA2R", x=rows))
        columns = "rationale_conditioned_on_a2_0 to rationale_conditioned_on_a2_3"
        assert find_problems(table, ["x"]) == [f"line 2, columns {columns}: the sum is 2, expected 1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: columns of no VCR table; nearest is Q2A"),
        (
            "annot_id,answer_0,answer_2,answer_1,answer_3\n",
            "line 1: columns of no VCR table; nearest is Q2A, reordered",
        ),
        (
            "id,answer_0,answer_1,answer_2,answer_3\n",
            "line 1: columns of no VCR table; nearest is Q2A, without annot_id; with id",
        ),
        ("annot_id,answer_0,answer_1,answer_2,answer_3\na,1,0,0\n", r"line 2: 4 columns, expected 5 \(Q2A\)"),
        ("annot_id,answer_0,answer_1,answer_2,answer_3\na,1,0,0,0\n\nb,1,0,0,0,0\n", "line 4: 6 columns"),
        ("annot_id,answer_0\xff", "byte 17 is no UTF-8"),
    ],
)
def test_files_that_are_no_table(tmp_path, text, message):
    (tmp_path / "x.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=rf"x\.csv(, |: ){message}"):
        read_table(tmp_path / "x.csv")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"result file .*no\.csv: no such file"):
        read_table(tmp_path / "no.csv")
