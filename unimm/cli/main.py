"""The `unimm` command: reads what is asked for, and does it; heavy imports wait for their use."""

import json
import os
import sys
from pathlib import Path
from typing import assert_never

from unimm.arguments import read_arguments
from unimm.cli import commands
from unimm.config.check import ConfigError
from unimm.config.recipe import Recipe
from unimm.errors import UserError


def main(arguments: list[str] | None = None) -> None:
    """The `unimm` command. Bad input ends in one line on stderr and exit code 2; see docs/exit-codes.md."""
    code = 0
    try:
        # The deepspeed launcher adds --local_rank=N unless told not to; LOCAL_RANK says the same.
        given = [a for a in sys.argv[1:] if not a.startswith("--local_rank=")]
        code = run(given if arguments is None else arguments)
    except UserError as error:
        print(f"unimm: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"unimm: {error.filename or 'input/output'}: {error.strerror or error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("\nunimm: interrupted", file=sys.stderr)
        code = 130
    if "torch" in sys.modules:
        from unimm.train import ranks

        ranks.leave(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Do one command; the exit code."""
    command, rest = parse(arguments)
    if rest and not isinstance(command, commands.Show | commands.Plan | commands.Train):
        raise ConfigError(f"unknown option {rest[0]}; see --help for what this command takes")
    match command:
        case commands.Show(recipe=path, json=as_json) if path.suffix == ".png":
            _show_picture(path, as_json)
        case commands.Show(recipe=path, json=as_json):
            return _show(load(path, rest), as_json)
        case commands.Plan():
            _plan(command, rest)
        case commands.Train():
            return _train(command, rest)
        case commands.Status(run=folder, json=as_json):
            return _status(folder, as_json)
        case commands.Encode(run=folder, data=data):
            from unimm.pipeline import encode_run

            encode_run(load(folder, []), folder, data)
        case commands.Sample() | commands.Edit():
            _draw(command)
        case commands.Ask():
            _ask(command)
        case commands.Continue(document=file):
            from unimm.serve.documents import continue_file

            out = command.out or file.with_name(f"{file.stem}-continued")
            print(continue_file(command.run, file, out, command.images, command.seed, command.sampling.said()))
        case commands.Chat():
            from unimm.serve.terminal import chat_in_terminal

            chat_in_terminal(command.run, command.seed, command.out)
        case commands.Eval(run=folder, count=count, seed=seed):
            from unimm.evaluate.run import evaluate
            from unimm.system import open_run
            from unimm.train import ranks

            evaluate(open_run(folder, ranks.device()), count=count, seed=seed)
        case commands.Checkpoint(do=do):
            _checkpoint(do)
        case commands.Convert():
            _convert(command)
        case _:
            assert_never(command)
    return 0


def parse(arguments: list[str]) -> tuple[commands.Command, list[str]]:
    """The command, and the options that it does not know: overrides of the recipe."""
    return read_arguments(commands.Command, arguments or ["--help"], "unimm", return_unknown_args=True,
                          description="Train and run language models that read and write images as tokens.")


def load(path: Path, overrides: list[str]) -> Recipe:
    from unimm.recipe import apply_overrides, load_recipe

    return apply_overrides(load_recipe(path), overrides, f"unimm train {path}")


def _show(recipe: Recipe, as_json: bool) -> int:
    if as_json:
        from unimm.recipe import recipe_to_json

        print(recipe_to_json(recipe))
        return 0
    from unimm.show import show

    for line in show(recipe, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ):
        print(line)
    return 0


def _show_picture(path: Path, as_json: bool) -> None:
    from unimm.pictures import facts_of

    facts = facts_of(path)
    if not facts:
        raise ConfigError(f"{path} does not say how it was drawn, as whole pictures of `unimm sample` do")
    print(json.dumps(facts, indent=1) if as_json else "\n".join(f"{name}: {value}" for name, value in facts.items()))


def _apart(words: tuple[str, ...], what: str) -> tuple[tuple[str, ...], str]:
    """The files of pictures, and what is said about them."""
    *images, said = words or ("",)
    if not images or not said.strip() or os.path.isfile(said):
        raise ConfigError(f'give a picture and then the {what} in quotes: picture.png "..."')
    return tuple(images), said


def _ask(command: commands.Ask) -> None:
    from unimm.api import Model
    from unimm.stream.pixels import load_pixels
    from unimm.system import recipe_of

    images, question = _apart(command.words, "question")
    shown, said = [load_pixels(file, file) for file in images], command.sampling.said()
    recipe_of(command.run).sampling.changed(**said)  # refused now, not once weights are read
    print(Model.load(command.run).ask(shown, question, command.seed, **said))


def _draw(command: commands.Sample | commands.Edit) -> None:
    from unimm.serve.files import draw_to_files
    from unimm.serve.prompts import Order, read_orders

    drawing, said = command.drawing, command.drawing.said()
    match command:
        case commands.Sample(layout=form):
            orders = read_orders(command.prompts, command.file, said)
            out = command.out or command.run / ("geneval" if form == "geneval" else "samples")
        case commands.Edit():
            images, instruction = _apart(command.words, "instruction")
            orders, out, form = [Order(prompt=instruction, images=images, **said)], command.out, "files"
    draw_to_files(command.run, orders, out or command.run / "edits", drawing.sampling.said(), drawing.batch, form)


def _checkpoint(do: commands.CheckpointList | commands.CheckpointVerify | commands.CheckpointExport) -> None:
    match do:
        case commands.CheckpointList(run=run, quick=quick):
            from unimm.checkpoint.listing import table

            print(*table(run, every_byte=not quick), sep="\n")
        case commands.CheckpointVerify(path=path):
            from unimm.checkpoint.listing import check_all

            for line in check_all(path):
                print(line)
        case commands.CheckpointExport(run=run, out=out, stage=stage, step=step, ema=ema, trained=trained):
            from unimm.export import export_run

            if ema and trained:
                raise ConfigError("--ema and --trained are two kinds of weights; export them into two folders")
            export_run(run, out, stage, step, True if ema else False if trained else None)
            print(f"exported: {out}\nnext: unimm sample {out} \"a prompt\"")
        case _:
            assert_never(do)


def _status(folder: Path, as_json: bool) -> int:
    from unimm.status import code_of, describe, read_status

    status = read_status(folder)
    print(json.dumps(status, indent=1) if as_json else "\n".join(describe(folder, status)))
    return code_of(status)


def _plan(command: commands.Plan, rest: list[str]) -> None:
    recipe = load(command.recipe, rest)
    from unimm.hardware import gpu_named
    from unimm.plan.plan import Cluster, plan
    from unimm.plan.table import table, to_json

    gpus = command.nodes * command.gpus_per_node if command.gpus is None else command.gpus
    cluster = Cluster(gpus=gpus, per_node=command.gpus_per_node, gpu=gpu_named(command.gpu), mfu=command.mfu)
    folder = command.recipe if command.recipe.is_dir() else None
    found = plan(recipe, cluster, folder, command.document, command.images)
    print(to_json(found) if command.json else "\n".join(table(found)))


def _convert(command: commands.Convert) -> None:
    from unimm.convert.bring import bring
    from unimm.convert.give import give
    from unimm.convert.source import ConvertError, is_run

    if is_run(command.source):
        if command.recipe or command.unpickle:
            raise ConvertError(f"{command.source} is a run, which has its recipe; --recipe and --unpickle are for "
                               "checkpoints in transformers' format")
        give(Path(command.source), command.out, command.adapters, command.dtype, command.split)
        print(f"converted: {command.out}\nnext: AutoModelForCausalLM.from_pretrained({str(command.out)!r})")
        return
    if (command.adapters, command.dtype, command.split) != ("merged", "as_is", "5GB"):
        raise ConvertError(f"{command.source} is a checkpoint in transformers' format, whose tensors are kept as they "
                           "are; --adapters, --dtype and --split are for runs")
    bring(command.source, command.out, load(command.recipe, []) if command.recipe else None, command.unpickle)
    print(f"converted: {command.out}\nnext: unimm sample {command.out} \"a prompt\", unimm train {command.out}")


def _train(command: commands.Train, rest: list[str]) -> int:
    recipe = load(command.recipe, rest)
    from unimm.pipeline import train_run
    from unimm.train.signals import Interrupted

    folder = command.out or (command.recipe if command.recipe.is_dir() else Path("runs") / recipe.name)
    try:
        train_run(recipe, folder, command.stage)
    except Interrupted as stopped:
        from unimm.train import ranks

        if ranks.rank() == 0:
            print(stopped, file=sys.stderr)
        ranks.barrier()  # all are here: none may leave, and have the launcher end the others, before rank 0 has spoken
        return stopped.code
    return 0
