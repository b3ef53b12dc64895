"""Run folders put together from two states, segments with lines moved, inputs replaced under a run.

The answer to a request names the bytes that were asked, so an answer that stands beside another row
shows. Whatever the folder holds: each row that is written has an answer to its own request, or none.
"""

import contextlib
import io
import itertools
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from batcher.api import Runner
from batcher.cli.explain import explain
from batcher.cli.export import export
from batcher.cli.status import status
from batcher.errors import BatcherError
from batcher.job.job import Job
from tests.support import echo
from tests.support.program import read_jsonl, write_jsonl
from tests.test_identity import run as ran
from tests.torture import dice, tell, times

MODELS = ["m", "n"]
SYSTEMS = [None, "x"]
RUN = "out.jsonl.run"


@pytest.fixture(scope="module")
def gateway():
    with echo.running() as serving:
        yield serving


class Bench:
    """One output in a folder of its own, and what is done to it by chance."""

    def __init__(self, gateway, chance, folder):
        self.gateway, self.chance, self.folder = gateway, chance, folder
        self.texts = itertools.count()
        self.system, self.changed, self.options = None, "resend", {}
        self.rows, self.ended = [], []

    def fresh(self):
        """A text that no other row has; all are of one length, so that files are too."""
        return f"{next(self.texts):05}"

    def edit(self):
        """Some change that a person makes to rows or settings."""
        chance, rows = self.chance, self.rows
        kind = chance.randrange(9)
        at = chance.randrange(len(rows) + 1)
        if kind < 3 or not rows:
            rows[at:at] = [self.fresh() for _ in range(chance.randint(1, 3))]
        elif kind == 3:
            rows += [self.fresh() for _ in range(chance.randint(1, 3))]
        elif kind == 4 and len(rows) > 2:
            del rows[at : at + chance.randint(1, 2)]
        elif kind == 5:
            rows[at % len(rows)] = self.fresh()
        elif kind == 6:
            chance.shuffle(rows)
        elif kind == 7:
            rows.insert(at, chance.choice(rows))
        else:
            self.system = chance.choice(SYSTEMS)
        if chance.random() < 0.2:
            self.options = {
                "samples": chance.choice([1, 1, 2]),
                "dedupe": chance.choice([None, True]),
                "models": chance.choice([["m"], ["m", "n"]]),
                "route": chance.choice(["each", "each", "split", "fallback"]),
                "limit": chance.choice([None, None, 5]),
            }
            if len(self.options["models"]) < 2:
                self.options["route"] = "each"

    def save(self, rows):
        write_jsonl(self.folder / "in.jsonl", [{"prompt": text} for text in rows])

    def job(self):
        return Job.of(
            inputs=[str(self.folder / "in.jsonl")], output=self.folder / "out.jsonl",
            base_url=self.gateway.url, system=self.system, changed=self.changed, quiet=True,
            concurrency=3, **{"models": ["m"], **self.options},
        )  # fmt: skip

    def go(self, heard=lambda _runner: None):
        """One run; whether it came to its end."""
        runner = Runner(self.job())
        self.gateway.heard = lambda _body: heard(runner)
        try:
            return ran(runner).exit_status in (0, 3)
        except BatcherError as error:
            self.ended.append(str(error))
            return False
        finally:
            self.gateway.heard = lambda _body: None

    def stopped(self):
        """A run that is stopped after some requests."""
        left = itertools.count()
        after = self.chance.randint(1, 6)
        self.go(lambda runner: runner.stop() if next(left) == after else None)

    def wrong(self, path, systems=None):
        """Rows with an answer to something else; `systems` are the settings that may be meant."""
        found = []
        for row in read_jsonl(path) if path.exists() else ():
            if row["content"] is not None:
                systems = systems or (SYSTEMS if self.changed == "keep" else [self.system])
                own = {echo.name(echo.asked(row["prompt"], row["model"], s)) for s in systems}
                if row["content"].partition(":")[0] not in own:
                    found.append(row)
        return found

    def check(self, systems=None):
        """What the commands write and show now."""
        part = self.folder / "part.jsonl"
        part.unlink(missing_ok=True)
        output = str(self.folder / "out.jsonl")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for command in (
                lambda: export(output, str(part)),
                lambda: status(output),
                lambda: explain(output, "1"),
            ):
                with contextlib.suppress(BatcherError):
                    command()
        assert not self.wrong(part, systems)


def history(bench):
    """A run folder's states, oldest first: (folder, rows, settings)."""
    states = []
    bench.rows = [bench.fresh() for _ in range(bench.chance.randint(2, 8))]
    for _ in range(bench.chance.randint(2, 4)):
        bench.edit()
        bench.save(bench.rows)
        if bench.chance.random() < 0.3:
            bench.stopped()
        else:
            bench.go()
        kept = Path(tempfile.mkdtemp())
        shutil.copytree(bench.folder, kept / "state")
        states.append((kept / "state", [*bench.rows], bench.system, dict(bench.options)))
    return states


