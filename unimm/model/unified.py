"""A packed batch through the language model to losses, text and image apart."""

import numpy as np
import torch
from torch import nn

from unimm.losses import Losses, Weight
from unimm.model.attention import Documents, Kernel
from unimm.model.cache import KVCache
from unimm.model.cross_entropy import Loss, Way, soft_cap
from unimm.model.image_input import ImageInput
from unimm.sample import Batch
from unimm.vocab import Vocab


class UnifiedModel(nn.Module):
    """The backbone with what reads and writes images. forward(Batch) -> Losses.

    backbone      a transformers causal LM that attends through `unimm.model.attention`
    image_input   what turns ids into embeddings
    image_weight  weight of an image position in the loss, text having 1
    z_loss        how much the squared log of the softmax's denominator adds to the loss, at learned positions alone

    `kernel` and `way` take away the choice of attention and of cross-entropy, for tests and measurements.
    """

    def __init__(self, backbone: nn.Module, vocab: Vocab, image_input: ImageInput, image_weight: float = 1.0,
                 z_loss: float = 0.0):
        super().__init__()
        self.backbone = backbone
        self.image_input = image_input
        self.vocab = vocab
        self.image_weight = image_weight
        self.z_loss = z_loss
        self.loss = Loss()
        self.cap = getattr(backbone.config, "final_logit_softcapping", None)
        self.kernel: Kernel | None = None
        self.way: Way | None = None

    @property
    def device(self) -> torch.device:
        return self.backbone.get_input_embeddings().weight.device

    def parts(self) -> dict[str, list[str]]:
        """Names of parameters by what recipes call them; tied tables are in two parts, under a name in each."""
        layers = {"embeddings": self.backbone.get_input_embeddings(), "head": self.backbone.get_output_embeddings()}
        owned = {word: set(layer.parameters()) for word, layer in layers.items()}
        inside = dict(self.named_parameters(remove_duplicate=False))
        parts = {word: [name for name, p in inside.items() if p in own] for word, own in owned.items()}
        tables = set().union(*owned.values())
        return parts | {"backbone": [n for n, p in inside.items() if n.startswith("backbone.") and p not in tables]}

    def hidden(self, ids: torch.Tensor, position: torch.Tensor, document: torch.Tensor,
               lengths: tuple[tuple[int, ...], ...] = ()) -> torch.Tensor:
        """The last hidden states (B, T, width) of packed rows."""
        embedded, _ = self.image_input(self.backbone.get_input_embeddings(), ids)
        documents = Documents(document, lengths, self.kernel)
        return self.backbone.model(inputs_embeds=embedded, position_ids=position, documents=documents,
                                   use_cache=False).last_hidden_state

    def logits(self, hidden: torch.Tensor, rows: slice | torch.Tensor) -> torch.Tensor:
        """Float32 logits (N, len(rows)) of some ids, from hidden (N, width)."""
        head = self.backbone.get_output_embeddings()
        if type(head) is not nn.Linear:  # an adapter: its weight alone does not say what it computes
            return soft_cap(head(hidden)[:, rows].float(), self.cap)
        bias = None if head.bias is None else head.bias[rows]
        return soft_cap(nn.functional.linear(hidden, head.weight[rows], bias).float(), self.cap)

    def read_on(self, ids: torch.Tensor, position: torch.Tensor, mask: torch.Tensor, cache: KVCache,
                codes_before: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Read ids (B, t) behind what `cache` holds: the last one's hidden states (B, width), and the codes so far."""
        embedded, codes = self.image_input(self.backbone.get_input_embeddings(), ids, codes_before)
        out = self.backbone.model(inputs_embeds=embedded, position_ids=position, attention_mask=mask,
                                  past_key_values=cache, use_cache=True)
        cache.advance(ids.shape[1])
        return out.last_hidden_state[:, -1], codes

    def forward(self, batch: Batch) -> Losses:
        """Weighted cross-entropy, summed over the learned positions; parts "text" and "image" in nats per token."""
        ids, targets, learn, position, document, image = (
            torch.as_tensor(x, device=self.device) for x in
            (batch.ids, batch.targets, batch.learn, batch.position, batch.document, batch.image))
        # Found before the layers are under way: on a GPU this waits for what was asked of it so far.
        where = learn.flatten().nonzero()[:, 0]
        hidden = self.hidden(ids, position, document, batch.lengths)
        image = image.flatten()[where]
        weights = torch.where(image, self.image_weight, 1.0)
        # A rank without a learned position still runs the head, on nothing: every rank runs every module.
        total, nll = self.loss(hidden.flatten(0, 1)[where], self.backbone.lm_head, targets.flatten()[where], weights,
                               z_loss=self.z_loss, cap=self.cap, way=self.way)
        parts = {name: ((nll * which).sum(), which.sum()) for name, which in (("text", ~image), ("image", image))}
        return Losses(total, parts)

    def weigh(self, batch: Batch) -> Weight:
        images = np.count_nonzero(batch.learn & batch.image)
        text = np.count_nonzero(batch.learn) - images
        return Weight(text + self.image_weight * images, np.count_nonzero(batch.document))

    def describe(self) -> str:
        """What the vocabulary is made of, for the table before step 1."""
        codes = ", ".join(f"{r.name} {r.start}..{r.stop - 1}" for r in self.vocab.ranges.values())
        text, markers = self.vocab.text_size, len(self.vocab.special)
        return f"{self.vocab.rows:,} rows: {text:,} text, {markers} markers, codes {codes}"
