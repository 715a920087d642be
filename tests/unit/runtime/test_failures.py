"""A failure is the same error after a message."""

import pytest

from sfumato.errors import AnswerRejected, BrokenWeights, Diverged, InvalidInput, MissingWeights, SfumatoError, Unavailable
from sfumato.runtime.failures import LONGEST_MESSAGE, Failure, is_final


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("size", "is odd: 7.", hint="Make it even."),
        MissingWeights("No model.", hint="Give one."),
        BrokenWeights("Damaged."),
        Unavailable("Away.", hint="Wait."),
        Diverged("Not finite."),
        AnswerRejected("No list.", "raw"),
    ],
)
def test_our_errors_survive_a_message(error: SfumatoError) -> None:
    arrived = Failure.model_validate_json(Failure.of(error).model_dump_json()).error()
    assert type(arrived) is type(error)
    assert (str(arrived), arrived.hint) == (str(error), error.hint)
    if isinstance(error, InvalidInput):
        assert isinstance(arrived, InvalidInput) and arrived.field == error.field


def test_an_unforeseen_error_keeps_its_name_and_traceback() -> None:
    try:
        raise ZeroDivisionError("x" * 10 * LONGEST_MESSAGE)
    except ZeroDivisionError as error:
        failure = Failure.of(error)
    assert len(failure.message) == LONGEST_MESSAGE
    assert "test_an_unforeseen_error" in failure.error().__notes__[0]
    assert "ZeroDivisionError" in str(failure.error())


def test_only_temporary_errors_are_tried_again() -> None:
    assert is_final(InvalidInput("size", "is odd."))
    assert is_final(BrokenWeights("Damaged."))
    assert not is_final(Unavailable("Away."))
    assert not is_final(MemoryError())
