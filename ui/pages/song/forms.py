"""The song page as HTML: the forms and buttons that change a song. What they do is in `song_actions.py`, under the name
in `data-act`; the take in front and the selected section are added by `assets/song.js`."""

from __future__ import annotations

from html import escape

from ui.texts import Texts
from yuegp.generation.edit import MOST_CANDIDATES
from yuegp.library.export import KINDS, PARTS
from yuegp.song.schema import LaterSections

from .html import HUES, safe
from .timeline import clock, unwritten
from .view import SongView, versions

KIND_ORDER = ("wav24", "flac", "mp3", "wav16")
"""Export formats as they are offered: the first is chosen at first."""


def panel(view: SongView, t: Texts) -> str:
    """The selected section: what it is, and what can be done with it."""
    say, block, take = safe(t), view.block, view.take
    if block is None or take is None:
        return ""
    title = f"<h3>{say('song.panel.title', number=block.section + 1, label=block.label)}</h3>"
    if block.state == "planned":
        return f'{title}<p class="song-quiet">{say("song.panel.planned")}</p>'
    facts = [say("song.panel.facts", start=clock(block.start), stop=clock(block.stop), seconds=f"{block.seconds:.1f}")]
    facts.append(say("song.panel.from", take=block.take, seed=block.seed))
    facts += [say(f"song.panel.{name}") for name, there in (("cut", block.cut), ("muted", block.muted)) if there]
    play = ""
    if view.shown and view.shown.ready:
        play = f'<button type="button" data-do="play-section">{say("song.panel.play")}</button>'
    about = f'{title}<p class="song-quiet">{" · ".join(facts)}</p>{play}'
    if not view.settled:
        return f'{about}<p class="song-note">{say("song.panel.unsettled", take=take.number)}</p>'
    return (
        f'{about}<div class="song-tools">{_redo(t)}{_rewind(t)}{_trim(block.seconds, t)}{_mute(block.muted, t)}</div>'
    )


def _redo(t: Texts) -> str:
    say = safe(t)
    later = "".join(f'<option value="{name}">{say(f"song.redo.{name}")}</option>' for name in LaterSections)
    return _tool(
        "redo",
        f'<form data-act="redo" class="song-row"><label>{say("song.redo.later")}<select name="later">{later}</select>'
        f'</label><label class="short">{say("song.redo.count")}<input name="count" type="number" min="1"'
        f' max="{MOST_CANDIDATES}" value="1" required></label>'
        f'<button type="submit" class="primary">{say("song.redo.go")}</button></form>',
        t,
        opened=True,
    )


def _rewind(t: Texts) -> str:
    say = safe(t)
    return _tool(
        "rewind",
        f'<div class="song-row"><button type="button" data-act="rewind">{say("song.rewind.section")}</button>'
        f'<button type="button" data-do="rewind-here">{say("song.rewind.second")}</button></div>',
        t,
    )


def _trim(length: float, t: Texts) -> str:
    say = safe(t)
    return _tool(
        "trim",
        f'<form data-act="trim" class="song-row"><label>{say("song.trim.seconds")}<input name="seconds" type="number"'
        f' min="0.02" max="{max(0.02, length - 0.02):.2f}" step="any" value="{min(1.0, length / 2):.2f}" required>'
        f'</label><button type="submit">{say("song.trim.go")}</button></form>',
        t,
    )


def _mute(muted: bool, t: Texts) -> str:
    button = safe(t)("song.unmute.go" if muted else "song.mute.go")
    return _tool("mute", f'<button type="button" data-act="mute">{button}</button>', t)


def _tool(name: str, inner: str, t: Texts, opened: bool = False) -> str:
    say = safe(t)
    return (
        f'<details data-keep="{name}"{" open" if opened else ""}><summary>{say(f"song.{name}")}</summary>'
        f'<p class="song-note">{say(f"song.{name}.hint")}</p>{inner}</details>'
    )


