"""A packed batch through the language model to losses, text and image apart."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from unimm.losses import Losses, Weight
from unimm.model.attention import Documents, Kernel
from unimm.model.cache import RowCache, sent
from unimm.model.cross_entropy import Loss, soft_cap
from unimm.model.fast import FastBody, fast_body
from unimm.model.image_input import ImageInput, Slots
from unimm.model.image_output import DepthHead, FlowHead, ImageHead
from unimm.sample import Batch
from unimm.vocab import Vocab


def _weighed(branches: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """float32 (N, C) from (N, branches, C)."""
    return (branches.float() * weights[..., None]).sum(1)


class UnifiedModel(nn.Module):
    """The backbone with what reads and writes images. forward(Batch) -> Losses.

    backbone      a transformers causal LM that attends through `unimm.model.attention`
    image_input   what turns ids and slots into embeddings
    image_output  what writes codes that are no rows of the backbone's table: a softmax over those above it, a head for
                  several codes a position or for latents, both at places of one id; None where the backbone writes all

    What a stage sets:

    reconstruction  weight of the image tokenizer's own loss, where pictures are read as pixels and it learns too
    image_weight    weight of an image position in the loss, text having 1
    z_loss          how much the squared log of the softmax's denominator adds to the loss, at learned positions alone

    `kernel` takes away the choice of attention, for tests and measurements.
    """

    def __init__(self, backbone: nn.Module, vocab: Vocab, image_input: ImageInput,
                 image_output: ImageHead | DepthHead | FlowHead | None = None):
        super().__init__()
        self.backbone = backbone
        self.image_input = image_input
        self.image_output = image_output
        self.vocab = vocab
        self.image_weight, self.z_loss, self.reconstruction = 1.0, 0.0, 0.0
        self.loss = Loss()
        self.cap = getattr(backbone.config, "final_logit_softcapping", None)
        self.kernel: Kernel | None = None
        self.fast: FastBody | None = None

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
               lengths: tuple[tuple[int, ...], ...] = (), slots: Slots = ()) -> torch.Tensor:
        """The last hidden states (B, T, width) of packed rows."""
        embedded, _ = self.image_input(self.backbone.get_input_embeddings(), ids, slots=slots)
        documents = Documents(document, lengths, self.kernel)
        return self.backbone.base_model(inputs_embeds=embedded, position_ids=position, documents=documents,
                                        use_cache=False).last_hidden_state

    def head(self, runs: tuple[slice, ...]) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
        """What gives the float32 logits (N, ids) of some runs of ids, from hidden (N, width); views of its weights.

        With weights (N, branches), which add up to 1, their sum over the branches of hidden (N, branches, width).
        Ids of a separate head come alone: no softmax holds both them and the backbone's.
        """
        layer, cap, inner = self.backbone.get_output_embeddings(), self.cap, None
        if isinstance(self.image_output, ImageHead) and (runs[0].start or 0) >= (first := self.image_output.start):
            runs = tuple(slice(run.start - first, run.stop - first) for run in runs)
            layer, cap, inner = self.image_output.vision_head, None, self.image_output.inner
        plain = type(layer) is nn.Linear  # else an adapter: its weight alone does not say what it computes
        parts = [(layer.weight[run], None if layer.bias is None else layer.bias[run]) for run in runs if plain]

        def logits(hidden: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
            hidden = hidden if inner is None else inner(hidden)
            if weights is not None and plain and cap is None:  # linear: the sum may as well be taken before it
                hidden, weights = _weighed(hidden, weights).to(hidden.dtype), None
            found = [nn.functional.linear(hidden, *part) for part in parts]
            if not plain:
                every = layer(hidden)
                found = [every[..., run] for run in runs]
            made = soft_cap((found[0] if len(found) == 1 else torch.cat(found, -1)).float(), cap)
            return made if weights is None else _weighed(made, weights)

        return logits

    def hasten(self) -> str | None:
        """Read on through a FastBody from now on, for inference alone; the reason why not, where none is made."""
        made = fast_body(self.backbone)
        self.fast = None if isinstance(made, str) else made
        return made if isinstance(made, str) else None

    def read(self, embedded: torch.Tensor, start: np.ndarray, cache: RowCache, first: int = 0) -> torch.Tensor:
        """Read embedded (n, t, width) into rows [first, first + n) of the cache, from `start` int64 (n,) on: hidden
        states (n, t, width). A row shorter than t is padded on its right, with anything."""
        if self.fast is not None:
            return self.fast(embedded, start, cache, first)
        cache.at(first, start, embedded.shape[1])
        return self.backbone.base_model(inputs_embeds=embedded, position_ids=cache.position, documents=cache,
                                        past_key_values=cache, use_cache=True).last_hidden_state

    def forward(self, batch: Batch) -> Losses:
        """Weighted cross-entropy, summed over the learned positions; parts "text" and "image" in nats per token."""
        device = self.device
        ids, position, document = (sent(x, device) for x in (batch.ids, batch.position, batch.document))
        slots, extra, parts, own = batch.slots, None, {}, np.zeros_like(batch.learn)
        if self.reconstruction:
            slots, extra = self.image_input.encoded(slots)
        if self.image_output is not None:
            own = (batch.targets >= self.image_output.start) & (batch.targets < self.image_output.stop)
        shared, separate = (self._picked(batch, batch.learn & which) for which in (~own, own))
        hidden = self.hidden(ids, position, document, batch.lengths, slots).flatten(0, 1)
        # A rank without a learned position still runs the heads, on nothing: every rank runs every module.
        where, targets, weights, image = shared
        total, nll = self.loss(hidden[where], self.backbone.get_output_embeddings(), targets, weights,
                               z_loss=self.z_loss, cap=self.cap)
        if self.image_output is not None:
            where, targets, weights, _ = separate
            if not isinstance(self.image_output, ImageHead):
                targets = sent(self._held(batch), device)[where]
            more, each = self.image_output.loss(hidden[where], targets, weights, self.loss, self.z_loss)
            parts = {f"image.{d}": (each[:, d].sum(), len(each)) for d in range(each.shape[1]) if each.shape[1] > 1}
            total, nll = total + more, torch.cat([nll, each.sum(1)])
            image = torch.cat([image, image.new_ones(len(each))])
        if extra is not None:
            total = total + self.reconstruction * extra * self.weigh(batch).learned
            parts["reconstruction"] = (extra.detach(), 1)
        named = {name: ((nll * which).sum(), which.sum()) for name, which in (("text", ~image), ("image", image))}
        return Losses(total, named | parts)

    def _held(self, batch: Batch) -> np.ndarray:
        """What the slots that are written hold, at the places where it is the target: (B * T, depth or channels)."""
        head = self.image_output
        values = np.zeros((*batch.ids.shape, head.depth), np.float32 if head.dtype.is_floating_point else np.int64)
        for row, slot in batch.slots:
            if slot.space == head.space:
                values[row, slot.start - 1:slot.start - 1 + slot.length] = slot.payload
        return values.reshape(-1, head.depth)

    def _picked(self, batch: Batch, which: np.ndarray) -> tuple[torch.Tensor, ...]:
        """Of the positions where `which` bool (B, T) holds: flat index, target, weight, whether an image's."""
        where = np.flatnonzero(which)  # on the host: a GPU that is to say how many would be waited for
        where, targets, image = (sent(x, self.device) for x in (
            where, batch.targets.reshape(-1)[where], batch.image.reshape(-1)[where]))
        return where, targets, torch.where(image, self.image_weight, 1.0), image

    def weigh(self, batch: Batch) -> Weight:
        images = np.count_nonzero(batch.learn & batch.image)
        text = np.count_nonzero(batch.learn) - images
        return Weight(text + self.image_weight * images, np.count_nonzero(batch.document))

    def describe(self) -> str:
        """What the vocabulary is made of, for the table before step 1."""
        codes = ", ".join(f"{r.name} {r.start}..{r.stop - 1}" for r in self.vocab.ranges.values())
        text, markers = self.vocab.text_size, len(self.vocab.special)
        own = ", written by a head of their own" if self.image_output else ""
        return f"{self.vocab.rows:,} rows: {text:,} text, {markers} markers, codes {codes or 'none'}{own}"
