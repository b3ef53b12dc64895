"""Jobs that earlier versions left are continued and finished as those versions would have finished them."""

import shutil

import pytest

from tests.golden.folders import HERE, Golden, files_of, left_in, received, same, through
from tests.support.program import batcher

JOBS = sorted(path.parent.name for path in HERE.glob("*/golden.json"))


@pytest.fixture
def run(tmp_path, gateway):
    """Runs a command in the folder of the job; returns its exit status."""

    def run(*words):
        return batcher(*words, cwd=tmp_path / "job", **through(gateway.url)).returncode

    return run


@pytest.mark.parametrize("name", JOBS)
def test_a_job_of_an_earlier_version_is_finished_byte_for_byte(name, tmp_path, gateway, run):
    """Only what is missing is sent; once that is there nothing is, and the output stays as it is."""
    golden = Golden.load(HERE / name)
    output = golden.copy(tmp_path / "job") / golden.output
    if not golden.sent and output.exists():  # It is made anew from the journal.
        shutil.rmtree(output) if output.is_dir() else output.unlink()
    assert run(*golden.words, "--quiet") == golden.status
    sent = received(gateway.url)
    if golden.free:
        assert sum(sent.values()) == sum(golden.sent.values())
    else:
        assert sent == golden.sent
    expected, written = files_of(golden.expected), files_of(output)
    assert list(written) == list(expected)
    for file, path in written.items():
        same(expected[file], path, golden.new[file], golden.free)
    assert left_in(tmp_path / "job") == golden.left
    if golden.sent:
        finished = {file: path.read_bytes() for file, path in written.items()}
        assert run(*golden.words, "--quiet") == golden.status
        assert received(gateway.url) == sent
        assert {file: path.read_bytes() for file, path in files_of(output).items()} == finished


@pytest.mark.parametrize("name", ["csv", "jsonl", "parquet", "parts"])
def test_the_output_of_an_earlier_version_is_exported_byte_for_byte(name, tmp_path, run):
    """From the run folder, in the format of the output, once a run has found the input in its new place."""
    golden = Golden.load(HERE / name)
    job = golden.copy(tmp_path / "job")
    assert run(*golden.words, "--quiet") == golden.status
    again = f"again{golden.expected.suffix or '/'}"
    assert run("export", golden.words[3], again) == 0
    exported = files_of(job / again)
    for file, path in zip(files_of(golden.expected).values(), exported.values(), strict=True):
        same(file, path)
