"""Turns of a chat, both ways: what stands between speakers, and which words are whose when a sequence is read back.

    parts  --write-->  atoms       parts  <--read--  atoms

An *atom* is text (one character of it when read), the id of a marker, or a whole image. When a sequence is read, a turn
ends where what closes it is followed by what opens another one, so that a newline within somebody's words is no end.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

from unimm.config.tokens import Layout
from unimm.errors import UserError
from unimm.grammar import Plan
from unimm.sample import Image, Part, Role, Text

ROLES: tuple[Role, ...] = ("system", "user", "assistant")


class TurnError(UserError):
    """A chat whose turns the layout can't write."""


@dataclass(frozen=True)
class Begun:
    """The last part of a prompt: the model goes on in this turn, with an image of this plan where there is one."""

    role: Role | None
    plan: Plan | None = None
    learn: bool = False


class Atom(NamedTuple):
    """What stands at one place, and whether it is learned."""

    what: str | int | Image | Begun
    learn: bool = False


class Turns:
    """The chat of a layout with its markers as ids. `pieces` spells out a template as texts and ids."""

    def __init__(self, config: Layout, pieces: Callable[[str], list[str | int]], eos: int):
        self.chat = chat = config.chat
        self.eos = eos
        self._learns_marks = config.learn != "codes"
        self._prefaces = [pieces(words) for words in (chat.preface, chat.draw_preface)]
        spoken = {"system": chat.system, "user": chat.user, "assistant": chat.assistant}
        self.opens = {role: pieces(turn[0]) for role, turn in spoken.items() if turn is not None}
        self.closes = {role: pieces(turn[1]) for role, turn in spoken.items() if turn is not None}
        templates = [*self.opens.values(), *self.closes.values()]
        # The ids that begin or end turns.
        self.markers = {eos, *(piece for template in templates for piece in template if isinstance(piece, int))}
        self._before = {role: _characters(template) for role, template in self.opens.items()}
        self._begins = [(before, role) for role, before in self._before.items() if before]
        self._changes = {role: self._ends(role) for role in self.opens}
        unmarked: list[Role] = [role for role in ROLES[:2] if self._before.get(role) == []]
        self._first = unmarked[0] if unmarked else None

    # ------------------------------------------------------------ writing

    def write(self, parts: Iterable[Part | Begun], drawing: bool, inside: Role | None = None,
              alone: bool = False) -> list[Atom]:
        """What is written for the parts; the last turn is left open.

        drawing  whether the last turn draws an image
        inside   the speaker whose turn was opened before
        alone    whether nothing stood before, so that any turn may be the first, and no preface precedes it
        """
        atoms: list[Atom] = []
        before, learned = inside, False
        for role, group in groupby(parts, lambda part: part.role):
            said = list(group)
            if role != before:
                if before is not None:
                    atoms += [Atom(piece, learned) for piece in self.closes[before]]
                elif role not in (None, "system") and not alone and (words := self._prefaces[drawing]):
                    atoms += map(Atom, (*self.opens["system"], *words, *self.closes["system"]))
                if role is not None:
                    if not alone:
                        self._check(before, role)
                    atoms += map(Atom, self.opens[role])
            atoms += self._spoken(role, said)
            before, learned = role, self.learns_end(said[-1])
        return atoms

    def end(self, last: Part) -> list[Atom]:
        """What closes the turn of a sequence's last part, and the sequence."""
        ends = list(self.closes[last.role]) if last.role is not None else []
        if last.role is None or (self.chat.eos and ends[-1:] != [self.eos]):
            ends.append(self.eos)
        return [Atom(piece, self.learns_end(last)) for piece in ends]

    def learns_end(self, last: Part | Begun) -> bool:
        """Whether the end of a turn that ends in `last` is learned."""
        return last.learn and (self._learns_marks or not isinstance(last, Image))

    def _spoken(self, role: Role | None, said: list[Part | Begun]) -> list[Atom]:
        beside, lead = (self.chat.beside_image, self.chat.lead) if role is not None else ("", "")
        atoms: list[Atom] = []
        last = None
        for part in said:
            if isinstance(part, Text):
                begins = lead if role == "assistant" and last is None else ""
                between = beside if isinstance(last, Image) else ""
                atoms.append(Atom(between + begins + part.text, part.learn))
            elif isinstance(part, Image) or part.plan is not None:
                twice = 0 if last is None else 2 if isinstance(last, Image) else 1
                atoms += [Atom(beside * twice, part.learn), Atom(part, part.learn)]
            last = part
        return atoms

    def _check(self, before: Role | None, role: Role) -> None:
        """Raises TurnError where a turn of `role` after one of `before` could not be told from another's."""
        if role not in self.opens:
            raise TurnError(f"this layout has no {role} turn; say it in the user's")
        order = {"system": (None,), "user": (None, "system", "assistant"), "assistant": ("user",)}[role]
        if not self._before[role] and before not in order:
            raise TurnError(f"this layout tells turns apart by their order, so {before or 'nothing'} before {role} "
                            "can't be written; begin with the user, who then alternates with the assistant")

    # ------------------------------------------------------------ reading

    def read(self, atoms: list[Atom]) -> list[Part]:
        """The parts that the atoms say, each with its speaker, or without one in a document; texts by character."""
        spans = self._spans([atom.what for atom in atoms])
        if spans and spans[0][0] == "system":
            said = [atom.what for atom in atoms[spans[0][1]:spans[0][2]]]
            if said in (list(self.chat.preface), list(self.chat.draw_preface)):
                spans = spans[1:]
        return [part for role, first, last in spans for part in self._heard(role, atoms[first:last])]

    def _ends(self, role: Role) -> list[tuple[list, Role | None]]:
        """What shows that a turn of `role` is over, and who speaks behind it; None where that is still to be seen."""
        after = _characters(self.closes[role])
        found = [(after + before, other) for before, other in self._begins]
        following: Role = "assistant" if role == "user" else "user"
        told = following if not self._before[following] else None
        # A text that closes may be somebody's word; only a marker says so alone, or a text at the very end.
        return found + ([(after, told)] if after and isinstance(after[0], int) else [(after + [None], told)])

    def _spans(self, said: list) -> list[tuple[Role | None, int, int]]:
        """(speaker, first, last) of every turn in order."""
        spans: list[tuple[Role | None, int, int]] = []
        role, begin, at = None, 0, 0
        guess = self._first  # a document until a turn's end shows that it was the first turn of this one
        said, end = [*said, None], len(said)
        while at < end:
            begins = self._begins if role is None and at == begin else []
            signs = begins + self._changes.get(role or guess, [])
            sign, following = next((s for s in signs if said[at:at + len(s[0])] == s[0]), (None, None))
            if sign is not None and (role is not None or following is not None):
                spans.append((role or guess, begin, at))
                role, begin = following, at + len(sign)
                at, guess = begin, None
            elif said[at] == self.eos:
                break
            else:
                at += 1
        spans.append((role, begin, at))
        return [(who, first, last) for who, first, last in spans if first < last]

    def _heard(self, role: Role | None, atoms: list[Atom]) -> list[Part]:
        if role is not None:
            beside, lead = self.chat.beside_image, self.chat.lead
            for at in [n for n, atom in enumerate(atoms) if isinstance(atom.what, Image)][::-1] if beside else ():
                _drop(atoms, at + 1, beside)
                _drop(atoms, at - len(beside), beside)
            if role == "assistant" and lead:
                _drop(atoms, 0, lead)
        parts: list[Part] = []
        for what, learn in atoms:
            if isinstance(what, int):
                raise TurnError(f"id {what} stands within {role or 'a document'}, where no turn begins or ends")
            parts.append(replace(what, role=role) if isinstance(what, Image) else Text(what, learn, role))
        return parts


def _characters(template: list[str | int]) -> list[str | int]:
    return [atom for piece in template for atom in (piece if isinstance(piece, str) else [piece])]


def _drop(atoms: list[Atom], at: int, text: str) -> None:
    """Take `text` out of the atoms where it stands at `at`."""
    if at >= 0 and [atom.what for atom in atoms[at:at + len(text)]] == list(text):
        del atoms[at:at + len(text)]
