"""A recipe from nothing to a trained run: text tokenizer, stages in order, codes where a stage needs them.

Every step leaves its result in the run's folder and is skipped where that is already there, so the same
command starts a run, continues it, and does nothing once it is done.
"""

import json
import time
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from unimm import system
from unimm.checkpoint.folders import MANIFEST, candidates
from unimm.checkpoint.read import newest
from unimm.config.check import ConfigError
from unimm.config.images import Published
from unimm.config.model import VisionFeatures
from unimm.config.recipe import Recipe
from unimm.config.stages import NextToken, PictureStage, Reconstruct, learned
from unimm.config.tokens import SentencePieceText
from unimm.disk import replace_file, writing
from unimm.images import tokenizer as codec
from unimm.images.prepare import as_seen, prepare
from unimm.picture_stages import check_codebook, preview_drawings, train_pictures
from unimm.pictures import to_png
from unimm.recipe import recipe_from_json, recipe_to_json
from unimm.sample import Sample, Text
from unimm.show import batch_in_words
from unimm.status import Status, told
from unimm.stream.batches import Batches
from unimm.stream.encode import Plan, encode
from unimm.stream.mixture import Mixture
from unimm.stream.shards import Shards, open_shards
from unimm.stream.sources import open_source
from unimm.text import train_sentencepiece
from unimm.train import ranks
from unimm.train.loop import Work, run_stage
from unimm.train.signals import ended
from unimm.weights import open_weights

SECONDS = "seconds.json"


def train_run(recipe: Recipe, folder: Path, last: str | None = None) -> None:
    """Bring a run to the end of its stages, or of the stage `last`. Every rank calls this together.

    Raises ConfigError, SourceError, TrainError and their like, each one line; Interrupted after a signal.
    """
    if last is not None and last not in recipe.stages:
        raise ConfigError(f"no stage {last!r} in recipe {recipe.name!r}; it has: {', '.join(recipe.stages)}")
    ranks.start()
    _begin(recipe, folder)
    with told(Status(folder, ranks.rank(), ranks.world()), ended) as status:
        ranks.barrier()  # until rank 0 has cleared away how an earlier attempt ended
        if isinstance(recipe.text, SentencePieceText):
            with timed(folder, "text"):
                _text_tokenizer(recipe, folder)
        _adopt_tokenizer(recipe, folder)
        previous = None
        for name, stage in recipe.stages.items():
            match stage:
                case PictureStage():
                    with timed(folder, name):
                        train_pictures(recipe, folder, name, stage, status)
                case NextToken():
                    with timed(folder, "encode"):
                        encode_run(recipe, folder, stages=[name])
                    with timed(folder, name):
                        previous = _train_language(recipe, folder, name, stage, previous, status)
            if name == last:
                break
    ranks.say(f"trained: {folder}\nnext: unimm eval {folder}, unimm sample {folder} \"a prompt\", unimm chat {folder}")


@contextmanager
def timed(folder: Path, name: str):
    """Add the seconds of this step, also of an interrupted one, to the run's account."""
    began = time.monotonic()
    try:
        yield
    finally:
        if ranks.rank() == 0:
            path = folder / SECONDS
            seconds = json.loads(path.read_text()) if path.is_file() else {}
            seconds[name] = seconds.get(name, 0.0) + time.monotonic() - began
            replace_file(path, json.dumps(seconds, indent=1).encode())


def _begin(recipe: Recipe, folder: Path) -> None:
    """Claim the folder for this recipe. Raises ConfigError where it can't be written or holds another one."""
    path = folder / system.RECIPE_FILE
    if (folder / MANIFEST).is_file():
        raise ConfigError(f"{folder} was exported, without its training state; train into another folder with --out")
    if ranks.rank() == 0:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            replace_file(path, recipe_to_json(recipe).encode())
    ranks.barrier()
    old = recipe_from_json(path.read_text(), str(path))
    was, now = (vars(each) | {"stages": {name: learned(stage) for name, stage in each.stages.items()}}
                for each in (old, recipe))  # without what may change while a run is under way
    if names := [name for name in now if was[name] != now[name]]:
        raise ConfigError(f"{folder} holds a run of another recipe (other {', '.join(names)}); "
                          f"choose another folder with --out, or delete this one")
    if old != recipe and ranks.rank() == 0:
        replace_file(path, recipe_to_json(recipe).encode())


