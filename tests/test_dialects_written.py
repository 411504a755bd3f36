"""Ids written out by hand from the released code of systems that no class of transformers prepares."""

from dataclasses import replace

import numpy as np
import pytest
from dialects import layout_with, recipe, tokenizer
from tokenizers import Tokenizer

from unimm.config.check import ConfigError
from unimm.layout import Layout
from unimm.sample import Codes, Image, Text, sample
from unimm.system import layout_of, text_of
from unimm.text import PretrainedTokenizer

GRID = np.arange(12).reshape(2, 6)


def words(folder, text: str) -> list[int]:
    """What a release's tokenizer makes of a string without special tokens."""
    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    special = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<boi>": 7, "<eoi>": 8, "<unconditional>": 9,
               "<start_of_turn>": 106, "<end_of_turn>": 107}
    return tokenizer(tmp_path_factory.mktemp("gemma"), special, {"end of the text": 255999}, 1000)


CODES = Codes.of_grid(np.arange(1024).reshape(32, 32))
LIQUID = list(range(256000, 257024))


def test_liquid_draws_as_in_its_collator_and_its_inference(gemma):
    """liquid/train/train.py, T2I mode; evaluation/inference_t2i.py."""
    layout = layout_with("liquid_7b", gemma)
    said = words(gemma, "the one Generate an image based on this description.")
    s = layout.render(sample(Text("the one"), Image(CODES, True)))
    assert s.ids.tolist() == [2, *said, 7, *LIQUID, 8, 1]
    assert s.learn.tolist() == [False] * (2 + len(said)) + [True] * 1026, "labels begin behind <boi>"
    assert layout.render(sample(Text("the one"), Image(CODES, True)), True).ids.tolist() == [2, 9, 7, *LIQUID, 8, 1]
    assert layout.prompt((Text("the one"),), "image").ids.tolist() == [2, *said, 7]
    assert layout.prompt((Text("the one"),), "image", unconditional=True).ids.tolist() == [2, 9, 7]
    assert layout.parse(s.ids, s.learn) == sample(Text("the one"), Image(CODES, True))


def test_liquid_captions_as_in_its_collator(gemma):
    """liquid/train/train.py, caption mode: the loss is on the caption and <eos>."""
    layout = layout_with("liquid_7b", gemma)
    made = sample(Image(CODES), Text("the one", True))
    s = layout.render(made)
    asked, said = words(gemma, "The caption of this image is:"), words(gemma, "the one")
    assert s.ids.tolist() == [2, 7, *LIQUID, 8, *asked, *said, 1]
    assert s.ids[s.learn].tolist() == [*said, 1]
    assert layout.prompt((Image(CODES),)).ids.tolist() == [2, 7, *LIQUID, 8, *asked]
    assert layout.parse(s.ids, s.learn) == made


def test_liquid_is_asked_as_in_its_inference(gemma):
    """evaluation/inference_i2t.py and the template gemma of evaluation/VQA_Eval/conversation.py."""
    layout = layout_with("liquid_7b", gemma)
    newline = words(gemma, "\n")
    ids = layout.prompt((Image(CODES, role="user"), Text("the one", role="user"))).ids.tolist()
    user, model = words(gemma, "user\n"), words(gemma, "model\n")
    assert ids == [2, 106, *user, 7, *LIQUID, 8, *words(gemma, "\nthe one"), 107, *newline, 106, *model]
    talk = sample(Text("a", role="user"), Text("the one", True, "assistant"), Text("b", role="user"),
                  Text("is", True, "assistant"))
    s = layout.render(talk)
    turn = [[106, *words(gemma, f"user\n{q}"), 107, *newline, 106, *model, *words(gemma, a), 107, *newline, 1]
            for q, a in (("a", "the one"), ("b", "is"))]
    assert s.ids.tolist() == [2, *turn[0], *turn[1]]
    assert layout.parse(s.ids, s.learn) == talk


@pytest.fixture(scope="module")
def chameleon(tmp_path_factory):
    names = [8706, 8799, *range(8801, 8865)]
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<eoss>": 8196, "<racm3:break>": 8197}
    special |= {f"<reserved{n:05d}>": n + 4 for n in names}
    return tokenizer(tmp_path_factory.mktemp("chameleon"), special, {}, 9000)


