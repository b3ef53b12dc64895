"""The servers: installed when they are first needed, started for a test, ended after it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["ALL", "Storage", "aimock", "get", "litellm", "python_of", "storage", "transformers"]

ALL = os.environ.get("BATCHER_THIRD_PARTY") == "all"
HOME = Path(os.environ.get("BATCHER_SERVERS") or Path.home() / ".cache" / "batcher-servers")
AIMOCK, LITELLM = "@copilotkit/aimock@1.43.0", "litellm[proxy]==1.106.2"
TRANSFORMERS = ("torch==2.13.0", "transformers[serving]==5.23.0")
STORAGES = ("moto[s3]==5.2.5", "flask", "flask-cors", "gcp-storage-emulator==2026.7.19")
PACKAGES = {"openai": ("openai==3.57.0",)}
READY_S, INSTALL_S = 120, 600

# What aimock answers to what a user says.
SAYINGS = {
    "cut short": {"content": "half an ans", "finishReason": "length"},
    "not allowed": {"content": "", "finishReason": "content_filter"},
    "counted": {"content": "seven", "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}},
    "call it": {"toolCalls": [{"name": "label", "arguments": '{"label": "bug"}'}]},
    "too long": {
        "error": {"message": "This model's maximum context length is 8192 tokens.",
                  "type": "invalid_request_error", "code": "context_length_exceeded"},
        "status": 400,
    },
    "hello": {"content": "Good day."},
}  # fmt: skip

# Mocked answers inside; limits, errors and headers are the proxy's own.
PROXY = """
model_list:
  - model_name: free
    litellm_params: {model: openai/free, api_key: none, mock_response: "bug"}
  - model_name: by-requests
    litellm_params: {model: openai/by-requests, api_key: none, mock_response: "billing", rpm: 600}
  - model_name: by-tokens
    litellm_params: {model: openai/by-tokens, api_key: none, mock_response: "other", rpm: 100000, tpm: 20000}
router_settings:
  optional_pre_call_checks: ["enforce_model_rate_limits"]
general_settings:
  master_key: sk-loopback
litellm_settings:
  num_retries: 0
"""

# Google's emulator, which answers one connection at a time as it comes: clients hold several.
THREADED = """
import http.server
http.server.HTTPServer = http.server.ThreadingHTTPServer
from gcp_storage_emulator.__main__ import main
main()
"""

# A Llama of two layers with random weights, whose tokens are bytes: what it says is noise, what it counts is not.
TINY = """
import sys, torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
marks = ["<bos>", "<eos>", "<pad>"]
tokens = {t: n for n, t in enumerate([*marks, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
bytes_ = Tokenizer(models.BPE(vocab=tokens, merges=[]))
bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytes_.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=bytes_, bos_token=marks[0], eos_token=marks[1], pad_token=marks[2]
)
tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
tokenizer.save_pretrained(sys.argv[1])
torch.manual_seed(1)
size = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
LlamaForCausalLM(LlamaConfig(
    vocab_size=len(tokens), max_position_embeddings=1024, bos_token_id=0, eos_token_id=1, pad_token_id=2, **size
)).save_pretrained(sys.argv[1])
"""


def get(url: str) -> tuple[bytes, Mapping[str, str]]:
    """The body and the headers of a page."""
    with urllib.request.urlopen(url, timeout=10) as reply:
        return reply.read(), dict(reply.headers)


@contextmanager
def aimock(folder: Path, *flags: str) -> Iterator[str]:
    """aimock that answers by `SAYINGS`; its address without /v1."""
    home = HOME / "aimock-1.43.0"
    command = home / "node_modules" / ".bin" / "llmock"
    if shutil.which("npm") is None and not command.exists():
        pytest.skip("aimock: there is no npm")
    with _alone("aimock"):
        if not command.exists():
            words = ["npm", "install", "--prefix", str(home), "--no-audit", "--no-fund", AIMOCK]
            _install("aimock", words)
    said = [{"match": {"userMessage": of}, "response": answer} for of, answer in SAYINGS.items()]
    (folder / "fixtures").mkdir()
    (folder / "fixtures" / "chat.json").write_text(json.dumps({"fixtures": said}))
    port = _port()
    words = [command, "-p", port, "-h", "127.0.0.1", "-f", folder / "fixtures", "--strict", "--journal-max", 0,
             "--log-level", "warn", *flags]  # fmt: skip
    with _up(folder, words, f"http://127.0.0.1:{port}/__aimock/journal?limit=1"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def litellm(folder: Path) -> Iterator[str]:
    """LiteLLM's proxy; its address with /v1, the key is sk-loopback."""
    venv = _venv("litellm", [LITELLM])
    (folder / "proxy.yaml").write_text(PROXY)
    port = _port()
    words = [
        venv / "bin" / "litellm",
        "--config",
        folder / "proxy.yaml",
        "--host",
        "127.0.0.1",
        "--port",
        port,
    ]
    own = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    with _up(folder, words, f"http://127.0.0.1:{port}/health/liveliness", own):
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def transformers(folder: Path) -> Iterator[tuple[str, str]]:
    """`transformers serve` with a tiny model; its address with /v1, and the model's ID."""
    venv, model = _venv("transformers", TRANSFORMERS), HOME / "tiny-llama"
    if not (model / "config.json").exists():
        subprocess.run([venv / "bin" / "python", "-c", TINY, model], check=True, timeout=INSTALL_S)
    port = _port()
    words = [venv / "bin" / "transformers", "serve", model, "--host", "127.0.0.1", "--port", port, "--device", "cpu",
             "--default-seed", 0]  # fmt: skip
    with _up(
        folder,
        words,
        f"http://127.0.0.1:{port}/health",
        {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    ):
        yield f"http://127.0.0.1:{port}/v1", str(model)


# Of whom moto takes it to be; it checks no signature.
_SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
}


@dataclass(frozen=True)
class Storage:
    """Object storage with a bucket, as its own HTTP says.

    Attributes:
        root: Of an address in the bucket.
        variables: That lead a program to it.
    """

    root: str
    variables: Mapping[str, str]
    _reading: str
    _writing: str

    def put(self, key: str, content: bytes) -> None:
        """Makes an object."""
        how = "PUT" if self.root.startswith("s3") else "POST"
        url = self._writing + urllib.parse.quote(key, safe="/" if how == "PUT" else "")
        # By default it is told to be a form.
        headers = {**_SIGNED, "Content-Type": "application/octet-stream"}
        asked = urllib.request.Request(url, content, headers, method=how)
        with urllib.request.urlopen(asked, timeout=10):
            pass

    def content(self, key: str) -> bytes | None:
        """Of an object; None when there is none."""
        google = self.root.startswith("gs")
        quoted = urllib.parse.quote(key, safe="" if google else "/")
        url = f"{self._reading}{quoted}{'?alt=media' if google else ''}"
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, headers=_SIGNED), timeout=10
            ) as reply:
                content: bytes = reply.read()
                return content
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return None


