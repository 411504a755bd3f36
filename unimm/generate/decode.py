"""The decode loop: requests in, ids out; text, images and any interleaving of them, each row at its own place.

    waiting --admit--> rows --read--> hidden --choose--> ids --advance--> finished
                        ^                                       |
                        +-------- room, guides of images -------+

One forward a step serves all rows and all branches that guide them. A row is a request under way; each of its branches
has a line of the cache: the first what the request itself reads, the others what guides its image.

A step reads in each line the *last* id, which nothing has read yet, and up to t - 1 *drafts* of those behind it, and
chooses an id at each of these places by the place's own noise. Ids that follow drafts which are chosen themselves stay
(Jacobi decoding: Song et al. 2021, arXiv:2002.03629; of images: Teng et al. 2024, arXiv:2410.01699). As the noise
belongs to the place, they are the ids that come one by one, in fewer steps. With a window of 1 the only drafts are ids
to which the layout leaves no choice.

Which state follows in an image does not depend on its codes, so within images the host never waits for a GPU.

    R rows   L lines   t places in each   W width
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from unimm.config.sampling import Choice
from unimm.generate.choose import Allowed, Group
from unimm.generate.lines import Drawn, Lines
from unimm.generate.request import Request, guides, written
from unimm.grammar import Automaton, Fixed
from unimm.layout import Layout
from unimm.model.cache import sent
from unimm.model.unified import UnifiedModel
from unimm.sample import Part, Sequence

ROW = np.dtype([("state", "i8"), ("codes", "i8"), ("written", "i8"), ("seed", "u8"), ("left", "i8"), ("began", "i8"),
                ("window", "i8"), ("text", "i8"), ("image", "i8"), ("arity", "i8"), ("closed", "?"), ("fresh", "?")])
"""state   of the automaton, behind the last id        codes   of its image that stand before the last id
written   ids so far; left: of text that may still be   text, image   numbers of the settings they are chosen by
began   how many steps there had been
arity   branches of the row   closed   no image may begin   fresh   some branch has not read its prompt yet"""


def decode(model: UnifiedModel, layout: Layout, requests: Iterable[Request], rows: int = 256) -> None:
    """Bring all requests to their end, at most `rows` of them at once."""
    for _ in decoded(model, layout, requests, rows):
        pass


def decoded(model: UnifiedModel, layout: Layout, requests: Iterable[Request], rows: int) -> Iterator[list[Request]]:
    """Requests as they end, `rows` under way at a time; each is asked for when there is room for it."""
    decoder, waiting, room = Decoder(model, layout, rows), iter(requests), rows
    while True:
        for request in islice(waiting, room):
            decoder.add(request)
        if not decoder.busy:
            return
        ended = decoder.step()
        room = len(ended)
        yield ended


@dataclass(eq=False)
class _Live:
    """A row's request, the images that it may still write, and prompts of its branches that are still to be read."""

    request: Request
    images: int
    unread: list[tuple[int, Sequence]]
    weights: tuple[float, ...] = (1.0,)


