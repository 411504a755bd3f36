"""The codes that released classes draw greedily, and those that our one loop draws with the same weights."""

import numpy as np
import pytest
import torch
import transformers
from model.released import ROWS, NoTokenizer, layout_of, logits_of, recipe_of, theirs

from unimm.config.sampling import Choice, Sampling
from unimm.generate.decode import decode
from unimm.generate.request import Request, drawing, guides
from unimm.pictures import to_png
from unimm.sample import Codes, Image, Text
from unimm.system import new_model

TEXTS = ("a dot", "two red squares", "x")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    made = {}

    def pair(kind):
        if kind not in made:
            folder, model = tmp_path_factory.mktemp("released"), theirs(kind)
            model.save_pretrained(folder)
            layout = layout_of(kind)
            made[kind] = model, new_model(recipe_of(kind, folder), layout, NoTokenizer()), layout
        return made[kind]

    return pair


def drawn(ours, layout, guidance: float) -> list[Request]:
    sampling = Sampling(image=Choice(temperature=0.0), guidance=guidance)
    requests = [drawing((Text(t),), sampling, layout.config.sizes[0]) for t in TEXTS]
    decode(ours, layout, requests)
    return requests


def prompt_of(layout, request: Request):
    return layout.prompt(request.parts, "image" if request.size else "text", request.size)


def allowed_after(layout, request: Request):
    """transformers' prefix constraint: the ids that the layout allows behind what was written so far."""
    automaton = layout.automaton

    def allowed(_, ids):
        state = np.array([automaton.after(layout.write_plans[request.size].header)])
        for i in ids[len(prompt_of(layout, request)):].tolist():
            state = automaton.advance(state, np.array([i]))
        return automaton.sets[automaton.set_of[state[0]]].tolist()

    return allowed


@torch.no_grad()
def test_chameleon(pairs):
    """By the head on the last hidden state: its own forward masks every code."""
    model, ours, layout = pairs("chameleon")
    codes = layout.vocab.ranges["visual"]
    for request in drawn(ours, layout, 1.0):
        ids = prompt_of(layout, request).ids.tolist()
        for _ in range(6):
            ids.append(codes.start + int(logits_of(model, torch.tensor([ids]))[0, -1, codes.start:codes.stop].argmax()))
        assert request.ids[:-1] == ids[-6:] and request.ids[-1] == layout.vocab.special["<eoi>"]
        assert len(set(request.ids)) > 2


@torch.no_grad()
def test_emu3_with_guidance_and_its_prefix_constraint(pairs):
    model, ours, layout = pairs("emu3")
    for request in drawn(ours, layout, 3.0):
        free = guides(layout, request.sampling, request.parts, request.size).prompts[0]
        ids, free = (torch.from_numpy(s.ids).long()[None] for s in (prompt_of(layout, request), free))
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), negative_prompt_ids=free,
            negative_prompt_attention_mask=torch.ones_like(free), guidance_scale=3.0, do_sample=False,
            max_new_tokens=len(request.ids), eos_token_id=layout.vocab.special["<eoi>"], pad_token_id=layout.pad_id,
            prefix_allowed_tokens_fn=allowed_after(layout, request))
        assert request.ids == made[0, ids.shape[1]:].tolist()
        assert len(request.ids) == 2 * 4 + 2  # rows of 3 with their ends, end of file, end


@pytest.mark.skipif(transformers.__version__.startswith("5.17."), reason="its Janus can't draw: a missing argument")
@torch.no_grad()
def test_janus_with_guidance(pairs):
    model, ours, layout = pairs("janus")
    for request in drawn(ours, layout, 5.0):
        model.generation_config.generation_kwargs = {"boi_token_id": layout.vocab.special["<boi>"]}
        ids = torch.from_numpy(prompt_of(layout, request).ids).long()[None]
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_mode="image",
                              guidance_scale=5, do_sample=False, bos_token_id=layout.bos, pad_token_id=layout.pad_id,
                              eos_token_id=layout.eos)
        assert [i - ROWS for i in request.ids] == made[0].tolist()
        assert len(set(request.ids)) > 2


@torch.no_grad()
def test_janus_answers_about_its_pictures_as_its_own_class_does(pairs):
    model, ours, layout = pairs("janus")
    rng = np.random.default_rng(3)
    pictures = [rng.integers(256, size=(32, 32, 3), dtype=np.uint8) for _ in range(3)]
    unread = Codes.of_grid(np.zeros((4, 4), int))
    requests = [Request((Image(unread, seen=to_png(p)), Text(t)), Sampling(text_length=5))
                for p, t in zip(pictures, TEXTS)]
    automaton = layout.automaton
    decode(ours, layout, requests)
    allowed = torch.from_numpy(automaton.sets[automaton.no_image])
    for request, picture in zip(requests, pictures):
        ids = prompt_of(layout, request).ids.tolist()
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
        for written in request.ids:
            logits = model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0, -1]
            ids.append(int(allowed[logits[allowed].argmax()]))
            assert written == ids[-1]
