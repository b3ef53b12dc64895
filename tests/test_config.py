"""Options from a file and from the environment: the same as on the command line, and after it."""

import json
import subprocess

import pytest

from batcher.cli.config import with_settings
from batcher.errors import JobError
from tests.support import program
from tests.support.program import read_jsonl, write_jsonl

TOML = """
inputs = "in.jsonl"
output = "from-file.jsonl"
model = ["sim-small", "sim-large"]
prompt = "Say {{ text }}"
max_retries = 2
dedupe = false
quiet = true

[param]
temperature = 0
stop = ["x"]

[rpm]
sim-small = 6000
"""


def words(tmp_path, text, *given, **environment):
    path = tmp_path / "job.toml"
    path.write_text(text)
    return with_settings(["run", "--config", str(path), *given], environment)


def test_a_file_tells_what_flags_would(tmp_path, gateway):
    """As the program takes it, through a whole run."""
    write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}, {"text": "a"}])
    (tmp_path / "job.toml").write_text(TOML)
    ended = program.batcher("run", "--config", "job.toml", cwd=tmp_path, url=gateway.url)
    assert (ended.returncode, ended.stderr) == (0, b"")
    rows = read_jsonl(tmp_path / "from-file.jsonl")
    assert [row["model"] for row in rows] == ["sim-small", "sim-large"] * 2
    assert sum(of.billed for of in list(gateway.ledger.models.values())) == 4  # Not deduped.
    ended = program.batcher(
        "check", cwd=tmp_path, url=gateway.url, BATCHER_CONFIG="job.toml", BATCHER_QUIET="0"
    )
    assert ended.returncode == 0
    asked = json.loads((tmp_path / "from-file.jsonl.run" / "run.json").read_text())
    assert asked["epochs"][0]["settings"]["--param"] == {"temperature": 0, "stop": ["x"]}


def test_the_command_line_goes_before_the_file_and_that_before_the_environment(tmp_path):
    got = words(
        tmp_path, 'model = "a"\nmax_retries = 2\ninputs = ["x", "y"]\n[param]\ntemperature = 0\n', "z",
        "-m", "b", "--param", "temperature=1",
        BATCHER_MAX_RETRIES="7", BATCHER_MAX_COST="5", BATCHER_RPM='["a=1", "b=2"]', BATCHER_DEDUPE="no",
        BATCHER_STREAM="yes", BATCHER_QUIET="0", HOME="/",
    )  # fmt: skip
    assert got == [
        "run", "--max-retries=2", "--param=temperature=0", "--no-dedupe", "--max-cost=5", "--rpm=a=1", "--rpm=b=2",
        "--stream", "z", "-m", "b", "--param", "temperature=1",
    ]  # fmt: skip
    assert words(tmp_path, 'inputs = "x"', "-m", "b", "--dedupe")[-4:] == [
        "x",
        "-m",
        "b",
        "--dedupe",
    ]
    assert words(tmp_path, 'inputs = "x"', "--simulate", "y")[-2:] == ["--simulate", "y"]
    assert words(tmp_path, "dedupe = false", "--dedupe") == ["run", "--dedupe"]
    assert words(tmp_path, 'model = "a"\noutput = "x"', "-mb", "-oy", "in") == [
        "run",
        "-mb",
        "-oy",
        "in",
    ]
    assert words(tmp_path, 'retry = ["timeout"]', "in") == ["run", "in", "--retry=timeout"]
    assert words(tmp_path, 'inputs = "x"\nretry = ["timeout"]', "--", "y") == [
        "run",
        "--retry=timeout",
        "--",
        "y",
    ]


def test_other_commands_are_left_alone(tmp_path):
    """What a job's settings are means nothing to them."""
    assert with_settings(["show", "o.jsonl"], {"BATCHER_SAMPLE": "3"}) == ["show", "o.jsonl"]
    assert with_settings([], {"BATCHER_SAMPLE": "3"}) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("max_cots = 1", "there is no option 'max_cots'; there are inputs, output, model"),
        ("a = ", "it cannot be read"),
        ("max_retries = true", "max_retries = true: it must be something else"),
        ("quiet = 1", "quiet = 1: it must be true or false"),
        ("max_cost = [1]", "max_cost: it must be one value, not a list"),
        ("inputs = 5", "inputs: it must be a text"),
        ("samples = 1.5", "--samples 1.5: it must be a whole number"),
        ("overwrite = true", "overwrite: what is paid for is forgotten once"),
        ('model = "a"\nmodels = ["b"]', "model stands in it twice"),
        ("[param]\nday = 2026-01-01", "param: 'day': JSON cannot hold this value"),
    ],
)
def test_what_a_file_cannot_mean_is_said(tmp_path, text, why):
    with pytest.raises(JobError, match=why):
        words(tmp_path, text)


