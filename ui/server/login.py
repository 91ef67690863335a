"""The pages before the page: the form that asks for the password, and what is said under a name that is not ours."""

from __future__ import annotations

import html

from ui.texts import Texts

PAGE = """<!doctype html>
<html lang="{language}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>yuegp</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0; min-height: 100vh; display: grid; place-items: center;
  background: light-dark(#faf9f7, #1c1917); color: light-dark(#1c1917, #f5f5f4); }}
form, section {{ display: grid; gap: 12px; width: min(320px, calc(100vw - 48px)); }}
section {{ width: min(640px, calc(100vw - 48px)); }}
h1 {{ font-size: 24px; margin: 0; }}
p {{ margin: 0; }}
code {{ overflow-wrap: anywhere; }}
input, button {{ font: inherit; padding: 10px 12px; border-radius: 8px; border: 1px solid #78716c;
  box-sizing: border-box; width: 100%; }}
button {{ background: #0f766e; border-color: #0f766e; color: #fff; cursor: pointer; }}
:focus-visible {{ outline: 3px solid #14b8a6; outline-offset: 2px; }}
</style></head><body><main>{inner}</main></body></html>
"""

FORM = """<form method="post" action="login"><h1>{title}</h1>
<label for="password">{label}</label>
<input id="password" name="password" type="password" autocomplete="current-password" required autofocus>
<button>{enter}</button></form>"""

STRANGER = """<section><h1>{title}</h1><p>{what}</p><p>{how}</p><p><code>{command}</code></p><p>{contained}</p>
<p>{warning}</p></section>"""


def page(t: Texts) -> str:
    """The form as HTML. Its address is relative: a proxy may show it under a path."""
    words = {key: html.escape(t(f"login.{key}")) for key in ("title", "label", "enter")}
    return PAGE.format(language=t.language, inner=FORM.format(**words))


def stranger(t: Texts, name: str, command: str) -> str:
    """What is said to a browser that asks under a name that is not ours: how to allow it, for whoever's name it is."""
    words = {key: t(f"login.stranger_{key}", name=name) for key in ("what", "how", "contained", "warning")}
    told = {key: html.escape(text) for key, text in {**words, "title": t("login.title"), "command": command}.items()}
    return PAGE.format(language=t.language, inner=STRANGER.format(**told))
