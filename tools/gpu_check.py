"""What a GPU makes of unimm, in under ten minutes: one command, one table, one JSON file.

    python -m tools.gpu_check [--json FILE] [--write] [--toy] [PART ...]

measures on the first GPU: attention kernels against float64; memory and time of the loss at 168,000 ids; steps of
guided image decode at 0.5 B and 1.5 B parameters, against the memory's bandwidth and eager `generate`; training steps
at the same sizes, rows of 4,096 packed tokens, against transformers' Trainer on the same weights and batches. Every
part is a process of its own with a time limit, so one that fails or hangs costs only itself.
`--toy` runs every part on any machine in seconds, to know that the path works; its figures mean nothing. `--write`
puts the figures into docs/performance.md. Exits 2 where there is no GPU, 1 where a part failed, 0 otherwise.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.bench.rows import machine

ROOT = Path(__file__).parents[1]
PARTS = {
    "attention": 90, "loss": 60, "sampling 0.5b": 120, "sampling 1.5b": 120, "step 0.5b zero1": 90,
    "step 0.5b trainer": 90, "step 1.5b zero1": 90, "step 1.5b trainer": 90, "step 0.5b zero0": 60,
    "step 0.5b recompute": 60, "step 0.5b compile": 150,
}
"""Seconds that each may take, the most wanted first: what the ten minutes no longer hold is left out and said."""
WHOLE = 570
SAME = 0.02
"""How far apart, of its size, two bf16 runs' losses may be over the first five steps and still be of one model."""


def run(part: str, limit: float, toy: bool) -> dict:
    """A part's figures, or {"error": why}."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "part.json"
        command = [sys.executable, "-m", "tools.gpu_parts", part, str(target), *(["--toy"] if toy else [])]
        # A toy stays on the CPU also where there is a GPU: it is the path that is tried, not the machine.
        given = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} if toy else {}
        try:
            done = subprocess.run(command, cwd=ROOT, env=os.environ | given, capture_output=True, text=True,
                                  timeout=limit)
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {limit:.0f} s"}
        if done.returncode or not target.is_file():
            said = (done.stderr or done.stdout).strip().splitlines()
            return {"error": said[-1] if said else f"ended with {done.returncode} and no word"}
        return json.loads(target.read_text()) | {"seconds": round(time.monotonic() - began, 1)}


def check(parts: list[str], toy: bool) -> dict[str, dict]:
    """The figures of the parts, as far as ten minutes go."""
    end, found = time.monotonic() + WHOLE, {}
    for part in parts:
        left = end - time.monotonic()
        found[part] = run(part, min(PARTS[part], left), toy) if left > 20 else {"error": "left out: no time left"}
        print(f"{part}: {found[part].get('error', 'done')}", flush=True)
    return found


def lines(found: dict[str, dict]) -> list[tuple[str, str, str]]:
    """(what, figure, remark) of each line of the table."""
    told = [(part, "failed", values["error"]) for part, values in found.items() if "error" in values]
    for part, values in found.items():
        if "error" in values:
            continue
        match part.split():
            case ["attention"]:
                told += [(f"attention by {name}, forward and backward", f"{kernel['ms']:.2f} ms",
                          f"{kernel['apart']:.1e} from float64" + (", chosen" if name == values["chosen"] else ""))
                         for name, kernel in values.items() if isinstance(kernel, dict)]
            case ["loss"]:
                told += [(f"loss by {way}", f"{values[way]['ms']:.2f} ms", _saving(values, way)) for way in values
                         if way != "seconds"]
            case ["sampling", size]:
                told += _sampling(size, values)
            case ["step", size, kind]:
                told.append((f"step, {size}, {kind}", f"{values['ms_per_step']:.1f} ms", _step(found, size, values)))
    return told


def _saving(values: dict, way: str) -> str:
    full, own = values["full logits"]["gib"], values[way]["gib"]
    return f"{own:.2f} GiB" + (f", {full / own:.1f}x less" if own and way != "full logits" else "")


def _sampling(size: str, values: dict) -> list[tuple[str, str, str]]:
    """Batches beside the bandwidth limit; batch 2 beside what is wanted of an H200, and `generate` beside tenfold."""
    told = []
    for batch, each in values.items():
        if batch.startswith("batch"):
            remark = f"{each['limit_ms']:.3f} ms at the memory's bandwidth, {each['ms'] / each['limit_ms']:.2f}x"
            if batch == "batch 2":
                held = "holds" if each["ms"] <= values["wanted_ms"] else "MISSED"
                remark += f"; wanted of an H200 <= {values['wanted_ms']:.2f} ms: {held}"
            told.append((f"image decode, {size}, {batch}", f"{each['ms']:.3f} ms / id", remark))
    ms = values["generate"]
    ratio = ms["generate"] / ms["ours"]
    held = "holds" if ratio >= 10 else "MISSED"
    return [*told, (f"image decode, {size}, one guided image", f"{ms['ours']:.3f} ms / id",
                    f"generate {ms['generate']:.2f} ms, {ratio:.1f}x; wanted >= 10x: {held}")]


def _step(found: dict[str, dict], size: str, values: dict) -> str:
    remark = f"{values['tokens_per_second']:,.0f} tokens/s, {values['peak_gib']:.1f} GiB"
    if values["mfu"]:
        remark += f", MFU {values['mfu']:.1%}"
    peer = found.get(f"step {size} trainer", {})
    if "ms_per_step" in peer and peer is not values:
        ratio, near = peer["ms_per_step"] / values["ms_per_step"], same(values["losses"], peer["losses"])
        remark += f", {ratio:.2f}x Trainer" if near else f", LOSSES DIFFER FROM TRAINER'S: {values['losses'][:1]}"
    return remark


def same(ours: list[float], theirs: list[float]) -> bool:
    """Whether the first five steps' losses are those of one model on one stream."""
    return abs(ours[0] - theirs[0]) <= SAME * abs(theirs[0])


def table(found: dict[str, dict]) -> str:
    """The figures as a Markdown table."""
    return "| what | figure | |\n|---|---|---|\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines(found))


def no_gpu() -> str | None:
    """Why nothing can be measured here, or None."""
    import torch

    if torch.cuda.is_available():
        return None
    return f"no GPU: torch {torch.__version__} sees no CUDA device here; --toy tries every part on the CPU"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of: {'; '.join(PARTS)}; all where none is named")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--write", action="store_true", help="put them into docs/performance.json and .md")
    parser.add_argument("--toy", action="store_true", help="on the CPU, in seconds; the figures mean nothing")
    given = parser.parse_args()
    if unknown := [part for part in given.parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]!r}; it has: {'; '.join(PARTS)}")
    if given.toy and given.write:
        parser.error("--toy measures nothing that could be written")
    if not given.toy and (why := no_gpu()):
        print(why, file=sys.stderr)
        sys.exit(2)
    found = check(given.parts or list(PARTS), given.toy)
    about = machine() | ({} if given.toy else gpu())
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(table(found), end="")
    if given.json:
        given.json.write_text(json.dumps({"machine": about, "parts": found}, indent=1) + "\n")
    if given.write:
        from tools.performance import write

        write(gpu={"machine": about, "parts": found})
    sys.exit(any("error" in values for values in found.values()))


def gpu() -> dict[str, str | int]:
    import torch

    about = torch.cuda.get_device_properties(0)
    return {"gpu": about.name, "memory_gib": round(about.total_memory / 2**30), "cuda": torch.version.cuda}


if __name__ == "__main__":
    main()
