"""Every error the package raises. Touches: nothing.

    BatcherError
    ├─ JobError             the job cannot be done as asked; nothing was sent    exit 2
    ├─ OutputError          results cannot be written                            exit 1
    │  └─ IncompleteOutput    the journal lacks answers of the output
    ├─ RunStopped           budget, deadline or breaker; can be resumed          exit 4
    └─ RequestError         one request failed; becomes a Result, never ends a run
       ├─ NoAnswer            the connection failed, or timed out
       ├─ RateLimited         429 and the like: too many requests for now
       ├─ OutOfQuota          the account has no money or quota left
       ├─ ServerError         5xx: the server's fault
       ├─ BadResponse         a 200 that is not an answer (HTML, cut JSON, an error object, no choice)
       ├─ AskAgain            an answer, but not what was asked for: the model is asked again
       ├─ BadRequest          400 and the like: the request itself, also filters and context length
       ├─ NotFound            no such model, or no such address
       └─ NotAllowed          401 and 403: the key

Errors carry facts; `send.retry` alone draws conclusions from them, by type.
"""

from __future__ import annotations

from collections.abc import Mapping

from batcher.records import Outcome, Usage

__all__ = [
    "SUSPENDED",
    "AskAgain",
    "BadRequest",
    "BadResponse",
    "BatcherError",
    "IncompleteOutput",
    "JobError",
    "NoAnswer",
    "NotAllowed",
    "NotFound",
    "OutOfQuota",
    "OutputError",
    "RateLimited",
    "RequestError",
    "RunStopped",
    "ServerError",
]

SUSPENDED = "account_suspended"
"""`error_type` of an account that is suspended: it gets no more answers."""


class BatcherError(Exception):
    """An error with a message for the user.

    Attributes:
        exit_status: Of the command that it ends.
    """

    exit_status = 1


class JobError(BatcherError):
    """The job cannot be done as asked; nothing was sent."""

    exit_status = 2


class OutputError(BatcherError):
    """Results cannot be written."""

    exit_status = 1


class IncompleteOutput(OutputError):
    """Answers that the output needs cannot be read or matched to rows; the output stays as it was."""


class RunStopped(BatcherError):
    """The run ended before every request was answered; the same command continues it.

    Attributes:
        instead: Flag → the value that it needs to continue; None for a flag to leave out.
    """

    exit_status = 4

    def __init__(self, message: str, instead: Mapping[str, str | None] | None = None) -> None:
        super().__init__(message)
        self.instead = instead or {}


class RequestError(BatcherError):
    """One request failed; becomes a Result, never ends a run.

    Attributes:
        outcome: The row's `status` if the request is not sent again.
        status: HTTP status; None when there was no HTTP response.
        retry_after: Seconds that the server asks to wait; None when it gives none.
        request_id: The server's ID of the request.
        error_type: The server's name of the error (`code`, else `type`).
        about: What a rate limit counts, "requests" or "tokens"; None when the server does not say.
        usage: What the failed request used, where the server reports it.
        sent: Whether the server may have received any of the request.
        lasting: Whether the same request will fail until somebody changes something.
        in_answer: Whether it came with HTTP status 200, so that a model may have worked on it; `status` is
            then the one that the error names.
    """

    outcome = Outcome.BAD_REQUEST
    usage = Usage()
    sent = True
    lasting = False
    in_answer = False

    def __init__(
        self,
        message: str,
        *,
        outcome: Outcome | None = None,
        status: int | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
        error_type: str | None = None,
        about: str | None = None,
    ) -> None:
        super().__init__(message)
        if outcome is not None:
            self.outcome = outcome
        self.status = status
        self.retry_after = retry_after
        self.request_id = request_id
        self.error_type = error_type
        self.about = about


class NoAnswer(RequestError):
    """The connection failed (outcome `connection`), or the request timed out (`timeout`)."""

    outcome = Outcome.CONNECTION


class RateLimited(RequestError):
    """Too many requests or tokens for now."""

    outcome = Outcome.RATE_LIMITED


class OutOfQuota(RequestError):
    """Balance, spending limit or plan is used up; waiting a minute does not help."""

    outcome = Outcome.QUOTA


class ServerError(RequestError):
    """5xx and 408: the server failed or is overloaded."""

    outcome = Outcome.SERVER_ERROR


class BadResponse(RequestError):
    """HTTP 200 with something else than an answer."""

    outcome = Outcome.BAD_RESPONSE


class AskAgain(RequestError):
    """The answer is not what was asked for, and the model can be asked in another way; never ends a row."""

    outcome = Outcome.INVALID


class BadRequest(RequestError):
    """The request itself is at fault: `bad_request`, `context_length` or `filtered`."""

    outcome = Outcome.BAD_REQUEST


class NotFound(RequestError):
    """The server knows no such model, or no such address."""

    outcome = Outcome.NOT_FOUND


class NotAllowed(RequestError):
    """The key is missing, wrong, or may not use this model."""

    outcome = Outcome.AUTH
