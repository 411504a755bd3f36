"""Every toy system and comparison trained and scored, one process each step, and the page of what came out.

    python -m tools.run_systems --out runs/systems --jobs 2

    recipes/toys/NAME.py --> OUT/recipes/NAME.json --unimm train--> OUT/runs/NAME --unimm eval--> OUT/results/NAME.json
    all results --> docs/systems.json --> docs/systems.md

A system whose result was of the same resolved recipe is done; started again after Ctrl-C or kill, the rest goes on
where it was. Names after the options choose systems; without any, all and the comparisons' runs are trained.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from tools.systems_page import ROOT, write
from unimm.config.recipe import Recipe
from unimm.disk import replace_file
from unimm.evaluate.scores import look_up
from unimm.recipe import recipe_to_json
from unimm.system import DECODER_FOLDER
from unimm.systems import axes, read_recipes, read_results

SCORES = ("t2i", "vqa", "edit", "rounds", "text", "tokenizer", "leakage")
TELL_EVERY = 60
"""Seconds between lines that say how far it is."""


def flat(tree: dict, counts: dict, path: str = "") -> dict[str, tuple[float, int]]:
    """Dotted key -> (value, count) of the numbers of a report."""
    found = {}
    for name, value in tree.items():
        key = f"{path}{name}"
        if isinstance(value, dict):
            found |= flat(value, counts, f"{key}.")
        elif isinstance(value, int | float):
            found[key] = (value, look_up(counts, key))
    return found


def collected(report: dict, recipe: Recipe, commit: str) -> dict:
    """What is kept of a system's report.json."""
    kept = {name: report[name] for name in SCORES if name in report}
    return {"about": recipe.about, "axes": axes(recipe), "scores": flat(kept, report["counts"]),
            "tokens": report["tokenizer"]["tokens"], "parameters": report["parameters"], "seconds": report["seconds"],
            "machine": report["machine"], "commit": commit, "date": date.today().isoformat(),
            "recipe": json.loads(recipe_to_json(recipe))}