def test_lumina_draws_as_in_its_processor(chameleon):
    """data/item_processor.py and data/convertsation.py; inference_solver.py for the branch without a context."""
    layout = layout_with("lumina_mgpt_7b_768", chameleon, sizes=((2, 6), (48, 48)))
    said = words(chameleon, "Generate an image of 96x32 according to the following prompt:\nthe one")
    image = [8197, 8805, 8807, *range(4, 10), 8803, *range(10, 16), 8803, 8196]
    made = sample(Text("the one", role="user"), Image(Codes.of_grid(GRID), True, "assistant"))
    s = layout.render(made)
    assert s.ids.tolist() == [0, *said, 8710, *image, 8710], "height before width, and nothing behind the last turn"
    assert s.ids[s.learn].tolist() == [*image, 8710]
    assert layout.parse(s.ids, s.learn) == made
    assert layout.prompt(made.parts[:1], "image", (2, 6)).ids.tolist() == [0, *said, 8710, 8197, 8805, 8807]
    assert layout.prompt(made.parts[:1], "image", (2, 6), True).ids.tolist() == [8197, 8805, 8807]
    assert layout.write_plans[48, 48].header == (8197, 8828, 8828)


def test_lumina_is_asked_as_in_its_processor(chameleon):
    layout = layout_with("lumina_mgpt_7b_768", chameleon, sizes=((2, 6),))
    image = [8197, 8805, 8807, *range(4, 10), 8803, *range(10, 16), 8803, 8196]
    parts = (Text("Describe the one. ", role="user"), Image(Codes.of_grid(GRID), role="user"))
    assert layout.prompt(parts).ids.tolist() == [0, *words(chameleon, "Describe the one. "), *image, 8710]


def test_anole_draws_as_in_its_script(chameleon):
    """text2image.py: the instruction, end of turn; chameleon.py: begin of image, and [bos, begin] without a context."""
    layout = layout_with("anole_7b", chameleon)
    parts = (Text("draw the one", role="user"),)
    said = words(chameleon, "draw the one")
    assert layout.prompt(parts, "image").ids.tolist() == [0, *said, 8710, 8197]
    assert layout.prompt(parts, "image", unconditional=True).ids.tolist() == [0, 8197]
    s = layout.render(sample(*parts, Image(CODES, True, "assistant")))
    assert s.ids.tolist() == [0, *said, 8710, 8197, *range(4, 1028), 8196, 2]


@pytest.fixture(scope="module")
def emu35(tmp_path_factory):
    special = {"<|endoftext|>": 151643, "<|image token|>": 151851, "<|image start|>": 151852, "<|image end|>": 151853}
    special |= {f"<|extra_{n}|>": 151646 + n for n in range(205)}
    return tokenizer(tmp_path_factory.mktemp("emu35"), special, {}, 0)


def test_emu35_draws_as_in_its_configuration(emu35):
    """configs/example_config_t2i.py; src/utils/input_utils.py, format_image_string; src/utils/logits_processor.py."""
    layout = layout_with("emu3_5_image", emu35)
    asked = words(emu35, "You are a helpful assistant for t2i task. USER: the one ASSISTANT: ")
    image = [151852, *words(emu35, "2*6"), 151851, *range(151854, 151860), 151846, *range(151860, 151866), 151853]
    made = sample(Text("the one", role="user"), Image(Codes.of_grid(GRID), True, "assistant"))
    s = layout.render(made)
    assert s.ids.tolist() == [151849, *asked, 151746, *image, 151747, 151850], "row ends only between rows"
    assert layout.parse(s.ids, s.learn) == made
    header = [151852, *words(emu35, "64*64"), 151851]
    assert layout.prompt(made.parts[:1], "image", (64, 64)).ids.tolist() == [151849, *asked, 151746, *header]
    free = words(emu35, "You are a helpful assistant. USER:  ASSISTANT: ")
    assert layout.prompt(made.parts[:1], "image", (64, 64), True).ids.tolist() == [151849, *free, 151746, *header]


