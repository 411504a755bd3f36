"""The page of figures shows its JSON."""

import json

from tools import performance
from tools.bench import rows


def test_the_page_shows_the_figures_of_its_json():
    page = (performance.DOCS / "performance.md").read_text()
    kept = json.loads((performance.DOCS / "performance.json").read_text())
    assert performance.BEGIN + performance.figures(kept) + performance.END in page



def test_new_figures_replace_only_their_own(tmp_path):
    (tmp_path / "performance.md").write_text(f"before\n{performance.BEGIN}stale\n{performance.END}after\n")
    row = vars(rows.faster("claim", "peer", 1.0, 2.0, "s", 1))
    about = {"date": "2026-01-01", "cores": 2}
    for name in ("one", "two"):
        performance.write(bench={name: {"machine": about, "rows": [row]}}, docs=tmp_path)
    parts = {"loss": {"full logits": {"ms": 1.5, "gib": 8.0}, "seconds": 3.0}}
    performance.write(gpu={"machine": about | {"gpu": "H200"}, "parts": parts}, docs=tmp_path)
    page = (tmp_path / "performance.md").read_text()
    assert page.startswith("before\n") and page.endswith("after\n") and "stale" not in page
    assert page.count("| claim | 1 | 2 | s | peer | 2.00x | >= 1x | holds |") == 2
    assert "### H200" in page and "1.50 ms" in page and "not yet" not in page.lower()
