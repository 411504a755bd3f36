"""The scores of a system on the world of coloured shapes: prompts, questions, edits and scenes never trained on.

Asked of a system is what its stages teach: pictures where some sentence is to be drawn, answers where there are chats,
edits and rounds of them, held-out sentences after each stage where there are sentences.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from data import shapes, shapes_judge
from data.shapes_words import ANSWERS, CAPTION_KINDS, QUESTION_TYPES
from data.shapes_world import LATTICE, SEEN_PAIRS, SIZES, Scene, Thing, draw
from unimm.config.data import Shapes
from unimm.config.recipe import Recipe
from unimm.evaluate.scores import Bar, EvaluationError, Scores, Shown, add_text, answer_all, draw_all
from unimm.evaluate.tokenizer_scores import Labelled, Subject, add_tokenizer
from unimm.generate.use import asked
from unimm.sample import Image, Pixels, Text
from unimm.stream.sources import open_source
from unimm.system import System

HELDOUT = "heldout_pairs"
ROUNDS = ("first", "second", "third")
DRAWS, READS, EDITS = "Draws what a sentence says", "Answers questions about a picture", "Edits a picture as told"
CODES, LEAKS, TIME = "Gives a picture back", "Tested on what it never saw", "In little time"
_LEAST = {"single": 0.95, "count": 0.85, "relation": 0.85, "two": 0.65}
_PHRASES = {"single": "one object", "count": "several alike", "relation": "one beside another", "two": "two objects"}
_ASKED = {"colour": "which colour", "shape": "which shape", "size": "which size", "count": "how many",
          "existence": "is there", "relation": "where from the other", "position": "where in the picture"}
BARS = (
    *(Bar(f"t2i.{kind}", DRAWS, _PHRASES[kind], _LEAST[kind]) for kind in CAPTION_KINDS),
    Bar(f"t2i.{HELDOUT}", DRAWS, "colour and shape never seen together"),
    Bar("vqa.exact_match", READS, "all questions", 0.85),
    *(Bar(f"vqa.by_type.{kind}", READS, _ASKED[kind], 0.70, chance=1 / len(ANSWERS[kind])) for kind in QUESTION_TYPES),
    Bar("edit.exact_match", EDITS, "all edits", 0.60),
    *(Bar(f"rounds.{name}", EDITS, f"{name} of three edits in turn") for name in ROUNDS),
    Bar("tokenizer.judge", CODES, "reconstructions that pass the judge", 0.97),
    Bar("leakage.scenes", LEAKS, "scenes that were trained on", 0, "at_most"),
    Bar("leakage.prompts", LEAKS, "prompts that were trained on", 0, "at_most"),
    Bar("seconds.total", TIME, "seconds in all", 600, "at_most"),
)


def score(system: System, subject: Subject, count: int, seed: int) -> Scores:
    """Scores on `count` prompts of each kind, questions of each type, edits and scenes, drawn with `seed`; without a
    language model those of the image tokenizer alone.

    Raises EvaluationError where the world has fewer of a kind.
    """
    taught = _taught(system.recipe) if system.model else set()
    with enough():
        prompts = {kind: shapes.evaluation_prompts(kind, count, seed) for kind in (*CAPTION_KINDS, HELDOUT)
                   if "pictures" in taught}
        questions = shapes.evaluation_questions(count, seed) if "chats" in taught else []
        edits = shapes.evaluation_edits(count, seed) if taught & {"edits", "rounds"} else []
        rounds = shapes.evaluation_rounds(count, seed) if "rounds" in taught else []
        sentences = shapes.evaluation_sentences(count, seed) if "sentences" in taught else []
    scores = tokenizer_scores(subject, count, seed)
    if prompts:
        _pictures(scores, system, prompts, seed)
    if questions:
        _questions(scores, system, questions, seed)
    if edits:
        _edits(scores, system, edits, seed)
    if rounds:
        _rounds(scores, system, rounds, seed)
    if sentences:
        add_text(scores, system, sentences)
    changes = [*edits, *(e for made in rounds for e in made)]
    used = shapes.evaluation_scenes(count, seed) + [q.scene for q in questions]
    used += [scene for e in changes for scene in (e.before, e.after)]
    prompts = [*sum(prompts.values(), []), *(e.instruction for e in changes), *sentences]
    add_leakage(scores, system.recipe, used, prompts)
    return scores


@contextmanager
def enough() -> Iterator[None]:
    """Say what to do where the world has fewer items than were asked for."""
    try:
        yield
    except ValueError as why:
        raise EvaluationError(f"{why}; ask for fewer with --count") from None


def _taught(recipe: Recipe) -> set[str]:
    """What the stages of the language model teach: the parts of the world that they use, and "pictures" where one is
    drawn from a sentence."""
    uses = [use for stage in recipe.language.values() for use in stage.mix]
    sources = [recipe.data[use.data] for use in uses]
    drawn = any(use.task in ("t2i", "draw") for use in uses)
    return {source.part for source in sources if isinstance(source, Shapes)} | ({"pictures"} if drawn else set())


def tokenizer_scores(subject: Subject, count: int, seed: int) -> Scores:
    """Everything about an image tokenizer, on `count` scenes. Raises EvaluationError where the world has fewer."""
    with enough():
        scores, scenes = Scores(), shapes.evaluation_scenes(count, seed)
    add_tokenizer(scores, subject, "judge", [draw(scene) for scene in scenes],
                  lambda back: [_plain(shapes_judge.judge_scene(*both)) for both in zip(back, scenes)], _singles())
    return scores


def _singles() -> Labelled:
    """All pictures of one thing that training shows, and all that it does not, with its colour and its shape."""
    scenes = [Scene((Thing(*look, size, x, y),)) for look in SEEN_PAIRS for size in SIZES for y in LATTICE
              for x in LATTICE]
    sides = [[s for s in scenes if shapes.is_evaluation_scene(s) == side] for side in (False, True)]
    labels = {name: tuple([getattr(s.things[0], name) for s in side] for side in sides) for name in ("colour", "shape")}
    return Labelled(*([draw(s) for s in side] for side in sides), labels)


def _plain(verdict: shapes_judge.Verdict) -> tuple[bool, str]:
    """Whether it is right, and what was seen; what was wanted is shown beside it anyway."""
    return verdict.ok, verdict.why.split("; wanted: ")[0]


def _pictures(scores: Scores, system: System, prompts: dict[str, list[str]], seed: int) -> None:
    wanted = [(kind, prompt) for kind, some in prompts.items() for prompt in some]
    drawn = draw_all(system, "pictures", [(Text(prompt),) for _, prompt in wanted], seed)
    for (kind, prompt), picture in zip(wanted, drawn):
        ok, why = _plain(shapes_judge.judge(picture, prompt))
        scores.pictures.append(Shown(kind, prompt, ok, picture, why=why))
    scores.add_shares("t2i", scores.pictures)


def _questions(scores: Scores, system: System, questions: list[shapes.Question], seed: int) -> None:
    given = [draw(q.scene) for q in questions]
    contexts = [asked([picture], q.question) for picture, q in zip(given, questions)]
    for q, picture, said in zip(questions, given, answer_all(system, "answers", contexts, seed)):
        scores.questions.append(Shown(q.type, q.question, said == q.answer, said, picture, q.answer))
    scores.add_share("vqa.exact_match", scores.questions)
    scores.add_shares("vqa.by_type", scores.questions)


def _edits(scores: Scores, system: System, edits: list[shapes.Edit], seed: int) -> None:
    given = [draw(e.before) for e in edits]
    contexts = [asked([picture], e.instruction) for picture, e in zip(given, edits)]
    for e, before, picture in zip(edits, given, draw_all(system, "edits", contexts, seed)):
        ok, why = _plain(shapes_judge.judge_scene(picture, e.after))
        scores.edits.append(Shown(e.operation, e.instruction, ok, picture, before, draw(e.after), why))
    scores.add_share("edit.exact_match", scores.edits)
    scores.add_shares("edit.by_operation", scores.edits)


def _rounds(scores: Scores, system: System, rounds: list[tuple[shapes.Edit, ...]], seed: int) -> None:
    """Each round edits what the model drew in the one before, in one conversation; right is what all rounds so far ask
    for."""
    talks = [asked([draw(made[0].before)], made[0].instruction) for made in rounds]
    for n, name in enumerate(ROUNDS):
        drawn = draw_all(system, f"{name} edits", talks, seed)
        for m, (made, picture) in enumerate(zip(rounds, drawn)):
            ok, why = _plain(shapes_judge.judge_scene(picture, made[n].after))
            before = talks[m][-2].content.array
            scores.rounds.append(Shown(name, made[n].instruction, ok, picture, before, draw(made[n].after), why))
            if n + 1 < len(made):
                talks[m] += Image(Pixels(picture), role="assistant"), Text(made[n + 1].instruction, role="user")
    scores.add_shares("rounds", scores.rounds)


def add_leakage(scores: Scores, recipe: Recipe, scenes: Iterable[Scene], prompts: Iterable[str]) -> None:
    """How many of the scored scenes and strings are in the training data, that is, in every source of shapes that a
    stage uses, made again in full and compared as pixels and strings."""
    used = {use.data for stage in recipe.stages.values() for use in stage.mix}
    sources = [source for name, source in recipe.data.items() if name in used and isinstance(source, Shapes)]
    keys = shapes.training_keys(item.read() for source in sources for item in open_source(source))
    scenes, prompts = {scene.key: scene for scene in scenes}, set(prompts)
    found = shapes.leakage(keys, scenes.values(), prompts, {source.scale for source in sources})
    scores.add("leakage.scenes", found["scenes"], len(scenes))
    scores.add("leakage.prompts", found["texts"], len(prompts))
    scores.counts["trained"] = {"pictures": len(keys[0]), "texts": len(keys[1])}