def test_emu35_forgets_words_and_keeps_images(emu35):
    """configs/example_config_x2i.py: the template of another task, and unc_prompt with <|IMAGE|> in it."""
    layout = layout_with("emu3_5_image", emu35)
    image = [151852, *words(emu35, "2*6"), 151851, *range(151854, 151860), 151846, *range(151860, 151866), 151853]
    read = Image(Codes.of_grid(GRID), role="user")
    parts = (Text("You are a helpful assistant for x2i task.", role="system"), read, read, Text("the one", role="user"))
    header = [151852, *words(emu35, "64*64"), 151851]
    asked = [151849, *words(emu35, "You are a helpful assistant for x2i task. USER: "), *image, *image,
             *words(emu35, "the one ASSISTANT: "), 151746, *header]
    assert layout.prompt(parts, "image", (64, 64)).ids.tolist() == asked
    free = [151849, *words(emu35, "You are a helpful assistant. USER: "), *image, *image,
            *words(emu35, " ASSISTANT: "), 151746, *header]
    assert layout.prompt(parts, "image", (64, 64), True).ids.tolist() == free


def test_markers_are_found_by_name_and_stated_ids_are_checked(chameleon, gemma):
    made = recipe("lumina_mgpt_7b_768")
    found = layout_of(replace(made, special_ids={}), PretrainedTokenizer(str(chameleon)))
    stated = layout_of(made, text_of(made, None))
    assert found.vocab.special == stated.vocab.special
    wrong = replace(made, special_ids={"<eoss>": 8198})
    with pytest.raises(ConfigError, match="special_ids says <eoss> is 8198, but in the text tokenizer it is 8196"):
        layout_of(wrong, PretrainedTokenizer(str(chameleon)))
    with pytest.raises(ConfigError, match="give the tokenizer of the release that is meant"):
        layout_of(made, PretrainedTokenizer(str(gemma)))


def test_stated_ids_serve_where_a_tokenizer_lacks_the_name(tmp_path):
    """Gemma's own tokenizer calls Liquid's markers <unused0>, <unused1> and <unused2>."""
    unused = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<start_of_turn>": 106, "<end_of_turn>": 107}
    folder = tokenizer(tmp_path, unused, {"<unused0>": 7, "<unused1>": 8, "<unused2>": 9, "last": 255999}, 1000)
    layout = layout_with("liquid_7b", folder)
    assert [layout.vocab.special[name] for name in ("<boi>", "<eoi>", "<unconditional>")] == [7, 8, 9]
    assert layout.vocab.ranges["visual"].start == 256000 and layout.vocab.rows == 264192


def test_text_gives_no_marker_that_a_release_left_unmarked(tmp_path):
    file = tokenizer(tmp_path, {"<s>": 0}, {"<boi>": 7}, 100) / "tokenizer.json"
    careless = Tokenizer.from_file(str(file))
    careless.add_tokens(["<boi>"])
    careless.save(str(file))
    text = PretrainedTokenizer(str(tmp_path))
    assert 7 in text.encode("a<boi>"), "the test would show nothing"
    text.keep_apart([7])
    assert 7 not in text.encode("a<boi>") and text.decode(text.encode("a<boi>")) == "a<boi>"


def test_codes_that_the_tokenizer_names_must_be_all_there_and_one_run(tmp_path):
    def layout(codes: dict[str, int]) -> Layout:
        folder = tokenizer(tmp_path, {"<s>": 0, "<pad>": 1, "</s>": 2}, codes, 9000)
        book = replace(recipe("chameleon_7b").codebooks[0], size=4)
        small = replace(recipe("chameleon_7b"), codebooks=(book,), stages={}, data={})
        return layout_of(small, PretrainedTokenizer(str(folder)))

    names = ["IMGIMGAZ", "IMGIMGBZ", "IMGIMGCZ", "IMGIMGDZ"]
    assert layout(dict(zip(names, (7, 5, 4, 6)))).vocab.ranges["visual"].ids_of(np.arange(4)).tolist() == [7, 5, 4, 6]
    with pytest.raises(ConfigError, match="no IMGIMGDZ, but other codes of 'visual'"):
        layout(dict(zip(names[:3], (4, 5, 6))))
    with pytest.raises(ConfigError, match="are not one run"):
        layout(dict(zip(names, (4, 5, 6, 8))))
    with pytest.raises(ConfigError, match="starts at 4, but in the text tokenizer at 5"):
        layout(dict(zip(names, (5, 6, 7, 8))))
