"""What the user asked for, checked once, never changed after. Touches: the environment, once.

The fields of `Job` are the flags of `batcher run`, the keywords of `batcher.run()`, and later the
keys of a TOML file: one definition each. What a person types stays as typed; the properties give
it its meaning.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from cyclopts import Group, Parameter

from batcher.errors import JobError
from batcher.job.endpoint import Endpoint, endpoint_of
from batcher.job.values import (
    concurrency_of,
    delimiter_of,
    encoding_of,
    headers_of,
    is_credential,
    json_of,
    labels_of,
    limit_of,
    text_of,
    variables_of,
    wins,
)
from batcher.read.object_store import is_object
from batcher.records import Outcome, clean

__all__ = ["Job", "Limits", "LogLevel"]

LogLevel = Literal["debug", "info", "warning", "error"]

_WHAT = Group("What to ask", sort_key=1)
_WHERE = Group("Where to send it", sort_key=2)
_PACE = Group("How fast, how stubborn", sort_key=3)
_RUN = Group("Which rows, which run", sort_key=4)
_SHOW = Group("What to show", sort_key=5)


_LENGTH = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


@dataclass(frozen=True)
class Limits:
    """What the user told about one model's limits, or about all of a key; None is "not told".

    Attributes:
        rpm_wins: Whether headers that say something else do not count (`6000!`).
        tpm_wins: Likewise.
    """

    rpm: float | None = None
    tpm: float | None = None
    concurrency: int | None = None
    rpm_wins: bool = False
    tpm_wins: bool = False


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job, as asked. Raises `JobError` when it cannot be meant."""

    inputs: Annotated[tuple[str, ...], Parameter(parse=False)] = ()

    output: Annotated[
        str, Parameter(name=["--output", "-o"], group=_WHAT, allow_leading_hyphen=True)
    ]
    """File to write, .jsonl, .parquet or .csv by suffix; NAME/ is a folder of Parquet files; "-" writes rows
    to stdout as they finish (such a run cannot be resumed); s3:// or gs:// is uploaded at the end
    from the folder one is in."""

    models: Annotated[
        tuple[str, ...],
        Parameter(
            name=["--model", "-m"], group=_WHAT, negative_iterable="", consume_multiple=False
        ),
    ] = ()
    """Model ID; repeat it and every row goes to each model. Without it a row's own "model"
    counts."""

    route: Annotated[Literal["each", "fallback", "split"], Parameter(group=_WHAT)] = "each"
    """each (default): every row to every model. fallback: in order, until one answers ok. split: every row to
    one of them, whichever is free."""

    prompt: Annotated[str | None, Parameter(group=_WHAT)] = None
    """Jinja2 template of the user message over the row's columns, or @FILE."""

    system: Annotated[str | None, Parameter(group=_WHAT)] = None
    """Jinja2 template of the system message, or @FILE."""

    images: Annotated[str | None, Parameter(group=_WHAT)] = None
    """Folder that paths in the column image_path begin in, and cannot leave. Default: the input file's."""

    params: Annotated[
        tuple[str, ...],
        Parameter(name="--param", group=_WHAT, negative_iterable="", consume_multiple=False),
    ] = ()
    """KEY=JSON, any field of the request body, such as temperature=0 or stop='["\\n"]'. A row's own
    body wins. Repeatable."""

    schema: Annotated[str | None, Parameter(group=_WHAT)] = None
    """File with a JSON Schema that answers must fit; they are in the column "parsed" then. Sent to the
    model as response_format where it takes that, else in words, and checked in any case."""

    labels: Annotated[str | None, Parameter(group=_WHAT)] = None
    """A,B,C: answers must be one of these labels; likewise."""

    reask: Annotated[int, Parameter(group=_WHAT)] = 1
    """How often an answer that does not fit is sent back with what is wrong with it. Default: 1."""

    grow_max_tokens: Annotated[int | None, Parameter(group=_WHAT)] = None
    """Send what was truncated again with twice its max_tokens, up to N."""

    samples: Annotated[int, Parameter(group=_WHAT)] = 1
    """Answers per row and model, numbered in the column "sample". Default: 1."""

    base_url: Annotated[str | None, Parameter(group=_WHERE)] = None
    """Address of the gateway, up to and with its "/v1". Default: AiHubMix, unless its key is not set
    and OPENAI_BASE_URL or OPENAI_API_KEY is: then that."""

    api_key_env: Annotated[str | None, Parameter(group=_WHERE)] = None
    """Name of the environment variable that holds the key; a key itself is never a flag."""

    headers: Annotated[
        tuple[str, ...],
        Parameter(name="--header", group=_WHERE, negative_iterable="", consume_multiple=False),
    ] = ()
    """NAME=VALUE, a header to send with each request, such as HTTP-Referer=https://example.com. A secret
    is 'NAME=$VARIABLE', in single quotes: it is read from the environment and shown nowhere. Repeatable."""

    simulate: Annotated[bool, Parameter(group=_WHERE, negative="")] = False
    """Run against the embedded simulated gateway: no key, no network, models sim-small, sim-medium
    and sim-large."""

    prices: Annotated[str | None, Parameter(group=_WHERE)] = None
    """File of prices (.toml, .json, .csv): for each model "input", "output" and perhaps "cached",
    "cache_write", "cache_write_1h", dollars per million tokens; "MODEL@flex" is a model at a service
    tier. Default: what AiHubMix and OpenRouter list."""

    rpm: Annotated[
        tuple[str, ...],
        Parameter(group=_PACE, negative_iterable="", consume_multiple=False),
    ] = ()
    """Requests a minute, per model: N, or MODEL=N for one. N! counts whatever the gateway's headers say;
    its 429s count in any case. Repeatable."""

    tpm: Annotated[
        tuple[str, ...],
        Parameter(group=_PACE, negative_iterable="", consume_multiple=False),
    ] = ()
    """Tokens a minute, per model: N, or MODEL=N for one; N! as for --rpm. Repeatable."""

    concurrency: Annotated[
        tuple[str, ...],
        Parameter(group=_PACE, negative_iterable="", consume_multiple=False),
    ] = ()
    """Requests in flight, per model: N, MODEL=N, or auto, which finds it. Default: auto."""

    total_rpm: Annotated[float | None, Parameter(group=_PACE)] = None
    """Requests a minute, all models together."""

    total_tpm: Annotated[float | None, Parameter(group=_PACE)] = None
    """Tokens a minute, all models together."""

    total_concurrency: Annotated[int | None, Parameter(group=_PACE)] = None
    """Requests in flight, all models together."""

    max_retries: Annotated[int, Parameter(group=_PACE)] = 5
    """Attempts after the first. Answers 429 do not count: they are waited out, within
    --row-timeout. Default: 5."""

    attempt_timeout: Annotated[float | Literal["auto"], Parameter(group=_PACE)] = 600.0
    """Seconds for one HTTP exchange, or auto: three times the p99 seen, 60 to 600. A request given
    up is often billed all the same. Default: 600."""

    stream: Annotated[bool, Parameter(group=_PACE, negative="")] = False
    """Receive answers piece by piece, for gateways that cut connections which are silent for long (524). The
    rows are the same; the column "ttft_ms" tells when the first token came."""

    idle_timeout: Annotated[float, Parameter(group=_PACE)] = 120.0
    """Seconds without a byte, after which a stream that has begun is given up. Default: 120."""

    row_timeout: Annotated[float, Parameter(group=_PACE)] = 3600.0
    """Seconds for all attempts of one request, from the first on, waits included. Default: 3600."""

    max_cost: Annotated[float | None, Parameter(group=_RUN)] = None
    """Dollars that all runs of this output may cost together: the run stops before it can cost more.
    Needs a price of each model and a max_tokens."""

    max_total_tokens: Annotated[int | None, Parameter(group=_RUN)] = None
    """Tokens, prompts and answers, that all runs of this output may use together; likewise."""

    deadline: Annotated[str | None, Parameter(group=_RUN)] = None
    """When to stop sending: a length such as 90m or 7h30m, a time such as 07:30, or a date and time such as
    2030-12-31T07:30. What is in flight is waited for; the same command goes on."""

    encoding: Annotated[str | None, Parameter(group=_RUN)] = None
    """Encoding of the input's text, such as cp1252, utf-16 or gb18030. Default: UTF-8, or what the first MB of a CSV file looks
    like, which is said."""

    delimiter: Annotated[str | None, Parameter(group=_RUN)] = None
    """What stands between the cells of CSV: one character, or tab. Default: the one of , ; tab and | that the first
    lines have."""

    limit: Annotated[int | None, Parameter(name=["--limit", "-n"], group=_RUN)] = None
    """Only the first N rows."""

    sample: Annotated[int | None, Parameter(group=_RUN)] = None
    """Only N rows drawn by chance (of more, or with more rows in the input, mostly the same ones)."""

    seed: Annotated[int, Parameter(group=_RUN)] = 0
    """Another one draws other rows. Default: 0."""

    dedupe: Annotated[bool | None, Parameter(group=_RUN)] = None
    """Send equal requests once and give the answer to each row, marked in the column "copied". Default: only
    where temperature is 0."""

    retry: Annotated[
        tuple[Outcome, ...],
        Parameter(group=_RUN, negative_iterable="", consume_multiple=True, show_choices=False),
    ] = ()
    """Which earlier outcomes a second start sends again. Default: every failure; never ok."""

    changed: Annotated[Literal["resend", "keep"] | None, Parameter(group=_RUN)] = None
    """When changed settings no longer match answers already paid for: send those rows again, or keep
    their old answers. Default: stop and say so."""

    from_batch: Annotated[
        tuple[str, ...], Parameter(group=_RUN, negative_iterable="", consume_multiple=False)
    ] = ()
    """Output or error file of a provider's finished batch (OpenAI's, vLLM's): its answers are taken for the rows
    of the same custom_id, and only what is missing is sent. Repeatable."""

    overwrite: Annotated[bool, Parameter(group=_RUN, negative="")] = False
    """Forget all earlier results of this output. Without it a second start continues the first."""

    keep_raw: Annotated[bool, Parameter(group=_RUN, negative="")] = False
    """Also keep the whole response body, in the column "response"."""

    dry_run: Annotated[bool, Parameter(group=_RUN, negative="")] = False
    """Everything but sending: read and render every row, count, say what is wrong."""

    on: Annotated[str | None, Parameter(group=_PACE)] = None
    """ray, or ray=ADDRESS: send from the machines of a Ray cluster, with one limit for all, and the output in
    a folder that all of them share. One process does thousands of requests a second, so few need this."""

    shards: Annotated[int | None, Parameter(group=_PACE)] = None
    """In how many parts the rows go to the cluster. Default: of 5,000 rows at most."""

    format: Annotated[Literal["rows", "openai"] | None, Parameter(group=_SHOW)] = None
    """What a JSONL output holds: rows with their answers, or lines of an OpenAI batch's output. Default: as the
    input, where all of it are lines of a batch."""

    quiet: Annotated[bool, Parameter(group=_SHOW, negative="")] = False
    """No live view and no table at the end; errors only."""

    json: Annotated[bool, Parameter(group=_SHOW, negative="")] = False
    """Print one JSON summary on stdout at the end."""

    log_level: Annotated[LogLevel | None, Parameter(group=_SHOW)] = None
    """Instead of what people read, stderr gets JSON lines of this level and above: how the run stands (info), rows
    that are not ok (warning), every row (debug)."""

    @classmethod
    def of(cls, **asked: Any) -> Job:
        """A Job from Python values: numbers and mappings where the command line has text.

        >>> Job.of(output="o.jsonl", models=["m"], rpm={"m": 60}, params={"temperature": 0}).rpm
        ('m=60',)
        """
        known = {f.name for f in fields(cls)}
        for name in asked:
            if name not in known:
                raise JobError(
                    f"batcher has no option {name!r}; there are {', '.join(sorted(known))}."
                )
        for name in ("inputs", "models", "retry", "params", "headers"):
            value = asked.get(name)
            if isinstance(value, str):
                asked[name] = (value,)
            elif isinstance(value, Iterable) and not isinstance(value, Mapping):
                asked[name] = tuple(value)
            elif value is None:
                asked.pop(name, None)
        for name in ("rpm", "tpm", "concurrency"):
            value = asked.get(name)
            if isinstance(value, Mapping):
                asked[name] = tuple(f"{model}={limit}" for model, limit in value.items())
            elif isinstance(value, list | tuple):
                asked[name] = tuple(map(str, value))
            elif value is not None:
                asked[name] = (str(value),)
            else:
                asked.pop(name, None)
        if isinstance(asked.get("params"), Mapping):
            asked["params"] = tuple(
                f"{name}={_as_json(name, value)}" for name, value in asked["params"].items()
            )
        if isinstance(asked.get("headers"), Mapping):
            asked["headers"] = tuple(f"{name}={value}" for name, value in asked["headers"].items())
        for name in ("output", "images", "schema", "prices"):
            if isinstance(asked.get(name), os.PathLike):
                asked[name] = os.fspath(asked[name])
        if (model := asked.get("schema")) is not None and hasattr(model, "model_json_schema"):
            asked["schema"] = model.model_json_schema()  # Of pydantic, without needing it here.
        if isinstance(asked.get("schema"), Mapping):
            asked["schema"] = _as_json("schema", asked["schema"])
        if isinstance(asked.get("labels"), list | tuple):
            asked["labels"] = _as_json("labels", list(asked["labels"]))
        types = get_type_hints(cls)
        for name, value in asked.items():
            try:
                msgspec.convert(value, tuple[str, ...] if name == "retry" else types[name])
            except msgspec.ValidationError as error:
                raise JobError(
                    f"{name}={value!r:.200}: {_choices(types[name]) or error}."
                ) from None
        return cls(**asked)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and not text.isascii() and text != clean(text):
                    flag = "" if field.name == "inputs" else f"--{field.name.replace('_', '-')} "
                    raise JobError(
                        f"{flag}{clean(text)!r:.200}: it holds bytes that are no UTF-8, which can stand in no file of a "
                        "run; rename the file, or write the text in UTF-8."
                    )
        object.__setattr__(self, "models", tuple(dict.fromkeys(self.models)))
        if "" in self.models:
            raise JobError("--model is empty; give a model ID.")
        self._check_output()
        if self.route != "each" and len(self.models) < 2:
            raise JobError(
                f"--route {self.route} chooses between models; give two or more with -m."
            )
        for outcome in self.retry:
            if outcome not in list(Outcome):
                raise JobError(f"--retry {outcome}: there is no such outcome; see the README.")
            if outcome == Outcome.OK:
                raise JobError(
                    "--retry ok: an answer that is ok is never sent again; use --overwrite."
                )
        positive: dict[str, float | None] = {
            "--limit": self.limit,
            "--sample": self.sample,
            "--total-rpm": self.total_rpm,
            "--total-tpm": self.total_tpm,
            "--total-concurrency": self.total_concurrency,
            "--attempt-timeout": self.patience,
            "--row-timeout": self.row_timeout,
            "--idle-timeout": self.idle_timeout,
            "--grow-max-tokens": self.grow_max_tokens,
            "--max-cost": self.max_cost,
            "--max-total-tokens": self.max_total_tokens,
        }
        for flag, value in positive.items():
            if value is not None and not value > 0:
                raise JobError(f"{flag} {value}: it must be more than 0.")
        for flag, number in (("--max-retries", self.max_retries), ("--reask", self.reask)):
            if number < 0:
                raise JobError(f"{flag} {number}: it must be 0 or more.")
        if self.limit is not None and self.sample is not None:
            raise JobError("--limit and --sample: one of them says which rows; leave one out.")
        if self.seed and self.sample is None:
            raise JobError("--seed: it says which rows --sample draws; give that too.")
        if not 0 <= self.seed < 1 << 63:
            raise JobError(f"--seed {self.seed}: it must be 0 or more, and fit 63 bits.")
        if not 1 <= self.samples <= 1000:
            raise JobError(f"--samples {self.samples}: it must be from 1 to 1000.")
        self._check_cluster()
        headers_of(self.headers, None)
        if (self.encoding or self.delimiter) and self.inputs == ("-",):
            raise JobError(
                "--encoding and --delimiter are for files; stdin (-) is JSONL in UTF-8."
            )
        _ = (
            self.text_encoding,
            self.cell_delimiter,
            self.body_params,
            self.templates,
            self.expected,
            self.seconds_left(datetime.now()),
        )
        for model in (*self.models, ""):
            self.limits(model)
        for flag, told in (
            ("--rpm", self.rpm),
            ("--tpm", self.tpm),
            ("--concurrency", self.concurrency),
        ):
            for text in told:
                name = text.rpartition("=")[0]
                if name and self.models and name not in self.models:
                    raise JobError(
                        f"{flag} {text}: there is no -m {name}; the models are "
                        f"{', '.join(self.models)}."
                    )
        if self.format == "openai" and self.output.endswith((".parquet", ".csv", "/")):
            raise JobError(
                "--format openai: lines of a batch are JSONL; name an --output in .jsonl."
            )
        if self.from_batch and (self.overwrite or self.output == "-"):
            other = "--overwrite" if self.overwrite else "--output -"
            raise JobError(
                f"--from-batch and {other}: what is taken would be lost; leave one out."
            )
        if self.simulate and (self.base_url or self.api_key_env):
            raise JobError(
                "--simulate brings a gateway of its own; leave --base-url and --api-key-env out."
            )

    def _check_output(self) -> None:
        told, suffix = f"--output {self.output!r}", Path(self.output).suffix
        if not self.output.endswith("/"):
            if self.output != "-" and suffix not in (".jsonl", ".parquet", ".csv"):
                raise JobError(
                    f"{told} has no suffix that tells the format; end it in .jsonl, .parquet or .csv, or in / "
                    "for a folder of Parquet files."
                )
        elif is_object(self.output):
            raise JobError(
                f"{told}: a folder cannot appear whole in object storage; name a file in .parquet."
            )
        elif suffix in (".jsonl", ".parquet", ".csv", ".run"):
            raise JobError(f"{told}: no folder of Parquet files ends in {suffix}; leave it out.")

    def _check_cluster(self) -> None:
        if self.on is None:
            if self.shards is not None:
                raise JobError("--shards: it parts what goes to a cluster; give --on ray too.")
            return
        if self.on.partition("=")[0] != "ray" or self.on == "ray=":
            raise JobError(f"--on {self.on}: write ray, or ray=ADDRESS.")
        if self.shards is not None and self.shards < 1:
            raise JobError(f"--shards {self.shards}: it must be 1 or more.")
        if self.output == "-":
            raise JobError("--on ray: it needs an --output file, for the folder beside it.")

    def seconds_left(self, now: datetime) -> float | None:
        """Seconds from a local time to the deadline; None without one.

        Raises:
            JobError: It is no time, or is over.
        """
        text = self.deadline
        if text is None:
            return None
        if (length := _LENGTH.fullmatch(text)) is not None and text:
            units = zip((86400, 3600, 60, 1), length.groups(), strict=True)
            seconds = float(sum(unit * int(number or 0) for unit, number in units))
        else:
            try:
                if re.fullmatch(r"\d{1,2}:\d\d", text):
                    hour, minute = map(int, text.split(":"))
                    at = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
                    at += timedelta(days=at <= now)
                else:
                    at = datetime.fromisoformat(text)
                    at = at.astimezone().replace(tzinfo=None) if at.tzinfo else at
            except (ValueError, OverflowError):
                raise JobError(
                    f"--deadline {text!r}: write a length (90m, 7h30m), a time (07:30) or a date and "
                    "time (2030-12-31T07:30)."
                ) from None
            seconds = (at - now).total_seconds()
        if seconds <= 0:
            raise JobError(f"--deadline {text}: that is over.")
        return seconds

    @property
    def text_encoding(self) -> str | None:
        """The encoding asked for, as Python spells it; "" for UTF-8, None to find it."""
        return None if self.encoding is None else encoding_of(self.encoding)

    @property
    def cell_delimiter(self) -> str | None:
        """The delimiter asked for; None to find it."""
        return None if self.delimiter is None else delimiter_of(self.delimiter)

    @property
    def body_params(self) -> dict[str, object]:
        """The `--param` fields, parsed."""
        parsed: dict[str, object] = {}
        for text in self.params:
            name, equals, value = text.partition("=")
            if not equals or not name:
                raise JobError(f"--param {text!r}: write it as KEY=JSON, such as temperature=0.")
            try:
                parsed[name] = json_of(value)
            except ValueError as error:
                shown = value if len(value) <= 200 else f"{value[:200]}…"
                raise JobError(
                    f"--param {name}: {shown!r} is not JSON that can be sent ({error}); "
                    f"a text needs quotes: --param '{name}=\"{shown}\"'."
                ) from None
        if "model" in parsed or "messages" in parsed:
            raise JobError(
                "--param sets body fields other than model and messages; use -m, --prompt."
            )
        if parsed.get("n", 1) != 1:
            raise JobError(
                "--param n: batcher keeps one answer of a request; it would pay for the others "
                "and drop them. Leave n out."
            )
        if parsed.get("stream"):
            raise JobError(
                "--param stream=true: leave it out; --stream receives answers as streams."
            )
        return parsed

    @property
    def expected(self) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
        """(JSON Schema that answers must fit, labels of which they must be one): one of them, or none."""
        if self.schema is not None and self.labels is not None:
            raise JobError("--schema and --labels: an answer is checked against one of them.")
        if self.schema is None and self.labels is None:
            return None, ()
        if "response_format" in self.body_params:
            raise JobError("--param response_format: --schema and --labels set it; leave it out.")
        if self.labels is not None:
            return None, labels_of(self.labels)
        text = self.schema or ""
        if not text.lstrip().startswith("{"):
            text = text_of("--schema", f"@{text}") or ""
        try:
            schema = json_of(text)
        except ValueError as error:
            named = f"--schema {(self.schema or '')[:200]}"
            raise JobError(f"{named}: it is not JSON that can be used ({error}).") from None
        if not isinstance(schema, dict):
            raise JobError(f"--schema {self.schema}: a JSON Schema is an object.")
        return schema, ()

    @property
    def templates(self) -> tuple[str | None, str | None]:
        """Text of the prompt and the system template, read from their files for `@FILE`."""
        return text_of("--prompt", self.prompt), text_of("--system", self.system)

    def limits(self, model: str) -> Limits:
        """What was told about this model: its own `MODEL=N`, else the plain `N`."""
        return Limits(
            rpm=limit_of("--rpm", self.rpm, model),
            tpm=limit_of("--tpm", self.tpm, model),
            concurrency=concurrency_of(self.concurrency, model),
            rpm_wins=wins(self.rpm, model),
            tpm_wins=wins(self.tpm, model),
        )

    @property
    def total(self) -> Limits:
        """What was told about all models of the key together."""
        return Limits(self.total_rpm, self.total_tpm, self.total_concurrency)

    @property
    def patience(self) -> float | None:
        """Seconds for one exchange; None to find it."""
        return None if self.attempt_timeout == "auto" else self.attempt_timeout

    @property
    def drawn(self) -> tuple[int, int] | None:
        """How many rows are drawn by chance, and by which seed; None for no such choice."""
        return None if self.sample is None else (self.sample, self.seed)

    @property
    def resendable(self) -> frozenset[Outcome]:
        """Earlier outcomes that a second start sends again."""
        if self.retry:
            return frozenset(Outcome(outcome) for outcome in self.retry)
        return frozenset(o for o in Outcome if not o.answered and o is not Outcome.UNREADABLE)

    @property
    def secrets(self) -> frozenset[str]:
        """Names of the environment variables whose values are never shown."""
        return frozenset({self.api_key_env or "", *variables_of(self.headers)})

    def endpoint(self, environment: Mapping[str, str] | None = None) -> Endpoint:
        """The address, key and headers: as asked, else AiHubMix, else OPENAI_*.

        Args:
            environment: Where the key stands; that of the process when None. A default of
                `os.environ` would print the key wherever a signature is shown.

        Raises:
            JobError: The address is not one, the key that goes with it is not set, or a header
                cannot be sent.
        """
        given = os.environ if environment is None else environment
        headers, secrets = headers_of(self.headers, given)
        keyless = any(is_credential(name) for name, _value in headers)
        endpoint = endpoint_of(self.base_url, self.api_key_env, given, keyless=keyless)
        if endpoint.key and any(name.lower() == "authorization" for name, _value in headers):
            raise JobError(
                "--header Authorization: the key is sent in this header. Leave one of them out: the header, or "
                "--api-key-env and the variable of this host's key."
            )
        return replace(endpoint, headers=headers, secrets=secrets)


def _choices(kind: Any) -> str:
    """Which words a type allows, as a sentence; "" for a type without words."""
    parts = (kind,) if get_origin(kind) is Literal else get_args(kind)
    words = [repr(word) for p in parts if get_origin(p) is Literal for word in get_args(p)]
    number = "a number or " if any(part is float for part in parts) else ""
    return f"it is {number}{'one of ' * (len(words) > 1)}{', '.join(words)}" if words else ""


def _as_json(name: object, value: object) -> str:
    try:
        if not isinstance(name, str):
            raise TypeError("a field has a text for its name")
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise JobError(f"params: {name!r} is nothing that JSON can hold ({error}).") from None