def commit_of(root: Path) -> str:
    """The commit the code is at, with a plus where files differ from it; "" outside a repository."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


class Work:
    """The steps of one system, one process at a time."""

    def __init__(self, name: str, recipe: Recipe, out: Path, count: int):
        self.name, self.recipe, self.out = name, recipe, out
        self.run, self.result = out / "runs" / name, out / "results" / f"{name}.json"
        self.log = out / "logs" / f"{name}.log"
        stored = out / "recipes" / f"{name}.json"
        self.steps = [["train", str(stored), "--out", str(self.run)], ["eval", str(self.run), "--count", str(count)]]
        self.process: subprocess.Popen | None = None
        self.began = 0.0
        for folder in (stored, self.result, self.log):
            folder.parent.mkdir(parents=True, exist_ok=True)
        replace_file(stored, recipe_to_json(recipe).encode())

    @property
    def done(self) -> bool:
        if not self.result.is_file():
            return False
        return json.loads(self.result.read_text())["recipe"] == json.loads(recipe_to_json(self.recipe))

    def start(self) -> None:
        self.began = self.began or time.monotonic()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with open(self.log, "ab") as log:
            # In a session of its own: Ctrl-C is passed on once, here, so that it saves and ends.
            self.process = subprocess.Popen([sys.executable, "-m", "unimm", *self.steps[0]], stdout=log, stderr=log,
                                            env=environment, start_new_session=True, cwd=ROOT)

    def moved(self) -> int | None:
        """None while it runs; its exit code once it failed or, 0, all steps are done."""
        code = self.process.poll()
        if code != 0:
            return code
        self.steps = self.steps[1:]
        if self.steps:
            self.start()
            return None
        report = json.loads((self.run / "report.json").read_text())
        kept = collected(report, self.recipe, commit_of(ROOT))
        replace_file(self.result, json.dumps(kept, indent=1).encode())
        return 0


def left(finished: list[float], waiting: int, running: list[float], jobs: int) -> float | None:
    """Seconds that remain by the mean of those that finished; None before any has."""
    if not finished:
        return None
    mean = sum(finished) / len(finished)
    work = waiting * mean + sum(max(0.0, mean - spent) for spent in running)
    return work / max(1, min(jobs, waiting + len(running)))


def run_all(works: list[Work], jobs: int, say=print, pause: float = 0.5) -> list[str]:
    """Bring all to their results, `jobs` at a time; the names of those that failed. Raises KeyboardInterrupt once all
    that ran have saved and ended."""
    waiting, running, failed, finished = [w for w in works if not w.done], [], [], []
    total, told = len(works), time.monotonic()
    for work in works:
        if work not in waiting:
            say(f"{work.name}: done before")
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(waiting.pop(0))
                running[-1].start()
                say(f"{running[-1].name}: started, log {running[-1].log}")
            time.sleep(pause)
            for work in list(running):
                if (code := work.moved()) is None:
                    continue
                running.remove(work)
                spent = time.monotonic() - work.began
                if code:
                    failed.append(work.name)
                    said = work.log.read_text(errors="replace").strip().splitlines()[-1:]
                    say(f"{work.name}: failed with exit code {code}: {''.join(said)}")
                else:
                    finished.append(spent)
                    say(f"{work.name}: done in {spent:.0f} s")
                told = 0.0
            if running and time.monotonic() - told > TELL_EVERY:
                told = time.monotonic()
                seconds = left(finished, len(waiting), [told - w.began for w in running], jobs)
                now = ", ".join(f"{w.name} {w.steps[0][0]} {told - w.began:.0f} s" for w in running)
                say(f"{total - len(waiting) - len(running)} of {total} done; {now}"
                    + (f"; about {seconds / 60:.0f} min left" if seconds is not None else ""))
    except KeyboardInterrupt:
        say("stopping; each saves where it is")
        for work in running:
            work.process.send_signal(signal.SIGINT)
        for work in running:
            work.process.wait()
        raise
    return failed


def gathered(out: Path, comparisons: dict, earlier: dict, names: list[str]) -> dict:
    """docs/systems.json: results of `names` in place of earlier ones, and every comparison whose runs are all there."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted((out / "results").glob("*.json"))}
    systems = earlier["systems"] | {name: found[name] for name in names if name in found}
    rows = dict(earlier["comparisons"])
    for name, comparison in comparisons.items():
        runs = {label: recipe.name for label, recipe in comparison.runs.items()}
        decoded = [run for run in runs.values() if (out / "runs" / run / DECODER_FOLDER).is_dir()]
        if not set(runs.values()) <= set(decoded if comparison.measured else found):
            continue
        if comparison.measured:
            (run,) = runs.values()
            of = comparison.measured(out / "runs" / run)
        else:
            of = {label: {key: found[run]["scores"][key] for key in comparison.keys if key in found[run]["scores"]}
                  for label, run in runs.items()}
        rows[name] = {"question": comparison.question, "rows": of}
    return {"systems": dict(sorted(systems.items())), "comparisons": rows}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="systems, or comparisons; all by default")
    parser.add_argument("--recipes", type=Path, default=ROOT / "recipes" / "toys")
    parser.add_argument("--out", type=Path, default=Path("runs/systems"))
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--count", type=int, default=200)
    given = parser.parse_args(arguments)
    from tools.comparisons import COMPARISONS

    systems = read_recipes(given.recipes)
    unknown = set(given.names) - set(systems) - set(COMPARISONS)
    if unknown:
        parser.error(f"no system or comparison {', '.join(sorted(unknown))}; there are: "
                     f"{', '.join([*systems, *COMPARISONS])}")
    chosen = {name: recipe for name, recipe in systems.items() if not given.names or name in given.names}
    compared = {name: c for name, c in COMPARISONS.items() if not given.names or name in given.names}
    wanted = chosen | {recipe.name: recipe for c in compared.values() for recipe in c.runs.values()}
    out = given.out.absolute()
    works = [Work(name, recipe, out, given.count) for name, recipe in wanted.items()]
    try:
        failed = run_all(works, given.jobs)
    except KeyboardInterrupt:
        print("stopped; the same command goes on")
        return 130
    earlier = read_results(given.docs / "systems.json")
    write(gathered(out, compared, earlier, list(systems)), given.docs)
    print(f"written: {given.docs / 'systems.md'} and systems.json")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
