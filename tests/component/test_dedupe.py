"""Equal requests: one is sent, and the others get its answer without being paid for."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.plan import settings as plan_settings
from batcher.plan.dedupe import Deduplicator
from batcher.records import Outcome
from tests.support.job_folder import JobFolder

EQUAL = [{"prompt": p, "custom_id": f"c{n}"} for n, p in enumerate(["a", "b", "a", "c", "a", "b"])]


class Run:
    """A start of a job: what is sent of it, and what is copied then."""

    def __init__(self, job, **asked):
        self.job = job
        self.run = job.resume(**asked)
        rows = self.run.manifest.epochs[-1].rows
        self.dedupe = Deduplicator(job.job(**asked), job.plan, job.folder, rows)
        todos = [todo for batch in job.plan.batches() for todo in batch]
        self.sent = [(todo.prompt.row, slot) for todo in todos for slot in self.dedupe.among(todo)]

    def answer(self, outcome=Outcome.OK, number=1, only=None, **more):
        """Answers what was sent."""
        results = self.job.results({at: outcome for at in self.sent if only in (None, at)}, **more)
        self.job.keep(self.run, results, number)

    def copies(self):
        """The answers for the rows that waited."""
        batches = self.dedupe.copies(self.job.inputs)
        return [result for batch in batches for _prompt, results in batch for result in results]


@pytest.fixture
def job(tmp_path):
    return JobFolder(tmp_path, EQUAL, params={"temperature": 0})


def test_of_equal_requests_the_first_is_sent(job):
    run = Run(job)
    assert run.sent == [(0, 0), (1, 0), (3, 0)]
    assert run.dedupe.waiting == {"m": 3}


def test_the_others_get_its_answer_under_their_own_names(job):
    run = Run(job)
    run.answer(prompt_tokens=9, cost_usd=0.5, latency_ms=7, request_id="q")
    copies = run.copies()
    assert [(of.row, of.custom_id) for of in copies] == [(2, "c2"), (4, "c4"), (5, "c5")]
    for of in copies:
        assert (of.copied, of.status, of.request_id, of.attempts) == (True, "ok", "q", 0)
        assert (of.prompt_tokens, of.cost_usd, of.latency_ms) == (0, 0.0, None)
    assert [of.content for of in copies] == [f"m to {EQUAL[row]}" for row in (0, 0, 1)]


def test_where_no_price_is_known_a_copy_has_no_cost(job):
    run = Run(job)
    run.answer()
    assert {of.cost_usd for of in run.copies()} == {None}


def test_what_got_no_answer_leaves_its_equals_to_be_sent(job):
    run = Run(job)
    run.answer(only=(1, 0))
    assert [of.row for of in run.copies()] == [5]
    assert Run(job).sent == [(0, 0), (3, 0)]


SENDS = [
    ({}, None, 6),  # Asking twice may give two answers.
    ({"temperature": 0.5}, None, 6),
    ({"temperature": 0}, None, 3),
    ({}, True, 3),
]


@pytest.mark.parametrize(("params", "dedupe", "sent"), SENDS)
def test_only_requests_that_would_be_answered_alike_are_merged(tmp_path, params, dedupe, sent):
    assert len(Run(JobFolder(tmp_path, EQUAL, params=params, dedupe=dedupe)).sent) == sent


def test_models_and_samples_are_asked_apart(tmp_path):
    job = JobFolder(tmp_path, EQUAL, models=["m", "n"], samples=2, dedupe=True)
    run = Run(job)
    assert run.sent == [(row, slot) for row in (0, 1, 3) for slot in range(4)]
    assert run.dedupe.waiting == {"m": 6, "n": 6}
    run.answer()
    copies = [(of.row, of.model, of.sample) for of in run.copies()]
    assert sorted(copies) == [(r, m, s) for r in (2, 4, 5) for m in "mn" for s in (0, 1)]


def test_what_an_earlier_run_answered_is_copied_and_not_sent(job):
    first = Run(job, limit=2)
    first.answer()
    job.end(first.run)
    run = Run(job)
    assert run.sent == [(3, 0)]
    assert [of.row for of in run.copies()] == [2, 4, 5]


def test_what_failed_in_an_earlier_run_is_sent_again(job):
    first = Run(job, limit=2)
    first.answer(Outcome.TIMEOUT)
    job.end(first.run)
    assert Run(job).sent == [(0, 0), (1, 0), (3, 0)]


def test_of_several_answers_the_best_is_copied_then_the_latest(job):
    run = Run(job)
    run.answer(Outcome.OK, 1, (0, 0), request_id="first")
    run.answer(Outcome.OK, 2, (0, 0), request_id="second")
    run.answer(Outcome.REFUSED, 3, (0, 0), request_id="third")
    assert {of.request_id for of in run.copies()} == {"second"}


def test_a_damaged_answer_is_not_copied(job):
    run = Run(job)
    run.answer()
    segment = job.folder / "journal-000001.jsonl"
    run.copies()  # Leaves a sidecar that promises the line.
    segment.write_bytes(segment.read_bytes().replace(b'"c0"', b'"C0"'))
    assert 2 not in [of.row for of in run.copies()]


@pytest.mark.parametrize("route", ["fallback", "split"])
def test_where_one_models_answer_is_enough_that_of_any_is(tmp_path, route):
    job = JobFolder(tmp_path, EQUAL, models=["m", "n"], route=route, dedupe=True)
    run = Run(job)
    assert run.sent == [(row, slot) for row in (0, 1, 3) for slot in (0, 1)]
    assert run.dedupe.waiting == {"": 3}
    run.answer(only=(0, 1))
    assert [(of.row, of.model) for of in run.copies()] == [(2, "n"), (4, "n")]


def test_a_row_that_cannot_be_sent_waits_for_nothing(tmp_path):
    job = JobFolder(tmp_path, [{"x": 1}, {"x": 1}], dedupe=True)
    assert Run(job).sent == [(0, 0), (1, 0)]


def test_rows_beyond_those_that_were_counted_are_sent(job):
    """The table has no room for them; nobody gets another's answer."""
    run = Run(job)
    small = Deduplicator(job.job(), job.plan, job.folder, 1)
    todos = [todo for batch in job.plan.batches() for todo in batch]
    assert [bool(small.among(todo)) for todo in todos] == [True, True, False, True, False, True]
    assert run.sent == [(0, 0), (1, 0), (3, 0)]


