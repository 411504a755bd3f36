"""What a tokenizer is asked for beside the pixels, and the feature network that it is asked by."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unimm.config.images import Adversarial, Contrastive, ConvTokenizer, Distill, Gram, Perceptual
from unimm.config.model import FreshVision, PretrainedVision
from unimm.config.quantizers import VQ
from unimm.images.losses import Captions, Contrast, Reconstructing, gram, perceptual
from unimm.images.tokenizer import TokenizerError, build_tokenizer
from unimm.published import vision
from unimm.sample import Pictures

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def features(patch=8):
    torch.manual_seed(1)
    return vision(FreshVision(patch=patch, width=16, layers=2, heads=2), 16)


def asked(*losses, patch=8, downsample=4):
    torch.manual_seed(0)
    config = ConvTokenizer(image=16, downsample=downsample, width=16, quantizer=VQ(size=16, dim=4), losses=losses)
    return Reconstructing(build_tokenizer(config), features(patch)).train()


def captioned(count=16, seed=0):
    rng = np.random.default_rng(seed)
    pixels, texts = rng.integers(0, 60, (count, 16, 16, 3), dtype=np.uint8), []
    for picture in pixels:
        texts.append(f"a {rng.choice(list(COLOURS))} square {rng.choice(['above', 'below'])}")
        _, colour, _, side = texts[-1].split()
        top = 1 if side == "above" else 9
        picture[top : top + 6, 4:10] = COLOURS[colour]
    return Pictures(pixels, tuple(texts))


def images(batch):
    return torch.from_numpy(batch.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_gram_and_perceptual_equal_loops_in_float64():
    ours, theirs = [[torch.randn(3, 5, 4) for _ in range(2)] for _ in range(2)]
    textures = distances = 0.0
    for a, b in zip(ours, theirs):
        for x, y in zip(a.double(), b.double()):
            both = [sum(torch.outer(v, v) for v in rows) / 5 for rows in (x, y)]
            textures += ((both[0] - both[1]) ** 2).sum().item() / 16 / 6
            distances += sum(((v / v.norm() - w / w.norm()) ** 2).sum().item() for v, w in zip(x, y)) / 5 / 6
    assert gram(ours, theirs).item() == pytest.approx(textures, rel=1e-5)
    assert perceptual(ours, theirs).item() == pytest.approx(distances, rel=1e-5)


@pytest.mark.parametrize("loss", [Perceptual(), Gram(weight=10.0)], ids=lambda x: x.kind)
def test_features_pull_what_comes_back_and_stay_as_they_are(loss):
    module = asked(loss)
    network, = module.features
    before = [p.clone() for p in network.parameters()]
    assert all(name.startswith("tokenizer.") for name in module.state_dict()), "the network is not part of it"
    losses = module.losses(images(captioned()), captioned().texts)
    losses[loss.kind].backward()
    assert module.tokenizer.decoder[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(network.parameters(), before))
    same = images(captioned())
    hidden = module._hidden(same)
    assert perceptual(hidden, hidden) < 1e-10 and gram(hidden, hidden) == 0


def test_neither_side_of_the_game_moves_the_other():
    module = asked(Adversarial(weight=0.5))
    judge, tokenizer = module.learned["adversarial"].judge, module.tokenizer
    losses = module.losses(images(captioned()), ())
    losses["adversarial"].backward(retain_graph=True)
    assert all(p.grad is None for p in judge.parameters())
    assert tokenizer.decoder[0].weight.grad.abs().sum() > 0
    tokenizer.zero_grad()
    losses["discriminator"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in judge.parameters())
    assert all(p.grad is None for p in tokenizer.parameters())


def test_the_adversary_is_heard_after_so_many_forwards_and_counts_them_in_its_state():
    module = asked(Adversarial(weight=0.5, after=2))
    batch = captioned()
    heard = [module.losses(images(batch), ())["adversarial"].item() for _ in range(2)]
    again = asked(Adversarial(weight=0.5, after=2))
    again.load_state_dict(module.state_dict())
    heard += [again.losses(images(batch), ())["adversarial"].item() for _ in range(2)]
    assert heard[:2] == [0, 0] and heard[2] != 0 and heard[3] != 0
    assert module.eval().learned["adversarial"].forwards == 2
    module.losses(images(batch), ())
    assert module.learned["adversarial"].forwards == 2
    with torch.no_grad():
        found = module.tokenizer(images(batch))
        score = module.learned["adversarial"].judge(found.images).mean()
        assert module.losses(images(batch), ())["adversarial"].item() == pytest.approx(-0.5 * score.item(), rel=1e-5)


def test_a_discriminator_learns_to_tell_and_a_tokenizer_to_please():
    module = asked(Adversarial(weight=0.0))
    optimizer = torch.optim.Adam(module.learned.parameters(), lr=3e-3)
    for step in range(40):
        loss = module.losses(images(captioned(seed=step)), ())["discriminator"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3


def test_the_sigmoid_loss_is_that_of_its_paper_without_pairs_of_equal_captions():
    torch.manual_seed(0)
    captions, pooled = Captions(6), torch.randn(5, 6)
    texts = ("a red circle", "two blue squares", "a red circle", "", "a tree")
    logits = captions.logits(pooled, texts).double()
    total = 0.0
    for i in (0, 1, 2, 4):
        for j in (0, 1, 2, 4):
            if i == j or texts[i] != texts[j]:
                total -= F.logsigmoid((1 if i == j else -1) * logits[i, j]).item()
    assert captions(pooled, texts).item() == pytest.approx(total / 4, rel=1e-5)
    said = F.normalize(captions.words.weight, dim=1)
    assert logits.shape == (5, 5) and said.shape[0] > 1000


def found_again(logits, texts):
    """The share of pictures whose nearest text is theirs."""
    return np.mean([texts[i] == texts[j] for i, j in enumerate(logits.argmax(1).tolist())])


def trained(module, loss, steps=60):
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    for step in range(steps):
        batch = captioned(32, seed=step)
        optimizer.zero_grad()
        module.losses(images(batch), batch.texts)[loss].backward()
        optimizer.step()
    return module.eval()


def test_contrast_teaches_a_network_what_captions_say_and_it_comes_back_from_its_folder(tmp_path):
    batch, module = captioned(64, seed=999), Contrast(features())

    def share():
        with torch.no_grad():
            pooled = module.vision(images(batch)).last_hidden_state.mean(1)
            return found_again(module.captions.logits(pooled, batch.texts), batch.texts)

    before = share()
    trained(module, "contrast")
    assert before < 0.25 and share() > 0.4  # of eight captions; colours are learned first, then places
    losses = module(batch)
    assert losses.parts["contrast"][1] == 64
    module.vision.save_pretrained(tmp_path / "features")
    again = vision(PretrainedVision(path=str(tmp_path / "features")), 16)
    with torch.no_grad():
        ours, theirs = (each.eval()(images(batch)).last_hidden_state for each in (module.vision, again))
    assert torch.equal(ours, theirs)


def test_contrastive_pulls_a_tokenizers_vectors_to_their_captions():
    batch, module = captioned(64, seed=999), asked(Contrastive())

    def share():
        with torch.no_grad():
            pooled = module.tokenizer(images(batch)).vectors.mean(1)
            return found_again(module.learned["contrastive"].logits(pooled, batch.texts), batch.texts)

    before = share()
    trained(module, "contrastive", steps=100)
    assert before < 0.4 and share() > 0.6


@pytest.mark.parametrize("patch", [4, 8], ids=["same grid", "resized"])
def test_distilled_features_are_read_from_the_vectors(patch):
    module = asked(Distill(weight=2.0), patch=patch)
    batch = captioned(64, seed=999)
    before = module.losses(images(batch), ())["distill"].item()
    trained(module, "distill", steps=60)
    assert module.losses(images(batch), ())["distill"].item() < 0.6 * before
    assert module.tokenizer.encoder[0].weight.grad.abs().sum() > 0


def test_losses_without_features_and_named_twice_are_refused():
    config = ConvTokenizer(image=16, downsample=4, width=16, losses=(Perceptual(), Contrastive(), Distill()))
    with pytest.raises(TokenizerError, match="perceptual, distill ask for features, and there are none; set features"):
        Reconstructing(build_tokenizer(config))
    with pytest.raises(TokenizerError, match="gram, gram; name each once"):
        asked(Gram(), Gram())
