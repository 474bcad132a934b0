"""What can go wrong, and how it is said.

Two families, never mixed:

* :class:`UserError`: the run cannot go on. It says what is wrong, where, and what to do; the command line prints it
  without a traceback and exits with a non-zero status.
* :class:`Rejected`: one record cannot be converted. It carries a reason code; the record goes to quarantine and its
  neighbours are untouched.
"""

from __future__ import annotations

from enum import StrEnum


class UserError(Exception):
    """The run cannot go on. The message names the file and record, or the option, and the remedy."""


class Reason(StrEnum):
    """Why a record went to quarantine (DESIGN §7). Stored in quarantine lines and in the manifest."""

    # the container
    CORRUPT_FILE = "corrupt_file"  # decompression or array structure breaks: the rest of the file is one record
    TOO_LARGE = "too_large"  # the raw record is larger than read.max_record_bytes
    # the record
    INVALID_JSON = "invalid_json"
    INVALID_UNICODE = "invalid_unicode"
    TOO_DEEP = "too_deep"  # nested deeper than any JSON parser should follow
    UNKNOWN_FORMAT = "unknown_format"  # no format recognises the record
    # the conversation
    NO_MESSAGES = "no_messages"
    UNKNOWN_ROLE = "unknown_role"
    UNSUPPORTED_CONTENT = "unsupported_content"  # an image, audio, or something that is not text
    RESULT_WITHOUT_CALL = "result_without_call"
    NO_OUTPUT = "no_output"  # nothing in it was written by a model
    # the grid
    NO_STREAM_FOR_ROLE = "no_stream_for_role"
    NOT_REVERSIBLE = "not_reversible"  # the tokenizer does not give this text back
    TOO_LONG = "too_long"  # more rows than max_rows
    PLAN_INVALID = "plan_invalid"  # a plan given with --plans does not fit the conversation
    # the teacher
    TEACHER_REFUSED = "teacher_refused"  # the engine will not answer: the prompt is too long for it, a filter, …
    TEACHER_TRUNCATED = "teacher_truncated"  # every answer ended before its end
    TEACHER_INVALID = "teacher_invalid"  # no answer was valid
    CAUSALITY = "causality"  # a prompt held, or a plan rests on, text that cannot be known (or read) at that place


class Rejected(Exception):
    """One record cannot be converted; it goes to quarantine with ``reason`` and ``message``.

    ``answers``: what a teacher said, where that is the reason; raw.
    """

    def __init__(self, reason: Reason, message: str, answers: tuple[str, ...] = ()) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.answers = answers
