"""report.html: one page that holds everything itself, pictures, charts and style, and asks no network for anything.

    head (what, scores in a line, first pictures) | scores | pictures | training | codes | time | how to repeat it
"""

import json
import math
from collections.abc import Iterable
from html import escape
from pathlib import Path

import numpy as np

from unimm.evaluate.charts import curves, meter, ranked, stacked
from unimm.evaluate.gallery import hero, mark, section, sections
from unimm.evaluate.scores import Bar, Metrics, Scores, interval, look_up
from unimm.words import count, span

COLOURS = ("c1", "c2", "c3", "c4", "c6", "c5")
HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: a unimm run</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<style>{style}</style></head><body>{body}
<footer>Written by <code>unimm eval</code>; the same numbers are in report.json.</footer></body></html>
"""


def page(report: dict, bars: tuple[Bar, ...], scores: Scores, metrics: Metrics) -> str:
    """The whole page; `report` as in report.json."""
    body = [_head(report, bars, scores), _score_table(report, bars), *sections(scores), _training(report, metrics),
            _codes(report, scores), _time(report), _repeat(report)]
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return HEAD.format(title=escape(report["name"]), style=style, body="".join(body))


def _terms(style: str, terms: Iterable[tuple[str, str]]) -> str:
    """Names and values, which may hold tags, as a list."""
    return f'<dl class="{style}">{"".join(f"<div><dt>{a}</dt><dd>{b}</dd></div>" for a, b in terms)}</dl>'


def _row(cells: Iterable[str], tag: str = "td") -> str:
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"


def _head(report: dict, bars: tuple[Bar, ...], scores: Scores) -> str:
    missed = [bar.key for bar in bars if bar.key in report["bars"] and not report["bars"][bar.key]["met"]]
    machine, parameters, total = report["machine"], report["parameters"], len(report["bars"])
    facts = []
    if total:
        colour, under = ("bad", "missed: " + ", ".join(missed[:3])) if missed else ("good", "every one")
        under += " and more" if len(missed) > 3 else ""
        met = f'<span class="{colour}">{total - len(missed)} of {total}</span>'
        facts.append(("Bars met", f"{met}<small>{under}</small>"))
    where = f"on {machine['cores']} cores, {machine['processor']}"
    facts.append(("Total time", f"{span(report['seconds']['total'])}<small>{where}</small>"))
    beside = f"parameters, and {count(parameters['image_tokenizer'])} in the image tokenizer"
    facts.append(("Language model", f"{count(parameters['language_model'])}<small>{beside}</small>"))
    for name, rate in list(report["tokens_per_second"].items())[-1:]:
        facts.append(("Training speed", f"{count(rate)}<small>tokens a second in {escape(name)}</small>"))
    return (f'<header><p class="eyebrow">unimm run, {report["date"][:16].replace("T", ", ")}</p>'
            f'<h1>{escape(report["name"])}</h1><p class="lede">{escape(report["about"])}</p>'
            f'{_terms("facts", facts)}{hero(scores)}</header>')


def _score_table(report: dict, bars: tuple[Bar, ...]) -> str:
    found = [(bar, value) for bar in bars if (value := look_up(report, bar.key)) is not None]
    rows, group = [], ""
    for bar, value in found:
        if bar.group != group:
            group = bar.group
            rows.append(f'<tr><th colspan="6" scope="rowgroup">{escape(group)}</th></tr>')
        rows.append(_score_row(bar, value, look_up(report["counts"], bar.key)))
    if not rows:
        return ""
    sampling = report["sampling"]
    unseen = "On scenes and prompts that training never saw. " if "leakage" in report else ""
    note = (f"{unseen}The upright line is the bar to reach, the pale end the 95&nbsp;% interval, the gap what guessing "
            f"would give. Guidance {sampling['guidance']:g}, temperature {sampling['image']['temperature']:g}, "
            f"seed {sampling['seed']}.")
    head = _row(("Score", "", "Reached", "Bar", "", "Of"), "th")
    return section("Scores", note, f'<table class="scores"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>')


def _score_row(bar: Bar, value: float, count: int | None) -> str:
    met = bar.met(value)
    colour, goal = "c1" if met else "bad", ""
    if bar.sense == "at_least":
        reached, goal = f"{100 * value:.1f} %", f"≥ {100 * bar.bar:.0f} %" if bar.bar is not None else ""
        chart = meter(value, colour, bar.bar, interval(value, count), bar.chance)
    elif bar.key == "seconds.total":
        reached, goal, share = span(value), f"≤ {span(bar.bar)}", min(1.0, value / bar.bar)
        chart = meter(share, colour, 1.0, (share, share), None)
    else:
        reached, goal, chart = f"{value:g}", f"= {bar.bar:g}", "compared with all that was trained on"
    verdict = mark(met) if bar.bar is not None else ""
    return _row((escape(bar.label), chart, reached, goal, verdict, f"{count:,}" if count is not None else ""))


def _training(report: dict, metrics: Metrics) -> str:
    """Curves of the stages of each kind one after another, and a table of all stages."""
    charts = []
    for unit, title, note in (("tokens", "Language model", _uniform(report)), ("images", "Image tokenizer", "")):
        stages = {name: [line for line in metrics[name] if "loss" in line]
                  for name, stage in report["stages"].items() if unit in stage}
        charts += [_curves(title, stages, note)] if stages else []
    if not charts:
        return ""
    rows = [_row(("Stage", "Steps", "Read", "Time", "Speed"), "th")]
    for name, stage in report["stages"].items():
        unit = "tokens" if "tokens" in stage else "images"
        rows.append(_row((escape(name), f"{stage['steps']:,}", f"{count(stage[unit])} {unit}", span(stage["seconds"]),
                          f"{report[f'{unit}_per_second'][name]:,.0f} {unit}/s")))
    return section("Training", "Each reading faint, its average strong, on a logarithmic axis.",
                   f'<div class="two">{"".join(charts)}</div><table class="plain">{"".join(rows)}</table>')


def _uniform(report: dict) -> str:
    """What the language model's losses are where nothing is known."""
    sizes = dict(report["vocabulary"])
    text = sizes.pop("text")
    codes = ", ".join(f"{math.log(n):.2f} for one of {n:,} codes" for n in sizes.values())
    return f"Nats a token. Guessing blindly costs {codes}, {math.log(text):.2f} for a piece of text."


