"""Recipes as people write and change them: what is meant is understood or asked back, in one line."""

import json
import math
from dataclasses import replace

import pytest
from tiny import TINY

from unimm.config.check import ConfigError
from unimm.config.data import ChatJsonl, Emoji, ImageFolder, ParquetFiles, Shapes, Use, WebDatasetTars
from unimm.config.images import Adversarial, ConvTokenizer, Distill, DualTokenizer, Gram, Perceptual, ViTTokenizer
from unimm.config.model import (
    DepthHead,
    FlowDecoder,
    FlowHead,
    FreshVision,
    PretrainedBackbone,
    RecipeVision,
    SharedSoftmax,
    SharedTable,
    VisionFeatures,
)
from unimm.config.quantizers import LFQ, VQ
from unimm.config.stages import AdamW, Contrast, Detokenize, Muon, NextToken, Reconstruct, Schedule
from unimm.config.tokens import Codebook, Continuous, PretrainedText
from unimm.errors import UserError
from unimm.recipe import apply_overrides, load_recipe, recipe_from_json, recipe_to_json

SEEING = {"features": FreshVision()}
PICTURES = {"mix": (Use(data="pairs"),), "steps": 1}
LATENT = (Continuous(name="latent", channels=4, placeholder="<latent>"),)

HEAD = """
from dataclasses import replace
from tiny import TINY
from unimm.config.stages import AdamW, NextToken
from unimm.config.data import Use
from unimm.config.sampling import Choice, Sampling
"""

EVERY_KIND = replace(
    TINY,
    text=PretrainedText(path="some/folder"),
    image_tokenizer=ConvTokenizer(quantizer=VQ(size=64)),
    codebooks=(Codebook(name="visual", size=64, start=5000), Codebook(name="deep", size=8, depth=4, shared=False)),
    continuous=(Continuous(name="features", channels=16, placeholder="<image>"),),
    special_ids={"<s>": 1},
    backbone=PretrainedBackbone(path="some/model"),
    image_in=SharedTable(rows="normal"),
    data={
        "shapes": Shapes(part="edits", count=3),
        "emoji": Emoji(),
        "own": ImageFolder(path="p"),
        "talks": ChatJsonl(path="c"),
        "table": ParquetFiles(path="t", text="caption"),
        "tars": WebDatasetTars(path="w", text="json"),
    },
    stages={
        "a": Reconstruct(mix=(Use(data="own"),), steps=1),
        "b": NextToken(mix=(Use(data="tars", task="draw", weight=0.5),), steps=2, optimizer=Muon(), too_long="drop"),
    },
)


@pytest.fixture
def write(tmp_path):
    def writer(text: str):
        file = tmp_path / "mine.py"
        file.write_text(HEAD + text)
        return file

    return writer


def refusal(file) -> str:
    with pytest.raises(ConfigError) as refused:
        load_recipe(file)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    "recipe",
    [TINY, EVERY_KIND, replace(EVERY_KIND, image_tokenizer=ConvTokenizer(quantizer=LFQ()))],
    ids=["tiny", "every kind", "lookup-free"],
)
def test_a_recipe_read_from_its_json_is_the_recipe(recipe, tmp_path):
    text = recipe_to_json(recipe)
    assert recipe_from_json(text, "here") == recipe
    (tmp_path / "recipe.json").write_text(text)
    assert load_recipe(tmp_path / "recipe.json") == load_recipe(str(tmp_path)) == recipe


def test_the_json_says_every_default():
    stage = json.loads(recipe_to_json(TINY))["stages"]["sft"]
    assert stage["image_weight"] == 1.0 and stage["optimizer"]["clip"] == 1.0 and stage["schedule"]["shape"] == "linear"


