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
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from unimm.config.sampling import Choice
from unimm.generate.allowed import Allowed
from unimm.generate.choose import choose, places
from unimm.generate.guidance import guides
from unimm.generate.lines import Lines, Prompt
from unimm.generate.request import Request, written
from unimm.generate.rows import ROW, Group, Live, Path
from unimm.grammar import Automaton, Fixed
from unimm.layout import Layout
from unimm.model.cache import sent
from unimm.model.unified import UnifiedModel
from unimm.sample import Part


def decode(model: UnifiedModel, layout: Layout, requests: Iterable[Request], rows: int = 256,
           progress: Callable[[Request], None] | None = None) -> None:
    """Bring all requests to their end, at most `rows` of them at once; `progress` is told of each as it ends."""
    for ended in decoded(model, layout, requests, rows):
        for request in ended if progress else ():
            progress(request)


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


class Decoder:
    """Requests are added at any time, run at most `rows` at once, and make room for others as they end.

    capacity   positions to take memory for at the beginning; more is taken as it is needed
    """

    def __init__(self, model: UnifiedModel, layout: Layout, rows: int = 256, capacity: int = 0):
        self.model, self.layout, self.rows = model.eval(), layout, rows
        self.automaton = automaton = layout.automaton()
        self.waiting: deque[tuple[Live, np.ndarray]] = deque()
        self.live: list[Live] = []
        self.now = np.zeros(0, ROW)
        self.lines = Lines(model, capacity)
        self.last = torch.zeros(0, dtype=torch.long, device=model.device)
        self.drafts = np.zeros((0, 0), np.int64)
        self.choices: dict[Choice, int] = {}
        self.allowed: dict[int, Allowed] = {}
        self._groups: dict[tuple, list[Group]] = {}
        self._paths: dict[bytes, Path] = {}
        self._fresh = False
        self._unseen: list[Tensor] = []
        self.widest, self.old = 1, 0
        self._heads = np.isin(np.arange(len(automaton.table)), list(automaton.headers))
        within = (automaton.follows > automaton.DONE) & ~self._heads[automaton.follows]
        self._within = np.where(within, automaton.follows, -1)  # next in the same image, where it needs no other guides
        self._stops = self._heads | (np.arange(len(automaton.table)) == automaton.DONE)
        self._is_text = np.array([kind == "text" for kind in automaton.kinds])

    @property
    def busy(self) -> bool:
        return bool(self.live or self.waiting)

    # ------------------------------------------------------------ requests

    def add(self, request: Request) -> None:
        """Raises LayoutError and its like where the request can't be written as a prompt."""
        how, size = request.sampling, request.size
        prompt = self.layout.prompt(request.parts, "image" if size else "text", size)
        state = self.automaton.after(self.layout.write_plans[size].header) if size else Automaton.TEXT
        live, row = Live(request, [(0, prompt)]), np.zeros(1, ROW)
        text, image = (self.choices.setdefault(each, len(self.choices)) for each in (how.text, how.image))
        for name, value in {"state": state, "seed": request.seed % 2 ** 64, "left": how.text_length, "arity": 1,
                            "window": how.window, "text": text, "image": image, "fresh": True,
                            "images": max(request.images, 1 if size else 0)}.items():
            row[name] = value
        if size:
            self._guide(live, row[0], request.parts, size)
        self.waiting.append((live, row))

    @torch.inference_mode()
    def drop(self, request: Request) -> None:
        """Forget a request; what it wrote so far is in its ids."""
        self.waiting = deque(each for each in self.waiting if each[0].request is not request)
        self._see()
        self._remove([row for row, live in enumerate(self.live) if live.request is request], [])

    def _guide(self, live: Live, row: np.void, parts: tuple[Part, ...], size: tuple[int, int]) -> None:
        guiding = guides(self.layout, live.request.sampling, parts, size)
        if guiding is not None:
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
            self.now, self._fresh = np.append(self.now, row), True
        if not self.live:
            return []
        path = self._ahead()
        fed = self._fed(path.states)
        hidden = self._hidden(fed)
        chosen, tails = self._choose(hidden, path)
        return self._advance(chosen, tails, path, fed)

    # ------------------------------------------------------------ reading

    def _ahead(self) -> Path:
        """What is read now: worked out once for rows that are where they were before, in text or in another image."""
        key = self.now["state"].tobytes()
        if self._fresh or key not in self._paths:
            path = self._walked()
            if self._fresh:
                return path
            if len(self._paths) > 4096:
                self._paths.clear()
            self._paths[key] = path
        return self._paths[key]

    def _walked(self) -> Path:
        now, widest = self.now, self.widest
        states, valid = [now["state"]], [np.ones(len(now), bool)]
        ready = ~now["fresh"]
        while True:
            following, sure = self._within[states[-1]], self.automaton.forced[states[-1]] >= 0
            reads = valid[-1] & ready & (following >= 0)
            reads &= sure if widest == 1 else len(states) < now["window"]
            # Rows that nothing is drafted for read on together or not at all: padding costs what it saves.
            if not (reads.any() if widest > 1 else reads[ready].all() and ready.any()):
                return Path(np.stack(states, 1), np.stack(valid, 1))
            states.append(np.where(reads, following, states[-1]))
            valid.append(reads)

    def _fed(self, states: np.ndarray) -> np.ndarray | None:
        """The drafts that are read behind the last id, int64 (R, t - 1); None for none."""
        if (more := states.shape[1] - 1) == 0:
            return None
        forced = self.automaton.forced[states[:, :-1]]
        known = self.drafts[:, :more]
        drafts = np.pad(known, ((0, len(states) - len(known)), (0, more - known.shape[1])))
        return np.where(forced >= 0, forced, drafts)

    def _hidden(self, fed: np.ndarray | None) -> Tensor:
        """Hidden states (places, W): t of each line that has read before, then one of each new line."""
        found = []
        if len(self.lines):
            ids = (self.last if self._feeds is None else self.last[self._feeds])[:, None]
            if fed is not None:
                ids = torch.cat([ids, sent(fed[self.lines.owner], ids.device)], 1)
            found.append(self.lines.read(ids, 0, self.now["codes"][self.lines.owner]).flatten(0, 1))
        self.old = len(self.lines)
        if not self._fresh:
            return found[0]
        prompts = [Prompt(row, branch, prompt, len(prompt) + self._room(live.request))
                   for row, live in enumerate(self.live) if live.unread for branch, prompt in live.unread]
        if prompts:
            found.append(self.lines.begin(prompts))
            self._changed()
            for live in self.live:
                live.unread = []
        return found[0] if len(found) == 1 else torch.cat(found)

    def _room(self, request: Request) -> int:
        """How many positions are written behind a prompt, images that the model begins not counted."""
        return request.sampling.window + (self.layout.tokens(request.size) if request.size else 0) + (
            request.sampling.text_length if request.text else 0)

    def _changed(self) -> None:
        """Lines came or went: what was worked out for them is void."""
        self._groups.clear()
        self._paths.clear()
        owner = self.lines.owner
        in_order = np.array_equal(owner, np.arange(len(self.live)))
        self._feeds = None if in_order else sent(owner, self.last.device)
        self.widest = int(self.now["window"].max(initial=1))
        self._line_of = self.lines.of(len(self.live))

    # ------------------------------------------------------------ choosing

    def _choose(self, hidden: Tensor, path: Path) -> tuple[Tensor, list]:
        """An id at every valid place, int64 (R, t), and each group with its logits."""
        rows, t = path.states.shape
        if path.groups is None:
            path.groups = self._grouped(path.states, path.valid)
        chosen, tails = None, []
        for group in path.groups:
            ids, logits = self._of_group(group, hidden, t)
            if len(group.items) == rows * t:
                chosen = ids
            else:
                chosen = ids.new_zeros(rows * t) if chosen is None else chosen
                chosen[sent(group.items, ids.device)] = ids
            tails.append((group, logits))
        return chosen.view(rows, t), tails

    def _grouped(self, states: np.ndarray, valid: np.ndarray) -> list[Group]:
        t = states.shape[1]
        sets = self.automaton.set_of[states]
        sets[(states == Automaton.TEXT) & (self.now["images"] == 0)[:, None]] = self.automaton.no_image
        how = np.where(self._is_text[sets], self.now["text"][:, None], self.now["image"][:, None])
        alike = np.where(valid, (sets * len(self.choices) + how) * 4 + self.now["arity"][:, None], -1)
        if (key := (t, self.old, alike.tobytes())) not in self._groups:
            if len(self._groups) > 64:
                self._groups.clear()
            self._groups[key] = [self._group(int(which), alike.reshape(-1) == which, t)
                                 for which in np.unique(alike[valid])]
        return self._groups[key]

    def _group(self, which: int, members: np.ndarray, t: int) -> Group:
        rest, arity = divmod(which, 4)
        number, how = divmod(rest, len(self.choices))
        if number not in self.allowed:
            self.allowed[number] = Allowed(self.automaton.sets[number], self.last.device)
        items = np.flatnonzero(members)
        row, place = np.divmod(items, t)
        lines = self._line_of[row, :arity]
        hidden = np.where(lines < self.old, lines * t + place[:, None], lines + self.old * (t - 1))
        weights = None
        if arity > 1:
            weights = sent(np.array([self.live[r].weights for r in row], np.float32), self.last.device)
        whole = arity == 1 and np.array_equal(hidden[:, 0], np.arange(self.old * t + len(self.lines) - self.old))
        where = None if whole else sent(hidden if arity > 1 else hidden[:, 0].copy(), self.last.device)
        return Group(items, where, weights, number, self.allowed[number], list(self.choices)[how])

    def _of_group(self, group: Group, hidden: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        """The ids that a group's places get, int64 (N,), and the logits they come from."""
        if group.allowed.only is not None:
            return torch.full((len(group.items),), group.allowed.only, device=hidden.device), None
        states = hidden if group.hidden is None else hidden[group.hidden]
        logits = group.allowed.logits(self.model, states, group.weights)
        if group.how.temperature == 0:
            return group.allowed.of(choose(logits, group.how)), logits
        return group.allowed.of(self._drawn(group, logits, *np.divmod(group.items, t))), logits

    def _drawn(self, group: Group, logits: Tensor, rows: np.ndarray, ahead: np.ndarray) -> Tensor:
        """A column of each row of logits, by the noise of the place `ahead` of what the row has written."""
        key = places(self.now["seed"][rows], self.now["written"][rows] + ahead)
        return choose(logits, group.how, sent(key, logits.device), group.allowed.marks)

    # ------------------------------------------------------------ going on

    def _advance(self, chosen: Tensor, tails: list, path: Path, fed: np.ndarray | None) -> list[Request]:
        now, automaton = self.now, self.automaton
        kept, before = path.counts, path.last
        waits = self.widest > 1 or fed is not None or (automaton.follows[before] < 0).any()
        seen = chosen.numpy(force=True) if waits else None
        if self.widest > 1 and fed is not None:
            kept = 1 + ((seen[:, :-1] == fed) & path.valid[:, 1:]).cumprod(1).sum(1)
            before = path.states[np.arange(len(kept)), kept - 1]
        after = automaton.follows[before]
        if waits:
            ids = seen[:, 0] if fed is None else seen[np.arange(len(kept)), kept - 1]
            after = automaton.table[before, automaton.label_of[ids]]
            self._see()
            for row, live in enumerate(self.live):
                live.request.ids += seen[row, :kept[row]].tolist()
            self.last = chosen[:, 0] if fed is None else sent(ids, self.last.device)
        else:
            self.last = chosen[:, 0]
            self._unseen.append(self.last)
        now["codes"], now["state"] = automaton.codes[before], after
        now["written"] += kept
        now["steps"] += 1
        now["left"] -= (before == Automaton.TEXT) & (after == Automaton.TEXT)
        if self._fresh:
            now["fresh"], self._fresh = False, False
        self.lines.length[:self.old] += kept[self.lines.owner[:self.old]]
        if self.widest > 1:
            self.drafts = self._drafted(seen, kept, path.valid, tails)
        events = self._stops[after] | (after == Automaton.TEXT) & ((before != Automaton.TEXT) | (now["left"] <= 0))
        return self._events(np.flatnonzero(events)) if events.any() else []

    def _drafted(self, seen: np.ndarray, kept: np.ndarray, valid: np.ndarray, tails: list) -> np.ndarray:
        """Drafts behind the last id, int64 (R, window - 1): what was chosen there already; else, by the noise of its
        place, from the logits of the last place that was read."""
        ahead, counts = np.arange(self.widest - 1), valid.sum(1)
        source = kept[:, None] + ahead
        known = source < counts[:, None]
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
                    columns = self._drawn(group, logits[sent(last[which], logits.device)], rows[last][which], place)
                    drafts[rows[last][which], place] = group.allowed.of(columns).numpy(force=True)
        return drafts

    def _see(self) -> None:
        """Bring the ids that the host has not read yet into their requests."""
        if self._unseen:
            for live, ids in zip(self.live, torch.stack(self._unseen, 1).tolist()):
                live.request.ids += ids
            self._unseen.clear()

    def _events(self, rows: np.ndarray) -> list[Request]:
        """What happens to rows whose text or image ends, or whose image begins; the requests that end."""
        self._see()
        self._paths.clear()
        ended, freed = [], []
        for row in rows.tolist():
            live, now = self.live[row], self.now[row]
            request, state = live.request, int(now["state"])
            if self._heads[state]:
                parts = (*request.parts, *written(self.layout, self.automaton, request))
                self._guide(live, now, parts, self.automaton.headers[state])
                self._fresh |= bool(live.unread)
                continue
            now["images"] -= state == Automaton.TEXT and now["left"] > 0
            if state == Automaton.DONE or now["left"] <= 0 or now["images"] == 0 and not request.text:
                ended.append(row)
                continue
            self._end_image(row)
            freed += self._line_of[row, 1:now["arity"]].tolist()
            live.weights, now["arity"] = (1.0,), 1
        finished = [self.live[row].request for row in ended]
        self._remove(ended, freed)
        return finished

    def _end_image(self, row: int) -> None:
        """Read what ends an image that is written by count, so that text can go on."""
        end = next(iter(self.layout.write_plans.values())).pieces[-1]
        if self.layout.config.write.stop == "count" and isinstance(end, Fixed):
            line = int(self._line_of[row, 0])
            ids = torch.tensor([end.ids], device=self.last.device)
            ids = torch.cat([self.last[row].view(1, 1), ids], 1)
            self.lines.read(ids[:, :-1], line, self.now["codes"][row:row + 1])
            self.lines.length[line] += len(end.ids)
            self.last = self.last.clone()
            self.last[row] = end.ids[-1]

    def _remove(self, rows: list[int], lines: list[int]) -> None:
        """Take rows out, with all their lines, and some lines besides."""
        for row in rows:
            self.live[row].request.steps = int(self.now["steps"][row])
        stays = np.ones(len(self.live), bool)
        stays[rows] = False
        gone = ~stays[self.lines.owner]
        gone[lines] = True
        if gone.any():
            self.lines.drop(gone)
            self.lines.owner = (stays.cumsum() - 1)[self.lines.owner]
            self.live = [live for live, stay in zip(self.live, stays) if stay]
            self.last = self.last[sent(np.flatnonzero(stays), self.last.device)]
            self.now, self.drafts = self.now[stays], self.drafts[stays[:len(self.drafts)]]
            self._changed()
