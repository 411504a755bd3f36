"""Turns of a chat: what stands between speakers, and which words are whose when a sequence is read back.

A sequence is read as *atoms*: one character of text, the id of a marker, or a whole image. A turn ends where what
closes it is followed by what opens another one, so that a newline within somebody's words is no end of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from unimm.config.tokens import Chat
from unimm.errors import UserError
from unimm.sample import Image, Part, Role, Text

ROLES: tuple[Role, ...] = ("system", "user", "assistant")


class TurnError(UserError):
    """A chat whose turns the layout can't write."""


class Atom(NamedTuple):
    """What stands at one place: a character, a marker's id or an image; and whether it is learned."""

    what: str | int | Image
    learn: bool


class Turns:
    """A `Chat` with its markers as ids. `pieces` spells out a template as texts and ids."""

    def __init__(self, chat: Chat, pieces: Callable[[str], list[str | int]], eos: int):
        self.chat = chat
        self.eos = eos
        self._pieces = pieces
        spoken = {"system": chat.system, "user": chat.user, "assistant": chat.assistant}
        self.opens = {role: pieces(turn[0]) for role, turn in spoken.items() if turn is not None}
        self.closes = {role: pieces(turn[1]) for role, turn in spoken.items() if turn is not None}
        self._before = {role: _characters(template) for role, template in self.opens.items()}
        self._after = {role: _characters(template) for role, template in self.closes.items()}
        unmarked = [role for role in ROLES if role in self._before and not self._before[role]]
        self._first: Role | None = unmarked[0] if unmarked and unmarked[0] != "assistant" else None

    def preface(self, drawing: bool) -> list[str | int]:
        """What begins a chat that has no system turn."""
        words = self.chat.draw_preface if drawing else self.chat.preface
        return [*self.opens["system"], *self._pieces(words), *self.closes["system"]] if words else []

    def check(self, before: Role | None, role: Role) -> None:
        """Raises TurnError where a turn of `role` after one of `before` could not be told from another's."""
        if role not in self.opens:
            raise TurnError(f"this layout has no {role} turn; say it in the user's")
        order = {"system": (None,), "user": (None, "system", "assistant"), "assistant": ("user",)}[role]
        if not self._before[role] and before not in order:
            raise TurnError(f"this layout tells turns apart by their order, so {before or 'nothing'} before {role} "
                            "can't be written; begin with the user, who then alternates with the assistant")

    def read(self, atoms: Sequence[Atom]) -> list[Part]:
        """The parts that the atoms say, each with its speaker, or without one in a document."""
        spans = self._spans([atom.what for atom in atoms])
        if spans and spans[0][0] == "system":
            said = [atom.what for atom in atoms[spans[0][1]:spans[0][2]]]
            if said in (list(self.chat.preface), list(self.chat.draw_preface)):
                spans = spans[1:]
        return [part for role, first, last in spans for part in self._turn(role, atoms[first:last])]

    def _spans(self, said: list) -> list[tuple[Role | None, int, int]]:
        """(speaker, first, last) of every turn in order."""
        spans: list[tuple[Role | None, int, int]] = []
        role, at = self._opened(said, 0) or (None, 0)
        begin, guess = at, self._first if role is None else None
        while at < len(said):
            change = self._change(role, said, at) if role else self._guessed(guess, said, at)
            if change is None and role is None and at == begin:
                change = self._opened(said, at)
            if change is not None:
                spans.append((role or guess, begin, at))
                role, begin = change
                at, guess = begin, None
            elif said[at] == self.eos:
                break
            else:
                at += 1
        spans.append((role, begin, at))
        return [span for span in spans if span[1] < span[2]]

    def _guessed(self, role: Role | None, said: list, at: int) -> tuple[Role | None, int] | None:
        """What is a document until a turn's end shows that it was the first turn of `role`."""
        change = self._change(role, said, at) if role else None
        return change if change and change[0] is not None else None

    def _opened(self, said: list, at: int) -> tuple[Role, int] | None:
        for role, opening in self._before.items():
            if opening and said[at:at + len(opening)] == opening:
                return role, at + len(opening)
        return None

    def _change(self, role: Role | None, said: list, at: int) -> tuple[Role | None, int] | None:
        """(next speaker, where the turn begins) if the turn of `role` ends at `at`."""
        if role is None or said[at:at + len(self._after[role])] != self._after[role]:
            return None
        after = at + len(self._after[role])
        if (opened := self._opened(said, after)) is not None:
            return opened
        marked = after > at and isinstance(self._after[role][0], int)
        if marked or (after > at and after == len(said)):
            following: Role = "assistant" if role == "user" else "user"
            return (following if not self._before[following] else None), after
        return None

    def _turn(self, role: Role | None, atoms: Sequence[Atom]) -> list[Part]:
        atoms = list(atoms)
        if role is not None:
            beside, lead = self.chat.beside_image, self.chat.lead
            for at in [n for n, atom in enumerate(atoms) if isinstance(atom.what, Image)][::-1] if beside else ():
                _drop(atoms, at + 1, beside)
                _drop(atoms, at - len(beside), beside)
            if role == "assistant" and lead:
                _drop(atoms, 0, lead)
        parts: list[Part] = []
        for what, learn in atoms:
            last = parts[-1] if parts else None
            if isinstance(what, Image):
                parts.append(replace(what, role=role))
            elif isinstance(what, int):
                raise TurnError(f"id {what} stands within {role or 'a document'}, where no turn begins or ends")
            elif isinstance(last, Text) and last.learn == learn:
                parts[-1] = Text(last.text + what, learn, role)
            else:
                parts.append(Text(what, learn, role))
        return parts


def _characters(template: list[str | int]) -> list[str | int]:
    return [atom for piece in template for atom in (piece if isinstance(piece, str) else [piece])]


def _drop(atoms: list[Atom], at: int, text: str) -> None:
    """Take `text` out of the atoms where it stands at `at`."""
    if at >= 0 and [atom.what for atom in atoms[at:at + len(text)]] == list(text):
        del atoms[at:at + len(text)]
