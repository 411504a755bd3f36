"""Every recipe of a published system: its tokens per image, its samples, and what may be drawn under its constraint."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from dialects import ROOT, random_content, recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from unimm.config.check import ConfigError
from unimm.layout import Layout, LayoutError
from unimm.sample import Codes, Image, Latents, Text, sample
from unimm.system import layout_of, text_of
from unimm.turns import TurnError

NAMES = sorted(path.stem for path in (ROOT / "recipes" / "systems").glob("*.py") if path.stem != "__init__")
FAMILIES = ("chameleon_7b", "anole_7b", "lumina_mgpt_7b_768", "emu3_gen", "emu3_chat", "emu3_5_image", "janus_1b",
            "janus_pro_1b", "liquid_7b")


def shown(name: str, sizes=None) -> Layout:
    """The recipe's layout with bytes in the place of a release's text tokenizer, at a few sizes of a few codes."""
    made = recipe(name)
    if sizes:
        made = replace(made, layout=replace(made.layout, sizes=sizes))
    return layout_of(made, text_of(made, None))


@pytest.fixture(scope="module")
def small() -> dict[str, Layout]:
    return {name: shown(name, ((2, 4), (4, 2)) if recipe(name).layout.any_size or "lumina" in name else ((3, 3),))
            for name in FAMILIES}


# What the released code writes, structure tokens included.
COUNTED = [("chameleon_7b", (32, 32), 1026), ("chameleon_30b", (32, 32), 1026), ("anole_7b", (32, 32), 1026),
           ("liquid_7b", (32, 32), 1026), ("liquid_2b", (32, 32), 1026),
           ("lumina_mgpt_7b_512", (32, 32), 1060), ("lumina_mgpt_34b_512", (32, 32), 1060),
           ("lumina_mgpt_7b_768", (48, 48), 2356), ("lumina_mgpt_7b_1024", (64, 64), 4164),
           ("emu3_gen", (64, 64), 4169), ("emu3_gen", (90, 90), 8199), ("emu3_gen", (32, 32), 1065),
           ("emu3_chat", (64, 64), 4169), ("emu3_5_image", (64, 64), 4167),
           ("janus_1b", (24, 24), 578), ("janus_pro_1b", (24, 24), 578), ("janus_pro_7b", (24, 24), 578),
           ("seed_llama_8b", (16, 16), 34), ("tokenflow_t2i_7b", (16, 16), 258), ("illume_plus_3b", (32, 32), 1406),
           ("fqgan", (16, 16), 258), ("vila_u_7b", (16, 16), 258), ("lavit_7b", (16, 16), 258),
           ("ett_1_5b", (32, 32), 1026), ("ming_univision_16b", (16, 16), 258)]
POSITIONS = {"seed_llama_8b": 32, "illume_plus_3b": 18 * 18 + 32 * 32}
"""Where they are not those of a grid as large as the size."""


@pytest.mark.parametrize("name, size, count", COUNTED)
def test_an_image_takes_as_many_tokens_as_in_the_release(name, size, count):
    layout = shown(name)
    assert layout.tokens(size) == count
    content = random_content(layout, np.random.default_rng(0), True, size, longest=True)
    sequence = layout.render(sample(Image(content, True)))
    assert len(sequence) == 1 + count + 1, "begin of sequence, image, end of sequence"
    held = layout.vocab.is_code[sequence.ids] | np.isin(sequence.ids, list(layout.placeholders.values()))
    assert held.sum() == POSITIONS.get(name, size[0] * size[1])


def test_every_recipe_is_counted():
    assert {name for name, _, _ in COUNTED} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_show_prints_a_recipe_without_torch_weights_or_a_hub(name):
    script = ("import sys; from unimm.cli.main import run; run(['show', sys.argv[1]]); "
              "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)")
    said = subprocess.run([sys.executable, "-c", script, f"recipes/systems/{name}.py"], cwd=ROOT, capture_output=True,
                          text=True, check=True, env={"HF_HUB_OFFLINE": "0", "PATH": ""}).stdout
    assert ("and its tokenizer is not at hand" in said) == (recipe(name).text.kind == "pretrained")
    assert "text as bytes" in said
    assert "visual:0" in said or any(space.placeholder in said for space in recipe(name).continuous)
    assert len((ROOT / "recipes" / "systems" / f"{name}.py").read_text().splitlines()) <= 60


def content(layout: Layout, rng: np.random.Generator, learn: bool):
    sizes = list(layout.config.sizes) + ([(5, 3), (1, 6)] if layout.config.any_size else [])
    h, w = sizes[rng.integers(len(sizes))]
    if layout.config.read is not None and not learn:
        return Latents(rng.standard_normal((h * w, 1024)).astype(np.float32), (h, w))
    return Codes.of_grid(rng.integers(layout.vocab.ranges["visual"].codes, size=(h, w)))


WORDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
HOSTILE = st.sampled_from(["<s>", "</s>", "<racm3:break>", "<reserved08706>", "<|image start|>",
                           "<|extra_203|>", "<boi>", "<|User|>: x", "<begin_of_image>", "\n", "\n\n", ".", " ",
                           "<start_of_turn>model\n"])


@st.composite
def samples(draw, layout: Layout):
    """Documents, and chats as the releases have them: perhaps a system, then user and assistant in turn."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def parts(role, learn, least=1):
        for _ in range(draw(st.integers(least, 3))):
            image = draw(st.booleans())
            yield Image(content(layout, rng, learn), learn, role) if image else Text(draw(WORDS | HOSTILE), learn, role)

    if draw(st.booleans()):
        return sample(*(part for learn in draw(st.lists(st.booleans(), min_size=1, max_size=2))
                        for part in parts(None, learn)))
    found = [Text("Be brief", role="system")] if layout.config.chat.system is not None and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        found += [*parts("user", False), *parts("assistant", True)]
    return sample(*found)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_parsing_a_rendered_sample_gives_the_sample_back(small, name, data):
    layout = small[name]
    made = data.draw(samples(layout))
    s = layout.render(made)
    assert layout.parse(s.ids, s.learn, s.slots) == made
    assert s.ids.min() >= 0 and s.ids.max() < layout.vocab.size


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_allowed_ids_end_as_a_whole_image_of_the_size_that_was_asked_for(small, name, seed):
    layout, rng = small[name], np.random.default_rng(seed)
    automaton = layout.automaton
    for size in layout.config.sizes:
        row = list(layout.prompt((Text("x", role="user"),), "image", size).ids)
        state = np.array([automaton.after(layout.write_plans[size].header)])
        while state[0] != automaton.TEXT:
            row.append(int(rng.choice(automaton.sets[automaton.set_of[state[0]]])))
            state = automaton.advance(state, np.array(row[-1:]))
        text, image = layout.parse(np.array(row)).parts
        assert (text, image.role) == (Text("x", role="user"), "assistant")
        assert image.content.levels[0].grid == size


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_is_the_beginning_of_what_is_trained_on(small, name):
    layout, rng = small[name], np.random.default_rng(0)
    for role in (None, "user"):
        image = Image(content(layout, rng, True), True, role and "assistant")
        size = image.content.levels[0].grid
        for context in ((Text("red"),), (Text("red"), Image(content(layout, rng, False)), Text("and"))):
            parts = tuple(replace(part, role=role) for part in context)
            for unconditional in (False, True) if size in layout.write_plans else ():
                trained = layout.render(sample(*parts, image), unconditional).ids
                prompt = layout.prompt(parts, "image", size, unconditional).ids
                assert np.array_equal(trained[:len(prompt)], prompt)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_user_types_never_becomes_a_control_token(small, name):
    layout = small[name]
    for marker in layout.vocab.special:
        typed = layout.prompt((Text(f"a{marker}b", role="user"),)).ids.tolist()
        plain = layout.prompt((Text("a" + "-" * len(marker.encode()) + "b", role="user"),)).ids.tolist()
        assert len(typed) == len(plain)
        assert [i for i in typed if not layout.vocab.is_text[i]] == [i for i in plain if not layout.vocab.is_text[i]]


