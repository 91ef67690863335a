"""What the command `quant` does: collect rows, press models into fewer bits, judge the result."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from yuegp.cli.arguments import Commands, add_device_option, print_json
from yuegp.cli.progress import ProgressBar
from yuegp.errors import RequestError
from yuegp.progress import Progress
from yuegp.units import file_size

if TYPE_CHECKING:
    from yuegp.checkpoints.sets import ModelSet

    from .evaluate import Figures


def add_commands(commands: Commands) -> None:
    """Add the command `quant` and the commands it has of its own."""
    parser = commands.add_parser("quant", help="press models into fewer bits, and judge the result")
    group = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        p = group.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        p.set_defaults(run=run)
        p.add_argument("--model", default="demo", help="a model by name, or the folder of a model set (default demo)")
        p.add_argument("--rows", metavar="DIR", help="where the rows lie (default: calibration/MODEL in YUEGP_HOME)")
        p.add_argument("--json", action="store_true", help="print the result as JSON, and no progress")
        p.add_argument("--quiet", action="store_true", help="no progress")
        return p

    p = command("calibrate", calibrate, "collect rows of audio tokens to press and to judge with")
    p.add_argument("--songs", type=int, default=40, metavar="N", help="songs to sample by recipe (default 40)")
    p.add_argument("--own-songs", action="store_true", help="read your own finished songs instead")
    p.add_argument("--seed", type=int, default=5000, help="seed of the recipe (default 5000)")
    add_device_option(p)

    p = command("convert", convert, "press a model into fewer bits")
    p.add_argument("--stage", type=int, choices=(1, 2), required=True, help="which of the set's two language models")
    p.add_argument("--to", choices=("int8", "nf4", "exl2"), required=True, help="exl2 needs an NVIDIA card")
    p.add_argument("--bits", type=float, default=8.0, metavar="B", help="bits per weight, exl2 only (default 8)")
    p.add_argument("--folder", metavar="DIR", help="where to write it (default: beside the other models)")

    p = command("measure", measure, "judge pressed models against their original")
    p.add_argument("--stage", type=int, choices=(1, 2), required=True, help="which of the set's two language models")
    p.add_argument("against", nargs="+", help="folders of pressed models; int8 or nf4 press the original on the way")
    p.add_argument("--count", type=int, default=16, metavar="N", help="held-out rows to read (default 16)")
    add_device_option(p)


def calibrate(arguments: argparse.Namespace) -> None:
    from yuegp import paths

    from . import calibrate as collecting

    model, folder = _model(arguments), _rows_folder(arguments)
    with ProgressBar(arguments.quiet or arguments.json) as screen:
        if arguments.own_songs:
            takes, source = collecting.own_songs(paths.songs_dir()), "own songs"
        else:
            source = f"recipe, {arguments.songs} songs"
            takes = collecting.sample(model, folder, arguments.songs, arguments.seed, arguments.device, screen.show)
        collected = collecting.collect(model, takes, folder, source, arguments.seed)
    if arguments.json:
        print_json({"folder": str(folder), **asdict(collected)})
        return
    for line in collected.skipped:
        print(f"left out  {line}")
    counts = ", ".join(f"{count} {name}" for name, count in collected.rows.items())
    print(f"{collected.songs} songs: {counts}\n{folder}")


def convert(arguments: argparse.Namespace) -> None:
    from . import quantize
    from .exl2 import ConversionJob, check
    from .exl2 import convert as press_exl2

    model = _model(arguments)
    source = model.stage1 if arguments.stage == 1 else model.stage2
    # other names than those under which copies pressed by others are downloaded
    kind = f"exl2-{arguments.bits:g}bpw" if arguments.to == "exl2" else f"own-{arguments.to}"
    from yuegp.checkpoints.sets import models_dir

    target = Path(arguments.folder or models_dir() / f"{source.name}-{kind}").absolute()
    with ProgressBar(arguments.quiet or arguments.json) as screen:
        if arguments.to == "exl2":
            folder = _rows_folder(arguments)
            files = [folder / f"{name}stage{arguments.stage}.safetensors" for name in ("", "held-")]
            if missing := [path.name for path in files if not path.is_file()]:
                raise RequestError(
                    f"There are no rows to calibrate with: {folder} lacks {', '.join(missing)}.",
                    f"Run `yuegp quant calibrate --model {arguments.model}` first.",
                )
            job = ConversionJob(
                source, target, files[0], _judging_rows(model, files[1], arguments.stage, folder), arguments.bits
            )
            check(job, _free_vram())
            press_exl2(job, model.credit, _shown(screen))
        else:
            quantize.quantize(source, target, arguments.to, model.credit, _shown(screen))
    size = sum(path.stat().st_size for path in target.iterdir())
    if arguments.json:
        print_json({"folder": str(target), "bytes": size})
    else:
        print(f"{file_size(size)}\n{target}")


def measure(arguments: argparse.Namespace) -> None:
    from yuegp.lm import EngineConfig, stored_as

    from . import evaluate as judging
    from . import rows

    model, folder = _model(arguments), _rows_folder(arguments)
    source = model.stage1 if arguments.stage == 1 else model.stage2
    held = rows.load(folder / f"held-stage{arguments.stage}.safetensors", model.layout)[: arguments.count]
    device = _device(arguments)
    full = "float32" if device == "cpu" else "bfloat16"
    figures: dict[str, Figures] = {}
    with ProgressBar(arguments.quiet or arguments.json) as screen:
        ask = functools.partial(
            judging.predict, layout=model.layout, stage=arguments.stage, held=held, progress=_shown(screen)
        )
        original = ask(source, EngineConfig(device=device, weights=full))
        figures[full] = judging.compare(original, original)
        for pressed in arguments.against:
            if pressed in ("int8", "nf4"):
                where, weights = source, pressed
            else:
                where = Path(pressed)
                weights = stored_as(where)
            engine = "exl2" if weights == "exl2" else "torch"
            answers = ask(where, EngineConfig(engine=engine, device=device, weights=weights))
            figures[where.name if where != source else weights] = judging.compare(original, answers)
    if arguments.json:
        about = {"model": model.id, "stage": arguments.stage, "rows": len(held), "device": device}
        print_json({**about, "figures": {name: asdict(f) for name, f in figures.items()}})
    else:
        print(judging.table(figures))


def _model(arguments: argparse.Namespace) -> ModelSet:
    from yuegp.checkpoints import sets

    return sets.find(arguments.model)


def _rows_folder(arguments: argparse.Namespace) -> Path:
    from .calibrate import folder_of

    return Path(arguments.rows).absolute() if arguments.rows else folder_of(_model(arguments))


def _shown(screen: ProgressBar) -> Progress:
    from yuegp.generation.plan import Event, Phase

    return lambda what, done, total: screen.show(Event(Phase.QUANT, what, done, total, "", done))


def _device(arguments: argparse.Namespace) -> str:
    from yuegp.generation.memory import place

    return place(0, arguments.device).device


def _free_vram() -> int | None:
    from yuegp.system.environment import CardReport, cards

    found: tuple[CardReport, ...] = cards()
    return max((card.free for card in found), default=None)


def _judging_rows(model: ModelSet, held: Path, stage: int, folder: Path) -> Path:
    """The file of rows the converter measures with: Stage 2's windows are laid out as rows first."""
    if stage == 1:
        return held
    import numpy as np

    from . import rows

    windows = rows.load(held, model.layout)
    ids = [rows.window_ids(model.layout, window) for window in windows]
    path = folder / "measure-stage2.safetensors"
    rows.save(path, rows.cut(ids, rows.LENGTH, np.random.default_rng(0), len(windows)), layout=model.layout.name)
    return path