def test_a_recipe_file_is_read_from_any_folder(write, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_recipe(write("recipe = TINY")) == TINY


@pytest.mark.parametrize(
    "text, said",
    [
        ("AdamW(learning_rate=1)", "AdamW has no field 'learning_rate'; it has: lr, betas, weight_decay, clip, kind"),
        ("AdamW(weight_decai=1)", "AdamW has no field 'weight_decai'; did you mean 'weight_decay'?"),
        ("Sampling(guidence=2)", "Sampling has no field 'guidence'; did you mean 'guidance'?"),
        ("replace(TINY, sampeling=Sampling())", "Recipe has no field 'sampeling'; did you mean 'sampling'?"),
        ("AdamW(lr=0)", "AdamW.lr is 0; it must be greater than 0"),
        ("Choice(top_p=1.5)", "Choice.top_p is 1.5; it must be above 0 and at most 1"),
        ("Use(data='x', weight=-1)", "Use.weight is -1"),
        ("NextToken(steps=3)", "missing 1 required keyword-only argument: 'mix'"),
        ("NextToken(mix=(), steps=3)", "NextToken.mix is (); it must be at least one Use"),
        ("recipe = replace(TINY, data={})", "uses data 'pairs', which the recipe lacks; it has: none"),
        ("import nothing_like_it", "No module named 'nothing_like_it'"),
        ("recipe = Tiny", "name 'Tiny' is not defined"),
        ("recipe = 3", "defines no `recipe = Recipe(...)`"),
        ("", "defines no `recipe = Recipe(...)`"),
        ("recipe = (", "was never closed"),
    ],
)
def test_what_a_file_can_get_wrong_is_one_line_that_names_it(write, text, said):
    file = write(text)
    assert said in refusal(file) and str(file) in refusal(file)


def test_what_is_no_recipe_is_refused(tmp_path):
    assert "no such recipe" in refusal(tmp_path / "none.py")
    assert "no such recipe" in refusal(tmp_path)  # a folder that is no run
    (tmp_path / "recipe.yaml").write_text("name: x")
    assert "a recipe is a .py file or a resolved .json" in refusal(tmp_path / "recipe.yaml")
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    assert "binary.py" in refusal(tmp_path / "binary.py")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    assert "binary.json" in refusal(tmp_path / "binary.json")


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda d: d["stages"]["sft"].update(stepz=3), "stages.sft.NextToken.stepz"),
        (lambda d: d["stages"]["sft"].update(steps=-3), "steps is -3; it must be greater than 0"),
        (
            lambda d: d["stages"]["sft"].update(steps="many"),
            "stages.sft.NextToken.steps: Input should be a valid integer",
        ),
        (lambda d: d["data"]["pairs"].update(cuont=3), "data.pairs.Shapes.cuont"),
        (lambda d: d.pop("layout"), "layout: Field required"),
        (lambda d: d["backbone"].update(kind="frsh"), "backbone"),
    ],
)
def test_a_resolved_recipe_edited_wrongly_is_refused_with_the_place(change, said):
    given = json.loads(recipe_to_json(TINY))
    change(given)
    with pytest.raises(ConfigError) as refused:
        recipe_from_json(json.dumps(given), "run/recipe.json")
    assert said in str(refused.value) and str(refused.value).startswith("run/recipe.json: ")
    assert "\n" not in str(refused.value)


def test_json_that_is_cut_short_is_refused():
    with pytest.raises(ConfigError, match="recipe.json.*EOF"):
        recipe_from_json(recipe_to_json(TINY)[:100], "recipe.json")