def test_a_size_that_does_not_fit_a_stages_rows_is_refused():
    made = recipe("lumina_mgpt_7b_1024")
    short = replace(made, stages={"sft": replace(made.stages["sft"], seq_len=4096, step_tokens=4096)})
    with pytest.raises(ConfigError, match="rows of 4,096 tokens, but an image of 128 x 32 codes takes 4,228"):
        layout_of(short, text_of(short, None))
    layout_of(replace(short, stages={"sft": replace(short.stages["sft"], too_long="drop")}), text_of(short, None))


def test_turns_that_could_not_be_told_apart_are_refused(small):
    layout = small["chameleon_7b"]
    with pytest.raises(TurnError, match="no system turn; say it in the user's"):
        layout.render(sample(Text("Be brief", role="system"), Text("x", role="user")))
    with pytest.raises(TurnError, match="apart by their order, so nothing before assistant"):
        layout.render(sample(Text("x", True, "assistant")))


def test_a_size_that_nobody_listed_is_read_but_not_drawn(small):
    layout = small["emu3_gen"]
    made = sample(Image(Codes.of_grid(np.arange(21).reshape(3, 7)), True))
    assert layout.parse(layout.render(made).ids, layout.render(made).learn) == made
    with pytest.raises(LayoutError, match="no image of 3 x 7 codes"):
        layout.prompt((Text("x"),), "image", (3, 7))
