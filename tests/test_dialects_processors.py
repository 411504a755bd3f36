"""Prompts equal to those of transformers' processors, id for id, on small tokenizers with the releases' numbers."""

import logging

import numpy as np
import pytest
from dialects import layout_with, tokenizer
from PIL import Image as Picture
from transformers import PreTrainedTokenizerFast
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil
from transformers.models.chameleon.processing_chameleon import ChameleonProcessor
from transformers.models.emu3.image_processing_emu3 import Emu3ImageProcessor
from transformers.models.emu3.processing_emu3 import Emu3Processor
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.models.janus.processing_janus import JanusProcessor

from unimm.sample import Codes, Image, Latents, Text, sample
from unimm.vocab import LETTERS

logging.getLogger("transformers").setLevel(logging.ERROR)
QUESTIONS = ["What is this", "a red .: thing\n\n the", "  Is the one on the left  Hotter: "]


def loaded(folder, **names) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), split_special_tokens=False, **names)


def picture(width: int, height: int) -> Picture.Image:
    return Picture.fromarray(np.random.default_rng(width).integers(256, size=(height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def chameleon(tmp_path_factory):
    """Names and numbers of Chameleon's tokenizer, its codes in an order of their own."""
    order = np.random.default_rng(0).permutation(8192)
    codes = {f"IMGIMG{str(k).translate(LETTERS)}Z": 4 + int(order[k]) for k in range(8192)}
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<eoss>": 8196, "<racm3:break>": 8197,
               "<reserved08706>": 8710, "<image>": 8711}
    folder = tokenizer(tmp_path_factory.mktemp("chameleon"), special, codes, 9000, bos="<s>")
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "sep_token": "<reserved08706>"}
    return folder, ChameleonProcessor(ChameleonImageProcessorPil(), loaded(folder, **names)), order


def test_chameleons_codes_have_the_ids_of_their_names_not_of_their_order(chameleon):
    folder, _, order = chameleon
    layout = layout_with("chameleon_7b", folder)
    codes = np.random.default_rng(1).integers(8192, size=(32, 32))
    ids = layout.render(sample(Image(Codes.of_grid(codes), True))).ids
    assert ids[2:-2].tolist() == (4 + order[codes.reshape(-1)]).tolist()
    assert layout.parse(ids, np.ones(len(ids), bool)).images[0].content == Codes.of_grid(codes)
    assert layout.name(4 + int(order[77])) == "visual:77"


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("images", [0, 1, 2])
def test_chameleon_is_asked_as_by_its_processor(chameleon, question, images):
    folder, processor, _ = chameleon
    layout = layout_with("chameleon_7b", folder)
    text = "<image>" * images + question
    theirs = processor(text=text, images=[picture(40, 30)] * images or None)["input_ids"][0]
    codes = [Image(Codes.of_grid(np.full((32, 32), k)), role="user") for k in range(images)]
    ids = layout.prompt((*codes, Text(question, role="user"))).ids
    assert np.where(layout.vocab.is_code[ids], 8711, ids).tolist() == list(theirs)


EMU3 = {"<|endoftext|>": 151643, "<|extra_200|>": 151846, "<|extra_201|>": 151847, "<|extra_203|>": 151849,
        "<|extra_204|>": 151850, "<|image token|>": 151851, "<|image start|>": 151852, "<|image end|>": 151853,
        "<image>": 151645}


@pytest.fixture(scope="module")
def emu3(tmp_path_factory):
    codes = {f"<|visual token {k:06d}|>": 151854 + k for k in range(32768)}
    folder = tokenizer(tmp_path_factory.mktemp("emu3"), EMU3, codes, 0)
    names = {"bos_token": "<|extra_203|>", "eos_token": "<|extra_204|>", "pad_token": "<|endoftext|>"}
    extra = {"image_token": "<image>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>",
             "image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>"}
    return folder, Emu3Processor(Emu3ImageProcessor(), loaded(folder, **names, extra_special_tokens=extra))


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("ratio, size", [("1:1", (90, 90)), ("16:9", (68, 120)), ("3:4", (104, 78))])
def test_emu3_is_told_to_draw_as_by_its_processor(emu3, question, ratio, size):
    folder, processor = emu3
    theirs = processor(text=question, return_for_image_generation=True, ratio=ratio)["input_ids"][0]
    ours = layout_with("emu3_gen", folder).prompt((Text(question),), "image", size).ids
    assert ours.tolist() == list(theirs)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("sides", [[], [(640, 480)], [(640, 480), (900, 500)]])
def test_emu3_is_asked_as_by_its_processor_and_the_releases_template(emu3, question, sides):
    """Chat template: Emu3Processor of the release, "You are a helpful assistant. USER: {image}{text}. ASSISTANT:"."""
    folder, processor = emu3
    layout = layout_with("emu3_chat", folder)
    pictures = [picture(*side) for side in sides]
    text = f"You are a helpful assistant. USER: {'<image>' * len(sides)}{question}. ASSISTANT:"
    theirs = processor(text=text, images=pictures or None)
    grids = [(h // 8, w // 8) for h, w in theirs["image_sizes"]] if sides else []
    images = [Image(Codes.of_grid(np.zeros(grid, int)), role="user") for grid in grids]
    ids = layout.prompt((*images, Text(question, role="user"))).ids
    placeholders = layout.vocab.is_code[ids] | (ids == EMU3["<|extra_200|>"])
    assert np.where(placeholders, EMU3["<image>"], ids).tolist() == list(theirs["input_ids"][0])


# transformers' converter of Janus writes this template (its CHAT_TEMPLATE); here as what it gives for one turn.
SYSTEM = ("You are a helpful language and vision assistant. You are able to understand the visual content that the user "
          "provides, and assist the user with a variety of tasks using natural language.\n\n")


@pytest.fixture(scope="module", params=["janus_pro_1b", "janus_1b", "janus_pro_7b"])
def janus(request, tmp_path_factory):
    special = {"<｜begin▁of▁sentence｜>": 100000, "<｜end▁of▁sentence｜>": 100001,
               "<｜▁pad▁｜>": 100002 if request.param == "janus_pro_1b" else 100015, "<begin_of_image>": 100016,
               "<image_placeholder>": 100581, "<|User|>": 100588, "<|Assistant|>": 100589, "<end_of_image>": 100593}
    folder = tokenizer(tmp_path_factory.mktemp("janus"), special, {}, 0, bos="<｜begin▁of▁sentence｜>")
    names = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>", "pad_token": "<｜▁pad▁｜>"}
    extra = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    processor = JanusProcessor(JanusImageProcessorPil(), loaded(folder, **names, extra_special_tokens=extra),
                               use_default_system_prompt=True)
    speakers = ("User: ", "Assistant:") if request.param == "janus_1b" else ("<|User|>: ", "<|Assistant|>:")
    return layout_with(request.param, folder), processor, speakers, special


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("images", [0, 1, 2])
def test_janus_is_asked_as_by_its_processor(janus, question, images):
    layout, processor, (user, assistant), _ = janus
    placed = "\n\n".join(["<image_placeholder>"] * images) + "\n" * (images > 0)
    theirs = processor(text=f"{user}{placed}{question}\n\n{assistant}", images=[picture(40, 30)] * images or None)
    features = [Image(Latents(np.zeros((576, 1024), np.float32), (24, 24)), role="user")] * images
    sequence = layout.prompt((*features, Text(question, role="user")))
    assert sequence.ids.tolist() == list(theirs["input_ids"][0])
    assert [slot.length for slot in sequence.slots] == [576] * images


@pytest.mark.parametrize("question", QUESTIONS)
def test_janus_is_told_to_draw_as_by_its_processor_and_guided_as_by_its_model(janus, question):
    layout, processor, (user, assistant), special = janus
    theirs = processor(text=f"{user}{question}\n\n{assistant}", generation_mode="image")["input_ids"][0]
    parts = (Text(question, role="user"),)
    assert layout.prompt(parts, "image").ids.tolist() == list(theirs)
    free = np.array(list(theirs))
    free[1:-1] = special["<｜▁pad▁｜>"]  # generation_inference.py of the release
    assert layout.prompt(parts, "image", unconditional=True).ids.tolist() == free.tolist()


def test_a_chat_of_several_turns_is_janus_own_template(janus):
    layout, _, (user, assistant), _ = janus
    chat = sample(Text("a", role="user"), Text("b", True, "assistant"), Text("the one", role="user"),
                  Text("is on", True, "assistant"))
    s = layout.render(chat)
    end = "<｜end▁of▁sentence｜>"
    said = f"<｜begin▁of▁sentence｜>{SYSTEM}{user}a\n\n{assistant} b{end}{user}the one\n\n{assistant} is on{end}"
    assert layout.text.decode(s.ids.tolist()) == said
    assert layout.text.decode(s.ids[s.learn].tolist()) == f" b{end} is on{end}"
    assert layout.said(s.ids[s.learn].tolist()[:2], True) == "b"
