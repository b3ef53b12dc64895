"""Every error the package raises. Touches: nothing.

    BatcherError
    ├─ JobError       what was asked cannot be done; nothing was sent    exit 2
    ├─ OutputError    results cannot be written                          exit 1
    ├─ RunStopped     budget, deadline or breaker; can be resumed        exit 4
    └─ RequestError   one request failed; becomes a Result, never ends a run
       ├─ NoAnswer      the connection failed, or the time was up
       ├─ RateLimited   429 and its relatives: too fast, not too poor
       ├─ OutOfQuota    the money or the allowance of the account is used up
       ├─ ServerError   5xx: the other side's fault
       ├─ BadResponse   a 200 that is not an answer (HTML, cut JSON, an error object, no choice)
       ├─ AskAgain      answered, but not with what was asked for: the model is asked again
       ├─ BadRequest    400 and its relatives: the request itself, also filters and context length
       ├─ NotFound      no such model, or no such address
       └─ NotAllowed    401 and 403: the key

Errors carry facts; `send.retry` alone draws conclusions, by type.
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
"""`error_type` of a key whose account is suspended: nothing will be answered any more."""


class BatcherError(Exception):
    """Whatever ends a run or a request on purpose. Its text is one sentence for the user."""

    exit_status = 1


class JobError(BatcherError):
    """What was asked cannot be done as asked; nothing was sent."""

    exit_status = 2


class OutputError(BatcherError):
    """Results cannot be written."""

    exit_status = 1


class IncompleteOutput(OutputError):
    """Answers that the output needs cannot be read or matched to rows; the output stays as it was."""


class RunStopped(BatcherError):
    """The run ended before every request was answered, and the same command continues it.

    Attributes:
        instead: Flags that this command needs with another value, or (None) must do without.
    """

    exit_status = 4

    def __init__(self, message: str, instead: Mapping[str, str | None] | None = None) -> None:
        super().__init__(message)
        self.instead = instead or {}


class RequestError(BatcherError):
    """One request failed; becomes a Result, never ends a run.

    Attributes:
        outcome: What the row's `status` will be if it is not sent again.
        status: HTTP status, None when there was no HTTP answer.
        retry_after: Seconds the server asked to wait; None when it named no time.
        request_id: The server's own name for the request.
        error_type: The server's own word for the error (`code`, else `type`).
        about: Of a rate limit: "requests" or "tokens"; None when the server does not say.
        usage: What the server says it used all the same.
        sent: Whether any of it may have reached the server.
        lasting: Whether it will be so until somebody changes something.
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
    """The connection failed (`connection`), or the time was up (`timeout`)."""

    outcome = Outcome.CONNECTION


class RateLimited(RequestError):
    """Too many requests or tokens for now."""

    outcome = Outcome.RATE_LIMITED


class OutOfQuota(RequestError):
    """Balance, spending limit or plan is used up; waiting a minute does not help."""

    outcome = Outcome.QUOTA


class ServerError(RequestError):
    """5xx and 408: the other side failed or is overloaded."""

    outcome = Outcome.SERVER_ERROR


class BadResponse(RequestError):
    """HTTP 200, but not an answer."""

    outcome = Outcome.BAD_RESPONSE


class AskAgain(RequestError):
    """Not what was asked for, and there is another way to ask; never a row's last word."""

    outcome = Outcome.INVALID


class BadRequest(RequestError):
    """The request itself is at fault: `bad_request`, `context_length` or `filtered`."""

    outcome = Outcome.BAD_REQUEST


class NotFound(RequestError):
    """The gateway knows no such model, or no such address."""

    outcome = Outcome.NOT_FOUND


class NotAllowed(RequestError):
    """The key is missing, wrong, or may not use this model."""

    outcome = Outcome.AUTH
