"""Systems trained in turn by processes: what is done stays, what failed says why, what was stopped saves."""

import json
import os
import signal
import sys
from dataclasses import replace

import pytest
from tiny import TINY

from tools import run_systems
from tools.comparisons import Comparison
from tools.run_systems import Work, collected, flat, gathered, left, run_all
from unimm.recipe import recipe_to_json
from unimm.system import DECODER_FOLDER

REPORT = {"t2i": {"single": 0.5}, "tokenizer": {"psnr": 30.0, "tokens": {"mean": 16, "least": 16, "most": 16}},
          "counts": {"t2i": {"single": 20}, "tokenizer": {"psnr": 5, "tokens": {"mean": 5, "least": 5, "most": 5}}},
          "parameters": {"image_tokenizer": 3}, "seconds": {"total": 9}, "machine": {"torch": "2"}, "other": 1}
WRITES = "import json, pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(parents=True, exist_ok=True); "


class Quick(Work):
    """Steps that take no time, in processes all the same: the first leaves a mark, the second a report."""

    def __init__(self, name, recipe, out, code=0):
        super().__init__(name, recipe, out, 5)
        mark = f"open(p / 'marks', 'a').write('train '); print('it went wrong'); sys.exit({code})"
        self.programs = [WRITES + mark, WRITES + f"(p / 'report.json').write_text({json.dumps(REPORT)!r})"]

    def start(self):
        program = self.programs[-len(self.steps)]
        self.began = self.began or run_systems.time.monotonic()
        with open(self.log, "ab") as log:
            self.process = run_systems.subprocess.Popen([sys.executable, "-c", program, str(self.run)], stdout=log,
                                                        stderr=log, start_new_session=True)


def test_results_are_kept_and_not_made_again_unless_the_recipe_changes(tmp_path):
    said = []

    def again(recipe=TINY):
        works = [Quick("a", recipe, tmp_path), Quick("b", replace(recipe, name="b"), tmp_path)]
        return run_all(works, 2, said.append, pause=0.01)

    assert again() == [] and again() == []
    assert (tmp_path / "runs/a/marks").read_text() == "train "
    assert json.loads((tmp_path / "results/a.json").read_text())["scores"]["t2i.single"] == [0.5, 20]
    assert (tmp_path / "recipes/a.json").read_text() == recipe_to_json(TINY)
    assert "a: done before" in said
    assert again(replace(TINY, about="another")) == []
    assert (tmp_path / "runs/a/marks").read_text() == "train train "


def test_a_system_that_fails_is_told_with_its_last_words_and_does_not_stop_the_others(tmp_path):
    said = []
    works = [Quick("bad", TINY, tmp_path, code=2), Quick("good", TINY, tmp_path)]
    assert run_all(works, 1, said.append, pause=0.01) == ["bad"]
    assert any("bad: failed with exit code 2: it went wrong" in line for line in said)
    assert works[1].done and not works[0].done


def test_an_interrupt_is_passed_on_to_what_runs_and_waited_for(tmp_path):
    class Slow(Quick):
        def start(self):
            self.programs[0] = (
                "import signal, sys, pathlib; p = pathlib.Path(sys.argv[1]); p.mkdir(parents=True)\n"
                "def saved(*_): (p / 'saved').touch(); sys.exit(130)\n"
                "signal.signal(signal.SIGINT, saved); (p / 'ready').touch()\nwhile True: signal.pause()")
            super().start()

        def moved(self):
            if (self.run / "ready").is_file():
                os.kill(os.getpid(), signal.SIGINT)
            return super().moved()

    work = Slow("a", TINY, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_all([work], 1, print, pause=0.01)
    assert (work.run / "saved").is_file() and work.process.returncode == 130 and not work.done


def test_what_remains_is_told_by_the_mean_of_what_was_done():
    assert left([], 3, [5.0], 2) is None
    assert left([10.0, 20.0], 3, [5.0, 40.0], 2) == (3 * 15 + 10) / 2
    assert left([10.0], 0, [4.0], 2) == 6


def test_a_result_keeps_scores_with_their_counts_and_what_made_them():
    kept = collected(REPORT, TINY, "abc")
    assert kept["scores"]["tokenizer.psnr"] == (30.0, 5) and "other" not in kept
    assert kept["commit"] == "abc" and kept["axes"]["tokenizer"] == "conv" and kept["tokens"]["mean"] == 16
    assert flat({"a": {"b": 1, "c": "words"}}, {"a": {"b": 7}}) == {"a.b": (1, 7)}


def test_comparisons_appear_once_all_their_runs_are_there(tmp_path):
    (tmp_path / "results").mkdir()
    other = replace(TINY, name="other")
    both = {"pair": Comparison("?", {"one": TINY, "two": other}, ("t2i.single", "vqa.none")),
            "own": Comparison("!", {"it": TINY}, measured=lambda run: {run.name: {"x": (1.0, 2)}})}
    result = {"scores": {"t2i.single": [0.5, 20]}}
    earlier = {"systems": {"old": result}, "comparisons": {}}
    (tmp_path / "results" / f"{TINY.name}.json").write_text(json.dumps(result))
    assert gathered(tmp_path, both, earlier, [TINY.name])["comparisons"] == {}, "there is no decoder to measure yet"
    (tmp_path / "runs" / TINY.name / DECODER_FOLDER).mkdir(parents=True)
    found = gathered(tmp_path, both, earlier, [TINY.name])
    assert set(found["systems"]) == {"old", TINY.name}
    assert found["comparisons"] == {"own": {"question": "!", "rows": {TINY.name: {"x": (1.0, 2)}}}}
    (tmp_path / "results" / "other.json").write_text(json.dumps(result))
    found = gathered(tmp_path, both, earlier, [TINY.name])
    assert found["comparisons"]["pair"]["rows"] == {"one": {"t2i.single": [0.5, 20]}, "two": {"t2i.single": [0.5, 20]}}
    assert "other" not in found["systems"], "a comparison's run is no system of its own"
