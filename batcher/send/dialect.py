"""How a request is asked: in which form, for how many tokens, after which wrong answer. Touches: nothing.

A request is known by its first body; whatever a refusal or an answer changes here never changes that.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from batcher.errors import RequestError
from batcher.records import BOUNDS, Completion, Outcome, Request, Result, Usage
from batcher.send import sse
from batcher.send.answers import Expected, Form, Unfit
from batcher.send.failures import refuses_bound_name, refuses_form, refuses_stream_usage

__all__ = [
    "NO_REPAIR",
    "STOPPED",
    "AnswerPolicy",
    "ModelDialect",
    "RepairState",
    "RequestDialect",
]

_encode, _decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode
_FORMS: tuple[Form, ...] = ("json_schema", "json_object", "prompt")
_NEXT_FORM: dict[Form, Form] = {"json_schema": "json_object", "json_object": "prompt"}
_FORM_STATUSES = (400, 404, 422, 501)
_MAX_REFUSALS = 3
_MAX_REASKED = 1 << 16  # Characters of an answer that is sent back: it is paid for as input.

STOPPED = "; asked again: the run was stopped"
"""Ends the error of an invalid answer that was not sent back before the run stopped."""


class RequestDialect(NamedTuple):
    """How a model takes requests.

    Attributes:
        form: How requests say what answers must be.
        renamed_bound: Whether it takes the bound of an answer's tokens by the other name only.
        without_usage: Whether it refuses to be asked for the usage of a stream.
    """

    form: Form = "json_schema"
    renamed_bound: bool = False
    without_usage: bool = False


class RepairState(NamedTuple):
    """How one request is asked next, by what it got so far.

    Attributes:
        answer: The last answer that was not usable; it was paid for.
        max_tokens: The bound of the next answer; None for the request's own.
        reasked: How often an answer was sent back.
        form: The form of this row; None for the model's.
        doubt: The error of a refusal that may be about the form.
    """

    answer: Completion | None = None
    max_tokens: int | None = None
    reasked: int = 0
    form: Form | None = None
    doubt: str | None = None

    def for_other_model(self) -> RepairState:
        """The state for a model that was not asked yet, with as many repairs left."""
        return RepairState(max_tokens=self.max_tokens, reasked=self.reasked)


NO_REPAIR = RepairState()


class ModelDialect:
    """How one model takes requests, found by what it refuses.

    The form is given up for all rows only after a refusal that names it, or when a row passes without
    it that was refused with it. Any other refusal concerns its own row only.

    Args:
        earlier: What it took in an earlier run.

    Attributes:
        current: How to ask now.
        proven: Whether a request in this form was answered.
        sends_finish_reason: Whether its streams end with a `finish_reason`; one without is then cut.
        given_up: The error for which its first form was given up; "" while it is not.
    """

    def __init__(self, earlier: RequestDialect | None = None) -> None:
        self.current = earlier or RequestDialect()
        self.proven = earlier is not None
        self.sends_finish_reason = False
        self.given_up = ""
        self._refusals = 0  # Of the form, since the last answer in it.

    def refused(self, form: Form, error: str) -> Form | None:
        """Notes a refusal of a form.

        Behind a gateway, some servers may take a form and some not: a form that was answered before is
        given up after several refusals in a row.

        Returns:
            The next form for this row alone; None when it is now that of all rows.
        """
        if form == self.current.form:
            self._refusals += 1
            if self.proven and self._refusals < _MAX_REFUSALS:
                return _NEXT_FORM[form]
            self._give_up(_NEXT_FORM[form], error)
        return None

    def answered(self, sent: RequestDialect, repair: RepairState) -> None:
        """Notes an answer to a request that was sent so."""
        if sent.form == self.current.form:
            self._refusals = 0
        elif repair.doubt is not None and not self.proven:
            self._give_up(sent.form, repair.doubt)
        self.proven = True

    def rename_bound(self) -> None:
        """From now on the bound of an answer's tokens goes by its other name."""
        self.current = self.current._replace(renamed_bound=True)

    def drop_usage(self) -> None:
        """From now on streams are not asked for their usage."""
        self.current = self.current._replace(without_usage=True)

    def observe_finish_reason(self) -> None:
        """A stream ended with a `finish_reason`."""
        self.sends_finish_reason = True

    def _give_up(self, form: Form, error: str) -> None:
        self.current = self.current._replace(form=form)
        self.proven, self._refusals = False, 0
        self.given_up = self.given_up or error