@contextmanager
def storage(folder: Path, scheme: str, port: str | None = None) -> Iterator[Storage]:
    """moto's S3, or an emulator of Google's storage; nothing is in its bucket."""
    venv, port = _venv("storage", STORAGES, always=True), port or _port()
    url = f"http://127.0.0.1:{port}"
    if scheme == "gs":
        words = [venv / "bin" / "python", "-c", THREADED, "start", "--host", "127.0.0.1", "--port", port, "--in-memory",
                 "--default-bucket", "bkt"]  # fmt: skip
        with _up(folder, words, f"{url}/storage/v1/b"):
            yield Storage(
                "gs://bkt",
                {"CLOUD_STORAGE_EMULATOR_ENDPOINT": url},
                f"{url}/storage/v1/b/bkt/o/",
                f"{url}/upload/storage/v1/b/bkt/o?uploadType=media&name=",
            )
        return
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    with _up(folder, [venv / "bin" / "moto_server", "-H", "127.0.0.1", "-p", port], f"{url}/"):
        made = Storage("s3://bkt", {"AWS_ENDPOINT_URL": url, **keys}, f"{url}/bkt/", f"{url}/bkt/")
        made.put("", b"")
        yield made


def python_of(name: str) -> Path:
    """The Python of an environment that has a package of others, here "openai"."""
    return _venv(name, PACKAGES[name], always=True) / "bin" / "python"


def _venv(name: str, packages: Sequence[str], *, always: bool = False) -> Path:
    venv = HOME / name
    if not (venv / "ready").exists() and not (ALL or always):
        pytest.skip(f"{name}: not installed; scripts/third_party does that")
    with _alone(name):
        if not (venv / "ready").exists():
            subprocess.run(
                [sys.executable, "-m", "venv", "--clear", venv], check=True, timeout=INSTALL_S
            )
            _install(name, [str(venv / "bin" / "pip"), "install", "-q", *packages])
            (venv / "ready").touch()
    return venv


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Tests run side by side, and want the same server at once."""
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install(name: str, words: list[str]) -> None:
    try:
        ended = subprocess.run(
            words, capture_output=True, text=True, timeout=INSTALL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{name}: it cannot be installed: {error}")
    if ended.returncode:
        pytest.skip(f"{name}: it cannot be installed: {ended.stderr.strip()[-200:]}")


@contextmanager
def _up(
    folder: Path, words: Sequence[object], ready: str, own: Mapping[str, str] | None = None
) -> Iterator[None]:
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [str(word) for word in words], stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder,
            env={**os.environ, **(own or {})}, start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + READY_S
        while True:
            try:
                get(ready)
                break
            except (urllib.error.URLError, OSError):
                told = (folder / "server.log").read_text(errors="replace")[-500:]
                assert process.poll() is None, told
                assert time.monotonic() < end, told
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
        return number
