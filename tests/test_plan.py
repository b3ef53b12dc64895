"""Which requests are still to send."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.job.job import Job, Limits
from batcher.plan.answer_cache import AnswerCache
from batcher.plan.forecast import Forecast
from batcher.plan.preflight import preflight
from batcher.plan.requests import Plan
from batcher.plan.settings import settings_of
from batcher.read.files import expand
from batcher.read.inputs import Inputs
from batcher.records import Outcome, Prompt
from batcher.write.index import ENTRY, OUTCOMES, entry_bytes
from batcher.write.latest import LatestResults
from batcher.write.slots import Slots
from tests.support.program import write_jsonl

URL = "https://x/v1/chat/completions"


def a_plan(tmp_path, rows, winners=None, **job):
    path = write_jsonl(tmp_path / "in.jsonl", rows)
    asked = Job.of(output="out.jsonl", **{"models": ["a", "b"], **job})
    return Plan(asked, settings_of(asked, URL), Inputs(expand([str(path)])), winners)


def entries(*of):
    """(row, key, outcome number, model number) as a segment's entries."""
    packed = b"".join(
        entry_bytes(row, n * 100, key, 50, 1, model, 0, OUTCOMES[outcome], 0)
        for n, (row, key, outcome, model) in enumerate(of)
    )
    return np.frombuffer(packed, ENTRY)


def todo(plan, *args):
    return {
        (t.prompt.row, slot) for batch in plan.batches(*args) for t in batch for slot in t.slots
    }


KEY = "0" * 32
NUMBER = {outcome: n for n, outcome in enumerate(OUTCOMES)}


@pytest.mark.parametrize(
    ("route", "left"),
    [
        ("each", {(0, 1), (1, 0), (1, 1), (2, 0)}),
        ("fallback", {(1, 0), (1, 1), (2, 0)}),
        ("split", {(1, 0), (1, 1)}),
    ],
)
def test_what_is_answered_is_not_sent_again(tmp_path, route, left):
    """Row 0 is ok from a, row 1 failed at a, row 2 was truncated at b."""
    winners = LatestResults(2, tmp_path)
    ok, failed, cut = (NUMBER[o] for o in (Outcome.OK, Outcome.SERVER_ERROR, Outcome.TRUNCATED))
    winners.add(entries((0, KEY, ok, 0), (1, KEY, failed, 0), (2, KEY, cut, 1)), np.array([0, 1]))
    plan = a_plan(tmp_path, [{"prompt": str(n)} for n in range(3)], winners, route=route)
    assert todo(plan) == left


@given(
    st.text(max_size=30),
    st.text(max_size=30),
    st.sampled_from(["a", "b"]),
    st.sampled_from([{}, {"temperature": 0}, {"temperature": 1}]),
)
def test_a_key_is_the_bytes_sent_and_where(text, other, model, params):
    """Equal bytes, equal key; anything else in the request, another key."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    def keys(url, params, *texts):
        with TemporaryDirectory() as folder:
            path = write_jsonl(Path(folder) / "in.jsonl", [{"prompt": t} for t in texts])
            job = Job.of(output="o.jsonl", models=["a", "b"], params=params)
            plan = Plan(job, settings_of(job, url), Inputs(expand([str(path)])))
            return [plan.request(t.prompt, model).key for batch in plan.batches() for t in batch]

    one, same, third = keys(URL, params, text, text, other)
    assert one == same
    assert (one == third) is (text == other)
    assert keys(URL, {**params, "top_p": 1}, text) != [one]
    assert keys("https://y/v1/chat/completions", params, text) != [one]


@pytest.mark.parametrize(
    ("route", "left"),
    [
        ("each", {(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 3)}),
        ("fallback", {(0, 1), (0, 3), (1, 0), (1, 1), (1, 3)}),
        ("split", {(0, 1), (0, 3), (1, 1), (1, 3)}),
    ],
)
def test_each_sample_is_a_request_of_its_own(tmp_path, route, left):
    """Slots of two models and two samples: a0 a1 b0 b1; row 0 is ok at a0, row 1 truncated at b0."""
    ok, cut = NUMBER[Outcome.OK], NUMBER[Outcome.TRUNCATED]
    winners = LatestResults(2, tmp_path, samples=2)
    winners.add(entries((0, KEY, ok, 0), (1, KEY, cut, 1)), np.array([0, 1]))
    rows = [{"prompt": str(n)} for n in range(2)]
    plan = a_plan(tmp_path, rows, winners, route=route, samples=2)
    assert todo(plan) == left
    assert todo(plan, 0, 1) == {(row, slot) for row, slot in left if slot > 1}


def request(plan, row, text):
    return plan.request(Prompt(row, str(row), b'"messages":[]' + text.encode() + b"}"), "a")


def test_an_earlier_answer_is_given_once_and_to_its_own_row_first(tmp_path):
    """Two equal rows keep their own answers, wherever they moved."""
    plan = a_plan(tmp_path, [{"prompt": "x"}])
    key = request(plan, 0, "x").key
    ok = NUMBER[Outcome.OK]
    earlier = AnswerCache([entries((5, key, ok, 0), (9, key, ok, 0))])
    assert earlier.take(request(plan, 9, "x"))
    assert earlier.take(request(plan, 2, "x"))
    assert earlier.take(request(plan, 2, "x"))  # Asking again gives the same.
    assert earlier.take(request(plan, 3, "x")) is None
    assert earlier.take(request(plan, 3, "y")) is None
    assert earlier.taken()[["row", "offset"]].tolist() == [(2, 0), (9, 100)]


def test_of_a_row_that_was_sent_again_the_best_answer_is_found(tmp_path):
    """Truncated, then ok with --retry truncated: an edit elsewhere must not bring the first back."""
    plan = a_plan(tmp_path, [{"prompt": "x"}])
    key, cut, ok = request(plan, 0, "x").key, NUMBER[Outcome.TRUNCATED], NUMBER[Outcome.OK]
    for of, at in [((cut, ok), 100), ((ok, cut), 0), ((cut, cut), 100)]:
        lines = entries(*((5, key, outcome, 0) for outcome in of))
        for row in (5, 2):
            earlier = AnswerCache([lines])
            assert earlier.take(request(plan, row, "x"))
            assert earlier.take(request(plan, 3, "x")) is None
            assert earlier.taken()["offset"].tolist() == [at]


@given(st.data())
def test_each_answer_to_equal_rows_is_given_to_one_row(tmp_path_factory, data):
    """Against the rule in three lines: own, taken before, any that is free."""
    plan = a_plan(tmp_path_factory.mktemp("plan"), [{"prompt": "x"}])
    kinds = st.tuples(st.integers(0, 9), st.sampled_from("xy"))
    given_, asked = data.draw(st.sets(kinds)), data.draw(st.lists(kinds, max_size=30))
    ok, order = NUMBER[Outcome.OK], data.draw(st.permutations(sorted(given_)))
    lines = entries(*((row, request(plan, row, text).key, ok, 0) for row, text in order))
    earlier, taken, known = AnswerCache([lines]), {}, set()
    for row, text in asked:
        found = earlier.take(request(plan, row, text))
        now = {(int(of["row"]), int(of["offset"]) // 100) for of in earlier.taken()}
        mine = [n for of, n in now - known if of == row] or [
            n for of, n in now if of == row and order[n][1] == text
        ]
        known |= now
        at = None if found is None else order[mine[0]]
        if taken.get((row, text)) is not None:
            assert at == taken[row, text] or at == (row, text)
        elif at is not None:
            assert at[1] == text
            assert at not in taken.values()
            assert at == (row, text) or (row, text) not in given_ or (row, text) in taken.values()
        else:
            assert not {of for of in given_ if of[1] == text} - {*taken.values()}
        taken[row, text] = at


def test_a_failure_is_no_answer_to_give_away(tmp_path):
    """It would be taken for the row's result, and the row never sent."""
    plan = a_plan(tmp_path, [{"prompt": "x"}])
    key = request(plan, 0, "x").key
    failed = NUMBER[Outcome.TIMEOUT]
    assert AnswerCache([entries((0, key, failed, 0))]).take(request(plan, 0, "x")) is None


