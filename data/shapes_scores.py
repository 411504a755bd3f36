"""The scores of a system on the world of coloured shapes: prompts, questions, edits and scenes never trained on."""

from collections.abc import Iterable

from data import shapes, shapes_judge
from data.shapes_words import ANSWERS, CAPTION_KINDS, QUESTION_TYPES
from data.shapes_world import Scene, draw
from unimm.config.data import Shapes
from unimm.config.recipe import Recipe
from unimm.evaluate.scores import Bar, EvaluationError, Scores, Shown, add_reconstructions, answer_all, draw_all
from unimm.generate.use import asked
from unimm.sample import Text
from unimm.stream.sources import open_source
from unimm.system import System

HELDOUT = "heldout_pairs"
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
    Bar("tokenizer.judge", CODES, "reconstructions that pass the judge", 0.97),
    Bar("leakage.scenes", LEAKS, "scenes that were trained on", 0, "at_most"),
    Bar("leakage.prompts", LEAKS, "prompts that were trained on", 0, "at_most"),
    Bar("seconds.total", TIME, "seconds in all", 600, "at_most"),
)


def score(system: System, count: int, seed: int) -> Scores:
    """Scores on `count` prompts of each kind, questions of each type, edits and scenes, drawn with `seed`.

    Raises EvaluationError where the world has fewer of a kind.
    """
    try:
        prompts = {kind: shapes.evaluation_prompts(kind, count, seed) for kind in (*CAPTION_KINDS, HELDOUT)}
        questions = shapes.evaluation_questions(count, seed)
        edits = shapes.evaluation_edits(count, seed)
        scenes = shapes.evaluation_scenes(count, seed)
    except ValueError as why:
        raise EvaluationError(f"{why}; ask for fewer with --count") from None
    scores = Scores()
    _pictures(scores, system, prompts, seed)
    _questions(scores, system, questions, seed)
    _edits(scores, system, edits, seed)
    add_reconstructions(scores, system, "judge", [draw(s) for s in scenes],
                        lambda back: [_plain(shapes_judge.judge_scene(*both)) for both in zip(back, scenes)])
    used = scenes + [q.scene for q in questions] + [s for e in edits for s in (e.before, e.after)]
    add_leakage(scores, system.recipe, used, [*sum(prompts.values(), []), *(e.instruction for e in edits)])
    return scores


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
