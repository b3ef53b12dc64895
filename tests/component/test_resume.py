"""What earlier runs of an output left, and which of it still counts."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batcher.errors import JobError
from batcher.plan.changes import SettingsChanged
from batcher.records import Outcome
from tests.support.job_folder import JobFolder

ROWS = [{"prompt": f"p{n}"} for n in range(6)]
ALL = [(n, 0) for n in range(6)]


@pytest.fixture
def job(tmp_path):
    return JobFolder(tmp_path, ROWS)


def test_a_first_run_sends_everything(job):
    assert job.pending() == ALL
    assert job.said == []


FAILURES = {
    "bad_request", "context_length", "not_found", "auth", "quota", "rate_limited", "server_error",
    "bad_response", "timeout", "connection",
}  # fmt: skip
OUTCOMES = [(outcome, outcome in FAILURES) for outcome in Outcome]


@pytest.mark.parametrize(("outcome", "again"), OUTCOMES)
def test_failures_are_sent_again_and_answers_are_not(job, outcome, again):
    run = job.resume()
    job.keep(run, job.results({(2, 0): outcome}))
    job.end(run)
    assert job.pending() == [at for at in ALL if at[0] != 2 or again]
    assert job.said == []


def test_retry_names_what_is_sent_again_and_nothing_else_is(job):
    run = job.resume()
    job.keep(
        run, job.results({(0, 0): Outcome.REFUSED, (1, 0): Outcome.TIMEOUT, (2, 0): Outcome.OK})
    )
    job.end(run)
    left = [at for at in ALL if at[0] not in (1, 2)]
    assert job.pending(retry=["refused"]) == left


def test_of_several_results_of_a_row_the_best_counts_then_the_latest(job):
    for number, outcome in enumerate([Outcome.OK, Outcome.TIMEOUT], 1):
        run = job.resume()
        job.keep(run, job.results({(0, 0): outcome}), number)
        job.end(run)
    assert job.pending() == ALL[1:]


def test_a_killed_run_is_believed_while_the_input_is_the_same_file(job):
    job.answered(0, 1, ended=False)
    assert job.pending() == ALL[2:]
    assert job.said == []


def test_after_a_touch_its_answers_are_found_by_what_was_sent(job):
    job.answered(0, 1, ended=False)
    os.utime(job.at / "in.jsonl", ns=(1, 1))
    assert job.pending() == ALL[2:]
    assert "touched since a run that did not end" in job.said[0]


def test_a_row_that_changed_under_a_killed_run_is_sent_again(job):
    """By its position alone the old answer would be taken for the new row's."""
    job.answered(0, 1, ended=False)
    job.write([{"prompt": "P0"}, *ROWS[1:]])
    assert job.pending() == [(0, 0), *ALL[2:]]


def test_answers_follow_their_rows(job):
    job.answered(0, 1)
    job.write([{"prompt": "new"}, *ROWS[::-1]])
    found = job.resume()
    assert job.left() == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)]
    assert found.moved is not None
    assert job.pending() == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)]


def test_rows_behind_the_others_leave_these_where_they_are(job):
    job.answered(*range(6))
    job.write([*ROWS, {"prompt": "new"}])
    found = job.resume()
    assert (job.left(), found.moved, len(found.manifest.epochs)) == ([(6, 0)], None, 1)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(6)), st.sets(st.integers(0, 5)), st.booleans())
def test_whatever_the_order_what_was_answered_is_not_sent_again(
    tmp_path_factory, order, answered, ended
):
    job = JobFolder(tmp_path_factory.mktemp("job"), ROWS)
    job.answered(*sorted(answered), ended=ended)
    job.write([ROWS[n] for n in order])
    assert job.pending() == [(at, 0) for at, n in enumerate(order) if n not in answered]


def test_each_of_two_equal_rows_needs_an_answer_of_its_own(tmp_path):
    job = JobFolder(tmp_path, [{"prompt": "same"}] * 3)
    job.answered(0, 1)
    job.write([{"prompt": "same"}] * 3 + [{"prompt": "first"}])
    job.write([{"prompt": "first"}] + [{"prompt": "same"}] * 3)
    assert len(job.pending()) == 2  # "first", and one of the three.


def test_a_line_that_was_copied_is_one_answer(tmp_path):
    """Its row has it; the copy is not there for an equal row."""
    same, other = {"prompt": "same"}, {"prompt": "other"}
    job = JobFolder(tmp_path, [same, other])
    job.answered(0)
    job.write([other, same])
    job.end(job.resume())
    journal = job.folder / "journal-000001.jsonl"
    journal.with_name("journal-000002.jsonl").write_bytes(journal.read_bytes())
    job.write([other, same, same])
    assert job.pending() == [(0, 0), (2, 0)]


# Settings


def test_a_setting_that_changed_must_be_meant(job):
    job.answered(0, 1)
    with pytest.raises(
        SettingsChanged, match=r"--param top_p changed .*: 2 answers paid for match"
    ):
        job.resume(params={"top_p": 1})
    assert job.pending(params={"top_p": 1}, changed="resend") == ALL
    assert "sent again" in job.said[0]