def _text_tokenizer(recipe: Recipe, folder: Path) -> None:
    """Train the text tokenizer on the first texts of every dataset, evenly."""
    path = folder / system.TEXT_FILE
    if ranks.rank() == 0 and not path.is_file():
        share = -(-recipe.text.texts // len(recipe.data))
        texts: list[str] = []
        for source in recipe.data.values():
            enough = len(texts) + share
            for item in open_source(source):
                if isinstance(made := item.read(), Sample):
                    texts += [p.text for p in made.parts if isinstance(p, Text)]
                if len(texts) >= enough:
                    break
        tokenizer = train_sentencepiece(texts, recipe.text.vocab_size)
        replace_file(path, tokenizer.model)
        ranks.say(f"text tokenizer: {tokenizer.size} pieces from {len(texts):,} texts -> {path}")
    ranks.barrier()


def _adopt_tokenizer(recipe: Recipe, folder: Path) -> None:
    """Bring a published tokenizer that no stage trains into the run's folder, which needs the release no more."""
    trained = any(isinstance(stage, Reconstruct) for stage in recipe.stages.values())
    target = folder / system.TOKENIZER_FOLDER
    there = (target / codec.CONFIG).is_file()
    if codec.is_released(recipe.image_tokenizer) and not trained and ranks.rank() == 0 and not there:
        with timed(folder, "adopt"):
            tokenizer = codec.first_tokenizer(recipe.image_tokenizer)
            check_codebook(recipe, tokenizer)
            codec.save_tokenizer(tokenizer, target)
            ranks.say(f"image tokenizer: {recipe.image_tokenizer.weights}, {codec.fingerprint(tokenizer)[:12]} "
                      f"-> {target}")
    ranks.barrier()


def encode_run(recipe: Recipe, folder: Path, only: str | None = None, stages: list[str] | None = None) -> None:
    """Encode the datasets that language stages read (all of them, those of some stages, or one), each by the image
    tokenizer that its stage begins with."""
    ranks.start()
    _adopt_tokenizer(recipe, folder)
    if not (folder / system.TOKENIZER_FOLDER / codec.CONFIG).is_file():
        published = isinstance(recipe.image_tokenizer, Published)
        remedy = "name a release's weights in image_tokenizer.weights, or train it" if published else "train it"
        raise ConfigError(f"{folder}: no trained image tokenizer yet; {remedy} first: unimm train {folder}")
    if only is not None and only not in recipe.data:
        raise ConfigError(f"no data {only!r} in recipe {recipe.name!r}; it has: {', '.join(recipe.data)}")
    needed: dict[tuple[Path, Path], list[str]] = {}
    for stage in stages or recipe.language:
        by = system.tokenizer_of(recipe, folder, stage), system.codes_of(recipe, folder, stage)
        needed.setdefault(by, []).extend(use.data for use in recipe.stages[stage].mix)
    for (tokenizer, codes), names in needed.items():
        loaded = codec.load_tokenizer(tokenizer).to(ranks.device())
        for name in [only] if only else dict.fromkeys(names):
            _encode(recipe, codes / name, name, loaded)
    ranks.barrier()


def _encode(recipe: Recipe, target: Path, name: str, tokenizer) -> None:
    source, how = recipe.data[name], recipe.image_in
    plan = Plan(source=json.loads(recipe_to_json(recipe))["data"][name], fingerprint=codec.fingerprint(tokenizer),
                size=max((size for size, _ in tokenizer.books.values()), default=0),
                pixels=recipe.image_tokenizer.image, seen=_seen(recipe, name))

    def prepared(array):
        return prepare(recipe.image_tokenizer, array, recipe.layout.sizes)

    def see(array) -> bytes:
        return as_seen(how, array) if isinstance(how, VisionFeatures) else to_png(prepared(array))

    items = tqdm(open_source(source), f"encode {name}", getattr(source, "count", None), unit=" rows", mininterval=5,
                 delay=5, disable=ranks.rank() > 0)
    manifest = encode(items, lambda images: codec.to_codes(tokenizer, images), plan, target, prepare=prepared,
                      see=see if plan.seen else None, rank=ranks.rank(), world=ranks.world())
    if manifest:
        counts = manifest["counts"]
        skipped = f", {counts['skipped']} skipped (see {target / 'manifest.json'})" if counts["skipped"] else ""
        ranks.say(f"encode {name}: {counts['samples']:,} samples, {counts['images']:,} images -> {target}{skipped}")


def _seen(recipe: Recipe, name: str) -> tuple:
    """How the pictures of a dataset are kept: where the model reads features, and some stage has it read them; or where
    its tokenizer learns from them."""
    if any(stage.reconstruction and any(use.data == name for use in stage.mix) for stage in recipe.language.values()):
        return ("pixels",)
    reads = any(use.data == name and use.task in ("caption", "as_is")
                for stage in recipe.language.values() for use in stage.mix)
    how = recipe.image_in
    return (how.image, list(how.background)) if isinstance(how, VisionFeatures) and reads else ()


def _train_language(recipe: Recipe, folder: Path, name: str, stage: NextToken,
                    previous: Path | None, status: Status) -> Path:
    """One stage of the language model, from the previous stage's final checkpoint; returns its own."""
    import torch

    from unimm.model.attention import kernel_name
    from unimm.model.backbone import compile_layers, multiplied, recompute_layers

    tokenizer = codec.load_tokenizer(system.tokenizer_of(recipe, folder, name))
    layout = system.layout_of(recipe, system.text_of(recipe, folder))
    torch.manual_seed(stage.seed)
    started = previous is not None or len(candidates(folder / name)) > 0
    begin = None if started else ranks.from_first(newest(folder / system.CONVERTED) if ranks.rank() == 0 else None)
    model = system.new_model(recipe, layout, tokenizer, folder, weights=not (started or begin))
    model.image_weight, model.z_loss, model.reconstruction = stage.image_weight, stage.z_loss, stage.reconstruction
    if found := begin or previous:
        system.load(found, model, recipe, layout, tokenizer)
    if ranks.rank() == 0:
        system.keep_shapes(recipe, folder, model)
    if stage.reconstruction:
        tokenizer.requires_grad_(True)
    if stage.compile:
        compile_layers(model.backbone, stage.recompute)
    if stage.recompute:
        recompute_layers(model.backbone, reentrant=stage.zero == 3)
    codes, made_by = system.codes_of(recipe, folder, name), codec.fingerprint(tokenizer)
    shards = {use.data: open_shards(codes / use.data, made_by) for use in stage.mix}
    tokenizer.to(ranks.device())  # for previews; once its code vectors are in the model
    batches = Batches(Mixture(shards, stage.mix, stage.seed), layout, stage, ranks.rank(), ranks.world(), ranks.gather)
    done = (folder / system.DECODER_FOLDER / codec.CONFIG).is_file()
    drawer = system.drawer_of(recipe, folder, tokenizer).to(ranks.device()) if done else tokenizer
    around = system.System(recipe, folder, layout, tokenizer, drawer, model, folder)
    preview = preview_drawings(around, _prompts(shards, stage), folder / name) if drawer.draws else None
    work = Work(model, batches, preview,
                new_rows=system.new_rows(recipe, layout, model), parts=model.parts(),
                recipe=json.loads(recipe_to_json(recipe)), show=lambda batch: {"rows": batch_in_words(layout, batch)},
                flops=lambda: (found := multiplied(model.backbone)) and found.flops,
                codes={r.name: (r.start, r.stop) for r in layout.vocab.ranges.values() if r.depth == 1})
    kernel = kernel_name(model.backbone.config, ranks.device(), stage.precision, stage.seq_len)
    ranks.say(f"{name}: {model.describe()}\n{name}: attention: {kernel}")
    trained = run_stage(work, stage, folder / name, name=name, again=f"unimm train {folder}", status=status)
    if stage.reconstruction and ranks.rank() == 0:
        _keep_tokenizer(recipe, folder, name, trained)
    ranks.barrier()
    return trained


def _keep_tokenizer(recipe: Recipe, folder: Path, stage: str, trained: Path) -> None:
    """What a stage has made of the image tokenizer, for those that follow."""
    tokenizer, own = codec.load_tokenizer(system.tokenizer_of(recipe, folder, stage)), "image_input.tokenizer."
    tokenizer.load_state_dict({name.removeprefix(own): held.read() for name, held in open_weights(trained).items()
                               if name.startswith(own)})
    target = folder / f"{system.TOKENIZER_FOLDER}-{stage}"
    codec.save_tokenizer(tokenizer, target)
    ranks.say(f"{stage}: image tokenizer {codec.fingerprint(tokenizer)[:12]} -> {target}")


def _prompts(shards: dict[str, Shards], stage: NextToken) -> list[str]:
    """A few captions from the stage's own pairs for its previews."""
    pairs = next((shards[use.data] for use in stage.mix if use.task == "t2i"), ())
    return [p.text for i in range(min(8, len(pairs))) for p in pairs[i].parts if isinstance(p, Text)][:8]
