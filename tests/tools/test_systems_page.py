"""docs/systems.md is what its JSON and the docstrings make of it."""

import json

import pytest

from tools import systems_page
from unimm.evaluate.scores import interval

SYSTEM = {
    "about": "A toy.", "axes": {"tokenizer": "conv", "image in": "shared_table", "image out": "depth_head"},
    "scores": {"t2i.single": [0.9, 200], "tokenizer.judge": [1.0, 200], "tokenizer.psnr": [31.234, 200],
               "tokenizer.tokens.mean": [16.0, 200], "text.nats.pretrain": [1.2345, 4000],
               **{f"tokenizer.codes.visual_2.{kind}": [value, 200] for kind, value in
                  {"used": 97, "size": 128, "entropy": 5.5, "perplexity": 45.25, "zipf": -1.2}.items()}},
    "tokens": {"mean": 16, "least": 16, "most": 16}, "parameters": {"language_model": 1234567, "image_tokenizer": 89},
    "seconds": {"tokenizer": 60.4, "total": 300.0}, "machine": {"torch": "2.13"}, "commit": "abc123",
    "date": "2026-01-02"}
KEPT = {"systems": {"toy": SYSTEM},
        "comparisons": {"joint": {"question": "Is it better?", "rows": {
            "tuned": {"vqa.exact_match": [0.8, 100], "tokenizer.psnr": [30.0, 100]},
            "frozen": {"vqa.exact_match": [0.7, 100]}}}}}


@pytest.fixture
def root(tmp_path):
    for folder, name, text in (("toys", "toy", "The toy.\n\nDiffers: all of it."), ("systems", "paper", "The paper.")):
        (tmp_path / "recipes" / folder).mkdir(parents=True)
        code = "from recipes.systems import paper\n" if folder == "toys" else ""
        (tmp_path / "recipes" / folder / f"{name}.py").write_text(f'"""{text}"""\n\n{code}recipe = 1\n')
    return tmp_path


def test_the_page_of_the_repository_is_what_its_results_and_docstrings_make(tmp_path):
    kept = systems_page.ROOT / "docs" / "systems.json"
    if not kept.is_file():
        pytest.skip("no system was trained yet")
    assert (kept.parent / "systems.md").read_text() == systems_page.page(json.loads(kept.read_text()))


def test_prose_is_of_the_docstrings_and_numbers_are_of_the_results(root):
    page = systems_page.page(KEPT, root)
    assert "The paper.\n\nThe toy.\n\nDiffers: all of it.\n" in page
    low, high = interval(0.9, 200)
    assert f"| draws one object | 90.0% ({low:.1%} to {high:.1%}) of 200 |" in page
    assert "| nats a token of text after pretrain | 1.234 over 4,000 tokens |" in page
    assert "| toy | shared_table | depth_head | 90.0% | - | - | - | - | - | 100.0% | 300 |" in page
    assert "| toy | 60 | 16 | 31.2 | 1 |" in page and "| toy, visual 2 | 97 | 128 | 5.50 | 45.2 | -1.20 |" in page
    assert "abc123, 2026-01-02, torch 2.13" in page
    assert "Short of" not in page and "Not trained yet" not in page
    worse = {"systems": {"other": SYSTEM | {"scores": SYSTEM["scores"] | {"t2i.single": [0.755, 200]}}},
             "comparisons": {}}
    page = systems_page.page(worse, root)
    assert "to reach: draws one object 4.5 points below 80%.\n" in page and "Not trained yet: toy.\n" in page


def test_every_table_has_as_many_cells_in_each_row(root):
    for block in systems_page.page(KEPT, root).split("\n\n"):
        lines = block.strip().splitlines()
        if lines and lines[0].startswith("|"):
            assert len({line.count("|") for line in lines}) == 1, block


def test_a_comparison_shows_what_only_one_side_has(root):
    page = systems_page.page(KEPT, root)
    assert "Is it better?" in page and "| frozen | 70.0% (60.4% to 78.1%) of 100 | - |" in page
    assert systems_page.page({"systems": {}, "comparisons": {}}, root).startswith("# Ten systems")
