"""A recipe on a cluster, on paper: does each stage fit, how long does it take, what does it write."""

from dataclasses import asdict, replace
from pathlib import Path

from unimm.config.check import ConfigError, check, config, nearest
from unimm.config.data import Shapes
from unimm.config.recipe import Recipe
from unimm.config.stages import PictureStage, Reconstruct, Stage
from unimm.config.tokens import SentencePieceText
from unimm.hardware import Gpu
from unimm.images.tokenizer import is_released
from unimm.layout import Layout
from unimm.plan.memory import Counts, Measured, measure, memory, recomputes, remedy, tokenizer_size
from unimm.stream.shards import LEVEL, code_type
from unimm.system import TEXT_FILE, layout_of, text_of
from unimm.text import BytesTokenizer, TextTokenizer
from unimm.train.shares import Shares, shares
from unimm.train.table import lines, rows
from unimm.words import templates

CAPTION = 64
"""Text tokens beside an image, where --document does not say how long documents are; ours."""


@config(positive="gpus per_node")
class Cluster:
    gpus: int
    per_node: int
    gpu: Gpu
    mfu: float
    """Share of the peak that is reached, recomputation counted."""

    def __post_init__(self):
        check(self, 0 < self.mfu <= 1, "mfu", "above 0 and at most 1")
        if self.gpus > self.per_node and self.gpus % self.per_node:
            raise ConfigError(f"--gpus is {self.gpus}, which nodes of {self.per_node} don't make; "
                              f"take {nearest(self.gpus, self.per_node)}, or say --gpus-per-node")

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.per_node)


def plan(recipe: Recipe, cluster: Cluster, folder: Path | None = None, document: int = 0,
         images: int = 1_000_000) -> dict:
    """The recipe's plan, of plain values, as --json prints it; `folder` is its run, if there is one.

    document  tokens of a document on average; 0: the longest image with a caption, at most a row
    images    of a dataset whose size the recipe does not say
    """
    layout = layout_of(recipe, _text(recipe, folder))
    longest = max(sum(p.lengths(n)[1] for n in range(len(p.grids))) for p in layout.write_plans.values())
    document = document or longest + CAPTION
    device = "cpu" if cluster.gpu.name == "cpu" else "cuda"
    measured, stages = {}, []
    for name, stage in recipe.stages.items():
        alike = repr(replace(stage, steps=1, seed=0))
        measured[alike] = measured.get(alike) or measure(recipe, layout, stage, name, device)
        stages.append(_stage(name, stage, measured[alike], cluster, recipe, document))
    data = _data(recipe, layout, images)
    return {"recipe": recipe.name, **asdict(cluster), "nodes": cluster.nodes, "document": document,
            "tokenizer": _image_tokenizer(recipe), "stages": stages, "data": data,
            **{total: sum(stage[total] for stage in stages) for total in ("seconds", "gpu_hours")},
            "bytes": sum(stage["kept_bytes"] for stage in stages) + sum(each["bytes"] for each in data)}


def text_of_plan(plan: dict) -> str:
    """The plan for people."""
    return templates(Path(__file__).parent, gib=gib).get_template("plan.txt.jinja").render(plan)


def gib(number: float) -> str:
    return f"{number / 2**30:,.2f} GiB" if number >= 2**30 / 10 else f"{number / 2**20:,.2f} MiB"


