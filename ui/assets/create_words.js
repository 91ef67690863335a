// The lyrics, as one text box and as a card per section. The text is the truth: cards are read from it by the server,
// with the same rules that the song is made by, and every edit of a card writes it anew.
window.yuegp.words = (element, props, server, trigger, watch) => {
  const { el, say, later, newest } = window.yuegp;
  const t = props.say;
  const root = element.querySelector(".y-words");
  let sections = [], past = [], fresh = false, shown = "";

  const bar = el("div", { class: "y-words-bar" });
  const views = el("div", { class: "y-segmented", role: "group", "aria-label": t.view });
  const undoButton = el("button", { type: "button", class: "y-quiet", id: "words-undo", disabled: true,
    onclick: () => undo() }, t.undo);
  for (const name of ["cards", "text"]) {
    views.append(el("button", { type: "button", id: `words-view-${name}`, "data-view": name, text: t[name],
      onclick: () => show(name) }));
  }
  bar.append(views, undoButton);
  const cards = el("div", { class: "y-cards", id: "words-cards" });
  const text = el("textarea", { id: "words-text", class: "y-text", spellcheck: "false", "aria-label": t.text_label,
    placeholder: t.placeholder, rows: 14, oninput: () => { typing(); tell(); } });
  const add = el("button", { type: "button", class: "y-quiet y-add", id: "words-add", text: t.add,
    onclick: () => insert(sections.length, { label: nextLabel(), words: "" }) });
  const total = el("p", { class: "y-total", id: "words-total", "aria-live": "polite" });
  const notes = el("ul", { class: "y-notes", id: "words-notes", "aria-live": "polite" });
  const labels = el("datalist", { id: "words-labels" }, ...props.labels.map((label) => el("option", { value: label })));
  root.append(bar, cards, text, add, total, notes, labels);

  // Text and undo

  const write = () => sections.map((s) => `[${s.label.trim() || "verse"}]\n` + (s.words ? s.words + "\n" : "")).join("\n");
  // What stands in the box is the truth, also while only its cards are seen; the page hears of it when the typing
  // pauses, or the editor is left.
  const value = () => text.value;
  const tell = later(() => {
    if (shown === value()) return;
    shown = props.value = value();
    judge(shown);
  }, 200);
  const put = (next) => {
    text.value = next;
    tell();
    if (!root.contains(document.activeElement)) tell.now();
  };
  const remember = (before = value()) => {
    if (past[past.length - 1] !== before) past.push(before);
    past = past.slice(-50);
    undoButton.disabled = past.length === 0;
  };
  const undo = () => {
    if (!past.length) return;
    const before = past.pop();
    undoButton.disabled = past.length === 0;
    fresh = true;
    put(before);
    tell.now();
  };
  let resting = true;
  const rest = later(() => { resting = true; }, 1000);
  const typing = () => { if (resting) remember(shown); resting = false; rest(); };

  const judge = newest((now) => server.read_words({ text: now }), (answer) => judged(answer));

  const judged = (answer) => {
    const same = answer.sections.length === sections.length
      && answer.sections.every((s, i) => s.label === sections[i].label.trim() && s.words === sections[i].words.trim());
    if (!same || fresh) {
      fresh = false;
      const focus = focused();
      sections = answer.sections.map((s) => ({ label: s.label, words: s.words }));
      draw();
      refocus(focus);
    }
    answer.sections.forEach((s, i) => weigh(cards.children[i], s));
    total.textContent = answer.total;
    notes.replaceChildren(...answer.notes.map((note) => el("li", { class: note.kind, text: note.text })));
    element.dispatchEvent(new CustomEvent("y-language", { bubbles: true, detail: answer.language }));
  };

  // Cards

  const nextLabel = () => {
    const last = sections.length ? sections[sections.length - 1].label : "";
    return last === "verse" ? "chorus" : sections.length > 4 ? "outro" : "verse";
  };
  const focused = () => {
    const card = document.activeElement && document.activeElement.closest ? document.activeElement.closest(".y-card") : null;
    if (!card || !cards.contains(card)) return null;
    const at = document.activeElement;
    return { index: [...cards.children].indexOf(card), part: at.dataset.part, start: at.selectionStart };
  };
  const refocus = (focus) => {
    if (!focus) return;
    const card = cards.children[Math.min(focus.index, cards.children.length - 1)];
    const target = card && card.querySelector(`[data-part="${focus.part}"]`);
    if (!target) return;
    target.focus();
    if (typeof focus.start === "number" && target.setSelectionRange) target.setSelectionRange(focus.start, focus.start);
  };
  const edited = () => { put(write()); };
  const change = (work, focus) => {
    remember();
    work();
    draw();
    put(write());
    tell.now();
    refocus(focus);
  };
  const insert = (at, section) =>
    change(() => sections.splice(at, 0, section), { index: at, part: "words", start: 0 });
  const move = (from, to, part) => {
    if (to < 0 || to >= sections.length) return;
    change(() => sections.splice(to, 0, ...sections.splice(from, 1)), { index: to, part });
  };
  const remove = (at) => {
    const gone = sections[at];
    change(() => sections.splice(at, 1), { index: Math.max(0, at - 1), part: "words" });
    toast(say(t.deleted, { label: gone.label }));
  };
  const toast = (sentence) => {
    const note = el("p", { class: "y-undo", role: "status" }, el("span", { text: sentence }),
      el("button", { type: "button", class: "y-quiet", id: "words-undo-delete", text: t.undo,
        onclick: () => { undo(); note.remove(); } }));
    root.querySelectorAll(".y-undo").forEach((old) => old.remove());
    root.append(note);
    setTimeout(() => note.remove(), 12000);
  };
  const grow = (area) => { area.style.height = "auto"; area.style.height = `${area.scrollHeight + 2}px`; };

  const draw = () => {
    cards.replaceChildren(...sections.map((section, index) => {
      const button = (part, sign, label, work, off) => el("button", { type: "button", class: "y-icon", "data-part": part,
        "aria-label": say(label, { n: index + 1, label: section.label }), title: say(label, { n: index + 1, label: section.label }),
        disabled: off, onclick: work }, sign);
      const label = el("input", { class: "y-label", "data-part": "label", list: "words-labels", value: section.label,
        "aria-label": say(t.label_of, { n: index + 1 }), spellcheck: "false", autocomplete: "off",
        oninput: (event) => { typing(); section.label = event.target.value.replace(/[\[\]\n]/g, ""); edited(); } });
      const words = el("textarea", { class: "y-card-words", "data-part": "words", rows: 2, spellcheck: "false",
        "aria-label": say(t.words_of, { n: index + 1 }), placeholder: t.no_words,
        oninput: (event) => { typing(); section.words = event.target.value; grow(event.target); edited(); } });
      words.value = section.words;
      return el("section", { class: "y-card", onkeydown: (event) => {
        if (!event.altKey || !["ArrowUp", "ArrowDown"].includes(event.key)) return;
        event.preventDefault();
        move(index, index + (event.key === "ArrowUp" ? -1 : 1), event.target.dataset.part);
      } },
        el("header", {}, label, el("span", { class: "y-hint" }), el("span", { class: "y-card-buttons" },
          button("up", "↑", t.up, () => move(index, index - 1, "up"), index === 0),
          button("down", "↓", t.down, () => move(index, index + 1, "down"), index === sections.length - 1),
          button("copy", "⧉", t.duplicate, () => insert(index + 1, { ...section })),
          button("delete", "✕", t.delete, () => remove(index)))),
        words,
        el("footer", {}, el("span", { class: "y-budget" }, el("span")), el("span", { class: "y-count" })));
    }));
    requestAnimationFrame(() => cards.querySelectorAll("textarea").forEach(grow));
  };
  const weigh = (card, section) => {
    if (!card) return;
    const share = Math.min(1, section.seconds / section.limit);
    card.querySelector(".y-budget > span").style.width = `${100 * share}%`;
    card.classList.toggle("y-crowded", section.seconds > section.limit);
    card.querySelector(".y-count").textContent = section.count;
    card.querySelector(".y-hint").textContent = section.hint;
  };

  // Views

  const show = (name) => {
    root.dataset.view = name;
    views.querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.view === name)));
    tell.now();
    if (name === "cards") { fresh = true; judge(value()); }
  };
  // The server put other words there: an example, a reload, a song to start from.
  watch("value", () => {
    const next = props.value || "";
    if (next === shown) return;
    if (value() !== shown) { tell.now(); return; } // the user is typing: the words stay
    if (value().trim()) remember();
    shown = text.value = next;
    fresh = true;
    judge(next);
  });
  root.addEventListener("focusout", () => tell.now());
  shown = text.value = props.value || "";
  show("cards");
  new ResizeObserver(() => cards.querySelectorAll("textarea").forEach(grow)).observe(root);
};