@pytest.mark.parametrize(
    "arguments, read, value",
    [
        (["--stages.sft.steps", "77"], lambda r: r.stages["sft"].steps, 77),
        (["--stages.sft.image-weight", "0.5"], lambda r: r.stages["sft"].image_weight, 0.5),
        (["--stages.sft.image_weight", "0.5"], lambda r: r.stages["sft"].image_weight, 0.5),
        (["--stages.tokenizer.optimizer.lr", "1e-4"], lambda r: r.stages["tokenizer"].optimizer.lr, 1e-4),
        (
            ["--stages.pretrain.optimizer.betas", "0.8", "0.9"],
            lambda r: r.stages["pretrain"].optimizer.betas,
            (0.8, 0.9),
        ),
        (["--stages.sft.too_long", "drop"], lambda r: r.stages["sft"].too_long, "drop"),
        (["--data.pairs.count", "9"], lambda r: r.data["pairs"].count, 9),
        (["--stages.tokenizer.optimizer.betas", "0.8", "0.9"],
         lambda r: r.stages["tokenizer"].optimizer.betas, (0.8, 0.9)),
        (["--name", "other"], lambda r: r.name, "other"),
    ],
)
def test_an_override_changes_its_field_and_nothing_else(arguments, read, value):
    changed = apply_overrides(TINY, arguments, "unimm train x.py")
    assert read(changed) == value and type(read(changed)) is type(value)
    differing = [name for name in vars(TINY) if getattr(changed, name) != getattr(TINY, name)]
    assert differing == [arguments[0][2:].split(".")[0].replace("-", "_")]
    assert apply_overrides(changed, [], "x") is changed


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--stages.sft.stepz", "7"], "did you mean --stages.sft.steps?"),
        (["--samplin.guidance", "7"], "did you mean --sampling.guidance?"),
        (["--stages.sft.steps", "many"], "many"),
        (["--stages.sft.steps", "-1"], "steps is -1; it must be greater than 0"),
        (["--stages.sft.precision", "fp8"], "fp8"),
        (["--stages.sft.schedule.anneal", "2"], "anneal is 2"),
        (["--stages.sft.steps"], "steps"),
    ],
)
def test_an_override_that_cannot_be_is_refused_in_one_line(arguments, said):
    with pytest.raises(UserError) as refused:
        apply_overrides(TINY, arguments, "unimm train x.py")
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("kind, name", [(AdamW, "lr"), (AdamW, "clip"), (Muon, "lr"), (Muon, "adamw_lr")])
def test_not_a_number_is_no_setting(kind, name):
    with pytest.raises(ConfigError, match=f"{kind.__name__}.{name} is nan"):
        kind(**{name: math.nan})


def test_a_schedule_longer_than_its_stage_is_refused():
    with pytest.raises(ConfigError, match="anneal is 0.6; it must be at most 1 - warmup .0.5."):
        Schedule(warmup=0.5, anneal=0.6)


@pytest.mark.parametrize(
    "alone, said, mended",
    [
        ({"image_in": VisionFeatures(encoder=RecipeVision())}, "RecipeVision works with the recipe's features", SEEING),
        ({"image_tokenizer": DualTokenizer()}, "DualTokenizer works with the recipe's features", SEEING),
        ({"image_tokenizer": ConvTokenizer(losses=(Adversarial(), Perceptual()))}, "Perceptual works with", SEEING),
        ({"image_tokenizer": ViTTokenizer(losses=(Gram(),))}, "Gram works with", SEEING),
        ({"image_tokenizer": ConvTokenizer(losses=(Distill(),))}, "Distill works with", SEEING),
        ({"stages": {"see": Contrast(**PICTURES)}}, "Contrast works with", SEEING),
        ({"decoder": FlowDecoder()}, "trains a FlowDecoder, but the recipe has one of the two alone",
         {"stages": {"draw": Detokenize(**PICTURES)}}),
        ({"stages": {"draw": Detokenize(**PICTURES)}}, "has one of the two alone", {"decoder": FlowDecoder()}),
        ({"image_out": DepthHead()}, "every codebook has one code a position",
         {"codebooks": (Codebook(name="visual", size=8, depth=2),)}),
        ({"image_out": FlowHead()}, "the layout writes visual, which is none of `continuous`",
         {"continuous": LATENT, "layout": replace(TINY.layout, write=replace(
             TINY.layout.write, levels=(replace(TINY.layout.write.levels[0], space="latent"),)))}),
        ({"image_out": FlowHead(), "continuous": LATENT}, "write a continuous space", {"image_out": SharedSoftmax()}),
    ],
)
def test_a_part_without_the_other_that_it_works_with_is_refused(alone, said, mended):
    with pytest.raises(ConfigError, match=said) as refused:
        replace(TINY, **alone)
    assert "\n" not in str(refused.value)
    assert replace(TINY, **alone | mended).name == TINY.name
