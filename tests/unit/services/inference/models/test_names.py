"""What may stand in a request's ``model``."""

from __future__ import annotations

import pytest

from services.inference.models.names import ModelReference, read_name
from sfumato.errors import InvalidInput, NotFound


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("", ModelReference()),
        ("vista", ModelReference()),
        ("vista@production", ModelReference(alias="production")),
        ("3fa94c", ModelReference(version="3fa94c")),
        ("vista+style-x:0.6", ModelReference(extras=(("style-x", 0.6),))),
        ("+style-x", ModelReference(extras=(("style-x", 1.0),))),
        ("vista@canary+style-x:-4+3fa94c00:1e-3", ModelReference(alias="canary", extras=(("style-x", -4.0), ("3fa94c00", 0.001)))),
    ],
)
def test_a_name_says_alias_or_version_and_adapters(text: str, asked: ModelReference) -> None:
    assert read_name(text, "vista") == asked


def test_a_base_may_have_slashes_in_its_name() -> None:
    assert read_name("owner/FLUX.1-dev@canary+x1:2", "owner/FLUX.1-dev") == ModelReference(alias="canary", extras=(("x1", 2.0),))


NOBODY = ["dall-e-3", "vista@", "vista@A", "vista@production@canary", "vista+", "vista++x", "3FA94C", "x" * 500, "vista@\0"]


@pytest.mark.parametrize("text", NOBODY)
def test_what_names_no_model_is_not_found(text: str) -> None:
    with pytest.raises(NotFound, match="No (model|adapter) is called"):
        read_name(text, "vista")


@pytest.mark.parametrize("text", ["vista+x:", "vista+x:nan", "vista+x:inf", "vista+x:4.1", "vista+x:0.6:1", "vista" + "+x" * 9])
def test_a_weight_out_of_range_or_too_many_adapters_name_the_field(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_name(text, "vista")
    assert refused.value.field == "model"