def compare(view: SongView, t: Texts) -> str:
    """The versions of the selected section, side by side."""
    say, found = safe(t), versions(view)
    if view.block is None:
        return ""
    rows = ""
    for version in found:
        row, block = version.row, version.block
        said = say(f"song.take.{row.state}")
        if block:
            said = say("song.versions.facts", seconds=f"{block.seconds:.1f}", seed=block.seed)
        buttons = ""
        if row.ready:
            spoken = say("song.versions.play.long", number=view.section + 1, take=row.number)
            picked = view.info.picked == row.number
            buttons = (
                f'<button type="button" data-do="play-section" data-take="{row.number}" aria-label="{spoken}"'
                f' data-focus="version-{row.number}">{say("song.versions.play")}</button>'
            )
            if picked:
                buttons += f'<span class="song-picked">✓ {say("song.take.picked")}</span>'
            else:
                buttons += (
                    f'<button type="button" data-act="pick" data-take="{row.number}" data-focus="choose-{row.number}"'
                    f' aria-label="{say("song.take.pick.long", take=row.number)}">{say("song.take.pick")}</button>'
                )
        front = view.shown is not None and view.shown.number == row.number
        rows += (
            f'<li class="{"front" if front else ""}"><b><i class="song-dot hue{(row.number - 1) % HUES + 1}"'
            f' aria-hidden="true"></i> {say("song.versions.row", take=row.number)}</b><span>{said}</span>'
            f'<div class="song-buttons">{buttons}</div></li>'
        )
    hint = say("song.versions.hint" if len(found) > 1 else "song.versions.one")
    return f'<h3>{say("song.versions")}</h3><p class="song-note">{hint}</p><ul class="song-versions">{rows}</ul>'


def proceed(view: SongView, t: Texts) -> str:
    """Going on: with lyrics that are not made yet, and with new ones."""
    say, take = safe(t), view.take
    if take is None:
        return ""
    if not view.settled:
        inner = f'<p class="song-note">{say("song.panel.unsettled", take=take.number)}</p>'
        return f"<h3>{say('song.continue')}</h3>{inner}"
    left, there = unwritten(take), ""
    if left:
        labels = ", ".join(take.request.sections[k].label for k in left)
        said = t("song.continue.left.one" if len(left) == 1 else "song.continue.left.many", labels=labels)
        there = f"<p>{say('song.continue.left', labels=said)}</p>"
    return (
        f"<h3>{say('song.continue')}</h3><p class='song-note'>{say('song.continue.hint', take=take.number)}</p>{there}"
        f'<form data-act="continue"><label>{say("song.continue.words")}<textarea name="words" rows="6"'
        f' placeholder="{say("song.continue.sample")}"></textarea></label><div class="song-row">'
        f'<label class="short">{say("song.continue.count")}<input name="count" type="number" min="1"'
        f' placeholder="{say("song.continue.all")}"></label>'
        f'<button type="submit" class="primary">{say("song.continue.go")}</button></div></form>'
    )


def export(view: SongView, t: Texts) -> str:
    say, take = safe(t), view.take
    if take is None:
        return ""
    title = f"<h3>{say('song.export')}</h3>"
    if not (view.shown and view.shown.ready):
        return f'{title}<p class="song-note">{say("song.export.not-ready")}</p>'
    kinds = "".join(
        f'<option value="{kind}">{say(f"song.export.{kind}")}</option>' for kind in KIND_ORDER if kind in KINDS
    )
    parts = "".join(
        f'<label class="song-check"><input type="checkbox" name="{part}" value="1" checked>'
        f" {say(f'song.stem.{part}')}</label>"
        for part in PARTS
    )
    return (
        f'{title}<p class="song-note">{say("song.export.hint", take=take.number)}</p><form data-act="export">'
        f'<div class="song-row"><label>{say("song.export.kind")}<select name="kind">{kinds}</select></label>'
        f'<label>{say("song.export.artist")}<input name="artist" maxlength="200"></label></div>'
        f'<fieldset class="song-row"><legend>{say("song.export.parts")}</legend>{parts}</fieldset>'
        f'<button type="submit" class="primary">{say("song.export.go")}</button></form>'
    )


def more(view: SongView, local: bool, t: Texts) -> str:
    """What concerns the whole song. `local`: the page is used on the machine that has the songs."""
    say = safe(t)
    folder = f'<button type="button" data-act="open-folder">{say("song.more.open")}</button>' if local else ""
    copy = f'<button type="button" data-do="copy">{say("song.more.copy")}</button>' if view.take else ""
    return (
        f"<h3>{say('song.more')}</h3><dl><dt>{say('song.more.tags')}</dt><dd>{escape(view.tags)}</dd>"
        f"<dt>{say('song.more.name')}</dt><dd>{escape(view.name)}</dd></dl>"
        f'<div class="song-buttons">{copy}{folder}'
        f'<button type="button" data-act="trash" class="danger">{say("song.more.trash")}</button></div>'
    )