def test_a_variable_that_is_no_option_is_named(tmp_path, gateway):
    """A budget that is spelled wrong is no budget."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}])
    how = {"cwd": tmp_path, "url": gateway.url}
    ended = program.batcher(
        "run", "in.jsonl", "-o", "o.jsonl", "-m", "sim-small", **how, BATCHER_MAXCOST="1"
    )
    assert b"BATCHER_MAXCOST is set, and is no option" in ended.stderr
    ended = program.batcher("run", "in.jsonl", "-o", "o.jsonl", **how, BATCHER_STREAM="perhaps")
    assert (ended.returncode, b"BATCHER_STREAM=perhaps: it must be 1 or 0" in ended.stderr) == (
        2,
        True,
    )
    ended = program.batcher("run", "in.jsonl", "-o", "o.jsonl", **how, BATCHER_OVERWRITE="1")
    assert (ended.returncode, b"give it on the command line" in ended.stderr) == (2, True)
    ended = program.batcher(
        "run", "in.jsonl", "-o", "o.jsonl", "-m", "sim-small", **how, BATCHER_RETRY="truncated"
    )
    assert ended.returncode == 0
    ended = program.batcher("run", "--config", "none.toml", **how)
    assert (ended.returncode, b"none.toml: it cannot be read: No such file" in ended.stderr) == (
        2,
        True,
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(tmp_path, shell):
    """By the shell itself where it is here."""
    ended = program.batcher("completion", shell, cwd=tmp_path)
    assert ended.returncode == 0
    for word in (b"compare", b"max-cost", b"from-batch"):
        assert word in ended.stdout
    if shell != "bash":
        return
    assert b"complete -o default -F _batcher batcher" in ended.stdout  # Files are completed, too.
    (tmp_path / "script").write_bytes(ended.stdout)
    asks = """
        source ./script
        COMP_WORDS=(batcher run --max-c); COMP_CWORD=2
        complete -p batcher > /dev/null && _batcher
        echo "${COMPREPLY[@]}"
    """
    told = subprocess.run(
        ["bash", "-c", asks], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["--max-cost"]


def test_the_command_that_goes_on_has_the_variables(tmp_path, gateway):
    """The next start may be in another shell, and would ask something else."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"{n}"} for n in range(300)])
    ended = program.batcher(
        "run", "in.jsonl", "-o", "o.jsonl", "-m", "sim-small", "--max-total-tokens", "900", "--param", "max_tokens=9",
        "--api-key-env", "BATCHER_KEY", cwd=tmp_path, url=gateway.url, BATCHER_SYSTEM="Be brief.",
        BATCHER_KEY="sk-0123456789abcdef", BATCHER_API_KEY="sk-0123456789abcdef",
    )  # fmt: skip
    assert ended.returncode == 4
    assert b"sk-0123456789abcdef" not in ended.stderr
    assert b"BATCHER_API_KEY is set, and is no option" in ended.stderr
    assert b"BATCHER_KEY is set" not in ended.stderr
    assert (
        b"Go on with: BATCHER_SYSTEM='Be brief.' batcher run --max-total-tokens " in ended.stderr
    )


def test_a_switch_of_the_file_is_switched_off_on_the_command_line(tmp_path):
    """Or the file could be used for one kind of run only."""
    told = "simulate = true\nquiet = true\nmodel = ['m']\n"
    assert words(tmp_path, told, "--no-simulate", BATCHER_JSON="1") == [
        "run",
        "--quiet",
        "--model=m",
        "--json",
    ]
    assert words(tmp_path, told, "--no-json", BATCHER_JSON="1") == [
        "run",
        "--simulate",
        "--quiet",
        "--model=m",
    ]
    assert words(tmp_path, "", "--", "--no-json") == ["run", "--", "--no-json"]


def test_other_commands_take_what_they_share(tmp_path):
    """From the environment, as run does."""
    told = {"BATCHER_MODEL": "m", "BATCHER_BASE_URL": "http://localhost:1/v1", "BATCHER_RPM": "5"}
    assert with_settings(["convert", "a.jsonl", "-o", "b.jsonl"], told) == [
        "convert", "--model=m", "a.jsonl", "-o", "b.jsonl"]  # fmt: skip
    assert with_settings(["models"], told) == ["models", "--base-url=http://localhost:1/v1"]
