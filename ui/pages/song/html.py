"""The song page as HTML: what is heard and seen, in parts that are exchanged one by one when they change.

Parts are made of a `SongView` and the texts alone, so equal views give equal parts. Everything that comes from a song
is escaped. The forms that change a song are in `song_forms.py`; what moves in time is `assets/song.js`."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from ui.pages.wording import edit_in_words
from ui.texts import Texts
from yuegp.generation.plan import Phase
from yuegp.jobs.queue import State

from .timeline import Block, blocks, clock, lines, seconds, share, unwritten
from .view import Row, SongView

HUES = 6
"""Colours that takes are told apart by; the number always stands beside them."""

TICKS = (1, 2, 5, 10, 15, 30, 60, 120, 300)
"""Seconds that marks on the time line may be apart."""

MOST_TICKS = 7

STAGES = (Phase.REFERENCE, Phase.WRITING, Phase.REFINING, Phase.SOUND)
"""What the worker reports, with a sentence each."""


def safe(t: Texts) -> Callable[..., str]:
    """The texts, ready to stand in HTML and in its attributes, whatever is filled into them."""
    return lambda key, **values: escape(t(key, **values))


# The head of the page


def head(view: SongView, t: Texts) -> str:
    say = safe(t)
    rating, stars = view.info.rating or 0, ""
    for count in (1, 2, 3, 4, 5, 0):
        label = say(f"song.rating.{('none', 'one')[count]}") if count < 2 else say("song.rating.many", count=count)
        lit = "lit" if 0 < count <= rating else ""
        stars += (
            f'<label class="song-star {lit}" title="{label}"><input type="radio" name="stars" value="{count}"'
            f' data-focus="star-{count}" aria-label="{label}"{" checked" if count == rating and rating else ""}>'
            f'<span aria-hidden="true">{"★" if count else "✕"}</span></label>'
        )
    rated = " rated" if rating else ""
    return (
        f'<h2 class="song-title">{escape(view.title)}</h2>'
        f'<fieldset class="song-stars{rated}" data-change="rate">'
        f'<legend class="song-unseen">{say("song.rating")}</legend>{stars}</fieldset>'
        f'<details class="song-rename"><summary>{say("song.rename")}</summary>'
        f'<form data-act="rename" class="song-row"><label>{say("song.rename.label")}'
        f'<input name="title" maxlength="300" required value="{escape(view.title)}"></label>'
        f'<button type="submit">{say("song.rename.save")}</button></form></details>'
    )


def jobs(view: SongView, t: Texts) -> str:
    """One line that is always there: what is being made for this song."""
    say = safe(t)
    live = view.live
    if not live:
        return f'<p class="song-quiet">{say("song.jobs.idle")}</p>'
    first = next((row for row in live if row.state == "running"), live[0])
    more = f" {t('song.jobs.more', count=len(live) - 1)}" if len(live) > 1 else ""
    key = "song.jobs.running" if first.state == "running" else "song.jobs.waiting"
    said = t(key, take=first.number, doing=doing(first, t)) + more
    return f"<p>{escape(said)}</p>{_bar(first)}{_button('stop', first.number, t)}"


def doing(row: Row, t: Texts) -> str:
    """What the worker does for a take, in words."""
    last = row.job.last if row.job and row.job.state is State.RUNNING else None
    if last is None or last.stage not in STAGES:
        return t("song.stage.starting")
    said = t(f"song.stage.{last.stage}", percent=int(100 * last.done / max(1, last.total)))
    return said if last.eta is None else t("song.stage.left", doing=said, time=clock(last.eta + 0.5))


def _bar(row: Row) -> str:
    last = row.job.last if row.job and row.job.state is State.RUNNING else None
    done = last.done / max(1, last.total) if last else 0.0
    return f'<progress max="1" value="{done:.3f}" aria-hidden="true"></progress>'


def _button(act: str, take: int, t: Texts, css: str = "") -> str:
    say = safe(t)
    return (
        f'<button type="button" class="{css}" data-act="{act}" data-take="{take}" data-focus="{act}-{take}"'
        f' aria-label="{say(f"song.take.{act}.long", take=take)}">{say(f"song.take.{act}")}</button>'
    )


# The time line


def line(view: SongView, t: Texts) -> str:
    """The sections of the take in front, drawn to scale, its seams, and marks of time."""
    say = safe(t)
    drawn = view.blocks
    if not drawn:
        return f'<p class="song-quiet">{say("song.line.none")}</p>'
    whole = drawn[-1].stop
    labels = "".join(_block(block, whole, t) for block in drawn)
    seams = "".join(
        f'<i class="song-seam" style="left:{share(at, whole)}" title="{say("song.seam", time=clock(at))}"></i>'
        for at in map(seconds, view.take.seams if view.take else ())
    )
    marks = "".join(f'<i style="left:{share(at, whole)}">{clock(at)}</i>' for at in ticks(whole))
    return (
        f'<div class="song-line" data-seconds="{whole:.3f}"><div role="radiogroup" aria-label="{say("song.sections")}">'
        f'{labels}</div>{seams}<div class="song-head" aria-hidden="true"></div></div>'
        f'<div class="song-ticks" aria-hidden="true">{marks}</div>'
    )


def ticks(whole: float) -> list[int]:
    """Round seconds to mark on a time line of `whole` seconds, at most `MOST_TICKS` and none near its end."""
    step = next((step for step in TICKS if whole / step < MOST_TICKS), TICKS[-1])
    return [at for at in range(0, int(whole) + 1, step) if not at or at < 0.92 * whole]


def _block(block: Block, whole: float, t: Texts) -> str:
    say = safe(t)
    written = block.state in ("made", "open")
    notes = [say("song.block.take", take=block.take) if written else say(f"song.block.{block.state}")]
    if block.state == "open":
        notes.append(say("song.block.open"))
    if block.muted:
        notes.append(say("song.block.muted"))
    named = say(
        "song.section",
        number=block.section + 1,
        label=block.label,
        start=clock(block.start),
        stop=clock(block.stop),
    )
    spoken = ", ".join([named, *notes])
    hue = f"hue{(block.take - 1) % HUES + 1}" if block.take else "hue0"
    return (
        f'<label class="song-block {block.state} {hue}{" muted" if block.muted else ""}" title="{spoken}"'
        f' style="left:{share(block.start, whole)};width:{share(block.seconds, whole)}">'
        f'<input type="radio" name="song-section" value="{block.section}" aria-label="{spoken}">'
        f"<b>{escape(block.label)}</b><small>{notes[-1] if block.muted else notes[0]}</small></label>"
    )


# Lyrics


def words(view: SongView, t: Texts) -> str:
    """The lyrics with the times at which the player highlights them."""
    say = safe(t)
    take = view.take
    if take is None:
        return ""
    asked = take.request
    out = []
    for block in blocks(take):
        timed = block.state in ("made", "open")
        times = f' data-start="{block.start:.2f}" data-stop="{block.stop:.2f}"' if timed else ""
        sung = "" if asked.instrumental else asked.sections[block.section].words
        inner = "".join(
            f'<p data-start="{line.start:.2f}" data-stop="{line.stop:.2f}">{escape(line.text)}</p>'
            if timed
            else f"<p>{escape(line.text)}</p>"
            for line in lines(sung, block.start, block.stop)
        )
        inner = inner or f'<p class="song-quiet">{say("song.lyrics.wordless")}</p>'
        out.append(_verse(block.section, block.label, inner, times, "" if timed else say(f"song.block.{block.state}")))
    for section in unwritten(take):
        inner = "".join(f"<p>{escape(text)}</p>" for text in asked.sections[section].words.splitlines() if text.strip())
        out.append(_verse(section, asked.sections[section].label, inner, "", say("song.lyrics.unwritten")))
    note = say("song.lyrics.instrumental" if asked.instrumental else "song.lyrics.timing")
    return (
        f'<h3>{say("song.lyrics")}</h3><div class="song-words" tabindex="0" role="region"'
        f' aria-label="{say("song.lyrics")}">{"".join(out)}</div><p class="song-note">{note}</p>'
    )


def _verse(section: int, label: str, inner: str, times: str, note: str) -> str:
    said = f" <small>{note}</small>" if note else ""
    faint = "" if times else " faint"
    return f'<div class="song-verse{faint}" data-section="{section}"{times}><h4>{escape(label)}{said}</h4>{inner}</div>'


# Takes


def takes(view: SongView, t: Texts) -> str:
    """All takes, newest first: where each came from, how far it is, and what can be done with it."""
    say = safe(t)
    rows = "".join(_take(row, view, t) for row in view.rows)
    return f'<h3>{say("song.takes")}</h3><ol class="song-takes">{rows}</ol>'


def _take(row: Row, view: SongView, t: Texts) -> str:
    say = safe(t)
    info, front = row.info, view.shown is not None and view.shown.number == row.number
    state = doing(row, t) if row.state == "running" else t(f"song.take.{row.state}")
    facts, buttons = "", ""
    if info:
        origin = say("song.take.made")
        if info.parent:
            origin = say("song.take.from", how=edit_in_words(info.edit, t), parent=info.parent)
        length = clock(seconds(info.frames))
        facts = f"{origin} · {say('song.take.facts', length=length, seed=info.request.seed)}"
        buttons = _listen(row, front, t)
    if row.ready:
        spoken, off = say("song.take.compare.long", take=row.number), " disabled" if front else ""
        buttons += _client("compare", row.number, say("song.take.compare"), spoken, off)
        if view.info.picked == row.number:
            buttons += f'<span class="song-picked">✓ {say("song.take.picked")}</span>'
        else:
            buttons += _button("pick", row.number, t)
    elif row.state in ("running", "waiting"):
        buttons += _button("stop", row.number, t)
    elif info:
        buttons += _button("resume", row.number, t)
    why = row.broken
    if row.state == "failed" and row.job:
        why = f"{row.job.what} {row.job.hint}".strip()
    return (
        f'<li class="{row.state}{" front" if front else ""}" data-take-row="{row.number}">'
        f'<i class="song-dot hue{(row.number - 1) % HUES + 1}" aria-hidden="true"></i>'
        f'<div class="song-facts"><b>{say("song.take", take=row.number)}</b> <em>{escape(state)}</em>'
        f"<span>{facts}</span>{f'<p>{escape(why)}</p>' if why else ''}</div>"
        f'<div class="song-buttons">{buttons}</div></li>'
    )


def _listen(row: Row, front: bool, t: Texts) -> str:
    say = safe(t)
    key = "song.take.shown" if front else "song.take.listen" if row.ready else "song.take.show"
    pressed = f' aria-pressed="{str(front).lower()}"'
    return _client("front", row.number, say(key), say(f"{key}.long", take=row.number), pressed)


def _client(do: str, take: int, said: str, spoken: str, more: str = "") -> str:
    """A button that the page's own script answers."""
    return (
        f'<button type="button" data-do="{do}" data-take="{take}" data-focus="{do}-{take}"'
        f' aria-label="{spoken}"{more}>{said}</button>'
    )


def empty(t: Texts) -> str:
    """What stands there when no song is open."""
    say = safe(t)
    return (
        f"<h2>{say('song.empty.title')}</h2><p>{say('song.empty.hint')}</p><div class='song-buttons'>"
        f'<button type="button" class="primary" data-do="go" data-page="library">{say("song.empty.library")}</button>'
        f'<button type="button" data-do="go" data-page="create">{say("song.empty.create")}</button></div>'
    )