def _curves(title: str, stages: Metrics, note: str) -> str:
    """The parts of the loss over the steps of all stages, one stage behind the other."""
    given: dict[str, tuple[list, list]] = {}
    boundaries, begin = [], 0
    for stage, lines in stages.items():
        boundaries.append((begin, stage))
        for line in lines:
            for name in [key for key in line if key.startswith("loss/")] or ["loss"]:
                steps, values = given.setdefault(name, ([], []))
                steps.append(begin + line["step"])
                values.append(line[name])
        begin += lines[-1]["step"]
    drawn = list(zip(COLOURS, sorted(given, reverse=True)))
    legend = "".join(f'<span style="--key:var(--{colour})">{escape(name.removeprefix("loss/"))} '
                     f"<b>{given[name][1][-1]:.3g}</b></span>" for colour, name in drawn)
    chart = curves(f"{title}: loss over steps", [(colour, *given[name]) for colour, name in drawn],
                   boundaries if len(boundaries) > 1 else ())
    return (f'<div><h3>{title}<span>loss over steps</span></h3><div class="legend">{legend}</div>{chart}'
            f'<p class="note">{note}</p></div>')


def _codes(report: dict, scores: Scores) -> str:
    counts = scores.code_counts
    if counts is None:
        return ""
    facts = [("Codes used", f"{np.count_nonzero(counts):,} of {len(counts):,}")]
    facts += [(title, form.format(report["tokenizer"][key])) for key, title, form in (
        ("perplexity", "Perplexity", "{:.1f}"), ("psnr", "PSNR", "{:.1f} dB"), ("ssim", "SSIM", "{:.3f}"))
        if key in report["tokenizer"]]
    note = f"How often each code occurs in {len(scores.reconstructions):,} pictures, the most used first."
    return section("The image tokenizer's codes", note, _terms("facts", facts), ranked("uses of each code", counts))


def _time(report: dict) -> str:
    parts = [(name, value) for name, value in report["seconds"].items() if name != "total"]
    legend = "".join(f'<span class="s{n % 6}">{escape(name)} <span class="soft">{span(value)}</span></span>'
                     for n, (name, value) in enumerate(parts))
    total, cores = span(report["seconds"]["total"]), report["machine"]["cores"]
    note = f"{total} on {cores} cores, from the first step to the last score; set-up is not in it."
    return section("Where the time went", note, stacked(parts), f'<div class="legend">{legend}</div>')


def _words(value) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _repeat(report: dict) -> str:
    inside = []
    if leaks := report.get("leakage"):
        counts, trained = report["counts"]["leakage"], report["counts"]["trained"]
        inside.append(f'<h3>Leakage</h3><p class="note">{leaks["scenes"]} of {counts["scenes"]:,} scored scenes and '
                      f'{leaks["prompts"]} of {counts["prompts"]:,} scored prompts and instructions are among the '
                      f'{trained["pictures"]:,} pictures and {trained["texts"]:,} texts of training. The training data '
                      "was made again in full for this, and compared as pixels and as strings.</p>")
    inside.append(f"<h3>Commands</h3><pre>{escape(chr(10).join(report['reproduce']))}</pre>")
    for title, settings in (("Sampling", report["sampling"]), ("Machine", report["machine"])):
        terms = ((escape(name.replace("_", " ")), escape(_words(value))) for name, value in settings.items())
        inside.append(f"<h3>{title}</h3>{_terms('settings', terms)}")
    recipe = escape(json.dumps(report["recipe"], indent=2))
    inside.append(f"<details><summary>The exact recipe</summary><pre>{recipe}</pre></details>")
    return section("To do it again", f"Scored was {escape(report['checkpoint'])}.", *inside)
