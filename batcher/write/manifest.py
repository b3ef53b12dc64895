"""`run.json`: what all runs of an output asked. Touches: files. Never holds a key.

An *epoch* is a series of runs with the same input and settings. Each run has a random ID, which each line that it
writes names. A line counts for the row at its position only if it names a run of the present epoch, and if the
input is known not to have changed while that run read it. All other lines (of other epochs, of another
folder, or newer than this file) count by their keys alone.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from batcher.errors import JobError
from batcher.write import atomic
from batcher.write import folder as folders
from batcher.write.names import RUN

__all__ = ["Asked", "Epoch", "Manifest", "Pictures", "now"]


_VERSION = 2
_SEALED = re.compile(rb'(.*),\n "check": "([0-9a-f]{16})"\n}\n?', re.DOTALL)
_Rows = Annotated[int, msgspec.Meta(ge=0, lt=1 << 36)]
_Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_Positive = Annotated[int, msgspec.Meta(ge=1)]
_Seed = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Name = Annotated[str, msgspec.Meta(pattern=r"^[^/]*$")]


class _PinShape(msgspec.Struct):
    """The types of `read.files.Pin`, which identifies an input."""

    path: Annotated[str, msgspec.Meta(pattern=r"^(/|[a-z0-9]+://|[^/]+$)")]
    size: _Seed
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    digest: str = ""


class _SettingsShape(msgspec.Struct, rename=lambda name: f"--{name}".replace("_", "-")):
    """The types of the settings (`plan.requests.settings_of`)."""

    base_url: str
    prompt: str | None
    system: str | None
    param: dict[str, Any]
    model: str
    schema: dict[str, Any] | None = None
    labels: list[str] | None = None


Dialect = tuple[Literal["json_schema", "json_object", "prompt"], bool, bool]
"""How a model takes requests (`send.dialect.RequestDialect`), as far as the types go."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What shapes the output of the last run, for commands that write it without the job.

    Attributes:
        models: As given with -m; none when rows name their own.
        limit: How many rows were asked for; None for all.
        drawn: How many rows were drawn at random, and the seed; None for no draw.
        parsed: JSON Schema that answers were checked by; None for none.
        batch: Whether a JSONL output holds lines of a batch.
    """

    models: tuple[str, ...] = ()
    route: Literal["each", "fallback", "split"] = "each"
    limit: _Positive | None = None
    drawn: tuple[_Positive, _Seed] | None = None
    samples: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    keep_raw: bool = False
    parsed: dict[str, Any] | None = None
    batch: bool = False


class Pictures(msgspec.Struct, frozen=True):
    """A digest of the images of the first rows (`read.images`)."""

    rows: _Rows
    digest: str


class Epoch(msgspec.Struct, kw_only=True):
    """A series of runs with the same input and settings.

    Attributes:
        inputs: The pins of the input files (`read.files.Pin`).
        settings: All that shapes a request besides its row and model.
        runs: IDs of its runs that ended with the input as it was when they began.
        open: IDs of its other runs: one at work, or one that was killed.
        rows: How many rows the input holds; None until they are counted.
        accepts: Earlier settings whose answers still count (`--changed keep`).
        gives_up: Earlier settings whose answers no longer count (`--changed resend`).
        gave_up: The --limit that this was decided under (0 for a draw); None for all rows.
        pictures: Of the rows that were counted; None when they name no images.
    """

    inputs: list[dict[str, Any]]
    settings: dict[str, Any]
    started: str
    runs: list[str] = msgspec.field(default_factory=list)
    open: list[str] = msgspec.field(default_factory=list)
    rows: _Rows | None = None
    accepts: list[dict[str, Any]] = msgspec.field(default_factory=list)
    gives_up: list[dict[str, Any]] = msgspec.field(default_factory=list)
    gave_up: _Number | None = None
    pictures: Pictures | None = None

    def count(self, rows: int, inputs: list[dict[str, Any]]) -> None:
        """Sets how many rows the input holds, and its pins as of that reading."""
        self.rows, self.inputs = rows, inputs

    def set_pictures(self, pictures: Pictures) -> None:
        """Sets what the pictures of the rows were known by."""
        self.pictures = pictures


class Manifest(msgspec.Struct, kw_only=True):
    """All epochs of one output, the present one last; `asked` is of the last run.

    Attributes:
        uploaded: Address that the output is uploaded to; "" for none.
        missing: Numbers of segments that are gone, and that the user heard of.
        last: Number of the last segment when a run last began or ended.
        shared: (first, last) of numbers that several processes share, so that some are no segment's; a last
            of 0 is not known yet.
        seen: Numbers of the segments in `shared` when a run last began or ended.
        manners: How models take requests (`Dialect`), by "ADDRESS MODEL".
        strange: IDs of runs that no epoch names but lines do, and that the user heard of.
        edited: Whether the file was changed by hand; nothing in it counts then.
    """

    version: _Positive = _VERSION
    output: _Name
    uploaded: str = ""
    asked: Asked = Asked()
    epochs: list[Epoch] = msgspec.field(default_factory=list)
    missing: list[int] = msgspec.field(default_factory=list)
    last: _Number = 0
    shared: list[tuple[_Number, _Number]] = msgspec.field(default_factory=list)
    seen: list[int] = msgspec.field(default_factory=list)
    manners: dict[str, Dialect] = msgspec.field(default_factory=dict)
    strange: list[str] = msgspec.field(default_factory=list)
    edited: bool = False

    def gone(self, numbers: Sequence[int]) -> list[int]:
        """Segments that existed and are not among these, without those that the user heard of."""
        known = {*numbers, *self.missing}
        found = [number for number in self.seen if number not in known]
        begin = 1
        for first, last in [*self.shared, (self.last + 1, 0)]:
            found += [number for number in range(begin, first) if number not in known]
            begin = (last or self.last) + 1
        return sorted(found)

    def set_batch(self, batch: bool) -> None:
        """Sets whether the output holds lines of a batch."""
        self.asked = msgspec.structs.replace(self.asked, batch=batch)

    def share_numbers(self) -> None:
        """Notes that several processes take segment numbers from here on."""
        self.shared.append((self.last + 1, 0))

    def dialects_at(self, address: str) -> dict[str, Dialect]:
        """How models took requests at an address, by model."""
        start = f"{address} "
        return {
            name.removeprefix(start): dialect
            for name, dialect in self.manners.items()
            if name.startswith(start)
        }

    def set_dialects(self, address: str, dialects: Mapping[str, Dialect]) -> None:
        """Sets how models take requests at an address."""
        self.manners |= {f"{address} {model}": dialect for model, dialect in dialects.items()}

    def saw(self, numbers: Sequence[int]) -> None:
        """Notes which segments exist."""
        self.last = max(numbers, default=0)
        self.shared = [(first, last or max(first, self.last)) for first, last in self.shared]
        self.seen = [
            number
            for number in numbers
            if any(first <= number <= last for first, last in self.shared)
        ]

    def begin(self) -> str:
        """Begins a run of the present epoch; returns its ID."""
        run = secrets.token_hex(6)
        self.epochs[-1].open.append(run)
        return run

    def end(self, run: str, *, wrote: bool) -> None:
        """Notes that a run ended with the input as it was when it began.

        Args:
            run: Its ID.
            wrote: Whether anything names it; if not, it is forgotten, or the list would grow with each start.
        """
        epoch = self.epochs[-1]
        epoch.runs += [other for other in epoch.open if wrote or other != run]
        epoch.open = []

    @property
    def runs(self) -> set[str]:
        """IDs of all runs of the present epoch."""
        return {run for epoch in self.epochs[-1:] for run in (*epoch.runs, *epoch.open)}

    @classmethod
    def load(cls, folder: Path) -> Manifest | None:
        """The manifest in a run folder; None when there is none.

        Raises:
            JobError: It cannot be read, or a newer version wrote it.
        """
        path = folder / RUN
        try:
            content = folders.read(folder, RUN)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise JobError(f"{path}: it cannot be read: {error.strerror}.") from None
        sealed = _SEALED.fullmatch(content)
        try:
            manifest = msgspec.json.decode(content, type=cls)
            manifest.check()
        except ValueError as error:
            raise JobError(
                f"{path}: it is damaged ({error}); restore it, or remove it: answers are then "
                "found by what was sent, and the settings that they were given under are not compared."
            ) from None
        if manifest.version > _VERSION:
            raise JobError(f"{path}: a newer batcher wrote it; use that one, or another --output.")
        # The first version had no seal.
        if manifest.version > 1 if sealed is None else _seal(sealed[1]) != sealed[2]:
            return cls(output=manifest.output, edited=True)
        manifest.version = _VERSION
        return manifest

    def check(self) -> None:
        """Checks what the types of this class do not.

        Raises:
            ValueError: No run can have written this.
        """
        for epoch in self.epochs:
            msgspec.convert(epoch.inputs, list[_PinShape])
            for settings in (epoch.settings, *epoch.accepts, *epoch.gives_up):
                msgspec.convert(settings, _SettingsShape)

    def save(self, folder: Path) -> None:
        """Replaces `run.json`, synced."""
        self.edited = False
        body = msgspec.json.format(msgspec.json.encode(self), indent=1).removesuffix(b"\n}")
        content = b'%b,\n "check": "%b"\n}' % (body, _seal(body))
        atomic.replace(folder, RUN, content, sync=True)


def _seal(body: bytes) -> bytes:
    """A checksum, by which `load` knows that the file was edited or cut."""
    return blake2b(body, digest_size=8).hexdigest().encode()


def now() -> str:
    """The time in UTC, as a manifest holds it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
