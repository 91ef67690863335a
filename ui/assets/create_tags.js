// The line of tags and a picker beside it. The line is the truth; a chip adds its tag at the end or takes it out.
window.yuegp.tags = (element, props, server, trigger, watch) => {
  const { el, say, later, newest } = window.yuegp;
  const t = props.say;
  const root = element.querySelector(".y-tags");
  let shown = null, chosen = {}, category = "genre", language = "en", instrumental = false;

  const line = el("input", { id: "tags-line", class: "y-line", "aria-label": t.line, placeholder: t.placeholder,
    autocomplete: "off", spellcheck: "false", oninput: () => typed(), onblur: () => typed.now() });
  const hints = el("ul", { class: "y-notes", id: "tags-hints", "aria-live": "polite" });
  const search = el("input", { id: "tags-search", class: "y-line", type: "search", "aria-label": t.search,
    placeholder: t.search, autocomplete: "off", oninput: () => fill(),
    onkeydown: (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      const first = chips.querySelector("button:not([aria-pressed=true])");
      if (first) first.click();
      else if (search.value.trim()) { add(search.value.trim()); search.value = ""; fill(); }
    } });
  const tabs = el("div", { class: "y-segmented", role: "group", "aria-label": t.categories });
  const chips = el("div", { class: "y-chips", id: "tags-chips" });
  for (const name of Object.keys(props.vocabulary)) {
    tabs.append(el("button", { type: "button", "data-category": name, text: t[name], onclick: () => { category = name; search.value = ""; fill(); } }));
  }
  // Hints come and go with every tag: they stand below, so that nothing moves under the mouse.
  root.append(line, el("div", { class: "y-picker" }, el("div", { class: "y-picker-bar" }, tabs, search), chips), hints);

  // What stands in the box is the truth; the page hears of it when the typing pauses, or the box is left.
  const value = () => line.value;
  const tell = () => { if (shown !== value()) { shown = props.value = value(); judge(); } };
  const typed = later(tell, 150);
  const put = (next) => { line.value = next; tell(); };
  const judge = newest(
    () => server.read_tags({ line: value(), language, instrumental }),
    (answer) => {
      chosen = answer.folded;
      hints.replaceChildren(...answer.hints.map((hint) => el("li", {}, el("span", { text: hint.text }), hint.add && hint.add.length
        ? el("span", { class: "y-chips" }, ...hint.add.map((tag) => el("button", { type: "button", class: "y-chip", text: tag, onclick: () => add(tag) })))
        : null)));
      mark();
    });

  const fold = (tag) => tag.replace(/[\s-]+/g, "").toLowerCase();
  const add = (tag) => {
    const now = value().trim();
    put(now ? now + (/[,，、;；]/.test(now) ? ", " : " ") + tag : tag);
  };
  const drop = (tag) => {
    // Spellings that fold to the same tag: blanks and hyphens between its letters may come and go.
    const letters = [...fold(tag)].map((c) => c.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("[\\s-]*");
    const found = new RegExp(`(^|[\\s,，、;；])${letters}(?=$|[\\s,，、;；])`, "iu");
    put(value().replace(found, "$1").replace(/([,，、;；])\s*(?=[,，、;；])/g, "").replace(/^[\s,，、;；]+|[\s,，、;；]+$/g, "").replace(/ {2,}/g, " "));
  };
  const fill = () => {
    const wanted = fold(search.value);
    tabs.querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", String(!wanted && b.dataset.category === category)));
    const all = wanted ? Object.values(props.vocabulary).flat() : props.vocabulary[category];
    const seen = new Set();
    const some = all.filter((tag) => fold(tag).includes(wanted) && !seen.has(fold(tag)) && seen.add(fold(tag)));
    some.sort((a, b) => wanted ? fold(b).startsWith(wanted) - fold(a).startsWith(wanted) : 0);
    chips.replaceChildren(...some.slice(0, 200).map((tag) => el("button", { type: "button", class: "y-chip", "data-tag": fold(tag), text: tag,
      onclick: (event) => (event.target.getAttribute("aria-pressed") === "true" ? drop(tag) : add(tag)) })));
    if (wanted && !seen.has(wanted)) {
      chips.append(el("button", { type: "button", class: "y-chip y-own", text: say(t.own, { tag: search.value.trim() }),
        onclick: () => { add(search.value.trim()); search.value = ""; fill(); } }));
    }
    chips.scrollTop = 0;
    mark();
  };
  const mark = () => {
    chips.querySelectorAll("button[data-tag]").forEach((b) => b.setAttribute("aria-pressed", String(chosen.includes(b.dataset.tag))));
    root.classList.toggle("y-no-voice", instrumental);
  };

  document.addEventListener("y-language", (event) => { if (event.detail !== language) { language = event.detail; judge(); } });
  watch("instrumental", () => { instrumental = props.instrumental; judge(); });
  watch("value", () => {
    const next = props.value || "";
    if (next === shown) return;
    if (value() !== shown) { typed.now(); return; } // the user is typing: the words stay
    shown = line.value = next;
    judge();
  });
  chosen = [];
  shown = line.value = props.value || "";
  instrumental = Boolean(props.instrumental);
  fill();
  judge();
};