@settings(max_examples=15)
@given(st.lists(st.sampled_from("abcdef"), max_size=12))
def test_each_prompt_is_sent_once_and_answered_in_all_rows(tmp_path_factory, prompts):
    rows = [{"prompt": prompt} for prompt in [*prompts, "z"]]
    job = JobFolder(tmp_path_factory.mktemp("job"), rows, dedupe=True)
    run = Run(job)
    assert Counter(rows[row]["prompt"] for row, _ in run.sent) == Counter(
        {r["prompt"] for r in rows}
    )
    run.answer()
    answered = [row for row, _ in run.sent] + [of.row for of in run.copies()]
    assert sorted(answered) == list(range(len(rows)))


def test_the_key_of_a_request_is_hashed_once(job, monkeypatch):
    """Found to be fresh, it is made again when it is sent."""
    run = job.resume()
    dedupe = Deduplicator(job.job(), job.plan, job.folder, run.manifest.epochs[-1].rows)
    prompts = [of.prompt for batch in job.plan.batches() for of in batch]
    fresh = [prompt for prompt in prompts if dedupe.fresh(prompt, 0)]
    monkeypatch.setattr(plan_settings, "blake2b", None)  # Raises where it is called.
    assert [job.plan.request(prompt, "m").row for prompt in fresh] == [0, 1, 3]
    with pytest.raises(TypeError):
        job.plan.request(fresh[0], "m")
