// The song page: exchanges the parts that Python makes, passes on what is clicked, and moves what moves with the music.
window.yuegp = window.yuegp || {};
window.yuegp.song = (element, props, server, trigger, watch) => {
  const { words } = props, player = window.yuegp.player;
  window.yuegp.songEnd?.abort(); // an earlier drawing of this page listens no more; what plays goes on
  const end = (window.yuegp.songEnd = new AbortController());
  element.innerHTML = props.frame;
  const find = (selector) => element.querySelector(selector);
  const all = (selector) => [...element.querySelectorAll(selector)];
  const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, key) => values[key]);
  const shown = {}; // part -> its HTML, to leave alone what is as it was
  let song = "", section = 0, slot = "A", slots = {}, stem = "mix", sounds = [], live = false;
  let asked = 0, timer = 0, quiet = 0, drawn = "", tried = "", lost = false;
  let heard = window.yuegp.heard || null; // {song, title, take}: what the player plays, kept when this page is redrawn

  const front = () => slots[slot];
  const other = () => (slot === "A" ? "B" : "A");
  const known = (take) => sounds.find((one) => one.take === take);
  const span = (take, wanted) => known(take)?.sections.find(([k]) => k === wanted);
  const link = (take, kind = stem) => new URL(`sound/${encodeURIComponent(song)}/${take}/${kind}.flac`, document.baseURI).href;
  const ours = () => Boolean(heard && heard.song === song && heard.take === front());
  const clock = (x) => `${Math.floor(x / 60)}:${String(Math.floor(x % 60)).padStart(2, "0")}`;

  // The page as Python makes it

  async function call(name, values) {
    try {
      const answer = await server[name](values);
      return answer && typeof answer === "object" ? answer : { error: words.unreachable };
    } catch { return { error: words.unreachable }; }
  }

  async function refresh(silent = false) {
    clearTimeout(timer);
    const mine = ++asked, name = song;
    const answer = await call("song_render", { song, take: front() ?? null, section });
    if (mine !== asked || name !== song || end.signal.aborted) return;
    if (answer.error) say(answer.error, true);
    else {
      if (lost) say("");
      apply(answer, silent);
    }
    lost = Boolean(answer.error);
    again();
  }

  function again() {
    clearTimeout(timer);
    timer = setTimeout(() => (song && element.offsetParent ? refresh() : again()), live ? 1000 : 5000);
  }

  function apply(answer, silent) {
    const before = sounds.map((one) => one.take);
    find(".song").dataset.state = answer.state;
    live = answer.live;
    sounds = answer.sound;
    section = answer.section;
    slots[slot] = answer.take;
    const [a, b] = [slots.A, slots.B];
    if (slots[other()] == null || a === b || !known(slots[other()])) slots[other()] = answer.rival;
    for (const [name, html] of Object.entries(answer.parts)) exchange(name, html);
    const fresh = sounds.map((one) => one.take).find((take) => !before.includes(take));
    if (answer.state !== "open" && player.playing) player.pause(); // its controls are hidden
    if (drawn === song && fresh && !silent) say(fill(words.ready, { take: fresh }));
    drawn = song;
    settle();
    draw();
  }

  // Put new HTML into a part, and leave the focus and what is folded open as they are.
  function exchange(name, html) {
    if (shown[name] === html) return;
    shown[name] = html;
    const part = find(`[data-part="${name}"]`), focus = document.activeElement?.dataset?.focus;
    const radio = document.activeElement?.name === "song-section";
    const open = Object.fromEntries(all(`[data-part="${name}"] [data-keep]`).map((one) => [one.dataset.keep, one.open]));
    part.innerHTML = html;
    for (const one of all(`[data-part="${name}"] [data-keep]`)) if (one.dataset.keep in open) one.open = open[one.dataset.keep];
    if (name === "line") {
      const chosen = find(`.song-block input[value="${section}"]`);
      if (chosen) { chosen.checked = true; if (radio) chosen.focus(); }
    }
    if (focus && !document.activeElement?.dataset?.focus) find(`[data-part="${name}"] [data-focus="${focus}"]`)?.focus();
  }

  // A notice. What asks for nothing goes by itself.
  function say(text, wrong = false, more = []) {
    const said = find(".song-said");
    clearTimeout(quiet);
    said.classList.toggle("wrong", wrong);
    said.replaceChildren(Object.assign(document.createElement("span"), { textContent: text }), ...more);
    if (!text) said.replaceChildren();
    else if (wrong || more.length) said.append(button(words.close, () => say("")));
    else quiet = setTimeout(() => say(""), 8000);
  }

  function button(text, click) {
    const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    made.addEventListener("click", click);
    return made;
  }

  async function act(what, values = {}, name = song) {
    say(words.busy);
    find(".song").setAttribute("aria-busy", "true");
    const answer = await call("song_action", { song: name, do: what, values: { take: front(), section, ...values } });
    find(".song").removeAttribute("aria-busy");
    if (answer.error) return say(answer.error, true);
    const files = (answer.files || []).map((file) => Object.assign(document.createElement("a"), {
      href: `export/${encodeURIComponent(name)}/${encodeURIComponent(file)}`, download: file,
      textContent: fill(words.download, { file }),
    }));
    if (what === "trash") files.push(button(words.undo, () => act("restore", {}, answer.name)));
    if (what === "trash" && heard?.song === name) player.pause();
    say(answer.said, false, files);
    if (what === "trash") trigger("opened", { name: "" });
    else if (what === "restore") trigger("opened", { name: answer.name });
    else {
      await refresh(true);
      if (answer.front) toFront(answer.front);
    }
  }

  // Sound

  function hear(take) {
    heard = window.yuegp.heard = { song, take, title: find(".song-title")?.textContent || "" };
  }

  // The same section and the same second of it in another take: takes may have sections of other lengths before it.
  function moved(from, to) {
    const [old, young] = [known(from), known(to)];
    return (x) => {
      const here = old?.sections.find(([, start, stop]) => start <= x && x < stop);
      const there = here && young.sections.find(([k]) => k === here[0]);
      return there ? Math.min(there[1] + x - here[1], there[2] - 0.05) : x;
    };
  }

  function toFront(take) {
    const old = front();
    if (take === old) return;
    if (slots[other()] === take) slots[other()] = old;
    slots[slot] = take;
    follow(old);
  }

  function toSlot(wanted) {
    if (wanted === slot || slots[wanted] == null) return draw();
    const old = front();
    slot = wanted;
    follow(old);
  }

  // Another take is in front: when the one before it was heard, go on in this one at the same place.
  function follow(old) {
    if (known(front()) && heard?.song === song && heard.take === old) {
      hear(front());
      player.turn(link(front()), moved(old, front()), loop());
    }
    settle();
    draw();
    refresh();
  }

  // While nothing plays, the player holds what is in front.
  function settle() {
    const wanted = link(front());
    if (!known(front()) || player.playing || tried === wanted || player.url === wanted) return;
    tried = wanted;
    const same = heard?.song === song;
    hear(front());
    player.turn(wanted, same ? (x) => x : () => 0, loop());
  }

  // The range of the selected section, if it is to be repeated.
  function loop() {
    const own = find("[data-loop]").checked ? span(front(), section) : null;
    return own ? [own[1], own[2]] : null;
  }
  const looping = () => { if (ours() && String(loop()) !== String(player.range)) player.repeat(loop()); };

  function toggle() {
    if (player.playing) return player.pause();
    if (!known(front())) return;
    const from = ours() ? undefined : 0;
    hear(front());
    player.play(link(front()), from, loop());
  }

  function playSection(take, wanted) {
    if (wanted !== section) select(wanted);
    toFront(take);
    const own = span(take, wanted);
    if (!own) return;
    hear(take);
    player.play(link(take), own[1], loop());
  }

  function seek(x) {
    if (!known(front()) || (player.playing && !ours())) return;
    const to = Math.max(0, Math.min(x, known(front()).seconds - 0.05));
    hear(front());
    player.turn(link(front()), () => to);
  }

  function step(by) {
    const list = known(front())?.sections || [], k = list.findIndex(([one]) => one === section);
    const next = list[Math.max(0, Math.min(list.length - 1, k + by))];
    if (next) { select(next[0]); seek(next[1]); }
  }

  function select(wanted) {
    if (wanted === section) return;
    section = wanted;
    const chosen = find(`.song-block input[value="${section}"]`);
    if (chosen) chosen.checked = true;
    looping();
    refresh();
  }

  // What moves with the music

  let frame = 0;
  function draw() {
    cancelAnimationFrame(frame);
    const own = known(front()), x = ours() ? player.at() : 0, whole = own?.seconds || 0;
    const play = find("[data-play]"), slider = find(".song-seek");
    const text = player.playing ? words.pause : words.play;
    if (play.textContent !== text) play.textContent = text;
    play.disabled = !own && !player.playing;
    find(".song-player").classList.toggle("silent", !own);
    slider.disabled = !own;
    slider.max = whole || 1;
    if (document.activeElement !== slider || !slider.matches(":active")) slider.value = x;
    const spoken = `${clock(x)} / ${clock(whole)}`;
    if (slider.getAttribute("aria-valuetext") !== spoken) {
      slider.setAttribute("aria-valuetext", spoken);
      find(".song-clock").textContent = spoken;
    }
    const line = find(".song-line");
    find(".song-head")?.style.setProperty("--at", `${(100 * x) / (Number(line?.dataset.seconds) || 1)}%`);
    find(".song-head")?.toggleAttribute("hidden", !ours());
    const elsewhere = player.playing && !ours();
    find(".song-playing").textContent = elsewhere ? `${heard.title}, ${fill(words.take, heard)}` : "";
    for (const name of ["A", "B"]) {
      const input = find(`[name="song-slot"][value="${name}"]`), take = slots[name];
      input.checked = name === slot;
      input.disabled = take == null || (name !== slot && !known(take));
      const label = take == null ? fill(words.slotEmpty, { slot: name }) : fill(words.slot, { slot: name, take });
      if (input.nextElementSibling.textContent !== label) input.nextElementSibling.textContent = label;
    }
    light(ours() && (player.playing || x > 0) ? x : -1);
    if (player.playing) frame = requestAnimationFrame(draw);
  }

  let lit = null;
  function light(x) {
    for (const one of all(".song-words [data-start]")) {
      const on = Number(one.dataset.start) <= x && x < Number(one.dataset.stop);
      if (one.classList.contains("now") === on) continue;
      one.classList.toggle("now", on);
      if (!on || one.tagName !== "P" || !player.playing || one === lit) continue;
      lit = one;
      const box = find(".song-words"), gap = one.getBoundingClientRect().top - box.getBoundingClientRect().top;
      if (gap < 0 || gap > box.clientHeight - 40) box.scrollTop += gap - box.clientHeight / 3;
    }
  }

  // What is clicked and typed

  const values = (form) => Object.fromEntries(new FormData(form).entries());
  const does = {
    "front": ({ take }) => toFront(Number(take)),
    "compare": ({ take }) => { if (Number(take) !== front()) { slots[other()] = Number(take); draw(); } },
    "play-section": ({ take }) => playSection(take ? Number(take) : front(), section),
    "rewind-here": () => act("rewind", { second: ours() ? player.at() : 0 }),
    "copy": () => trigger("copied", { name: song, take: front() }),
    "go": ({ page }) => document.getElementById(`tab-${page}-button`)?.click(),
    "play": toggle,
  };
  element.addEventListener("click", (event) => {
    const { act: what, do: own, ...data } = event.target.closest("button[data-act], button[data-do]")?.dataset || {};
    if (own) does[own](data);
    else if (what) act(what, data);
  });
  element.addEventListener("submit", (event) => {
    event.preventDefault();
    const form = event.target;
    act(form.dataset.act, values(form)).then(() => {
      if (form.dataset.act === "continue" && !find(".song-said.wrong")) form.isConnected && form.reset();
    });
  });
  element.addEventListener("change", ({ target }) => {
    if (target.name === "song-section") select(Number(target.value));
    else if (target.name === "song-slot") toSlot(target.value);
    else if (target.name === "song-stem") {
      stem = target.value;
      if (heard && heard.song === song && player.url) player.turn(link(heard.take));
    } else if (target.matches("[data-loop]")) looping();
    else if (target.closest("[data-change]")) act(target.closest("[data-change]").dataset.change, { stars: target.value });
  });
  element.addEventListener("input", ({ target }) => {
    if (target.matches(".song-seek")) seek(Number(target.value));
    if (target.matches("[data-volume]")) player.volume = Number(target.value);
  });
  element.addEventListener("dblclick", (event) => {
    const block = event.target.closest(".song-block");
    if (block) playSection(front(), Number(block.querySelector("input").value));
  });

  const typing = "textarea, select, [contenteditable], input:not([type=radio]):not([type=checkbox]):not([type=range])";
  document.addEventListener("keydown", (event) => {
    const { target, key } = event, choice = target.matches("input[type=radio], input[type=range]:not(.song-seek)");
    if (!element.offsetParent || !song || event.ctrlKey || event.metaKey || event.altKey || target.matches(typing)) return;
    if (target !== document.body && !element.contains(target)) return;
    const near = find(".song-player").contains(target), x = ours() ? player.at() : 0;
    const pick = (selector) => near && find(selector) && (() => find(selector).click());
    const answer =
      key === " " ? !target.matches("button, summary, a, input[type=radio]:not(:checked), input[type=checkbox]") && toggle
      : key === "ArrowLeft" ? !choice && (() => seek(x - 5))
      : key === "ArrowRight" ? !choice && (() => seek(x + 5))
      : key === "[" ? () => step(-1)
      : key === "]" ? () => step(1)
      : key === "Enter" && target.name === "song-section" ? () => playSection(front(), section)
      : key === "l" ? pick("[data-loop]")
      : key === "x" ? near && (() => toSlot(other()))
      : "123".includes(key) ? pick(`[name="song-stem"][value="${["mix", "vocal", "instrumental"][key - 1]}"]`)
      : null;
    if (!answer) return;
    event.preventDefault();
    answer();
  }, { signal: end.signal });

  end.signal.addEventListener("abort", player.on((error) => {
    if (error && heard) say(fill(words.cannotLoad, heard), true);
    draw();
  }));

  function open(name) {
    song = name || "";
    section = 0;
    slots = {};
    slot = "A";
    sounds = [];
    tried = "";
    refresh();
  }
  watch("value", () => { if (props.value !== song) open(props.value); });
  open(props.value);
};
