"""The picture of a terminal is drawn from the README's transcript, which tests/docs/test_readme.py plays."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from tools.recording import DRAWING, ROOT, WIDE, draw, transcript, wrapped

PAGE = (
    "# A\n\n```sh\nmake\n```\n\n"
    '```console\n$ knock bastion --reason "a & b"\nopen: <bastion>\n$ knock ls\n```\n'
)


def test_the_drawing_is_up_to_date_with_the_readme() -> None:
    assert DRAWING.read_text() == draw((ROOT / "README.md").read_text()), "run python -m tools.recording"


def test_it_is_well_formed_and_says_in_words_what_it_shows() -> None:
    picture = ElementTree.fromstring(draw(PAGE))  # noqa: S314  # our own
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ['$ knock bastion --reason "a & b"', "open: <bastion>", "$ knock ls"]
    assert picture.attrib["aria-label"] == 'A terminal: knock bastion --reason "a & b" Then: knock ls'


def test_a_long_line_goes_on_in_the_next_one() -> None:
    lines = wrapped(["$ " + "word " * 40])
    assert len(lines) == 2
    assert all(len(text) <= WIDE and typed for text, typed in lines)
    (joined,) = [" ".join(" ".join(text for text, _ in lines).split())]
    assert joined == "$ " + " ".join(["word"] * 40)


def test_a_page_without_a_transcript_is_an_error() -> None:
    with pytest.raises(ValueError, match="no console block"):
        transcript("# A\n")