def mix(bench, one, two):
    """The folder, each file of it from one of two states."""
    chance = bench.chance
    shutil.rmtree(bench.folder / RUN, ignore_errors=True)
    (bench.folder / RUN).mkdir(mode=0o700)
    whole = chance.random() < 0.4  # All of one over all of the other, as tar and cp -a do.
    names = {
        path.name for state in (one, two) for path in (state[0] / RUN).glob("*") if path.is_file()
    }
    for name in sorted(names - {"LOCK"}):
        order = [one, two] if whole or chance.random() < 0.5 else [two, one]
        for state in order:
            source = state[0] / RUN / name
            if source.exists():
                copy = shutil.copy2 if chance.random() < 0.7 else shutil.copyfile
                copy(source, bench.folder / RUN / name)
                break
        if not whole and chance.random() < 0.05:
            (bench.folder / RUN / name).unlink()


def hurt(bench):
    """Some damage to the run folder."""
    chance, folder = bench.chance, bench.folder / RUN
    segments = sorted(folder.glob("journal-*.jsonl"))
    kind = chance.randrange(9)
    if kind == 0 and (path := folder / "run.json").exists():
        content = bytearray(path.read_bytes())
        digits = [n for n, byte in enumerate(content) if 48 <= byte <= 57]
        at = chance.choice(digits if chance.random() < 0.8 else range(len(content)))
        content[at] = chance.choice(b"0123456789")
        path.write_bytes(content)
    if not segments:
        return
    some, other = chance.choice(segments), chance.choice(segments)
    if kind == 1:
        (folder / f"journal-{chance.randint(1, 12):06}.jsonl").write_bytes(some.read_bytes())
    elif kind == 2:
        os.replace(some, folder / f"journal-{chance.randint(1, 12):06}.jsonl")
    elif kind == 3 and (path := some.with_suffix(".idx")).exists():
        other.with_suffix(".idx").write_bytes(path.read_bytes())
    elif kind in (4, 5, 6):
        lines, others = some.read_bytes().splitlines(True), other.read_bytes().splitlines(True)
        if not lines:
            return
        line = lines[chance.randrange(len(lines))]
        stat = some.stat()
        if kind == 4:
            lines.remove(line)
        elif kind == 5 and others:
            lines[chance.randrange(len(lines))] = chance.choice(others)
        else:
            lines.insert(chance.randrange(len(lines) + 1), line)
        some.write_bytes(b"".join(lines))
        if chance.random() < 0.5:
            os.utime(some, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif kind == 7:
        content = bytearray(some.read_bytes())
        if content:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            some.write_bytes(content)
    elif kind == 8:
        for path in folder.glob("*.idx"):
            if chance.random() < 0.5:
                path.unlink()


@pytest.mark.parametrize("part", range(2))
def test_any_mixture_of_two_states_gives_each_row_its_own_answer_or_none(gateway, part, tmp_path):
    """Also with lines dropped, doubled and moved, segments renamed and copied, a byte changed."""
    chance = dice(f"mixtures {part}")
    tried, rows, refused = 0, 0, []
    for number in range(times(1, 160)):
        benches = [Bench(gateway, chance, tmp_path / f"{number}-{n}") for n in range(2)]
        for bench in benches:
            bench.folder.mkdir()
        states = history(benches[0])
        strangers = history(benches[1])
        bench = benches[0]
        for _ in range(times(5, 10)):
            one, two = chance.choice(states), chance.choice(states + strangers[-1:])
            mix(bench, one, two)
            for _ in range(chance.choice([0, 0, 1, 2])):
                hurt(bench)
            of = chance.choice([one, two, states[-1]])
            bench.rows, bench.system, bench.options = [*of[1]], of[2], dict(of[3])
            if chance.random() < 0.3:
                bench.edit()
            bench.save(bench.rows)
            (bench.folder / "out.jsonl").unlink(missing_ok=True)
            bench.changed = chance.choice(["resend", "resend", "keep"])
            bench.check(
                SYSTEMS
            )  # Before a run those of run.json are meant, whichever state it is of.
            for _ in range(2):
                whole = bench.go()
                wrong = bench.wrong(bench.folder / "out.jsonl")
                assert not wrong, (number, wrong)
                if whole:
                    bench.check()
                    rows += len(read_jsonl(bench.folder / "out.jsonl"))
            tried += 1
        for state in (*states, *strangers):
            shutil.rmtree(state[0].parent)
        for bench in benches:
            shutil.rmtree(bench.folder)
        refused += benches[0].ended
    tell("mixtures", tried=tried, rows=rows, refused=len(refused), wrong=0)
