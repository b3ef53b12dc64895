"""The journal and the input, put together to one output file."""

import csv
import json

import pyarrow.parquet as pq
import pytest

from batcher.errors import IncompleteOutput
from batcher.records import Outcome
from batcher.write.finish import export
from tests.support.job_folder import JobFolder

ROWS = [{"prompt": f"p{n}"} for n in range(4)]


class Finish:
    """A job whose rows are answered, and its output."""

    def __init__(self, at, answers, **asked):
        self.job = JobFolder(at, ROWS, **asked)
        self.run = self.job.resume()
        self.path = self.job.keep(self.run, self.job.results(answers))
        self.said = []

    def write(self, name="out.jsonl", *, locked=True, **more):
        manifest = self.run.manifest
        return export(
            self.job.at / name, self.job.folder, self.job.inputs, manifest, manifest.runs,
            self.said.append, locked=locked, **more,
        )  # fmt: skip

    def rows(self, name="out.jsonl"):
        return [json.loads(line) for line in (self.job.at / name).read_bytes().splitlines()]


@pytest.fixture
def whole(tmp_path):
    return Finish(tmp_path, {(n, 0): Outcome.OK for n in range(4)})


def test_each_row_stands_with_its_answer_in_the_order_of_the_input(whole):
    written = whole.write()
    assert (written.rows, written.missing, written.lost, written.all_ok) == (4, 0, 0, True)
    rows = whole.rows()
    assert [row["prompt"] for row in rows] == ["p0", "p1", "p2", "p3"]
    assert [row["content"] for row in rows] == [f"m to {row}" for row in ROWS]


def test_all_formats_hold_the_same_rows(whole):
    for name in ("out.jsonl", "out.csv", "out.parquet", "parts"):
        assert whole.write(name).rows == 4
    told = [(row["prompt"], row["content"]) for row in whole.rows()]
    table = pq.read_table(whole.job.at / "out.parquet")
    assert (
        list(zip(*(table[name].to_pylist() for name in ("prompt", "content")), strict=True))
        == told
    )
    assert pq.read_table(whole.job.at / "parts").equals(table)
    with (whole.job.at / "out.csv").open(newline="") as file:
        assert [(row["prompt"], row["content"]) for row in csv.DictReader(file)] == told


def test_whether_all_is_well_is_told(tmp_path):
    answers = {(n, 0): Outcome.OK for n in range(3)} | {(3, 0): Outcome.REFUSED}
    written = Finish(tmp_path, answers).write()
    assert (written.rows, written.missing, written.lost, written.all_ok) == (4, 0, 0, False)


def test_beside_a_running_process_rows_without_an_answer_are_left_out(tmp_path):
    made = Finish(tmp_path, {(1, 0): Outcome.OK})
    written = made.write(locked=False)
    assert (written.rows, written.missing) == (1, 3)
    assert [row["prompt"] for row in made.rows()] == ["p1"]


def test_the_end_of_a_run_writes_no_output_that_lacks_rows(tmp_path):
    made = Finish(tmp_path, {(1, 0): Outcome.OK})
    with pytest.raises(IncompleteOutput, match="3 results are not in the journal any more"):
        made.write()
    assert not (tmp_path / "out.jsonl").exists()


def spoil(made):
    """Changes a byte of an answer that its sidecar promises."""
    made.write()
    made.path.write_bytes(made.path.read_bytes().replace(b"p1", b"p9"))


def test_a_damaged_answer_leaves_the_old_output_as_it_is(whole):
    spoil(whole)
    before = whole.rows()
    for locked in (False, True):
        with pytest.raises(IncompleteOutput, match="one answer there cannot be read any more"):
            whole.write(locked=locked)
        assert whole.rows() == before


def test_what_is_left_can_be_written_to_another_file(whole):
    spoil(whole)
    written = whole.write("other.jsonl", locked=False)
    assert (written.rows, written.all_ok) == (3, True)


def test_an_input_that_is_touched_meanwhile_leaves_the_old_output(whole):
    whole.write()
    whole.job.write(ROWS[::-1])
    with pytest.raises(IncompleteOutput, match="was touched while the output was written"):
        whole.write()
    assert [row["prompt"] for row in whole.rows()] == ["p0", "p1", "p2", "p3"]


def test_whoever_confirms_can_stop_the_writing(whole):
    class No(Exception):
        pass

    def refuse(written):
        assert written.rows == 4
        raise No

    with pytest.raises(No):
        whole.write(confirm=refuse)
    assert list(whole.job.at.glob("out.jsonl*")) == [whole.job.folder]


def test_writing_can_be_interrupted(whole):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        whole.write(go_on=stop)
    assert not (whole.job.at / "out.jsonl").exists()


def test_the_output_is_known_to_hold_its_journal_only_where_it_is_the_runs_own(whole):
    whole.write("other.jsonl")
    assert not (whole.job.folder / "written.json").exists()
    whole.write()
    assert (whole.job.folder / "written.json").exists()


def test_lines_of_other_runs_do_not_count(whole):
    stranger = whole.job.resume()
    results = whole.job.results({(n, 0): Outcome.REFUSED for n in range(4)})
    whole.job.keep(stranger, results, 2)
    written = whole.write()
    assert written.all_ok


def test_columns_that_have_names_of_results_stand_under_others(tmp_path):
    made = Finish(tmp_path, {(0, 0): Outcome.OK})
    made.job.write([{"prompt": "p0", "status": "mine"}])
    made.run = made.job.resume()
    made.job.keep(made.run, made.job.results({(0, 0): Outcome.OK}))
    made.write()
    [row] = made.rows()
    assert row["status"] == "ok"
    assert "mine" in row.values()
    assert "'status' has the name of a result" in made.said[0]


ROUTES = [("each", ["m", "n"]), ("fallback", ["n"]), ("split", ["m"])]


@pytest.mark.parametrize(("route", "models"), ROUTES)
def test_of_a_route_the_row_that_counts_is_written(tmp_path, route, models):
    """m refused, n answered."""
    answers = {(n, 0): Outcome.REFUSED for n in range(4)}
    if route != "split":
        answers |= {(n, 1): Outcome.OK for n in range(4)}
    made = Finish(tmp_path, answers, models=["m", "n"], route=route)
    assert made.write().rows == 4 * len(models)
    assert [row["model"] for row in made.rows()] == models * 4
