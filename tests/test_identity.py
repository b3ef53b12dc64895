"""Random edits of input and settings, stops, torn journals and reruns, against a model in ten lines.

The model: of each request's body so many answers are bought as rows ever asked for it at once. No
more (nothing is paid for twice), no fewer (no row goes without), and every row shows an answer to
its present body (nothing is stale), each a different one.

Where equal requests are sent once the same holds, but that fewer are bought: of each body no more at
once than there are samples.
"""

import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from batcher.api import Runner
from batcher.errors import BatcherError
from batcher.job.job import Job
from tests.support import echo
from tests.support.program import read_jsonl, write_jsonl

TEXTS = st.sampled_from(["a", "b", "c", "d", "é\u2028"])
LONG = os.environ.get("BATCHER_TORTURE") == "long"
MODELS = ["m", "n"]


class Edits(RuleBasedStateMachine):
    """One output, and all that may happen to it."""

    dedupe = False

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.serving = echo.running()
        self.gateway = self.serving.__enter__()
        self.rows, self.system, self.params, self.models = [], None, {}, ["m"]
        self.samples = 1
        self.most = Counter()  # The model: answers ever needed at once, by body.

    def teardown(self):
        self.serving.__exit__(None, None, None)
        shutil.rmtree(self.folder)

    @initialize(rows=st.lists(TEXTS, min_size=1, max_size=8))
    def begin(self, rows):
        self.rows = rows
        self.finish()

    @rule(at=st.integers(0, 8), text=TEXTS)
    def insert(self, at, text):
        self.rows.insert(at, text)

    @rule(text=TEXTS)
    def append(self, text):
        self.rows.append(text)

    @rule(at=st.integers(0, 8))
    def delete(self, at):
        if len(self.rows) > 1:
            del self.rows[at % len(self.rows)]

    @rule(random=st.randoms(use_true_random=False))
    def shuffle(self, random):
        random.shuffle(self.rows)

    @rule(system=st.sampled_from([None, "x", "y"]), temperature=st.sampled_from([None, 0, 1]))
    def change(self, system, temperature):
        self.system = system
        self.params = {} if temperature is None else {"temperature": temperature}

    @rule(models=st.sampled_from([["m"], ["n"], ["m", "n"], ["n", "m"]]))
    def choose(self, models):
        self.models = models

    @rule(samples=st.integers(1, 3))
    def sample(self, samples):
        self.samples = samples

    def bodies(self):
        """What each (row, model, sample) asks now."""
        return [
            echo.asked(text, model, self.system, **self.params)
            for text in self.rows
            for model in self.models
            for _ in range(self.samples)
        ]

    def go(self, *, stop_after=None, fails=lambda _body: False):
        """One run; returns whether it came to its end."""
        os.makedirs(self.folder, exist_ok=True)
        rows = [{"prompt": text} for text in self.rows]
        path = self.folder / "in.jsonl"
        if not path.exists() or read_jsonl(path) != rows:
            write_jsonl(path, rows)
        job = Job.of(
            inputs=[str(path)], output=self.folder / "out.jsonl", models=self.models,
            base_url=self.gateway.url, system=self.system, params=self.params, changed="resend",
            concurrency=2, quiet=True, samples=self.samples, dedupe=self.dedupe,
        )  # fmt: skip
        runner = Runner(job)
        left = [stop_after]

        def heard(_body):
            if left[0] is not None:
                left[0] -= 1
                if left[0] <= 0:
                    runner.stop()

        self.gateway.heard, self.gateway.fails = heard, fails
        try:
            return run(runner).exit_status in (0, 3)
        except BatcherError:
            return False

    @rule(after=st.integers(1, 4))
    def stop(self, after):
        """Ctrl-C in the middle: whatever was answered counts from now on."""
        before = self.gateway.bought.copy()
        self.go(stop_after=after)
        needed = Counter(self.bodies())
        for body, n in (self.gateway.bought - before).items():
            assert self.gateway.bought[body] <= max(self.most[body], needed[body])
            assert n
            self.most[body] = max(self.most[body], self.gateway.bought[body])

    @rule(part=st.floats(0, 1))
    def fail(self, part):
        """Some requests fail: they are no answers, and go again."""
        refused = {b for b in self.bodies() if int(echo.name(b), 16) % 100 < 100 * part}
        self.go(fails=refused.__contains__)
        self.most |= self.gateway.bought

    @rule(junk=st.binary(max_size=40), index=st.booleans())
    def tear(self, junk, index):
        """What a kill or a power cut leaves: a torn line, a sidecar that is not there."""
        for path in sorted(self.folder.glob("out.jsonl.run/journal-*.jsonl"))[-1:]:
            with path.open("ab") as file:
                file.write(junk)
            if index:
                path.with_suffix(".idx").unlink(missing_ok=True)

    @rule()
    def finish(self):
        """A run to its end: the model holds, and no row shows what it did not ask."""
        bodies, before = self.bodies(), self.gateway.bought.copy()
        assert self.go()
        self.most |= Counter(bodies)
        self.paid(self.gateway.bought - before)
        out = read_jsonl(self.folder / "out.jsonl")
        assert [row["status"] for row in out] == ["ok"] * len(bodies)
        asked = [(m, n) for m in self.models for n in range(self.samples)]
        assert [(row["model"], row["sample"]) for row in out] == asked * len(self.rows)
        told = [row["content"] for row in out]
        assert [said.partition(":")[0] for said in told] == [echo.name(body) for body in bodies]
        self.own(told)

    def paid(self, _new):
        """What a finished run bought."""
        assert self.gateway.bought == self.most

    def own(self, told):
        """No two rows have one answer."""
        assert len(set(told)) == len(told)


class Shared(Edits):
    """The same with equal requests that are sent once, now and then."""

    dedupe = True

    @rule(dedupe=st.sampled_from([True, None, False]))
    def share(self, dedupe):
        self.dedupe = dedupe

    def paid(self, new):
        assert self.gateway.bought <= self.most
        if self.dedupe or (self.dedupe is None and self.params.get("temperature") == 0):
            assert not new or max(new.values()) <= self.samples

    def own(self, told):
        pass


def run(runner):
    """The run, in a loop of its own."""
    import asyncio

    return asyncio.run(runner.run())


TestEdits, TestShared = Edits.TestCase, Shared.TestCase
TestEdits.settings = TestShared.settings = settings(
    max_examples=300 if LONG else 15, stateful_step_count=20 if LONG else 12, deadline=None
)
