// The Library: filters, the list, and one player for it. Rows come from the server; nothing is remembered here that is
// not drawn again from an answer.
window.yuegp.library = (element, props, server, trigger, watch) => {
  const { el, say, clock, later, newest } = window.yuegp;
  const t = props.say;
  const STEP = 40;
  const root = element.querySelector(".y-library");
  const asked = { text: "", sort: "newest", rating: 0, tag: "", language: "", trash: false };
  let latest = null, shown = STEP, renaming = "";

  const choice = (name, options) => {
    const select = el("select", { class: "y-line", id: `library-${name}`, "aria-label": t[name], onchange: () => {
      asked[name] = name === "rating" ? Number(select.value) : select.value;
      fresh();
    } }, ...options.map(([value, text]) => el("option", { value, text })));
    return select;
  };
  const search = el("input", { class: "y-line", id: "library-search", type: "search", "aria-label": t.search, placeholder: t["search.placeholder"], autocomplete: "off" });
  search.addEventListener("input", later(() => { asked.text = search.value; fresh(); }, 120));
  const sort = choice("sort", ["newest", "title", "rating", "length"].map((key) => [key, t[`sort.${key}`]]));
  const rating = choice("rating", [[0, t["rating.any"]], ...[1, 2, 3, 4].map((n) => [n, n === 1 ? t["rating.one"] : say(t["rating.least"], { n })]), [5, t["rating.all"]]]);
  const tag = choice("tag", [["", t["tag.any"]]]);
  const language = choice("language", ["", "en", "zh", "ja", "ko"].map((key) => [key, t[`language.${key || "any"}`]]));
  const which = el("div", { class: "y-segmented", role: "group", "aria-label": t.which }, ...[false, true].map((trash) =>
    el("button", { type: "button", id: trash ? "library-trash" : "library-songs", "aria-pressed": String(!trash), text: trash ? t.trash : t.songs, onclick: () => { asked.trash = trash; fresh(); } })));
  const count = el("p", { class: "y-count", id: "library-count", role: "status" });
  const notice = el("p", { class: "y-notice", id: "library-notice", role: "status", hidden: true });
  const list = el("ul", { class: "y-songs", id: "library-list", "aria-label": t.list });
  const empty = el("div", { class: "y-empty", id: "library-empty", hidden: true });
  const more = el("button", { type: "button", class: "y-quiet", id: "library-more", text: t.more, hidden: true, onclick: () => { shown += STEP; draw(); } });
  const audio = el("audio", { controls: true, preload: "none", id: "library-player", "aria-label": t.player });
  const playing = el("span", { class: "y-playing" });
  const player = el("div", { class: "y-player", hidden: true }, playing, audio);
  root.append(
    el("div", { class: "y-filters" }, search, sort, rating, tag, language, which),
    el("div", { class: "y-head" }, count, notice), empty, list, more, player);

  // Hearing. One sound at a time, wherever it comes from.
  const signs = () => list.querySelectorAll("[data-play]").forEach((button) => {
    const on = button.dataset.play === audio.dataset.name && !audio.paused;
    button.textContent = on ? "❚❚" : "▶";
    button.setAttribute("aria-label", say(on ? t.pause : t.play, { title: button.dataset.title }));
  });
  for (const event of ["play", "pause", "ended"]) audio.addEventListener(event, signs);
  audio.addEventListener("play", () => window.yuegp.player?.pause());
  window.yuegp.player?.on(() => { if (window.yuegp.player.playing) audio.pause(); });
  const play = async (row) => {
    if (audio.dataset.name === row.name) { if (audio.paused) audio.play().catch(() => {}); else audio.pause(); return; }
    const answer = await act({ do: "hear", name: row.name });
    if (!answer) return;
    audio.src = new URL(`sound/${encodeURIComponent(row.name)}/${answer.take}/mix.flac`, document.baseURI).href;
    audio.dataset.name = row.name;
    playing.textContent = row.title;
    player.hidden = false;
    audio.play().catch(() => {});
  };

  // Doing. What went wrong is said in one place, and stays until something else is done.
  const tell = (text, bad, undo) => {
    notice.hidden = !text;
    notice.classList.toggle("y-bad", Boolean(bad));
    notice.replaceChildren(text || "", undo ? el("button", { type: "button", class: "y-quiet", id: "library-undo", text: t.undo, onclick: undo }) : "");
  };
  const act = async (wish) => {
    try {
      const answer = await server.library_action(wish);
      tell(answer.error || answer.said, answer.error);
      return answer.error ? null : answer;
    } catch { tell(t.unreachable, true); return null; }
  };
  const change = async (wish) => { const answer = await act(wish); await ask(); return answer; };
  const trash = async (row) => {
    if (audio.dataset.name === row.name) { audio.pause(); player.hidden = true; delete audio.dataset.name; }
    const answer = await change({ do: "trash", name: row.name });
    if (answer) tell(answer.said, false, async () => { if (await change({ do: "restore", name: row.name })) tell(t.restored); search.focus(); });
    (list.querySelector("button") || search).focus();
  };

  const stars = (row) => {
    const group = el("span", { class: "y-stars", role: "radiogroup", "aria-label": say(t.stars, { title: row.title }) });
    const buttons = [1, 2, 3, 4, 5].map((n) => el("button", {
      type: "button", role: "radio", "aria-checked": String(row.rating === n), "aria-label": say(t.star, { n }), tabindex: n === (row.rating || 1) ? 0 : -1,
      class: n <= row.rating ? "on" : "", text: n <= row.rating ? "★" : "☆",
      onclick: () => set(n === row.rating ? 0 : n, n),
      onkeydown: (event) => {
        const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
        if (step) { event.preventDefault(); set(Math.min(5, Math.max(1, (row.rating || 0) + step))); }
      } }));
    const set = async (value, focus = value) => {
      if (!await change({ do: "rate", name: row.name, value })) return;
      item(row.name)?.querySelector(`[role=radio]:nth-child(${focus})`)?.focus();
    };
    group.append(...buttons);
    return group;
  };
  const item = (name) => [...list.children].find((node) => node.dataset.name === name);

  const naming = (row) => {
    const field = el("input", { class: "y-line", value: row.title, "aria-label": t.new_title, maxlength: 300 });
    const end = async (save) => {
      renaming = "";
      if (save && field.value.trim() !== row.title) await change({ do: "rename", name: row.name, value: field.value });
      else draw();
      item(row.name)?.querySelector("[data-rename]")?.focus();
    };
    const form = el("form", { class: "y-naming", onsubmit: (event) => { event.preventDefault(); end(true); } }, field,
      el("button", { class: "y-solid", text: t.save }), el("button", { type: "button", class: "y-quiet", text: t.cancel, onclick: () => end(false) }));
    field.addEventListener("keydown", (event) => { if (event.key === "Escape") end(false); });
    setTimeout(() => { field.focus(); field.select(); });
    return form;
  };

  const line = (row) => {
    const open = latest.trash || row.broken
      ? el("span", { class: "y-song-title", text: row.title })
      : el("button", { type: "button", class: "y-song-title", "aria-label": say(t.open, { title: row.title }), text: row.title, onclick: () => trigger("opened", { name: row.name }) });
    const facts = [row.date, row.takes === 1 ? t["takes.one"] : say(t.takes, { n: row.takes }), row.state].filter(Boolean).join(" · ");
    const small = (text, label, work, mark) => el("button", { type: "button", class: "y-quiet y-small", text, "aria-label": label, onclick: work, [mark]: true });
    return el("li", { "data-name": row.name },
      el("button", { type: "button", class: "y-round", disabled: !row.heard || latest.trash, "data-play": row.name, "data-title": row.title, "aria-label": say(t.play, { title: row.title }), text: "▶", onclick: () => play(row) }),
      el("div", { class: "y-song" }, renaming === row.name ? naming(row) : open, el("p", { class: "y-song-tags", text: row.broken || row.damaged || row.tags }), el("p", { class: "y-count", text: facts })),
      el("span", { class: "y-time", text: row.seconds ? clock(row.seconds) : "" }),
      el("div", { class: "y-song-foot" }, latest.trash || row.broken ? el("span") : stars(row), el("div", { class: "y-song-acts" }, ...(latest.trash
        ? [small(t["restore.short"], say(t.restore, { title: row.title }), async () => { if (await change({ do: "restore", name: row.name })) tell(t.restored); }, "data-restore")]
        : [row.broken ? null : small(t["rename.short"], say(t.rename, { title: row.title }), () => { renaming = row.name; draw(); }, "data-rename"),
          small(t["to_trash.short"], say(t.to_trash, { title: row.title }), () => trash(row), "data-trash")].filter(Boolean)))));
  };

  const filtered = () => asked.text || asked.rating || asked.tag || asked.language;
  const nothing = () => {
    const [title, hint] = asked.trash && !latest.all ? [t["trash.empty"], t["trash.hint"]] : latest.all ? [t.nothing, t["nothing.hint"]] : [t.empty, t["empty.hint"]];
    const button = asked.trash && !latest.all ? "" : latest.all
      ? el("button", { type: "button", class: "y-quiet", id: "library-clear", text: t["nothing.clear"], onclick: clear })
      : el("button", { type: "button", class: "y-solid", id: "library-create", text: t["empty.create"], onclick: () => document.getElementById("tab-create-button")?.click() });
    empty.replaceChildren(el("p", { class: "y-empty-title", text: title }), el("p", { class: "y-faint", text: hint }), button);
  };
  const clear = () => {
    Object.assign(asked, { text: "", rating: 0, tag: "", language: "" });
    search.value = ""; rating.value = "0"; tag.value = ""; language.value = "";
    fresh(); search.focus();
  };

  const draw = () => {
    if (!latest) return;
    const focused = document.activeElement?.closest?.("#library-list > li")?.dataset.name;
    const kept = focused && [...item(focused).querySelectorAll("button, input")].indexOf(document.activeElement);
    list.replaceChildren(...latest.rows.slice(0, shown).map(line));
    if (focused && !renaming) item(focused)?.querySelectorAll("button, input")[kept]?.focus();
    more.hidden = latest.rows.length <= shown;
    empty.hidden = latest.rows.length > 0 || Boolean(latest.error);
    if (!empty.hidden) nothing();
    const cut = latest.found > latest.rows.length && !(latest.rows.length > shown) ? ` ${say(t.first, { most: latest.rows.length })}` : "";
    count.textContent = !latest.all ? "" : (filtered() ? say(t.count, latest) : latest.all === 1 ? t["count.one"] : say(t["count.all"], latest)) + cut;
    if (latest.error) tell(latest.error, true);
    for (const button of which.children) button.setAttribute("aria-pressed", String((button.id === "library-trash") === latest.trash));
    const names = ["", ...latest.tags];
    if (names.join() !== [...tag.options].map((option) => option.value).join()) {
      tag.replaceChildren(...names.map((name) => el("option", { value: name, text: name || t["tag.any"] })));
      tag.value = names.includes(asked.tag) ? asked.tag : "";
    }
    signs();
  };
  const ask = newest(() => server.library_render(asked), (answer) => {
    const same = latest && JSON.stringify(answer) === JSON.stringify(latest);
    latest = answer;
    if (!same || renaming === "") draw();
  });
  const fresh = () => { shown = STEP; renaming = ""; tell(""); ask(); };

  // Songs appear by themselves: while the page is looked at, every four seconds and whenever it is opened.
  const visible = () => element.offsetParent !== null && !document.hidden;
  new IntersectionObserver((seen) => { if (seen.some((one) => one.isIntersecting)) ask(); }).observe(root);
  setInterval(() => { if (visible() && !renaming) ask(); }, 4000);
  ask();
};
