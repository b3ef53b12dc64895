"""How a request is asked: in which form, after which wrong answer, for how many tokens.

Touches: nothing. A request is known by its first body; what is said here later never changes that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from batcher.errors import RequestError
from batcher.records import BOUNDS, Completion, Outcome, Request, Result, Usage
from batcher.send import sse
from batcher.send.answers import Expected, Form, Unfit
from batcher.send.failures import echoed

__all__ = ["STOPPED", "AnswerPolicy", "ModelDialect", "RepairState", "RequestDialect"]

_encode, _decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode
_NEXT: dict[Form, Form] = {"json_schema": "json_object", "json_object": "prompt"}
_ABOUT = (
    "response_format",
    "json_schema",
    "json_object",
    "structured output",
    "guided_",
    "requested parameters",
)
_REFUSALS = 3
_MOST_REASKED = 1 << 16  # Characters of an answer that is sent back: it is paid for as input.


STOPPED = "; asked again: the run was stopped"
"""What is said behind the fault of an answer that was not sent back yet."""

_NAMES = tuple(name.encode() for name in BOUNDS)
# What is said of a name, and not of a number ("max_tokens is too large").
_OF_NAME = re.compile(
    r"unsupported.parameter|unrecogni[sz]ed|unknown|unexpected|extra|forbidden|not permitted"
    r"|not supported|not allowed|instead"
)


class RequestDialect(NamedTuple):
    """How a request is put to a model.

    Attributes:
        form: What its answers must be is told in this form.
        renamed: Whether it takes the bound of an answer's tokens by the other name only.
        bare: Whether it cannot be asked for the usage of a stream.
    """

    form: Form = "json_schema"
    renamed: bool = False
    bare: bool = False


class ModelDialect:
    """The manner in which a model takes requests; found by what it refuses.

    A form is given up for all rows only by a refusal that speaks of it, or when a row passes without it
    that was refused with it. Whatever else a row is refused for is its own affair.

    Args:
        before: What it took in an earlier run.

    Attributes:
        now: The manner.
        proven: Whether a request in its form was answered.
        reasons: Whether its streams tell why they ended; then one that does not was cut.
        why: What was said when its first form was given up; "" while it is not.
    """

    def __init__(self, before: RequestDialect | None = None) -> None:
        self.now = before or RequestDialect()
        self.proven = before is not None
        self.reasons = False
        self.why = ""
        self._refusals = 0  # For the form, since the last answer in it.

    def refused(self, form: Form, why: str) -> Form | None:
        """A request in this form was refused for it. The form for this row alone; None for all rows'.

        Gateways with several servers behind them may have one that takes it and one that does not: where
        it was answered before, several refusals in a row are needed.
        """
        if form == self.now.form:
            self._refusals += 1
            if self.proven and self._refusals < _REFUSALS:
                return _NEXT[form]
            self._give_up(_NEXT[form], why)
        return None

    def answered(self, sent: RequestDialect, talk: RepairState) -> None:
        """A request in this manner was answered."""
        if sent.form == self.now.form:
            self._refusals = 0
        elif talk.doubt is not None and not self.proven:
            self._give_up(sent.form, talk.doubt)
        self.proven = True

    def _give_up(self, form: Form, why: str) -> None:
        self.now = self.now._replace(form=form)
        self.proven, self._refusals = False, 0
        self.why = self.why or why


class RepairState:
    """What was said about one request so far.

    Attributes:
        answer: The last answer that was not what was asked for; it was paid for.
        max_tokens: The bound of the next answer, when it is not the request's own.
        reasked: How often an answer was sent back.
        form: The form that this row is asked in, when it is not the model's.
        doubt: What a refusal said that may be one of the form.
    """

    __slots__ = ("answer", "doubt", "form", "max_tokens", "reasked")

    def __init__(self) -> None:
        self.answer: Completion | None = None
        self.form: Form | None = None
        self.doubt: str | None = None
        self.max_tokens: int | None = None
        self.reasked = 0

    def elsewhere(self) -> RepairState:
        """The same for another model, which has not said anything yet but has as many tries left."""
        talk = RepairState()
        talk.max_tokens, talk.reasked = self.max_tokens, self.reasked
        return talk


class AnswerPolicy:
    """What a job wants of every answer.

    Args:
        expected: What answers must be; None when that is free.
        reask: How often one that is not is sent back.
        most_tokens: Up to which bound what was truncated is sent again; None for never.
        streams: Whether answers are to come as streams.
    """

    def __init__(
        self,
        expected: Expected | None,
        reask: int = 0,
        most_tokens: int | None = None,
        *,
        streams: bool = False,
    ) -> None:
        self._expected = expected
        self._streams = streams
        self._reask = reask
        self._most_tokens = most_tokens

    def body(self, request: Request, manner: RequestDialect, talk: RepairState) -> bytes:
        """The bytes to send now."""
        body = self._body(request, manner, talk)
        return sse.asked(body, bare=manner.bare) if self._streams else body

    def _body(self, request: Request, manner: RequestDialect, talk: RepairState) -> bytes:
        form, renamed, _bare = manner
        wrong = talk.answer is not None and talk.answer.outcome is Outcome.INVALID
        # A row's own body may say that it wants no stream.
        other = (
            wrong or talk.max_tokens or renamed or (self._streams and b'"stream' in request.body)
        )
        if (self._expected is None or form == "json_schema") and not other:
            return request.body
        body = _decode(request.body)
        if self._expected is not None:
            body = self._expected.told(body, form)
            if wrong and talk.answer is not None:
                said = talk.answer.content or ""
                body = self._expected.asked_again(body, said, talk.answer.unfit or "")
        if talk.max_tokens is not None:
            told = [name for name in BOUNDS if body.get(name) is not None]
            body.update(dict.fromkeys(told, talk.max_tokens))
        if renamed:
            new, old = BOUNDS
            body = {{new: old, old: new}.get(name, name): value for name, value in body.items()}
        if self._streams:
            body.pop("stream", None)
            body.pop("stream_options", None)
        return _encode(body)

    def judged(self, completion: Completion) -> Completion:
        """The completion with what was found in it, or `invalid` with the reason."""
        if self._expected is None or completion.outcome is not Outcome.OK:
            return completion
        try:
            found = self._expected.check(completion.content)
            parsed = _encode(found.value).decode()
        except (ValueError, RecursionError) as error:  # Unfit, or nothing that can be kept.
            why = str(error) if isinstance(error, Unfit) else f"it cannot be kept ({error})"
            why = why.encode("utf-8", "replace").decode()
            return msgspec.structs.replace(completion, outcome=Outcome.INVALID, unfit=why)
        sure = self._expected.confidences(found, completion.logprobs)
        told = _encode(sure).decode() if sure else None
        return msgspec.structs.replace(
            completion, parsed=parsed, loose=found.loose, confidences=told
        )

    def goes_on(self, completion: Completion, request: Request, talk: RepairState) -> bool:
        """Whether an answer is to be asked for once more; notes how."""
        short = len(completion.content or "") <= _MOST_REASKED
        if completion.outcome is Outcome.INVALID and talk.reasked < self._reask and short:
            talk.answer, talk.reasked = completion, talk.reasked + 1
            return True
        bound = talk.max_tokens or request.max_tokens
        if (
            completion.outcome is Outcome.TRUNCATED
            and self._most_tokens is not None
            and bound is not None
            and bound < self._most_tokens
        ):
            talk.answer, talk.max_tokens = completion, min(self._most_tokens, 2 * bound)
            return True
        return False

    def talk_of(self, stopped: Result, request: Request) -> RepairState | None:
        """What was said about a request when the run was stopped before it was asked again.

        Its tokens and cost stand in the journal, and are not counted once more.
        """
        if stopped.status not in (Outcome.INVALID, Outcome.TRUNCATED):
            return None
        talk = RepairState()
        outcomes = [t.status for t in stopped.tries or ()] or [stopped.status]
        talk.reasked = outcomes.count(Outcome.INVALID)
        if (truncated := outcomes.count(Outcome.TRUNCATED)) and request.max_tokens is not None:
            most = self._most_tokens or request.max_tokens
            talk.max_tokens = min(most, request.max_tokens << truncated)
        talk.answer = Completion(
            outcome=stopped.status,
            content=stopped.content,
            finish_reason=stopped.finish_reason,
            refusal=stopped.refusal,
            tool_calls=stopped.tool_calls,
            logprobs=stopped.logprobs,
            usage=Usage(),
            response_model=stopped.response_model,
            request_id=stopped.request_id,
            response=stopped.response,
            unfit=(stopped.error or "").removesuffix(STOPPED) or None,
        )
        return talk

    def put_otherwise(
        self,
        error: RequestError,
        request: Request,
        sent: RequestDialect,
        forms: ModelDialect,
        talk: RepairState,
    ) -> bool:
        """Whether a refusal may be about the manner of the request, and there is another one; notes it."""
        if not sent.renamed and _is_of_bound(error, request):
            forms.now = forms.now._replace(renamed=True)
        elif self._streams and not sent.bare and _is_of_usage(error, request):
            forms.now = forms.now._replace(bare=True)
        elif self._expected is None or sent.form == "prompt" or error.status not in _OF_THE_FORM:
            return False
        elif _says(error, _ABOUT, request):
            talk.form = forms.refused(sent.form, str(error))
        elif error.outcome is not Outcome.BAD_REQUEST:
            return False
        elif _ORDER.index(sent.form) < _ORDER.index(forms.now.form):
            talk.form = None  # Another row found that out while this one was on its way.
        elif talk.form is not None or not forms.proven:
            # Some servers say no more than "bad request": this row shows whether it is for the form.
            talk.form = _NEXT[sent.form]
            talk.doubt = talk.doubt or str(error)
        else:
            return False
        return True


_OF_THE_FORM = (400, 404, 422, 501)
_ORDER: tuple[Form, ...] = ("json_schema", "json_object", "prompt")


def _says(error: RequestError, names: Iterable[str], request: Request) -> bool:
    """Whether a refusal speaks of one of these by itself, and does not repeat it from the row's text."""
    words = f"{error.error_type} {error}".lower()
    return any(
        at >= 0 and not echoed(words, at, at + len(name), request.body)
        for name in names
        for at in (words.find(name),)
    )


def _is_of_bound(error: RequestError, request: Request) -> bool:
    """Whether a refusal is about the name of the bound, so that the other name may do.

    OpenAI's newer models take `max_completion_tokens` alone, many servers `max_tokens` alone.
    """
    if error.status not in (400, 422) or sum(b'"%b":' % n in request.body for n in _NAMES) != 1:
        return False
    words = f"{error} {error.error_type}".lower()
    return _says(error, BOUNDS, request) and _OF_NAME.search(words) is not None


def _is_of_usage(error: RequestError, request: Request) -> bool:
    return error.status in (400, 422) and _says(error, ("stream_options",), request)
