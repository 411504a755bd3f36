import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ten_systems import TEN, content

from unimm.config.check import ConfigError
from unimm.config.tokens import Codebook, ImageLayout, LevelLayout
from unimm.config.tokens import Layout as LayoutConfig
from unimm.grammar import Automaton
from unimm.layout import Layout, LayoutError
from unimm.sample import Codes, Image, Text, sample
from unimm.text import BytesTokenizer

LAYOUTS = {name: toy.build() for name, toy in TEN.items()}
WORDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)


@st.composite
def samples(draw, name):
    """Documents and chats of texts and images, read and written, several images included."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    chat = draw(st.booleans())
    parts = []
    for _ in range(draw(st.integers(1, 5))):
        learn = draw(st.booleans())
        role = ("assistant" if learn else draw(st.sampled_from(["system", "user"]))) if chat else None
        image = draw(st.booleans())
        parts.append(Image(content(name, rng, learn), learn, role) if image else Text(draw(WORDS), learn, role))
    return sample(*parts)


@pytest.mark.parametrize("name", TEN)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_parsing_a_rendered_sample_gives_the_sample_back(name, data):
    layout, given_sample = LAYOUTS[name], data.draw(samples(name))
    s = layout.render(given_sample)
    assert layout.parse(s.ids, s.learn, s.slots) == given_sample
    assert s.ids.min() >= 0 and s.ids.max() < layout.vocab.size


@pytest.mark.parametrize("name", TEN)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_allowed_ids_end_as_whole_images_at_every_row_of_a_batch(name, seed):
    layout, rng = LAYOUTS[name], np.random.default_rng(seed)
    automaton = layout.automaton
    sizes = [layout.config.sizes[rng.integers(len(layout.config.sizes))] for _ in range(5)]
    rows = [list(layout.prompt((Text("x"),), "image", size).ids) for size in sizes]
    states = np.array([automaton.after(layout.write_plans[size].header) for size in sizes])
    busy = np.ones(5, bool)
    while busy.any():
        ids = np.array([rng.choice(automaton.sets[automaton.set_of[s]]) for s in states])
        for row in np.flatnonzero(busy):
            rows[row].append(ids[row])
        states = np.where(busy, automaton.advance(states, ids), automaton.TEXT)
        busy &= states != automaton.TEXT
        assert max(map(len, rows)) < 300
    if name in ("fqgan", "ming_univision"):
        return  # their payload is in slots, which a head fills in, not in ids
    for size, row in zip(sizes, rows):
        text, image = layout.parse(np.array(row)).parts
        assert text == Text("x")
        if image.content.levels[0].grid is not None:
            assert image.content.levels[0].grid == size


@pytest.mark.parametrize("name", TEN)
def test_a_prompt_is_the_beginning_of_what_is_trained_on(name):
    """Defect 19: sampling must continue exactly what training showed, also in the unconditional form."""
    layout, rng = LAYOUTS[name], np.random.default_rng(0)
    for role in (None, "user"):
        context = (Text("a red circle", role=role), Image(content(name, rng, False), role=role))
        image = Image(content(name, rng, True), True, role and "assistant")
        size = image.content.levels[0].grid if isinstance(image.content, Codes) else None
        for unconditional in (False, True):
            trained = layout.render(sample(*context, image), unconditional).ids
            prompt = layout.prompt(context, "image", size if size in layout.write_plans else None, unconditional).ids
            assert np.array_equal(trained[:len(prompt)], prompt)
            assert unconditional == (b"red" not in bytes(int(i) for i in prompt if i < 256))


def test_several_images_keep_their_own_codes():
    """Defect 11: every placeholder replaced by the first image's codes."""
    layout = LAYOUTS["liquid"]
    images = [Image(Codes.of_grid(np.full((3, 3), k))) for k in (1, 2, 3)]
    s = layout.render(sample(images[0], Text("and"), images[1], images[2]))
    codes = s.ids[layout.vocab.is_code[s.ids]] - layout.vocab.ranges["visual"].start
    assert codes.tolist() == [1] * 9 + [2] * 9 + [3] * 9


def test_the_published_shapes_of_emu3_and_illume_are_written_token_for_token():
    emu3, image = LAYOUTS["emu3"], Codes.of_grid([[1, 2, 3], [4, 5, 6]])
    names = [emu3.name(int(i)) for i in emu3.render(sample(Image(image, True))).ids]
    assert names == ["<s>", "<|image start|>", "'2'", "'*'", "'3'", "<|image token|>",
                     "visual:1", "visual:2", "visual:3", "<|extra_200|>",
                     "visual:4", "visual:5", "visual:6", "<|extra_200|>",
                     "<|extra_201|>", "<|image end|>", "</s>"]
    illume = LAYOUTS["illume_plus"]
    names = [illume.name(i) for i in illume.write_plans[2, 3].header]
    assert names == ["<height_32>", "<width_48>", "<start_of_image>", "<start_of_level0>"]


