"""Text from outside: what looks the same becomes the same, and plain text stays as it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.recipes.artaug import RECIPE
from orchestrator.runs.specs import parsed, submittable, with_prompts
from orchestrator.runs.submission import check_prompts, submission, submission_of_file
from services.grounding.answers import clean, parse_choice, parse_regions
from services.grounding.profiles import profile_named
from services.inference.http.schemas import GenerationRequest
from sfumato.errors import InvalidInput
from sfumato.runtime.settings import Settings
from sfumato.texts import decoded, lines_of, normalised, read_text, same_key

PLAIN = st.text(st.characters(min_codepoint=32, max_codepoint=126))


@given(PLAIN)
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert normalised(text) == text.strip()


@given(st.text(st.characters()))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once = normalised(text)
    assert normalised(once) == once
    once.encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ufeffa moon", "a moon"),
        ("a\u00a0moon\u202f!\u3000", "a moon !"),
        ("a\u200b moon\u2060\u00ad", "a moon"),
        ("\u202aa moon\u202c\u200e", "a moon"),
        ("caf\u0065\u0301", "caf\u00e9"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("a\x00b\x1fc\x85d\u2028e", "a b c d e"),
        ("a\tb  c", "a\tb  c"),
        ("\U0001f469\u200d\U0001f3a8", "\U0001f469\u200d\U0001f3a8"),  # a painter: one sign of two with a joiner
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("x\ud800", "x\ufffd"),
        (" \ufeff\u200b ", ""),
    ],
)
def test_what_looks_the_same_becomes_the_same(text: str, expected: str) -> None:
    assert normalised(text) == expected


FORMS = {
    "utf-8": "a moon\na caf\u00e9\n".encode(),
    "with a byte order mark": "\ufeff# a comment\na moon\na caf\u00e9\n".encode(),
    "from Windows": "\ufeffa moon\r\n\r\na caf\u00e9\r\n".encode(),
    "from an old Mac": "a moon\ra caf\u00e9\r".encode(),
    "decomposed": "a moon\na cafe\u0301".encode(),
    "from a web page": "\u200ba\u00a0moon\u200b \n\u2003a caf\u00e9\n\u200b\n".encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_prompts_reads_the_same_in_every_form(form: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(FORMS[form])
    assert list(lines_of(tmp_path / "p.txt", "f")) == ["a moon", "a caf\u00e9"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a moon".encode("utf-16"), "UTF-16.*iconv -f UTF-16"),
        ("a moon".encode("utf-32"), "UTF-32"),
        ("a caf\u00e9\n".encode("latin-1"), "not UTF-8 text.*line 1"),
        (b"a\0moon", "zero bytes"),
    ],
)
def test_other_encodings_are_named(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(data)
    for read in (lambda: list(lines_of(tmp_path / "p.txt", "prompts")), lambda: read_text(tmp_path / "p.txt", "prompts")):
        with pytest.raises(InvalidInput, match=f"prompts: .*p.txt.*{words}"):
            read()
    with pytest.raises(InvalidInput, match="p.txt"):
        read_text(tmp_path / "p.txt" / "x", "prompts")


def test_a_byte_order_mark_belongs_to_no_text() -> None:
    assert decoded("\ufeff{}".encode(), "f", "n") == "{}"
    assert parsed("\ufeffname: x") == {"name": "x"} and parsed('\ufeff{"name": "x"}') == {"name": "x"}
    body = '\ufeff{"prompt": "\ufeffa\u00a0moon"}'.encode()
    assert GenerationRequest.model_validate_json(body.removeprefix("\ufeff".encode())).prompt == "a moon"


SPEC = "name: x\nprompts: {file: p.txt, count: 2, seed: 0}\nevaluate: {file: held.txt, count: 1, seed: 9}\n"


def _spec(folder: Path, train: bytes, held: bytes, spec: str = SPEC) -> Path:
    (folder / "p.txt").write_bytes(train)
    (folder / "held.txt").write_bytes(held)
    (folder / "spec.yaml").write_text(spec, encoding="utf-8-sig", newline="\r\n")
    return folder / "spec.yaml"


@pytest.mark.parametrize("form", sorted(FORMS))
def test_prompts_that_train_and_held_out_sets_share_are_found_in_every_form(form: str, tmp_path: Path) -> None:
    held = {"utf-8": "a  cafe\u0301".encode()}.get(form, "\ufeffa caf\u00e9".encode())
    content, inputs = with_prompts(_spec(tmp_path, FORMS[form], held), anchor=True)
    with pytest.raises(InvalidInput, match="1 of its prompts are in train"):
        check_prompts(content, inputs, RECIPE)


def test_a_run_has_one_id_in_every_form_of_its_files(tmp_path: Path) -> None:
    ids = set()
    for form, data in FORMS.items():
        folder = tmp_path / form.replace(" ", "-")
        folder.mkdir()
        ids.add(submission_of_file(_spec(folder, data, b"a lake"), Settings(runs=tmp_path)).id)
        text, inputs = submittable(folder / "spec.yaml")
        ids.add(submission(text, inputs, Settings(runs=tmp_path)).id)
        lines = re.split("\r\n|\r|\n", data.decode().removeprefix("\ufeff# a comment\n"))
        kept = [line for line in lines if normalised(line)]
        ids.add(submission(text, {"train": kept, "heldout": ["\ufeffa lake"]}, Settings(runs=tmp_path)).id)
    assert len(ids) == 1


def test_a_specs_letters_beyond_the_first_65536_are_read_from_json(tmp_path: Path) -> None:
    spec = json.dumps({"name": "x", "prompts": {"file": "\U0001f319.txt", "count": 1}})
    assert "\\ud83c" in spec
    assert parsed(spec)["prompts"]["file"] == "\U0001f319.txt"
    assert parsed('{"a": "\\\\\\\\ud83c\\\\udf19"}')["a"].startswith("\\")


def test_answers_of_models_are_read_whatever_surrounds_them() -> None:
    profile = profile_named("vista")
    answer = '[{"bbox": [1, 2, 30, 40], "aesthetical description": "a cafe\u0301\u00a0\u200bat night"}]'
    plain = parse_regions(answer, profile, 64, 64)
    assert plain[0].prompt == "a caf\u00e9 at night" == clean("\ufeffa caf\u00e9\r\nat\u2028night")
    assert parse_regions(f"\ufeff\u200b {answer}\r\n", profile, 64, 64) == plain
    assert parse_choice("\ufeff\u00a0Yes.\u200b", ("yes", "no")) == "yes"


def test_texts_compare_by_letters_and_not_by_spaces() -> None:
    assert same_key("a  moon\n") == same_key("\ufeffa\u00a0moon") != same_key("a Moon")
