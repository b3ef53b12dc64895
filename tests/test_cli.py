"""The command line at its edges: bad input, exit statuses, pipes, routes."""

import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from batcher.errors import JobError
from batcher.job.job import Job
from batcher.simulate.server import running
from batcher.simulate.settings import Simulation
from tests.support.program import SECRET, batcher, command, environment, read_jsonl, write_jsonl


@pytest.fixture(scope="module")
def gateway():
    with running(Simulation(speed=0)) as up:
        yield up


@pytest.fixture
def one(tmp_path):
    return write_jsonl(tmp_path / "one.jsonl", [{"prompt": "What is 2 + 3?"}])


def sentence(ended) -> str:
    """The error as the user sees it: one line, no traceback, nothing on stdout."""
    text = ended.stderr.decode()
    assert "Traceback" not in text
    assert ended.returncode == 2, text
    assert ended.stdout == b""
    assert len(text.strip().splitlines()) == 1, text
    return text


BAD = {
    "no such file": (["no.jsonl", "-o", "out.jsonl"], "no.jsonl: there is no such file"),
    "empty file": (["empty.jsonl", "-o", "out.jsonl"], "there are no rows"),
    "blank lines only": (["blank.jsonl", "-o", "out.jsonl"], "there are no rows"),
    "unknown suffix": (["one.txt", "-o", "out.jsonl"], "one.txt: unknown format"),
    "folder without rows": (["folder", "-o", "out.jsonl"], "folder: the folder holds no"),
    "glob without match": (["x*.jsonl", "-o", "out.jsonl"], "no file matches"),
    "output suffix": (["one.jsonl", "-o", "out.txt"], "'out.txt' has no suffix"),
    "output folder": (["one.jsonl", "-o", "no/out.jsonl"], "there is no folder no"),
    "output is a folder": (["one.jsonl", "-o", "dir.jsonl"], "it is a folder"),
    "output not ours": (["one.jsonl", "-o", "foreign.jsonl"], "no record of having written it"),
    "param without value": (["one.jsonl", "-o", "out.jsonl", "--param", "x"], "KEY=JSON"),
    "param too deep": (["one.jsonl", "-o", "out.jsonl", "--param", f"x={'[' * 5000}"], "deeper than 100"),
    "constant prompt": (["one.jsonl", "-o", "out.jsonl", "--prompt", "Do: {prompt}"], "{{ prompt }}"),
    "param not JSON": (["one.jsonl", "-o", "out.jsonl", "--param", "x=y"], "is not JSON"),
    "missing column": (["cols.jsonl", "-o", "out.jsonl", "--prompt", "{{ b }}"], "'b'"),
    "template names nothing": (
        ["one.jsonl", "-o", "out.jsonl", "--prompt", "{{ b }}"], "--prompt names b, but"),
    "limit of another model": (
        ["one.jsonl", "-o", "out.jsonl", "--rpm", "other=5"], "there is no -m other"),
    "several choices": (["one.jsonl", "-o", "out.jsonl", "--param", "n=3"], "--param n"),
    "input is output": (["one.jsonl", "-o", "./one.jsonl"], "the input and the output"),
    "no output": (["one.jsonl"], "--output is missing. See batcher run --help"),
    "not a template": (["one.jsonl", "-o", "out.jsonl", "--prompt", "{{ b"], "not a template"),
    "no prompt": (["cols.jsonl", "-o", "out.jsonl"], "--prompt"),
    "custom_id twice": (["twice.jsonl", "-o", "out.jsonl"], "twice.jsonl:1 and twice.jsonl:3"),
    "custom_id of a position": (
        ["position.jsonl", "-o", "out.jsonl"], "custom_id '0' is set twice, at position.jsonl:1"),
    "no scheme": (["one.jsonl", "-o", "out.jsonl", "--base-url", "host/v1"], "--base-url"),
    "password in URL": (
        ["one.jsonl", "-o", "out.jsonl", "--base-url", "https://u:hunter2@host/v1"], "no user"),
    "prompt file": (["one.jsonl", "-o", "out.jsonl", "--prompt", "@no.txt"], "--prompt @no.txt"),
    "rpm": (["one.jsonl", "-o", "out.jsonl", "--rpm", "many"], "--rpm 'many'"),
    "concurrency": (["one.jsonl", "-o", "out.jsonl", "--concurrency", "0"], "--concurrency '0'"),
    "limit": (["one.jsonl", "-o", "out.jsonl", "-n", "0"], "--limit 0"),
    "retry": (["one.jsonl", "-o", "out.jsonl", "--retry", "ok"], "--retry ok"),
    "no option": (["one.jsonl", "-o", "out.jsonl", "--bogus"], "--bogus"),
    "no input": (["-o", "out.jsonl"], "No input"),
    "not Parquet": (["fake.parquet", "-o", "out.jsonl"], "fake.parquet"),
    "fallback of one": (["one.jsonl", "-o", "out.jsonl", "--route", "fallback"], "two or more"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_nothing_is_sent(tmp_path, one, gateway, case):
    """What, where, and what to do; exit 2; no traceback; the ledger does not move."""
    for name, text in {
        "empty.jsonl": "",
        "blank.jsonl": "\n \n",
        "one.txt": "hi",
        "cols.jsonl": '{"a": 1}\n',
        "foreign.jsonl": '{"mine": true}\n',
        "fake.parquet": "PAR1 no",
        "position.jsonl": '{"prompt": "a"}\n{"prompt": "b", "custom_id": "0"}\n',
        "twice.jsonl": "".join(
            json.dumps({"custom_id": c, "prompt": "x"}) + "\n" for c in ("a", "b", "a")
        ),
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "folder").mkdir()
    (tmp_path / "dir.jsonl").mkdir()
    words, expected = BAD[case]
    received = sum(m.received for m in list(gateway.ledger.models.values()))
    said = sentence(batcher("run", *words, "-m", "sim-small", cwd=tmp_path, url=gateway.url))
    assert expected in said
    assert "hunter2" not in said
    assert sum(m.received for m in list(gateway.ledger.models.values())) == received
    assert (tmp_path / "foreign.jsonl").read_text() == '{"mine": true}\n'
    assert not list(tmp_path.glob("out.*"))


def test_without_a_key_it_says_which_variable_to_set(tmp_path, one):
    """The default gateway is AiHubMix, and its key has a name."""
    said = sentence(batcher("run", one, "-o", "out.jsonl", "-m", "m", cwd=tmp_path))
    assert "AIHUBMIX_API_KEY" in said


AIHUBMIX, OPENAI, OTHER = "https://aihubmix.com/v1", "https://api.openai.com/v1", "http://x.org/v1"
KEYS = {"AIHUBMIX_API_KEY": "a", "OPENAI_API_KEY": "b", "MINE": "m"}


@pytest.mark.parametrize(
    ("flags", "set_", "address", "key"),
    [
        ({}, "AIHUBMIX_API_KEY OPENAI_API_KEY URL", AIHUBMIX, "a"),
        ({}, "OPENAI_API_KEY URL", OTHER, "b"),
        ({}, "OPENAI_API_KEY", OPENAI, "b"),
        ({}, "", AIHUBMIX, None),
        ({"api_key_env": "MINE"}, "MINE", AIHUBMIX, "m"),
        ({"api_key_env": "MINE"}, "MINE OPENAI_API_KEY", AIHUBMIX, "m"),
        ({"api_key_env": "MINE"}, "MINE URL", OTHER, "m"),
        ({"api_key_env": "OPENAI_API_KEY"}, "AIHUBMIX_API_KEY OPENAI_API_KEY", OPENAI, "b"),
        ({"base_url": OTHER}, "AIHUBMIX_API_KEY OPENAI_API_KEY", OTHER, None),
        ({"base_url": OTHER}, "OPENAI_API_KEY URL", OTHER, "b"),
        ({"base_url": OTHER, "api_key_env": "MINE"}, "MINE OPENAI_API_KEY", OTHER, "m"),
        ({"base_url": OPENAI}, "AIHUBMIX_API_KEY OPENAI_API_KEY URL", OPENAI, "b"),
        ({"base_url": "https://api.aihubmix.com/v1"}, "AIHUBMIX_API_KEY", "https://api.aihubmix.com/v1", "a"),
        ({"base_url": "https://evil-aihubmix.com/v1"}, "AIHUBMIX_API_KEY", "https://evil-aihubmix.com/v1", None),
        ({"base_url": "http://localhost:8000/v1"}, "AIHUBMIX_API_KEY OPENAI_API_KEY", "http://localhost:8000/v1", ""),
        ({"base_url": "http://127.0.0.1:1/v1", "api_key_env": "MINE"}, "MINE", "http://127.0.0.1:1/v1", "m"),
    ],
)  # fmt: skip
def test_a_key_goes_only_to_the_gateway_it_is_for(flags, set_, address, key):
    """AiHubMix is the default; no host gets another's key unless --api-key-env says so."""
    environment = {name: KEYS.get(name, OTHER) for name in set_.split()}
    if "URL" in environment:
        environment["OPENAI_BASE_URL"] = environment.pop("URL")
    job = Job(output="o.jsonl", models=("m",), **flags)
    if key is None:
        with pytest.raises(JobError, match="No API key for"):
            job.endpoint(environment)
        return
    endpoint = job.endpoint(environment)
    assert endpoint.url == f"{address}/chat/completions"
    assert (endpoint.key or "") == key
    assert "'a'" not in repr(endpoint)


@pytest.mark.parametrize("host", ["aihubmix.com", "api.openai.com"])
def test_a_key_is_not_sent_for_everybody_to_read(host):
    """A letter that was forgotten is all that it takes."""
    with pytest.raises(JobError, match="write https"):
        Job(output="o.jsonl", models=("m",), base_url=f"http://{host}/v1").endpoint(KEYS)


def test_an_unreadable_line_is_a_row_with_a_reason(tmp_path, gateway):
    """The rows after it keep their places; the reason names file and line."""
    (tmp_path / "in.jsonl").write_bytes(
        b'{"prompt": "a"}\n{"prompt": \n\n{"prompt": "b\xff"}\n[1]\n{"prompt": "c"}\n'
    )
    ended = batcher(
        "run",
        "in.jsonl",
        "-o",
        "out.jsonl",
        "-m",
        "sim-small",
        "-m",
        "sim-large",
        cwd=tmp_path,
        url=gateway.url,
    )
    assert ended.returncode == 3
    out = read_jsonl(tmp_path / "out.jsonl")
    assert [(r["row"], r["status"]) for r in out if r["model"] == "sim-large"] == [
        (0, "ok"), (1, "unreadable"), (3, "unreadable"), (4, "unreadable"), (5, "ok")
    ]  # fmt: skip
    assert "in.jsonl:2" in out[2]["error"]


def test_a_wrong_model_stops_that_model_alone(tmp_path, gateway):
    """The others go on, and every row still comes out for it, with the reason."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"p {n}"} for n in range(50)])
    before = gateway.ledger.models["sim-small"].received
    ended = batcher(
        "run",
        "in.jsonl",
        "-o",
        "out.jsonl",
        "-m",
        "sim-small",
        "-m",
        "wrong",
        cwd=tmp_path,
        url=gateway.url,
    )
    assert ended.returncode == 3
    out = read_jsonl(tmp_path / "out.jsonl")
    assert len(out) == 100
    wrong = [r for r in out if r["model"] == "wrong"]
    assert {r["status"] for r in wrong} == {"not_found"}
    assert sum(r["attempts"] for r in wrong) <= 5
    assert gateway.ledger.models["sim-small"].received == before + 50


def test_fallback_asks_the_next_model_only_when_one_fails(tmp_path):
    """One output row for each input row; the model is the one that answered."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"p {n}"} for n in range(40)])
    with running(Simulation(speed=0)) as up:
        ended = batcher(
            "run",
            "in.jsonl",
            "-o",
            "out.jsonl",
            "--route",
            "fallback",
            "-m",
            "sim-small",
            "-m",
            "sim-large",
            cwd=tmp_path,
            url=up.url,
        )
        assert ended.returncode == 0, ended.stderr.decode()
        assert up.ledger.models["sim-large"].received == 0
    with running(Simulation(speed=0, faults={"refused": 0.5})) as up:
        ended = batcher(
            "run",
            "in.jsonl",
            "-o",
            "two.jsonl",
            "--route",
            "fallback",
            "-m",
            "sim-small",
            "-m",
            "sim-large",
            cwd=tmp_path,
            url=up.url,
        )
        asked = up.ledger.models
        refused = asked["sim-small"].by_fault["refused"]
        assert (asked["sim-small"].received, asked["sim-large"].received) == (40, refused)
    out = read_jsonl(tmp_path / "two.jsonl")
    assert [r["row"] for r in out] == list(range(40))
    assert {r["model"] for r in out if r["status"] == "ok"} == {"sim-small", "sim-large"}
    assert sum(r["model"] == "sim-large" for r in out) == refused


def test_split_gives_each_row_to_one_model(tmp_path):
    """Whichever is free takes it; the slow one gets fewer."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"p {n}"} for n in range(200)])
    with running(Simulation(speed=10)) as up:
        ended = batcher(
            "run",
            "in.jsonl",
            "-o",
            "out.jsonl",
            "--route",
            "split",
            "-m",
            "sim-small",
            "-m",
            "sim-large",
            "--concurrency",
            "4",
            cwd=tmp_path,
            url=up.url,
        )
        assert ended.returncode == 0, ended.stderr.decode()
        counts = {name: m.billed for name, m in up.ledger.models.items()}
    assert sum(counts.values()) == 200
    assert counts["sim-small"] > counts["sim-large"] > 0
    assert [r["row"] for r in read_jsonl(tmp_path / "out.jsonl")] == list(range(200))


def test_both_forms_of_an_output_have_the_same_names_and_ids(tmp_path):
    """A column has one name for all rows, and an id is the row's own, whatever its type."""
    write_jsonl(tmp_path / "in.jsonl", [
        {"prompt": "a", "model": "sim-small", "input_model": "IA", "custom_id": 5},
        {"prompt": "b", "model": "sim-large", "custom_id": "x7"},
        {"prompt": "c", "model": "sim-small", "input_model": "IC", "custom_id": True},
    ])  # fmt: skip
    for name in ("o.jsonl", "o.parquet"):
        assert batcher("run", "in.jsonl", "-o", name, "--simulate", cwd=tmp_path).returncode == 0
    told = [
        read_jsonl(tmp_path / "o.jsonl"),
        pq.read_table(tmp_path / "o.parquet").to_pylist(),
    ]
    for rows in told:
        assert [row["custom_id"] for row in rows] == ["5", "x7", "True"]
        assert [row.get("input_model") for row in rows] == ["IA", None, "IC"]
        own = [row["input_input_model"] for row in rows]
        assert own == ["sim-small", "sim-large", "sim-small"]


def test_stdout_has_the_raw_response_where_it_is_asked_for(tmp_path):
    """Such a run cannot be resumed, so it would be gone."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}])
    words = ("run", "in.jsonl", "-o", "-", "-m", "sim-small", "--simulate", "--keep-raw")
    (line,) = batcher(*words, cwd=tmp_path).stdout.splitlines()
    assert json.loads(line)["response"]["object"] == "chat.completion"


@pytest.mark.parametrize("url", ["http://[::1/v1", "http://127.0.0.1/v1#x", "http://u:p@h/v1"])
def test_an_address_that_is_none_is_said(tmp_path, url):
    """Before a key is sent to it."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}])
    words = ("run", "in.jsonl", "-o", "o.jsonl", "-m", "m", "--base-url", url)
    ended = batcher(*words, cwd=tmp_path)
    assert ended.returncode == 2
    assert b"--base-url" in ended.stderr


def test_no_more_are_in_flight_than_files_may_be_open(tmp_path):
    """Where the system allows few, that is said before, and no row fails for it."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"p {n}"} for n in range(300)])
    with running(Simulation(speed=10)) as up:
        words = command(
            "run", "in.jsonl", "-o", "out.jsonl", "-m", "sim-small", "--concurrency", "200"
        )
        ended = subprocess.run(
            ["sh", "-c", 'ulimit -n 100; exec "$@"', "sh", *words],
            cwd=tmp_path,
            capture_output=True,
            env=environment(OPENAI_BASE_URL=up.url, OPENAI_API_KEY=SECRET),
            check=False,
        )
        peak = up.ledger.peak_in_flight
    assert ended.returncode == 0, ended.stderr.decode()
    assert b"at most 36 requests are in flight at once" in ended.stderr
    assert 1 < peak <= 36


def test_rows_name_their_own_model_when_none_is_given(tmp_path, gateway):
    """As a column, or in the body of a batch line."""
    write_jsonl(tmp_path / "in.jsonl", [
        {"prompt": "a", "model": "sim-small"},
        {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": "sim-large", "messages": [{"role": "user", "content": "b"}]}},
        {"prompt": "c"},
    ])  # fmt: skip
    ended = batcher("run", "in.jsonl", "-o", "out.jsonl", cwd=tmp_path, url=gateway.url)
    assert ended.returncode == 3
    out = read_jsonl(tmp_path / "out.jsonl")
    assert [(r["model"], r["status"]) for r in out] == [
        ("sim-small", "ok"), ("sim-large", "ok"), (None, "unreadable")
    ]  # fmt: skip
    assert (out[0]["input_model"], out[1]["custom_id"]) == ("sim-small", "b")


def test_a_pipeline_from_stdin_to_stdout(tmp_path, gateway):
    """Rows on stdout as they finish, with the input's columns, and nothing else there."""
    ended = batcher(
        "run",
        "-",
        "-o",
        "-",
        "-m",
        "sim-small",
        "--prompt",
        "{{ q }}",
        cwd=tmp_path,
        url=gateway.url,
        stdin=b'{"q": "What is 2 + 3?", "n": 1.50}\n',
    )
    assert ended.returncode == 0, ended.stderr.decode()
    (row,) = [json.loads(line) for line in ended.stdout.splitlines()]
    assert (row["q"], row["n"], row["status"]) == ("What is 2 + 3?", 1.5, "ok")
    assert not list(tmp_path.iterdir())


def test_json_is_one_object_on_stdout(tmp_path, one, gateway):
    """For whoever calls it from a pipeline."""
    ended = batcher(
        "run",
        one,
        "-o",
        "out.jsonl",
        "-m",
        "sim-small",
        "--json",
        "--quiet",
        cwd=tmp_path,
        url=gateway.url,
    )
    told = json.loads(ended.stdout)
    assert told["models"]["sim-small"]["outcomes"] == {"ok": 1}
    assert (told["exit_status"], ended.stderr) == (0, b"")


def test_a_log_level_makes_all_of_stderr_json(tmp_path, gateway):
    """Also what ends a run before it begins; rows on stdout stay rows."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}, {"nothing": 1}])
    words = ("-m", "sim-small", "--log-level", "info")
    for rows, output, status, events in (
        ("in.jsonl", "out.jsonl", 3, ["started", "row", "ended"]),
        ("in.jsonl", "-", 3, ["started", "row", "ended"]),
        ("none.jsonl", "out.jsonl", 2, ["started", "ended"]),
    ):
        ended = batcher("run", rows, "-o", output, *words, cwd=tmp_path, url=gateway.url)
        lines = [json.loads(line) for line in ended.stderr.splitlines()]
        assert [line["event"] for line in lines] == events
        assert (lines[-1]["exit_status"], ended.returncode) == (status, status)
        assert len(ended.stdout.splitlines()) == (2 if output == "-" else 0)
    assert lines[-1]["message"] == "none.jsonl: there is no such file."
    assert SECRET not in ended.stderr.decode()


def test_a_dry_run_sends_nothing_and_names_every_bad_row(tmp_path, gateway):
    """`batcher check` is the same as `run --dry-run`."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}, {"nothing": 1}, {"prompt": 7}])
    received = sum(m.received for m in list(gateway.ledger.models.values()))
    ended = batcher(
        "check", "in.jsonl", "-o", "out.jsonl", "-m", "sim-small", cwd=tmp_path, url=gateway.url
    )
    said = ended.stderr.decode()
    assert ended.returncode == 3
    assert "in.jsonl:2" in said
    assert "in.jsonl:3" in said
    assert "Nothing was sent" in said
    assert sum(m.received for m in list(gateway.ledger.models.values())) == received
    assert not list(tmp_path.glob("out*"))


def test_a_second_process_on_one_output_sends_nothing(tmp_path, gateway):
    """The lock is held for the life of the first."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"p {n}"} for n in range(20)])
    with running(Simulation(speed=0, faults={"hang": 1.0})) as slow:
        first = subprocess.Popen(
            command("run", "in.jsonl", "-o", "out.jsonl", "-m", "sim-small"),
            cwd=tmp_path, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
            env=environment(OPENAI_BASE_URL=slow.url, OPENAI_API_KEY=SECRET),
        )  # fmt: skip
        while not slow.ledger.received_by_key:
            pass
        received = sum(m.received for m in list(gateway.ledger.models.values()))
        said = sentence(
            batcher(
                "run",
                "in.jsonl",
                "-o",
                "out.jsonl",
                "-m",
                "sim-small",
                cwd=tmp_path,
                url=gateway.url,
            )
        )
        assert "another batcher" in said
        assert sum(m.received for m in list(gateway.ledger.models.values())) == received
        first.kill()
        first.wait()


def test_simulate_needs_no_key_and_goes_on_where_it_stopped(tmp_path, one):
    """Whatever port it gets, it is the same gateway to a second start."""
    words = ("run", one, "-o", "out.jsonl", "-m", "sim-small", "--simulate", "--quiet")
    assert batcher(*words, cwd=tmp_path).returncode == 0
    first = (tmp_path / "out.jsonl").read_bytes()
    assert batcher(*words, cwd=tmp_path).returncode == 0
    assert (tmp_path / "out.jsonl").read_bytes() == first


def test_help_is_light_and_names_every_option(tmp_path):
    """`batcher run --help` is what people read first."""
    from dataclasses import fields

    from batcher.job.job import Job

    text = batcher("run", "--help", cwd=tmp_path).stdout.decode()
    for field in fields(Job):
        if field.name not in ("inputs", "models", "params", "headers"):
            assert f"--{field.name.replace('_', '-')}" in text
    loaded = subprocess.run(
        [sys.executable, "-c", "import batcher.cli.app, sys; print(*sys.modules)"],
        capture_output=True, check=True, text=True,
    ).stdout.split()  # fmt: skip
    assert not {"aiohttp", "pyarrow", "numpy", "jinja2"} & set(loaded)


def test_an_export_replaces_nothing_but_an_output(tmp_path, gateway):
    """Not the input, nor a file of somebody's with fewer rows."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"p {n}"} for n in range(3)])
    write_jsonl(tmp_path / "gold.jsonl", [{"id": 1, "precious": "by hand"}])
    for name in ("o", "other"):
        words = ("run", "in.jsonl", "-o", f"{name}.jsonl", "-m", "sim-small")
        assert batcher(*words, cwd=tmp_path, url=gateway.url).returncode == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    for name, why in (
        ("gold.jsonl", "is no output"), ("in.jsonl", "is the input"), ("other.jsonl", "of another run"),
    ):  # fmt: skip
        ended = batcher("export", "o.jsonl", name, cwd=tmp_path)
        assert why in sentence(ended)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")} == before
    for _time in range(2):
        for to in ("part.parquet", "part.jsonl", "o.jsonl"):
            assert batcher("export", "o.jsonl", to, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_nothing_to_end_by(tmp_path, one, gateway, closed):
    """As of a job that was detached; its number would be taken by a socket."""
    words = command("run", "one.jsonl", "-o", "o.jsonl", "-m", "sim-small", "--quiet")
    ended = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *words],
        cwd=tmp_path, env=environment(OPENAI_BASE_URL=gateway.url, OPENAI_API_KEY=SECRET), check=False,
    )  # fmt: skip
    assert ended.returncode == 0
    assert len(read_jsonl(tmp_path / "o.jsonl")) == 1


def test_a_named_pipe_is_no_input(tmp_path, gateway):
    """It can be read only once."""
    os.mkfifo(tmp_path / "in.jsonl")
    words = ("run", "in.jsonl", "-o", "o.jsonl", "-m", "sim-small")
    assert "it is no file" in sentence(batcher(*words, cwd=tmp_path, url=gateway.url))