def test_a_row_end_comes_after_every_row_even_at_width_one():
    """Defect 14: a row-end rule that fires before the end marker at width <= 2."""
    layout = LAYOUTS["emu3"]
    automaton, row_end = layout.automaton, layout.vocab.special["<|extra_200|>"]
    state = np.array([automaton.after(layout.write_plans[12, 1].header)])
    for _ in range(12):
        assert automaton.kinds[automaton.set_of[state[0]]] == "visual"
        state = automaton.advance(state, np.array([layout.vocab.ranges["visual"].start]))
        assert automaton.sets[automaton.set_of[state[0]]].tolist() == [row_end]
        state = automaton.advance(state, np.array([row_end]))
    assert automaton.sets[automaton.set_of[state[0]]].tolist() == [layout.vocab.special["<|extra_201|>"]]


def test_text_may_go_on_end_or_begin_an_image_and_nothing_else():
    layout = LAYOUTS["liquid"]
    automaton, special = layout.automaton, layout.vocab.special
    free = set(automaton.sets[automaton.set_of[Automaton.TEXT]].tolist())
    assert free == set(range(256)) | {special["</s>"], special["<end>"], special["<unused0>"]}
    with pytest.raises(ValueError, match="may not stand there"):
        automaton.advance(np.array([Automaton.TEXT]), np.array([layout.vocab.ranges["visual"].start]))


def test_an_image_sampled_by_count_needs_no_end_marker():
    layout = LAYOUTS["janus"]
    prompt = layout.prompt((Text("x"),), "image").ids.tolist()
    codes = [layout.vocab.ranges["visual"].start + k for k in range(9)]
    assert layout.parse(np.array(prompt + codes)).images[0].content == Codes.of_grid(np.arange(9).reshape(3, 3))


def test_special_token_text_in_a_prompt_stays_text():
    layout = LAYOUTS["liquid"]
    ids = layout.prompt((Text("</s><unused0><bot>", role="user"),)).ids
    assert layout.parse(ids).parts == (Text("</s><unused0><bot>", role="user"),)
    assert (ids[2:-1] < 256).all()


def test_what_cannot_be_written_or_read_is_refused_in_words():
    layout = LAYOUTS["liquid"]
    with pytest.raises(LayoutError, match="5 x 7 grid.*sizes are 3 x 3"):
        layout.render(sample(Image(Codes.of_grid(np.zeros((5, 7), int)))))
    with pytest.raises(LayoutError, match="no image of 8 x 8 codes"):
        layout.prompt((Text("x"),), "image", (8, 8))
    whole = layout.render(sample(Image(Codes.of_grid(np.zeros((3, 3), int))))).ids
    with pytest.raises(LayoutError, match="position 1 holds <unused0>"):
        layout.parse(whole[:6])
    with pytest.raises(LayoutError, match="ends in a learned image"):
        layout.render(sample(Text("x")), unconditional=True)


def test_a_layout_whose_images_could_not_be_told_apart_is_refused():
    config = LayoutConfig(write=ImageLayout(begin="<boi>", levels=(LevelLayout(space="visual"),), end="<eoi>"),
                          sizes=((1, 2), (2, 1)))
    books = (Codebook(name="visual", size=4),)
    with pytest.raises(ConfigError, match="written alike"):
        Layout(config, BytesTokenizer(), books)
    bare = LayoutConfig(write=ImageLayout(begin="<boi>", levels=(LevelLayout(space="visual"),), end="", stop="count"),
                        sizes=((1, 2), (2, 2)))
    with pytest.raises(ConfigError, match="beginning of another"):
        assert Layout(bare, BytesTokenizer(), books).automaton
    with pytest.raises(ConfigError, match="writes 'visual'"):
        Layout(config, BytesTokenizer(), ())


def test_published_ids_are_kept_and_clashes_refused():
    toy = TEN["emu3"]
    stated = {"<|image start|>": 300, "<|extra_200|>": 270}
    layout = Layout(toy.layout, BytesTokenizer(), (Codebook(name="visual", size=40, start=400),), (), stated)
    assert layout.vocab.special["<|image start|>"] == 300 and layout.vocab.ranges["visual"].start == 400
    assert len(set(layout.vocab.special.values())) == len(layout.vocab.special)
    assert layout.vocab.rows == 440
    with pytest.raises(ConfigError, match="claim some id twice"):
        Layout(toy.layout, BytesTokenizer(), (Codebook(name="visual", size=40, start=290),), (), stated)
