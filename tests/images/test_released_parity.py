"""transformers' own classes save small random weights; ours read them and give the same codes and pixels."""

import pytest
import torch
from images.published import SIZES, TINY, decode, encode, photographs, spread, tensor
from safetensors.torch import load_file, save_file
from transformers import (
    ChameleonVQVAE,
    ChameleonVQVAEConfig,
    Emu3VQVAE,
    Emu3VQVAEConfig,
    JanusVQVAE,
    JanusVQVAEConfig,
)

from unimm.config.images import Chameleon, Emu3, LlamaGen
from unimm.images.released import spellings
from unimm.images.tokenizer import build_tokenizer, first_tokenizer, to_codes, to_pixels

SHAPE = {"base_channels": 32, "channel_multiplier": [1, 1, 1, 2], "num_res_blocks": 1}


def theirs(kind):
    """transformers' model with random weights, its codebook spread over what photographs encode to."""
    torch.manual_seed(0)
    match kind:
        case "chameleon":
            model = ChameleonVQVAE(ChameleonVQVAEConfig(**SHAPE, embed_dim=8, latent_channels=8, num_embeddings=96))
        case "emu3":
            model = Emu3VQVAE(Emu3VQVAEConfig(**SHAPE, codebook_size=96, hidden_size=64))
        case "llamagen":
            model = JanusVQVAE(JanusVQVAEConfig(**SHAPE, latent_channels=8, num_embeddings=96, num_patches=20))
    with torch.no_grad():
        for name, t in model.named_parameters():
            t.copy_(torch.randn_like(t) * (0.2 if name.endswith("bias") else t[0].numel() ** -0.5)
                    if t.ndim > 1 or name.endswith("bias") else 1 + 0.2 * torch.randn_like(t))
        for name, t in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                t.uniform_(0.3, 1.5)
        z = torch.cat([latents(kind, model, tensor(image)) for image in photographs()])
        codes = spread(z, 96)
        # transformers' Janus encodes by plain distance, the release by angle: one rule where all codes have length 1.
        codes = codes / codes.norm(dim=1, keepdim=True) if kind == "llamagen" else codes
        model.quantize.embedding.weight.copy_(codes)
    return model.eval()


def latents(kind, model, images):
    """What the model quantizes, (P, C)."""
    if kind == "emu3":
        frames = images[:, None].repeat(1, 4, 1, 1, 1)
        return model.quant_conv(model.encoder(frames).transpose(1, 2))[0].flatten(1).T
    return model.quant_conv(model.encoder(images))[0].flatten(1).T


def encoded(kind, model, image):
    x = tensor(image)
    if kind == "emu3":
        return model.encode(x, image_sizes=torch.tensor([x.shape[2:]])).image_tokens[0].flatten()
    return model.encode(x).image_tokens.flatten()


@pytest.fixture(scope="module", params=["chameleon", "emu3", "llamagen"])
def pair(request, tmp_path_factory):
    """(kind, transformers' model, ours with the weights that it saved)"""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    model = theirs(kind)
    model.save_pretrained(folder)
    match kind:
        case "chameleon":
            config = Chameleon(**SIZES, latent=8, size=96, dim=8, decoder=False, weights=str(folder))
        case "emu3":
            config = Emu3(**SIZES, size=96, weights=str(folder))
        case "llamagen":
            config = LlamaGen(**SIZES, latent=8, size=96, attention=(3,), weights=str(folder))
    return kind, model, first_tokenizer(config)


@torch.no_grad()
def test_real_photographs_have_the_same_codes(pair):
    """Wherever one code is nearer than all others by more than rounding, which is nearly everywhere."""
    kind, model, tokenizer = pair
    pictures = photographs()
    for picture, code in zip(pictures, to_codes(tokenizer, pictures)):
        ids = torch.from_numpy(code.levels[0].ids[:, 0]).long()
        z = latents(kind, model, tensor(picture)).double()
        distances = torch.cdist(z, model.quantize.embedding.weight.double())
        nearest = distances.topk(2, largest=False).values
        clear = nearest[:, 1] - nearest[:, 0] > 1e-4 * nearest[:, 1]
        assert clear.float().mean() > 0.99
        assert torch.equal(ids[clear], encoded(kind, model, picture)[clear])
        assert code.levels[0].grid == (picture.shape[0] // 8, picture.shape[1] // 8)
        assert len(set(ids.tolist())) > 60


@torch.no_grad()
def test_codes_decode_to_the_same_pixels(pair):
    kind, model, tokenizer = pair
    if kind == "chameleon":
        pytest.skip("transformers' has no decoder")
    ids = encode(tokenizer, tensor(photographs()[0]))
    want = model.decode(ids.view(1, 20, 20) if kind == "emu3" else ids)
    got = decode(tokenizer, ids, (20, 20))
    assert want.std() > 0.1
    assert (got - want).abs().max() <= 1e-4


@pytest.mark.parametrize("kind", ["chameleon", "emu3", "llamagen"])
def test_at_the_released_sizes_names_and_shapes_are_transformers(kind):
    match kind:
        case "chameleon":
            cls, config, ours = ChameleonVQVAE, ChameleonVQVAEConfig(), Chameleon(decoder=False)
        case "emu3":
            cls, config, ours = Emu3VQVAE, Emu3VQVAEConfig(), Emu3()
        case "llamagen":
            cls, config, ours = JanusVQVAE, JanusVQVAEConfig(), LlamaGen()
    with torch.device("meta"):
        model, tokenizer = cls(config), build_tokenizer(ours)
    names = spellings(tokenizer)[-1]
    want = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    got = {names[name]: tuple(t.shape) for name, t in tokenizer.state_dict().items()}
    assert got.keys() == want.keys()
    assert all(shape in (got[name], (*got[name], 1, 1)) for name, shape in want.items())


def test_weights_lie_anywhere_in_a_whole_checkpoint_of_several_shards(pair, tmp_path):
    import json

    kind, model, tokenizer = pair
    weights = load_file(f"{tokenizer.config.weights}/model.safetensors")
    names = sorted(weights)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, some in halves.items():
        save_file({f"model.vqmodel.{n}": weights[n] for n in some} | {f"model.layers.{file}": torch.ones(2)},
                  tmp_path / file)
    where = {f"model.vqmodel.{n}": file for file, some in halves.items() for n in some}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    again = first_tokenizer(type(tokenizer.config)(**{**vars(tokenizer.config), "weights": str(tmp_path)}))
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), tokenizer.state_dict().values()))


def test_pictures_of_several_sizes_go_through_in_one_call(pair):
    kind, _, tokenizer = pair
    if kind == "chameleon":
        pytest.skip("transformers' has no decoder")
    pictures = [photographs()[0][:h, :w] for h, w in ((64, 96), (96, 64), (64, 96))]
    codes = to_codes(tokenizer, pictures)
    assert [c.levels[0].grid for c in codes] == [(8, 12), (12, 8), (8, 12)]
    assert codes[0] == codes[2] == to_codes(tokenizer, pictures[:1])[0]
    assert [p.shape for p in to_pixels(tokenizer, codes)] == [p.shape for p in pictures]


def test_every_architecture_has_a_tiny_one():
    assert all(config.kind == kind for kind, config in TINY.items())
