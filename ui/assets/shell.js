// What all pages' scripts share. Everything of ours hangs on window.yuegp.
window.yuegp = window.yuegp || {};

// An element: el("button", { class: "y-quiet", "aria-label": "Delete", onclick: f }, "Delete"). Text stays text.
window.yuegp.el = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "text") node.textContent = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
};

// A sentence with its places filled: say("{n} words", { n: 3 }).
window.yuegp.say = (text, values = {}) =>
  String(text).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));

// A function that runs once its calls have paused for `wait` milliseconds; `.now()` runs what is still to come at once.
window.yuegp.later = (work, wait) => {
  let timer = 0, due = null;
  const run = () => { const values = due; due = null; clearTimeout(timer); if (values) work(...values); };
  const later = (...values) => { due = values; clearTimeout(timer); timer = setTimeout(run, wait); };
  later.now = run;
  return later;
};

// Only the newest answer of a server function counts: an older one that arrives late is dropped.
window.yuegp.newest = (ask, use) => {
  let count = 0;
  return async (...values) => {
    const mine = ++count;
    try {
      const answer = await ask(...values);
      if (mine === count) use(answer);
    } catch { /* the server is gone for a moment: the next edit asks again */ }
  };
};

window.yuegp.clock = (seconds) => {
  const whole = Math.max(0, Math.round(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
};

// One player at a time: one that starts pauses the others.
document.addEventListener("play", (event) => {
  for (const other of document.querySelectorAll("audio")) {
    if (other !== event.target && !other.dataset.together) other.pause();
  }
}, true);

// Memory of one browser tab. It lies in sessionStorage, which survives a reload and belongs to this tab alone, and as a
// copy in localStorage for a tab that is opened after this one was closed. A second tab beside this one is a second
// person: it takes the copy over only when no other tab is open. Each open tab holds a lock, by which that is known;
// browsers have locks on this computer and over https. Elsewhere a fresh tab begins empty.
window.yuegp.memory = (() => {
  const OWN = "yuegp-kept", COPY = "yuegp-last-tab", LOCK = "yuegp-tab";
  const read = (store, key) => { try { return JSON.parse(store.getItem(key)); } catch { return null; } };
  const alone = async () => {
    if (!navigator.locks) return false;
    const { held } = await navigator.locks.query();
    return !held.some((lock) => lock.name === LOCK);
  };
  const found = read(sessionStorage, OWN);
  let kept = found || {};
  const save = () => {
    try {
      const text = JSON.stringify(kept);
      sessionStorage.setItem(OWN, text);
      localStorage.setItem(COPY, text);
    } catch { /* a full or forbidden store: the page works on, it only forgets on reload */ }
  };
  const settled = (async () => {
    if (!found && await alone()) kept = { ...read(localStorage, COPY), ...kept };
    if (navigator.locks) navigator.locks.request(LOCK, { mode: "shared" }, () => new Promise(() => {}));
    save();
  })();
  return {
    async load(key, otherwise) { await settled; return kept[key] ?? otherwise; },
    save(key, value) { kept[key] = value; save(); },
  };
})();

// What stands in the fields, by name, outlives a reload. Whoever is quicker than the page, and writes before what was kept
// is back, keeps what they wrote: until then nothing is saved over what was kept, and only untouched fields get it back.
window.yuegp.draft = (() => {
  const KEY = "draft";
  let early = {}, restored = false;
  return {
    save(values) {
      if (restored) window.yuegp.memory.save(KEY, values);
      else early = values;
    },
    // Values for the fields of `usual`, which holds what each shows untouched; undefined leaves one
    // alone. An empty number has to be written as well: Gradio would show a 0 when its place is opened.
    async restore(usual) {
      const kept = await window.yuegp.memory.load(KEY, {});
      const names = Object.keys(usual);
      const touched = Object.fromEntries(names.filter((name) => name in early && early[name] !== usual[name])
        .map((name) => [name, early[name]]));
      restored = true;
      window.yuegp.memory.save(KEY, { ...kept, ...touched });
      return names.map((name) => (name in touched ? undefined : name in kept ? kept[name] : usual[name]));
    },
  };
})();