class AnswerPolicy:
    """What a job wants of every answer.

    Args:
        expected: What answers must be; None for any text.
        reask: How often an invalid answer is sent back.
        grow_max_tokens: The bound up to which truncated answers are asked for again; None for never.
        streams: Whether answers come as streams.
    """

    def __init__(
        self,
        expected: Expected | None,
        reask: int = 0,
        grow_max_tokens: int | None = None,
        *,
        streams: bool = False,
    ) -> None:
        self._expected = expected
        self._streams = streams
        self._reask = reask
        self._grow_max_tokens = grow_max_tokens

    def body(self, request: Request, dialect: RequestDialect, repair: RepairState) -> bytes:
        """The bytes to send."""
        body = self._body(request, dialect, repair)
        return sse.asked(body, bare=dialect.without_usage) if self._streams else body

    def _body(self, request: Request, dialect: RequestDialect, repair: RepairState) -> bytes:
        form, renamed, _without_usage = dialect
        invalid = repair.answer is not None and repair.answer.outcome is Outcome.INVALID
        # A row's own body may say that it wants no stream.
        changed = invalid or repair.max_tokens or renamed
        changed = changed or (self._streams and b'"stream' in request.body)
        if (self._expected is None or form == "json_schema") and not changed:
            return request.body
        body = _decode(request.body)
        if self._expected is not None:
            body = self._expected.in_form(body, form)
            if invalid and repair.answer is not None:
                content = repair.answer.content or ""
                body = self._expected.corrected(body, content, repair.answer.unfit or "")
        if repair.max_tokens is not None:
            names = [name for name in BOUNDS if body.get(name) is not None]
            body.update(dict.fromkeys(names, repair.max_tokens))
        if renamed:
            new, old = BOUNDS
            body = {{new: old, old: new}.get(name, name): value for name, value in body.items()}
        if self._streams:
            body.pop("stream", None)
            body.pop("stream_options", None)
        return _encode(body)

    def validate(self, completion: Completion) -> Completion:
        """The completion with what its content says, or `invalid` with the reason."""
        if self._expected is None or completion.outcome is not Outcome.OK:
            return completion
        try:
            found = self._expected.check(completion.content)
            parsed = _encode(found.value).decode()
        except (ValueError, RecursionError) as error:  # Unfit, or a value that JSON cannot hold.
            why = str(error) if isinstance(error, Unfit) else f"it cannot be kept ({error})"
            why = why.encode("utf-8", "replace").decode()
            return msgspec.structs.replace(completion, outcome=Outcome.INVALID, unfit=why)
        sure = self._expected.confidences(found, completion.logprobs)
        confidences = _encode(sure).decode() if sure else None
        return msgspec.structs.replace(
            completion, parsed=parsed, loose=found.loose, confidences=confidences
        )

    def next_repair(
        self, completion: Completion, request: Request, repair: RepairState
    ) -> RepairState | None:
        """How to ask for a better answer; None when this one stays."""
        if completion.outcome is Outcome.INVALID:
            short = len(completion.content or "") <= _MAX_REASKED
            if repair.reasked < self._reask and short:
                return repair._replace(answer=completion, reasked=repair.reasked + 1)
        elif completion.outcome is Outcome.TRUNCATED and self._grow_max_tokens is not None:
            bound = repair.max_tokens or request.max_tokens
            if bound is not None and bound < self._grow_max_tokens:
                grown = min(self._grow_max_tokens, 2 * bound)
                return repair._replace(answer=completion, max_tokens=grown)
        return None

    def resume(self, stopped: Result, request: Request) -> RepairState | None:
        """How to go on with a request whose run stopped before it was asked again; None for anew.

        Its tokens and cost stand in the journal, and are not counted once more.
        """
        if stopped.status not in (Outcome.INVALID, Outcome.TRUNCATED):
            return None
        outcomes = [t.status for t in stopped.tries or ()] or [stopped.status]
        max_tokens = None
        if (truncated := outcomes.count(Outcome.TRUNCATED)) and request.max_tokens is not None:
            most = self._grow_max_tokens or request.max_tokens
            max_tokens = min(most, request.max_tokens << truncated)
        answer = Completion(
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
        return RepairState(answer, max_tokens, outcomes.count(Outcome.INVALID))

    def adapt(
        self,
        error: RequestError,
        request: Request,
        sent: RequestDialect,
        model: ModelDialect,
        repair: RepairState,
    ) -> RepairState | None:
        """How to ask after a refusal that may be about how the request was sent; None when it is not.

        What the refusal says of the model is noted in `model`.
        """
        if not sent.renamed_bound and refuses_bound_name(error, request.body):
            model.rename_bound()
        elif (
            self._streams and not sent.without_usage and refuses_stream_usage(error, request.body)
        ):
            model.drop_usage()
        elif self._expected is None or sent.form == "prompt" or error.status not in _FORM_STATUSES:
            return None
        elif refuses_form(error, request.body):
            return repair._replace(form=model.refused(sent.form, str(error)))
        elif error.outcome is not Outcome.BAD_REQUEST:
            return None
        elif _FORMS.index(sent.form) < _FORMS.index(model.current.form):
            # Another row gave the form up while this one was in flight.
            return repair._replace(form=None)
        elif repair.form is not None or not model.proven:
            # Some servers say no more than "bad request": this row shows whether it is for the form.
            doubt = repair.doubt or str(error)
            return repair._replace(form=_NEXT_FORM[sent.form], doubt=doubt)
        else:
            return None
        return repair