class Decoder:
    """Requests are added at any time, run at most `rows` at once, and make room for others as they end."""

    def __init__(self, model: UnifiedModel, layout: Layout, rows: int = 256):
        self.model, self.layout, self.rows = model.eval() if model.training else model, layout, rows
        self.automaton = layout.automaton
        self.waiting: deque[tuple[_Live, np.ndarray]] = deque()
        self.live: list[_Live] = []
        self.now = np.zeros(0, ROW)
        self.lines = Lines(model)
        self.last = torch.zeros(0, dtype=torch.long, device=model.device)
        self.drafts = np.zeros((0, 0), np.int64)
        self.choices: dict[Choice, int] = {}
        self.allowed: dict[int, Allowed] = {}
        self._groups: dict[tuple, list[Group]] = {}
        self._unseen: list[Tensor] = []
        self._same, self._feeds = None, None
        self.drawn = Drawn(model)
        self.widest, self.old, self.steps = 1, 0, 0

    @property
    def busy(self) -> bool:
        return bool(self.live or self.waiting)

    # ------------------------------------------------------------ requests

    def add(self, request: Request) -> None:
        """Raises LayoutError and its like where the request can't be written as a prompt."""
        how, size = request.sampling, request.size
        prompt = self.layout.prompt(request.parts, "image" if size else "text", size)
        state = self.automaton.after(self.layout.write_plans[size].header) if size else Automaton.TEXT
        live = _Live(request, max(request.images, 1 if size else 0), [(0, prompt)])
        text, image = (self.choices.setdefault(choice, len(self.choices)) for choice in (how.text, how.image))
        row = np.array([(state, 0, 0, request.seed % 2 ** 64, how.text_length, 0,
                         1 if self.drawn.head else how.window, text, image, 1, live.images == 0, True)], ROW)
        if size:
            self._guide(live, row[0], request.parts, size)
        self.waiting.append((live, row))

    @torch.inference_mode()
    def drop(self, request: Request) -> None:
        """Forget a request; what it wrote so far is in its ids."""
        self.waiting = deque(each for each in self.waiting if each[0].request is not request)
        self._see()
        self._remove([row for row, live in enumerate(self.live) if live.request is request], [])

    def _guide(self, live: _Live, row: np.void, parts: tuple[Part, ...], size: tuple[int, int]) -> None:
        if guiding := guides(self.layout, live.request.sampling, parts, size):
            live.unread += enumerate(guiding.prompts, 1)
            live.weights = guiding.weights
            row["arity"], row["fresh"] = len(guiding.weights), True

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """One forward of every row, and an id or more for each. Returns the requests that ended with it."""
        while self.waiting and len(self.live) < self.rows:
            self._see()
            live, row = self.waiting.popleft()
            self.live.append(live)
            row["began"] = self.steps
            self.now = np.append(self.now, row)
            self.drawn.begin()
        if not self.live:
            return []
        states, valid = self._ahead()
        fed = self._fed(states)
        chosen, tails = self._choose(self._hidden(fed), states, valid)
        return self._advance(chosen, tails, states, valid, fed)

    # ------------------------------------------------------------ reading

    def _ahead(self) -> tuple[np.ndarray, np.ndarray]:
        """The state behind each place that may be read, int64 (R, t), and whether a row reads so far, bool (R, t)."""
        now, widest = self.now, self.widest
        states, valid = [now["state"]], [np.ones(len(now), bool)]
        if widest == 1 and not self.automaton.sure[states[0]].all():
            return states[0][:, None], valid[0][:, None]
        ready = ~now["fresh"]
        while True:
            following, sure = self.automaton.within[states[-1]], self.automaton.sure[states[-1]]
            reads = valid[-1] & ready & (following >= 0)
            reads &= sure if widest == 1 else len(states) < now["window"]
            # Rows that nothing is drafted for read on together or not at all: padding costs what it saves.
            if not (reads.any() if widest > 1 else reads[ready].all() and ready.any()):
                return np.stack(states, 1), np.stack(valid, 1)
            states.append(np.where(reads, following, states[-1]))
            valid.append(reads)

    def _fed(self, states: np.ndarray) -> np.ndarray | None:
        """The drafts that are read behind the last id, int64 (R, t - 1); None for none."""
        if (more := states.shape[1] - 1) == 0:
            return None
        forced = self.automaton.forced[states[:, :-1]]
        drafts = np.zeros((len(states), more), np.int64)
        known = self.drafts[:, :more]
        drafts[:len(known), :known.shape[1]] = known
        return np.where(forced >= 0, forced, drafts)

    def _hidden(self, fed: np.ndarray | None) -> Tensor:
        """Hidden states (places, W): t of each line that has read before, then one of each new line."""
        found = []
        if len(self.lines):
            ids = (self.last if self._feeds is None else self.last[self._feeds])[:, None]
            if fed is not None:
                ids = torch.cat([ids, sent(fed[self.lines.owner], ids.device)], 1)
            found.append(self.lines.read(ids, 0, self.now["codes"][self.lines.owner],
                                         drawn=self.drawn.of(self.lines.owner)).flatten(0, 1))
        self.old = len(self.lines)
        prompts = [(row, branch, prompt) for row, live in enumerate(self.live) for branch, prompt in live.unread]
        if prompts:
            room = max(len(prompt) + self._room(self.live[row].request) for row, _, prompt in prompts)
            found.append(self.lines.begin(prompts, room))
            self._changed()
            for live in self.live:
                live.unread = []
            self.now["fresh"] = False
        return found[0] if len(found) == 1 else torch.cat(found)

    def _room(self, request: Request) -> int:
        """How many positions are written behind a prompt, images that the model begins not counted."""
        return request.sampling.window + (self.layout.tokens(request.size) if request.size else 0) + (
            request.sampling.text_length if request.text else 0)

    def _changed(self) -> None:
        """Lines came or went: what was worked out for them is void."""
        self._groups.clear()
        self._same = None
        whole = np.array_equal(self.lines.owner, np.arange(len(self.live)))
        self._feeds = None if whole else sent(self.lines.owner, self.last.device)
        self.widest = int(self.now["window"].max(initial=1))
        self._line_of = np.zeros((len(self.live), int(self.lines.branch.max(initial=0)) + 1), np.int64)
        self._line_of[self.lines.owner, self.lines.branch] = np.arange(len(self.lines))

    # ------------------------------------------------------------ choosing

    def _choose(self, hidden: Tensor, states: np.ndarray, valid: np.ndarray) -> tuple[Tensor, list]:
        """An id at every valid place, int64 (R, t), and each group with its logits."""
        rows, t = states.shape
        place = states.tobytes() if t == 1 else None
        if place is None or self._same != (place, self.old):
            self._same, self._alike = (place, self.old), self._grouped(states, valid)
        chosen, tails = None, []
        for group in self._alike:
            logits, (row, place) = group.logits(hidden), np.divmod(group.items, t)
            ids = group.ids(logits, self.now, row, place)
            self.drawn.draw(group, hidden, self.now, row, self.automaton.codes[states[row, 0]])
            if len(group.items) == rows * t:
                chosen = ids
            else:
                chosen = ids.new_zeros(rows * t) if chosen is None else chosen
                chosen[group.spots] = ids
            tails.append((group, logits))
        return chosen.view(rows, t), tails

    def _grouped(self, states: np.ndarray, valid: np.ndarray) -> list[Group]:
        sets = self.automaton.set_of[states]
        sets[(states == Automaton.TEXT) & self.now["closed"][:, None]] = self.automaton.no_image
        how = np.where(self.automaton.is_text[sets], self.now["text"][:, None], self.now["image"][:, None])
        alike = np.where(valid, (sets << 32) + (how << 2) + self.now["arity"][:, None], -1)
        key = states.shape[1], self.old, alike.tobytes()
        if key not in self._groups:
            if len(self._groups) > 64:
                self._groups.clear()
            self._groups[key] = [self._group(int(which), alike.reshape(-1) == which, states.shape[1])
                                 for which in np.unique(alike[valid])]
        return self._groups[key]

    def _group(self, which: int, members: np.ndarray, t: int) -> Group:
        number, how, arity, device = which >> 32, (which >> 2) % (1 << 30), which & 3, self.last.device
        if number not in self.allowed:
            self.allowed[number] = Allowed(self.automaton.sets[number], self.model)
        items = np.flatnonzero(members)
        row, place = np.divmod(items, t)
        lines = self._line_of[row, :arity]
        hidden = np.where(lines < self.old, lines * t + place[:, None], lines + self.old * (t - 1))
        weights = sent(np.array([self.live[r].weights for r in row], np.float32), device) if arity > 1 else None
        whole = arity == 1 and np.array_equal(hidden[:, 0], np.arange(self.old * t + len(self.lines) - self.old))
        where = None if whole else sent(hidden if arity > 1 else hidden[:, 0].copy(), device)
        return Group(items, sent(items, device), where, weights, number, self.allowed[number], list(self.choices)[how])

    # ------------------------------------------------------------ going on

    def _advance(self, chosen: Tensor, tails: list, states: np.ndarray, valid: np.ndarray,
                 fed: np.ndarray | None) -> list[Request]:
        now, automaton, single = self.now, self.automaton, fed is None
        seen = chosen.numpy(force=True) if self.widest > 1 and not single else None
        if single:
            kept, before, self.last = None, states[:, 0], chosen[:, 0]
        else:
            agree = valid[:, 1:] if seen is None else valid[:, 1:] & (seen[:, :-1] == fed)
            kept = 1 + agree.cumprod(1).sum(1)
            last = np.arange(len(now)), kept - 1
            before, self.last = states[last], chosen[sent(last[0], chosen.device), sent(last[1], chosen.device)]
        after = automaton.follows[before]
        if single and after.min() >= 0:
            self._unseen.append(self.last)
        else:
            seen = chosen.numpy(force=True) if seen is None else seen
            after = automaton.table[before, automaton.label_of[seen[:, 0] if single else seen[last]]]
            self._see()
            for row, (live, ids) in enumerate(zip(self.live, seen.tolist())):
                live.request.ids += ids if single else ids[:kept[row]]
        self.lines.length[:self.old] += 1 if single else kept[self.lines.owner[:self.old]]
        in_text, to_text = before == Automaton.TEXT, after == Automaton.TEXT
        now["codes"], now["state"] = automaton.codes[before], after
        now["written"] += 1 if single else kept
        now["left"] -= in_text & to_text
        self.steps += 1
        if self.widest > 1:
            self.drafts = self._drafted(seen, np.ones(len(now), np.int64) if single else kept, valid, tails)
        events = automaton.stops[after] | to_text & (~in_text | (now["left"] <= 0))
        return self._events(np.flatnonzero(events)) if events.any() else []

    def _drafted(self, seen: np.ndarray | None, kept: np.ndarray, valid: np.ndarray, tails: list) -> np.ndarray:
        """Drafts behind the last id, int64 (R, window - 1): what was chosen there already; else, by the noise of its
        place, from the logits of the last place that was read."""
        ahead, counts = np.arange(self.widest - 1), valid.sum(1)
        source = kept[:, None] + ahead
        known = source < counts[:, None]
        drafts = np.zeros(source.shape, np.int64)
        if seen is not None:
            drafts = np.where(known, np.take_along_axis(seen, np.minimum(source, seen.shape[1] - 1), 1), 0)
        state, sets = self.now["state"], []
        for _ in ahead:
            sets.append(np.where(state > Automaton.DONE, self.automaton.set_of[state], -1))
            state = np.maximum(self.automaton.follows[state], 0)
        wanted = ~known & (ahead < self.now["window"][:, None] - 1)
        for group, logits in tails:
            if logits is not None:
                rows = group.items // valid.shape[1]
                last = np.flatnonzero(np.append(rows[1:] != rows[:-1], True))
                which, place = np.nonzero((wanted & (np.stack(sets, 1) == group.number))[rows[last]])
                if len(which):
                    row, of = rows[last][which], logits[sent(last[which], logits.device)]
                    drafts[row, place] = group.ids(of, self.now, row, place).numpy(force=True)
        return drafts

    def _see(self) -> None:
        """Bring the ids that the host has not read yet into their requests."""
        if self._unseen:
            for live, ids in zip(self.live, torch.stack(self._unseen, 1).tolist()):
                live.request.ids += ids
            self._unseen.clear()
        self.drawn.see([live.request for live in self.live])

    def _events(self, rows: np.ndarray) -> list[Request]:
        """What happens to rows whose text or image ends, or whose image begins; the requests that end."""
        self._see()
        self._same = None
        ended, freed = [], []
        for row in rows.tolist():
            live, now = self.live[row], self.now[row]
            request, state = live.request, int(now["state"])
            live.images -= state == Automaton.TEXT and now["left"] > 0
            if state in self.automaton.headers:
                parts = (*request.parts, *written(self.layout, request))
                self._guide(live, now, parts, self.automaton.headers[state])
            elif state in self.automaton.endings:  # nothing is read for ids without a choice
                if live.images == 1 and not request.text:
                    request.ids += self.automaton.endings[state]
                    ended.append(row)
            elif state == Automaton.DONE or now["left"] <= 0 or live.images == 0 and not request.text:
                ended.append(row)
            else:
                self._end_image(row)
                freed += self._line_of[row, 1:now["arity"]].tolist()
                live.weights, now["arity"], now["closed"] = (1.0,), 1, live.images == 0
        finished = [self.live[row].request for row in ended]
        self._remove(ended, freed)
        return finished

    def _end_image(self, row: int) -> None:
        """Read what ends an image that is written by count, so that text can go on."""
        end = next(iter(self.layout.write_plans.values())).pieces[-1]
        if self.layout.config.write.stop == "count" and isinstance(end, Fixed):
            line = int(self._line_of[row, 0])
            ids = torch.tensor([[int(self.last[row]), *end.ids[:-1]]], device=self.last.device)
            self.lines.read(ids, line, self.now["codes"][row:row + 1], drawn=self.drawn.of(np.array([row])))
            self.lines.length[line] += len(end.ids)
            self.last = self.last.clone()
            self.last[row] = end.ids[-1]

    def _remove(self, rows: list[int], lines: list[int]) -> None:
        """Take rows out, with all their lines, and some lines besides."""
        for row in rows:
            self.live[row].request.steps = self.steps - int(self.now["began"][row])
        stays = np.ones(len(self.live), bool)
        stays[rows] = False
        gone = ~stays[self.lines.owner]
        gone[lines] = True
        if gone.any():
            self.lines.drop(gone)
            self.lines.owner, kept = (stays.cumsum() - 1)[self.lines.owner], np.flatnonzero(stays)
            self.live = [self.live[row] for row in kept]
            self.last = self.last[sent(kept, self.last.device)]
            self.drawn.values = self.drawn.of(kept)
            self.now, self.drafts = self.now[stays], self.drafts[stays[:len(self.drafts)]]
            self._changed()
