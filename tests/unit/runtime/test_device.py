"""Precisions by name."""

import pytest
import torch

from sfumato.errors import InvalidInput
from sfumato.runtime.device import precision_named


def test_precisions_have_names_and_others_are_refused() -> None:
    assert precision_named("bfloat16") is torch.bfloat16
    with pytest.raises(InvalidInput, match="'int4' is not a precision. Known: float32"):
        precision_named("int4")
