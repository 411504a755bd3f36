"""A packed batch through the language model to losses, text and image apart."""

import numpy as np
import torch
from torch import nn

from unimm.losses import Losses, Weight
from unimm.model.attention import documents_of
from unimm.model.cache import KVCache
from unimm.model.cross_entropy import token_losses
from unimm.model.image_input import ImageInput
from unimm.sample import Batch
from unimm.vocab import Vocab


class UnifiedModel(nn.Module):
    """The backbone with what reads and writes images. forward(Batch) -> Losses.

    backbone      a transformers causal LM that attends through `unimm.model.attention`
    image_input   what turns ids into embeddings
    image_weight  weight of an image position in the loss, text having 1
    """

    def __init__(self, backbone: nn.Module, vocab: Vocab, image_input: ImageInput, image_weight: float = 1.0):
        super().__init__()
        self.backbone = backbone
        self.image_input = image_input
        self.vocab = vocab
        self.image_weight = image_weight

    @property
    def device(self) -> torch.device:
        return self.backbone.get_input_embeddings().weight.device

    def hidden(self, ids: torch.Tensor, position: torch.Tensor, document: torch.Tensor) -> torch.Tensor:
        """The last hidden states (B, T, width) of packed rows."""
        embedded, _ = self.image_input(self.backbone.get_input_embeddings(), ids)
        return self.backbone.model(inputs_embeds=embedded, position_ids=position, documents=documents_of(document),
                                   use_cache=False).last_hidden_state

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
        hidden = self.hidden(ids, position, document)
        image = image[learn]
        losses = token_losses(hidden[learn], self.backbone.lm_head, targets[learn])
        weights = torch.where(image, self.image_weight, 1.0)
        # A rank without a learned position still runs the head, on nothing: every rank runs every module.
        parts = {name: (losses.detach()[which].sum(), which.sum()) for name, which in
                 (("text", ~image), ("image", image))}
        return Losses((losses * weights).sum(), parts)

    def weigh(self, batch: Batch) -> Weight:
        images = np.count_nonzero(batch.learn & batch.image)
        text = np.count_nonzero(batch.learn) - images
        return Weight(text + self.image_weight * images, np.count_nonzero(batch.document))

    def describe(self) -> str:
        """What the vocabulary is made of, for the table before step 1."""
        codes = ", ".join(f"{r.name} {r.start}..{r.stop - 1}" for r in self.vocab.ranges.values())
        text, markers = self.vocab.text_size, len(self.vocab.special)
        return f"{self.vocab.rows:,} rows: {text:,} text, {markers} markers, codes {codes}"