lines = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, len(OUTCOMES) - 1), st.integers(0, 1)), max_size=30
)


@given(lines, st.integers(1, 5))
def test_ok_beats_an_answer_beats_a_failure_and_else_the_later_wins(lines, size):
    """Whatever the order, and however the lines are parted into segments."""
    from pathlib import Path

    rank = [2 if o is Outcome.OK else 1 if o.answered else 0 for o in OUTCOMES]
    best = {}
    for n, (row, outcome, model) in enumerate(lines):
        if (row, model) not in best or rank[outcome] >= rank[best[row, model][1]]:
            best[row, model] = (n * 100, outcome)
    winners = LatestResults(2, Path())
    packed = entries(*((row, KEY, outcome, model) for row, outcome, model in lines))
    for start in range(0, len(lines), size):
        winners.add(packed[start : start + size], np.array([0, 1]))
    for (row, model), (offset, outcome) in best.items():
        assert winners.at([row], model) == [(1, offset, 50, b"0" * 16)]
        assert winners.outcomes(model)[row] == outcome + 1


def test_a_row_that_cannot_be_read_takes_no_other_rows_name(tmp_path):
    """It is known by its position, and one bad line must not stop a job whose rows are numbered."""
    rows = b'{"custom_id": 1, "prompt": "a"}\n{\n{"custom_id": 0, "prompt": "b"}\n'
    (tmp_path / "in.jsonl").write_bytes(rows)
    inputs = Inputs(expand([str(tmp_path / "in.jsonl")]))
    job = Job(output="o.jsonl", models=("m",))
    found = preflight(inputs, Plan(job, settings_of(job, "u"), inputs), lambda: None)
    assert found.rows == 3
    (tmp_path / "in.csv").write_text("custom_id,prompt\n1,a\n1,b,c\n\n2\n")
    inputs = Inputs(expand([str(tmp_path / "in.csv")]))
    found = preflight(inputs, Plan(job, settings_of(job, "u"), inputs), lambda: None)
    (note,) = found.notes
    assert note.endswith(
        "in.csv:5: fewer cells than the header has, and the missing ones are null."
    )


def test_a_claude_without_a_bound_is_warned_of_before_anything_is_sent():
    """Its default of 4,096 tokens cuts answers."""
    forecast = Forecast(Slots(("claude-sonnet-5", "gpt-6")))
    forecast.add(Prompt(0, "0", b"x"), (0, 1))
    forecast.add(Prompt(1, "1", b"y", max_tokens=9), (0, 1))
    told = [
        line
        for line in forecast.lines(lambda _: None, lambda _: Limits())
        if "max_tokens=N" in line
    ]
    assert len(told) == 1
    assert told[0].startswith("claude-sonnet-5: 1 request without max_tokens")
