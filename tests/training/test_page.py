"""The HTML page: complete by itself, harmless whatever the names, readable without pictures."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from d2ls_fast.training.gallery import Gallery
from d2ls_fast.training.metrics import scores_from_matrix
from d2ls_fast.training.page import Page, render

NASTY = "<script>alert(1)</script>"


class Reader(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


@pytest.fixture(scope="module")
def page() -> Page:
    gallery = Gallery(3, [], [0.0], [1.0], 2)
    for number in range(4):
        label = torch.zeros(40, 40, dtype=torch.int64)
        guess = torch.zeros(40, 40, dtype=torch.uint8)
        guess.view(-1)[: 7 * number] = 1
        gallery.add(torch.rand(1, 40, 40), label, guess, f'"><img src=x onerror=alert({number})>')
    return Page(
        title=f"run {NASTY}",
        subtitle=f"of {NASTY}",
        facts={"recipe": NASTY},
        classes=["water & sand", NASTY, "never"],
        palette=[[0, 0, 255], [255, 0, 0], [1, 2, 3]],
        scores=scores_from_matrix([[75, 25, 0], [0, 50, 0], [0, 0, 0]], exclude=[1]),
        curves={"loss": [(1, 2.0), (2, 1.5)], "loss_dice": [(1, 1.0)], "lr": [(1, 1e-3)], "mean_iou": [(2, 0.5)]},
        gallery=gallery,
        settings={"name": NASTY, "data": {"root": "/some/<where>"}},
    )


@pytest.fixture(scope="module")
def read(page: Page) -> Reader:
    return Reader(render(page))


def test_tags_are_balanced_and_nothing_is_loaded_or_run(read: Reader) -> None:
    assert read.open == []
    names = {name for name, _ in read.tags}
    assert not names & {"script", "iframe", "link", "object", "embed", "form"}
    for _, attributes in read.tags:
        assert not [key for key in attributes if key.startswith("on")]
        for key in ("src", "srcset"):
            assert attributes.get(key, "data:image/").startswith("data:image/")
        assert "href" not in attributes
    policy = next(a["content"] for name, a in read.tags if name == "meta" and "http-equiv" in a)
    assert policy is not None and "default-src 'none'" in policy


def test_text_from_outside_is_shown_as_text(read: Reader) -> None:
    assert read.text.count(NASTY) >= 6  # title, heading, subtitle, fact, table, matrix, legend, settings
    assert "water & sand" in read.text and "/some/<where>" in read.text and "onerror=alert(3)" in read.text


def test_every_picture_can_be_decoded_and_is_described(read: Reader) -> None:
    pictures = [attributes for name, attributes in read.tags if name == "img"]
    assert len(pictures) == 1 + 3 + 4 * 4
    for attributes in pictures:
        assert attributes["alt"]
        kind, _, data = (attributes["src"] or "").partition(";base64,")
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.format is not None and image.format.lower() == kind.removeprefix("data:image/")
            if "width" in attributes:
                assert (str(image.width), str(image.height)) == (attributes["width"], attributes["height"])
    assert len([1 for name, a in read.tags if name == "source" and "dark" in (a["media"] or "")]) == 4


def test_scores_are_told_in_text(read: Reader) -> None:
    text = re.sub(r"\s+", " ", read.text)
    assert "mean IoU75.0 %" in text and "overall accuracy83.3 %" in text
    assert f"25.0 % of water & sand was taken for {NASTY}" in text
    assert re.search(r"never ?\u2013", text) and f"{NASTY} (not in means)" in text
    alts = " ".join(a["alt"] or "" for name, a in read.tags if name == "img")
    assert "training loss (total): 2 at step 1, 1.5 at step 2" in alts


def test_a_page_without_scores_curves_or_tiles(tmp_path: Path) -> None:
    bare = Page("run", "nothing yet", {}, ["a"], [[0, 0, 0]])
    bare.write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert Reader(text).open == [] and "<img" not in text and "Confusion" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_an_empty_matrix_makes_a_page() -> None:
    text = render(Page("run", "", {}, ["a", "b"], [[0, 0, 0]] * 2, scores=scores_from_matrix([[0, 0], [0, 0]])))
    assert "The largest confusion" not in text and "\u2013" in text
