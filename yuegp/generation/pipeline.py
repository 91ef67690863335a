"""Runs a song's plan, saving every finished part.

`plan.py` refuses what cannot work before anything heavy loads. `run` continues from whatever the take folder holds, so
running an interrupted song again resumes it, with the same result as without interruption. `edit.py` begins takes with
parts of another one (continued, rewound, redone); `offload/` shares the memory between the models; `previews.py` makes
sound before the song is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from yuegp.files import damaged
from yuegp.library.store import Take
from yuegp.locks import song_lock
from yuegp.shortage import shortage
from yuegp.song.schema import MadeWith, Stage

from .options import ANY, ModelOptions
from .plan import FADE, LEAD, ProgressCallback, SongPlan, missing_sections
from .plan import plan as plan

if TYPE_CHECKING:
    from offload.manager import ModelManager
    from yuegp.lm import LMEngine

    from .stage1 import SectionCodes


def run(
    plan: SongPlan,
    take: Take,
    watch: ProgressCallback = lambda event: None,
    device: str = "auto",
    *,
    wishes: ModelOptions = ANY,
    hear: str | None = None,
    previews: bool = True,
) -> ModelManager[LMEngine] | None:
    """Make what is missing of `take`: codes of both stages, then stems and mix. Every finished section and batch is
    on disk before the next begins; `watch` may raise Cancelled at any event without losing finished parts. Raises
    LibraryError when another process makes this song.

    `wishes` are the model options. `hear` overrides how early sections are refined (`stages`, `first`, `sections`),
    `previews` whether to write rough sound meanwhile; neither changes the song. Returns the model manager, if a model
    was loaded."""
    from .previews import Previews
    from .session import GenerationSession

    with song_lock(take.folder.parent.parent):
        take.info = Take.open(take.folder).info  # another process may have continued it since it was opened
        take.sweep()
        if take.info.stage is Stage.RENDERED and not take.info.kept_sections and not missing_sections(plan, take):
            Previews(take, plan.models.codec, on=False).discard()  # a run may have ended just before it did so
            return None
        with GenerationSession(plan, take, watch, device, previews, wishes) as making:
            making.open(hear)
            while take.info.kept_sections or missing_sections(plan, take):
                if missing_sections(plan, take):
                    making.write()
                else:
                    _join_kept(take)
            if take.info.stage is not Stage.RENDERED:
                making.run_with_fallback(2, making.refine)
                take.save_info(replace(take.info, stage=Stage.STAGE2))
                making.render()
            return making.models


def candidates(
    plan: SongPlan,
    parent: Take,
    section: int,
    seeds: Sequence[int],
    watch: ProgressCallback,
    device: str = "auto",
    wishes: ModelOptions = ANY,
) -> tuple[list[SectionCodes], MadeWith]:
    """Write one section once per seed, after the earlier sections of `parent`, in as few batches as the memory allows.
    Saves nothing."""
    from .memory import DoesNotFit
    from .session import GenerationSession
    from .stage1 import write_candidates

    written = parent.load_stage1()
    past = [written[:, 0, span.start : span.stop] for span in parent.info.spans if span.section < section]
    found: list[SectionCodes] = []
    with GenerationSession(plan, parent, watch, device, previews=False, wishes=wishes) as making:
        together = len(seeds)
        try:
            making.open(takes=together)
        except DoesNotFit as exc:
            if exc.nearest is None:
                raise
            together = min(together, exc.nearest[0].takes)
            making.open(takes=together)

        def write() -> None:
            with making.models.engine(1) as engine:
                while len(found) < len(seeds):
                    some = seeds[len(found) : len(found) + together]
                    progress = partial(making.progress, finished=section)
                    found.extend(write_candidates(engine, making.score(), some, section, past, progress))

        while together > 1:
            try:
                write()
                return found, making.made_with()
            except Exception as exc:
                if not shortage(exc):
                    raise
            together //= 2
            making.open(takes=together)
        making.run_with_fallback(1, write)
        return found, making.made_with()


def _join_kept(take: Take) -> None:
    """Append the sections kept from the parent to those written now, with the parent's data about them."""
    info = take.info
    parent = Take.open(take.folder.parent / f"{info.parent:03}")
    first, stop = info.kept_sections[0].start, info.kept_sections[-1].stop
    if stop > parent.frames:
        why = f"it keeps frames up to {stop} of take {info.parent}, which has {parent.frames}"
        raise damaged(take.folder / "take.json", why)
    here = info.frames
    spans = (replace(s, start=s.start - first + here, stop=s.stop - first + here) for s in info.kept_sections)
    codes, mask = parent.load_stage2()
    own, own_mask = take.load_stage2()
    known = dict(zip(parent.info.seams, parent.load_leads(), strict=True))
    lead = slice(max(0, first - LEAD), first)
    if first not in known and lead.stop - lead.start >= FADE and mask[:, lead].all():
        known[first] = np.pad(codes[:, :, lead], ((0, 0), (0, 0), (LEAD - lead.stop + lead.start, 0)), mode="edge")
    seams = [seam for seam in sorted(known) if first <= seam < stop and seam - first + here]
    if seams:
        take.save_leads(np.stack([*take.load_leads(), *(known[seam] for seam in seams)]))
    take.write_refined(
        np.concatenate([own, codes[:, :, first:stop]], axis=2), np.concatenate([own_mask, mask[:, first:stop]], axis=1)
    )
    take.save_stage1(
        np.concatenate([take.load_stage1(), parent.load_stage1()[:, :, first:stop]], axis=2),
        replace(
            info,
            spans=(*info.spans, *spans),
            kept_sections=(),
            seams=(*info.seams, *(seam - first + here for seam in seams)),
            stage=Stage.NEW,
        ),
    )