def test_answers_that_are_kept_stay_for_later_runs(job):
    job.answered(0, 1)
    assert job.pending(params={"top_p": 1}, changed="keep") == ALL[2:]
    assert job.pending(params={"top_p": 1}) == ALL[2:]
    assert job.pending(params={"top_p": 1}, changed="resend") == ALL


def test_a_change_without_an_answer_at_stake_is_not_asked_about(job):
    job.answered()
    assert job.pending(params={"top_p": 1}) == ALL
    assert job.said == []


def test_settings_that_come_back_find_their_answers(job):
    job.answered(0, 1)
    job.resume(params={"top_p": 1}, changed="resend")
    assert job.pending() == ALL[2:]


def test_a_model_that_is_not_asked_any_more_must_be_meant(job):
    job.answered(0, 1)
    with pytest.raises(SettingsChanged, match=r"--model changed .*\(2 of m\)"):
        job.resume(models=["other"])
    with pytest.raises(JobError, match="-m m -m other"):
        job.resume(models=["other"], changed="keep")
    assert job.pending(models=["other"], changed="resend") == ALL
    assert "leave the output: 2 of m" in job.said[0]


def test_another_model_besides_is_sent_what_it_lacks(job):
    job.answered(0, 1)
    assert job.pending(models=["m", "other"]) == sorted([*ALL[2:], *((n, 1) for n in range(6))])


def test_fewer_samples_keep_as_many_answers(tmp_path):
    job = JobFolder(tmp_path, ROWS, samples=2)
    job.answered(0, 1)
    assert job.pending(samples=1) == ALL[2:]
    assert "answers beyond that leave the output" in job.said[0]


def test_overwrite_forgets_all_of_it(job):
    job.answered(0, 1)
    found = job.resume(overwrite=True)
    assert job.left() == ALL
    assert found.manifest.runs == {found.run}


def test_an_answer_to_spare_goes_to_an_equal_row(tmp_path):
    job = JobFolder(tmp_path, [{"prompt": "same"}] * 2, samples=2)
    job.answered(0)
    assert job.pending(samples=1) == []


# Damage


def test_a_torn_line_is_sent_again_and_told_once(job):
    job.answered(0, 1)
    path = job.folder / "journal-000001.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    found = job.resume()
    assert (job.left(), found.damaged) == (ALL[1:], True)
    assert "damaged in one place" in job.said[0]
    assert job.pending() == ALL[1:]
    assert job.said == []


def test_a_changed_byte_unmakes_its_line_alone(job):
    job.answered(0, 1, 2)
    path = job.folder / "journal-000001.jsonl"
    path.write_bytes(path.read_bytes().replace(b"p1", b"p9"))
    found = job.resume()
    assert (job.left(), found.damaged) == ([(1, 0), *ALL[3:]], True)


def test_damage_is_counted_once_however_often_the_journal_is_read(job):
    job.answered(0, 1)
    path = job.folder / "journal-000001.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    job.resume(params={"top_p": 1}, changed="resend", dry_run=True)
    assert "damaged in one place" in job.said[-1]


def test_a_segment_that_is_gone_is_told_once(job):
    job.answered(0, 1)
    job.answered(2, number=2)
    (job.folder / "journal-000001.jsonl").unlink()
    found = job.resume()
    assert (job.left(), found.damaged) == ([at for at in ALL if at[0] != 2], True)
    assert "journal-000001.jsonl is gone" in job.said[0]
    assert not job.resume().damaged


def test_a_segment_that_became_shorter_is_told(job):
    job.answered(0, 1)
    job.resume()  # Leaves a sidecar that knows its size.
    path = job.folder / "journal-000001.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    found = job.resume()
    assert (job.left(), found.damaged) == (ALL[1:], True)
    assert "became shorter" in job.said[0]


def test_answers_of_a_run_that_run_json_does_not_know_are_found_by_what_was_sent(job):
    run = job.answered(0, 1)
    (job.folder / "run.json").unlink()
    found = job.resume()
    assert (job.left(), found.damaged) == (ALL[2:], False)
    assert run.run in found.manifest.strange


def test_nothing_is_believed_of_a_run_json_that_somebody_edited(job):
    job.answered(0, 1)
    path = job.folder / "run.json"
    path.write_bytes(path.read_bytes().replace(b'"route": "each"', b'"route": "split"'))
    assert job.pending() == ALL[2:]
    assert "is not as it was written" in job.said[0]


def test_a_run_json_that_is_none_is_no_ground_to_send_everything_again(job):
    job.answered(0, 1)
    (job.folder / "run.json").write_bytes(b"{")
    with pytest.raises(JobError, match="damaged"):
        job.resume()


def test_where_the_last_run_was_stopped_between_two_answers_is_known(job):
    run = job.resume()
    path = job.keep(run, job.results({(3, 0): Outcome.INVALID}, stopped=True))
    found = job.resume()
    assert job.left() == ALL
    assert found.stopped == {(3, "m", 0): (1, 0, path.stat().st_size - 1)}
