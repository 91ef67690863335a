"""The options of `make` that describe a song, and the `SongRequest` that they become."""

from __future__ import annotations

import argparse
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

from yuegp.errors import RequestError
from yuegp.song.notes import Note
from yuegp.song.schema import PRESETS, Reference, Sampling, SongRequest

from .arguments import add_out_option, read_text


def add_request_options(p: argparse.ArgumentParser) -> None:
    """What a song request can say, and the folder that the song goes into."""
    p.add_argument("--lyrics", metavar="FILE", help="a text file with [verse], [chorus] … labels; - for standard input")
    p.add_argument("--tags", required=True, help='genre, instrument, mood, voice: "pop piano sad female airy vocal"')
    p.add_argument("--title", help="title of the song (default: the name of the lyrics file)")
    p.add_argument("--seed", type=int, help="same seed, same song (default: drawn, and shown)")
    p.add_argument("--sections", type=int, metavar="N", help="make only the first N sections")
    p.add_argument("--section-seconds", type=float, metavar="S", help="longest section (default: what the model likes)")
    p.add_argument("--model", default="demo", help="a model by name, or the folder of a model set (default demo)")
    p.add_argument("--instrumental", action="store_true", help="no singing: words are left out")
    p.add_argument("--crossover", choices=("smooth", "yue"), default="smooth", help="how lows and highs are joined")
    add_out_option(p)
    group = p.add_argument_group("reference recording (in-context learning)")
    group.add_argument("--reference", metavar="MIX", help="one recording to take the style from")
    group.add_argument("--reference-vocal", metavar="FILE", help="its vocal alone; with --reference-instrumental")
    group.add_argument("--reference-instrumental", metavar="FILE", help="its accompaniment alone")
    group.add_argument("--reference-start", type=float, metavar="S", help="start of the window in seconds (default 0)")
    group.add_argument("--reference-end", type=float, metavar="S", help="end of the window (default: start + 30)")
    group = p.add_argument_group("sampling (default: what the model set recommends)")
    group.add_argument("--preset", choices=tuple(PRESETS), help="as released, or as in ExLlamaV2 ports")
    for name, kind, text in (
        ("temperature", float, "0 takes the likeliest code"),
        ("top-k", int, "likeliest codes to choose from; 0 for all"),
        ("top-p", float, "total probability to choose from"),
        ("repetition-penalty", float, "1 is off"),
        ("guidance", float, "guidance scale of the first section; 1 is off"),
        ("guidance-later", float, "guidance scale of later sections"),
    ):
        group.add_argument(f"--{name}", type=kind, metavar="X", help=text)
    group.add_argument("--exact", action="store_true", help="guidance over the whole vocabulary, as released; slower")
    group.add_argument("--spare-end", action="store_true", help="keep the repetition penalty off the end of a section")


def song_request(arguments: argparse.Namespace) -> tuple[SongRequest, str | None, tuple[Note, ...]]:
    """The request, the lyrics as they were typed, and what there is to say about them. RequestError without lyrics."""
    from yuegp.song import lyrics

    text: str | None = None
    notes: tuple[Note, ...] = ()
    if arguments.lyrics is not None:
        text = read_text(arguments.lyrics)
        parsed = lyrics.parse(text)
        sections, notes = parsed.sections, parsed.notes
    elif arguments.instrumental:
        sections = lyrics.INSTRUMENTAL_SECTIONS
    else:
        raise RequestError("There are no lyrics.", "Add --lyrics FILE, or --instrumental for a song without words.")
    title = arguments.title
    if title is None:
        title = Path(arguments.lyrics).stem if arguments.lyrics not in (None, "-") else ""
    request = SongRequest(
        sections=sections,
        tags=arguments.tags,
        title=title,
        seed=seed(arguments),
        model=arguments.model,
        instrumental=arguments.instrumental,
        reference=_reference(arguments),
        sampling=_sampling(arguments),
        section_seconds=arguments.section_seconds,
        first_sections=arguments.sections,
        crossover=arguments.crossover,
    )
    return request, text, notes


def seed(arguments: argparse.Namespace) -> int:
    """The seed asked for, else a drawn one."""
    return secrets.randbelow(2**32) if arguments.seed is None else arguments.seed


def _reference(arguments: argparse.Namespace) -> Reference | None:
    mix, vocal, instrumental = arguments.reference, arguments.reference_vocal, arguments.reference_instrumental
    if not (mix or vocal or instrumental):
        if arguments.reference_start is not None or arguments.reference_end is not None:
            raise RequestError(
                "A start or end of a reference was given, but no reference.", "Add --reference FILE, or drop them."
            )
        return None
    start = arguments.reference_start or 0.0
    end = start + 30.0 if arguments.reference_end is None else arguments.reference_end
    return Reference(mix, vocal, instrumental, start, end)


def _sampling(arguments: argparse.Namespace) -> Sampling:
    from yuegp.checkpoints import sets

    base = PRESETS[arguments.preset] if arguments.preset else sets.find(arguments.model).sampling
    chosen = {
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "repetition_penalty": arguments.repetition_penalty,
        "guidance": arguments.guidance,
        "guidance_later": arguments.guidance_later,
    }
    changes: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    if arguments.exact:
        changes["exact"] = True
    if arguments.spare_end:
        changes["penalize_end"] = False
    return replace(base, **changes)
