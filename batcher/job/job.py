"""What the user asked for, checked once and never changed. Touches: files (`@FILE`, schemas).

The fields of `Job` are the flags of `batcher run`, the keywords of `batcher.run()` and the keys of a TOML
file: one definition for all. A field holds what the user wrote; the properties below give it its meaning.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from batcher.errors import JobError
from batcher.job import checks, convert, values
from batcher.job.endpoint import Endpoint, endpoint_of
from batcher.records import Outcome, tier_of

__all__ = ["Job", "Limits", "LogLevel"]

LogLevel = Literal["debug", "info", "warning", "error"]

_WHAT = Group("What to ask", sort_key=1)
_WHERE = Group("Where to send it", sort_key=2)
_PACE = Group("How fast, how stubborn", sort_key=3)
_RUN = Group("Which rows, which run", sort_key=4)
_SHOW = Group("What to show", sort_key=5)


@dataclass(frozen=True)
class Limits:
    """The configured limits of one model, or of all models of a key together; None where none is configured.

    Attributes:
        rpm_wins: Whether headers that advertise another limit are ignored (`6000!`).
        tpm_wins: Likewise.
    """

    rpm: float | None = None
    tpm: float | None = None
    concurrency: int | None = None
    rpm_wins: bool = False
    tpm_wins: bool = False


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job, as asked. Raises `JobError` where options contradict each other or have no meaning.

    It is longer than other classes, as each field comes with its flag and its help text.
    """

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
    like; batcher then names it."""

    delimiter: Annotated[str | None, Parameter(group=_RUN)] = None
    """Separator of the cells of CSV: one character, or tab. Default: the one of , ; tab and | that the first
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
        """A Job from Python values: numbers, mappings and paths where the command line has text.

        >>> Job.of(output="o.jsonl", models=["m"], rpm={"m": 60}, params={"temperature": 0}).rpm
        ('m=60',)

        Raises:
            JobError: There is no such option, or a value has a wrong type or no meaning.
        """
        return cls(**convert.checked(cls, asked))

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", tuple(dict.fromkeys(self.models)))
        checks.check(self)

    def limits(self, model: str) -> Limits:
        """The configured limits of a model: its own `MODEL=N`, else the plain `N`."""
        return Limits(
            rpm=values.limit_of("--rpm", self.rpm, model),
            tpm=values.limit_of("--tpm", self.tpm, model),
            concurrency=values.concurrency_of(self.concurrency, model),
            rpm_wins=values.wins(self.rpm, model),
            tpm_wins=values.wins(self.tpm, model),
        )

    @property
    def total(self) -> Limits:
        """The configured limits of all models together."""
        return Limits(self.total_rpm, self.total_tpm, self.total_concurrency)

    def seconds_left(self, now: datetime) -> float | None:
        """Seconds from a local time to the deadline; None without one.

        Raises:
            JobError: It is no time, or in the past.
        """
        return None if self.deadline is None else values.seconds_until(self.deadline, now)

    @property
    def text_encoding(self) -> str | None:
        """The encoding of text files as Python spells it; "" for UTF-8, None to detect it."""
        return None if self.encoding is None else values.encoding_of(self.encoding)

    @property
    def cell_delimiter(self) -> str | None:
        """The delimiter of CSV; None to detect it."""
        return None if self.delimiter is None else values.delimiter_of(self.delimiter)

    @property
    def body_params(self) -> dict[str, object]:
        """The `--param` fields of the request body."""
        return values.params_of(self.params)

    @property
    def service_tier(self) -> str | None:
        """The service tier that `--param service_tier` asks for; None for the default one."""
        return tier_of(self.body_params.get("service_tier"))

    @property
    def expected(self) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
        """(JSON Schema that answers must fit, labels of which they must be one): one of them, or neither."""
        schema = None if self.schema is None else values.schema_of(self.schema)
        return schema, () if self.labels is None else values.labels_of(self.labels)

    @property
    def templates(self) -> tuple[str | None, str | None]:
        """Text of the prompt and the system template, read from their files for `@FILE`."""
        prompt = values.text_of("--prompt", self.prompt)
        return prompt, values.text_of("--system", self.system)

    @property
    def fixed_timeout(self) -> float | None:
        """Seconds for one exchange; None to derive it from those seen."""
        return None if self.attempt_timeout == "auto" else self.attempt_timeout

    @property
    def drawn(self) -> tuple[int, int] | None:
        """How many rows are drawn at random, and the seed; None to take all."""
        return None if self.sample is None else (self.sample, self.seed)

    @property
    def resendable(self) -> frozenset[Outcome]:
        """Earlier outcomes that a second run sends again."""
        if self.retry:
            return frozenset(Outcome(outcome) for outcome in self.retry)
        return frozenset(o for o in Outcome if not o.answered and o is not Outcome.UNREADABLE)

    @property
    def secrets(self) -> frozenset[str]:
        """Names of the environment variables whose values are never shown."""
        return frozenset({self.api_key_env or "", *values.variables_of(self.headers)})

    def endpoint(self, environment: Mapping[str, str] | None = None) -> Endpoint:
        """The address, key and headers that requests go to and with.

        Args:
            environment: Holds the key; that of the process when None. A default of `os.environ` would
                print the key wherever a signature is shown.

        Raises:
            JobError: The address is invalid, its key is not set, or a header cannot be sent.
        """
        given = os.environ if environment is None else environment
        headers, secrets = values.headers_of(self.headers, given)
        keyless = any(values.is_credential(name) for name, _value in headers)
        endpoint = endpoint_of(self.base_url, self.api_key_env, given, keyless=keyless)
        if endpoint.key and any(name.lower() == "authorization" for name, _value in headers):
            raise JobError(
                "--header Authorization: the key is sent in this header. Leave one of them out: the header, or "
                "--api-key-env and the variable of this host's key."
            )
        return replace(endpoint, headers=headers, secrets=secrets)