def _image_tokenizer(recipe: Recipe) -> dict:
    """The image tokenizer, which a stage trains, or a release's: `codes` each way, `source` of its weights."""
    wanted = recipe.image_tokenizer
    trained = [name for name, stage in recipe.stages.items() if isinstance(stage, Reconstruct)]
    source = [f"weights of {wanted.weights}"] if is_released(wanted) else []
    source += [f"trained by {', '.join(trained)}"] if trained else []
    return {"kind": wanted.kind, "elements": tokenizer_size(recipe), "image": wanted.image,
            "codes": wanted.image // wanted.downsample, "source": ", ".join(source) or "no weights named yet"}


def _text(recipe: Recipe, folder: Path | None) -> TextTokenizer:
    if isinstance(recipe.text, SentencePieceText):
        trained = folder is not None and (folder / TEXT_FILE).is_file()
        return text_of(recipe, folder) if trained else BytesTokenizer(recipe.text.vocab_size)
    if not (Path(recipe.text.path) / "tokenizer.json").is_file():
        raise ConfigError(f"a plan downloads nothing, and there is no {recipe.text.path}/tokenizer.json; put the "
                          "model's tokenizer.json into a folder and name that folder as text.path")
    return text_of(recipe, None)


def _stage(name: str, stage: Stage, found: Measured, cluster: Cluster, recipe: Recipe, document: int) -> dict:
    """One stage on the cluster. Bytes are of one rank but where they say otherwise.

    unit, total, rate   tokens (or images) over the stage, and a second over all ranks
    parts, table        what trains, and what a rank holds of it; as training prints it before its first step
    problems            what keeps the stage from running as asked, each with the change that lets it
    without_recompute   bytes of activations, and with_recompute
    model_mfu           the share of the peak without recomputed work: what papers call MFU
    read_rate           bytes a second that all ranks read of codes (or pixels)
    checkpoint          bytes of one; `kept` of them stay
    """
    stage, share, uneven = _shares(stage, cluster.gpus)
    gpu, limit = cluster.gpu.name != "cpu", cluster.gpu.memory
    parts, host = memory(found.counts, stage, share, gpu)
    peak = sum(parts.values())
    problems = [uneven, "" if peak <= limit else _too_big(name, found.counts, stage, cluster.gpus, limit, gpu)]
    held = rows(found.module, stage, found.trained, cluster.gpus)
    length = min(document, share.tokens)
    model, hardware = (found.multiplied.flops(length, recompute=again) for again in (False, recomputes(stage)))
    rate = cluster.gpus * cluster.mfu * cluster.gpu.flops / hardware
    seconds, counts = stage.steps * share.total / rate, found.counts
    # Weights in their own type, fp32 masters, the optimizer's moments, the moving average.
    checkpoint = (2 if stage.precision == "bf16" and stage.zero else 4) * counts.parameters + 4 * counts.moments
    checkpoint += 4 * counts.trained * ((stage.zero > 0) + (stage.ema > 0))
    # Of a token the codes, the most that it can be; of an image its pixels.
    read = max((code_type(book.size).itemsize for book in recipe.codebooks), default=4) if share.tokens else (
        3 * recipe.image_tokenizer.image**2)
    return {"name": name, "unit": "tokens" if share.tokens else "images", "equation": str(share),
            "parts": [row._asdict() for row in held], "table": lines(held, stage, cluster.gpus),
            "memory": parts, "host": host, "peak": peak, "fits": peak <= limit,
            "without_recompute": counts.activations(share.rows, False),
            "with_recompute": counts.activations(share.rows, True),
            "problems": [problem for problem in problems if problem],
            "steps": stage.steps, "total": stage.steps * share.total, "rate": rate, "seconds": seconds,
            "gpu_hours": seconds * cluster.gpus / 3600, "model_mfu": cluster.mfu * model / hardware,
            "read_rate": rate * read, "checkpoint": checkpoint, "kept": stage.keep,
            "kept_bytes": checkpoint * stage.keep}


def _shares(stage: Stage, world: int) -> tuple[Stage, Shares, str]:
    """The step's shares; where ranks can't share it evenly, those of the next larger step that they can, and why."""
    try:
        return stage, shares(stage, world), ""
    except ConfigError as uneven:
        field, unit = ("batch", world) if isinstance(stage, PictureStage) else ("step_tokens", world * stage.seq_len)
        stage = replace(stage, **{field: -(-getattr(stage, field) // unit) * unit})
        return stage, shares(stage, world), str(uneven)


def _too_big(name: str, counts: Counts, stage: Stage, world: int, limit: int, gpu: bool) -> str:
    found = remedy(counts, stage, world, limit, gpu)
    if found is None:
        one_row, worlds = replace(stage, micro=1), (world << n for n in range(16) if world << n < 1 << 16)
        least = next((n for n in worlds if remedy(counts, _shares(one_row, n)[0], n, limit, gpu)), None)
        more = f"; {least:,} GPUs would do" if least else ""
        return f"does not fit with any zero, micro, recompute or offload{more}, or a GPU of more memory"
    changes = [f"stages.{name}.{field} to {new}" for field in ("micro", "recompute", "zero", "offload")
               if (new := vars(found).get(field)) != vars(stage).get(field)]
    total = sum(memory(counts, found, shares(found, world), gpu)[0].values())
    return f"does not fit: set {' and '.join(changes)}, for {total / 2**30:,.1f} GiB"


def _data(recipe: Recipe, layout: Layout, images: int) -> list[dict]:
    """Codes of the datasets that language stages read: typed integers with the table of their levels, no captions.

    `known` is whether the recipe says how many images, or `images` stands in.
    """
    books = [(n, layout.vocab.ranges.get(level.space)) for n, level in enumerate(layout.config.write.levels)]
    each, found = max(sum(written.lengths(n)[1] * book.depth * code_type(book.codes).itemsize + 4 * len(LEVEL)
                          for n, book in books if book) for written in layout.write_plans.values()), []
    for name in dict.fromkeys(use.data for stage in recipe.language.values() for use in stage.mix):
        source, known = recipe.data[name], isinstance(recipe.data[name], Shapes)
        many = source.count * (2 if source.part == "edits" else 1) if known else images
        found.append({"name": name, "images": many, "known": known, "bytes_per_image": each, "bytes": many * each})
    return found
