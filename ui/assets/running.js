// A song that is being made. The script asks how far it is and writes the answer into elements that stay where they are.
window.yuegp.running = (element, props, server, trigger, watch) => {
  const { el, say, clock } = window.yuegp;
  const t = props.say;
  const root = element.querySelector(".y-running");
  let timer = 0, drawn = "", best = 0, last = "", asked = 0;

  const title = el("h3", { class: "y-title", id: "running-title", text: t.nothing });
  const status = el("p", { class: "y-status", id: "running-status", role: "status" });
  const bar = el("div", { class: "y-progress", id: "running-bar", role: "progressbar", "aria-label": t.progress, "aria-valuemin": 0, "aria-valuemax": 100 }, el("span"));
  const figures = el("p", { class: "y-figures", id: "running-figures" });
  const list = el("ol", { class: "y-sections", id: "running-sections" });
  const player = el("audio", { controls: true, preload: "none", id: "running-player", "aria-label": t.player, hidden: true });
  const hear = el("audio", { preload: "none", id: "running-hear" });
  const act = (id, text, work, kind) => el("button", { type: "button", class: kind || "y-quiet", id, text, onclick: async (event) => {
    event.target.disabled = true;
    try { await work(); } finally { event.target.disabled = false; ask(); } } });
  const buttons = {
    stop: act("running-stop", t.stop, () => server.stop_song({ name: props.value })),
    go: act("running-go-on", t.go_on, () => server.go_on_song({ name: props.value })),
    open: act("running-open", t.open, async () => trigger("open", { name: props.value }), "y-solid"),
    look: act("running-look", t.look, async () => { props.value = buttons.look.dataset.name; }),
  };
  const message = el("p", { class: "y-bad", id: "running-message", role: "alert", hidden: true });
  root.append(title, status, bar, figures, list, message, player, hear, el("div", { class: "y-words-bar" }, ...Object.values(buttons)));

  const sound = (view, file) => new URL(`sound/${encodeURIComponent(view.name)}/${view.take}/${file}`, document.baseURI).href;
  const shape = (view) => {
    const key = JSON.stringify([view.name, view.take, view.sections.map((s) => [s.label, s.words])]);
    if (key === drawn) return;
    drawn = key; best = 0;
    player.removeAttribute("src");
    list.replaceChildren(...view.sections.map((section, index) => el("li", {},
      el("span", { class: "y-section-name" }, el("b", { text: section.label }), el("span", { class: "y-faint", text: section.words })),
      el("span", { class: "y-section-state" }),
      el("button", { type: "button", class: "y-icon", disabled: true, "data-hear": "", "aria-label": say(t.hear, { n: index + 1, label: section.label }), onclick: (event) => listen(event.currentTarget) }, "▶"),
      el("span", { class: "y-thin" }, el("span")))));
  };
  // `#t=from,to` plays a part of a file and stops by itself.
  const listen = (button) => {
    if (!hear.paused && hear.dataset.of === button.dataset.hear) { hear.pause(); return; }
    hear.src = hear.dataset.of = button.dataset.hear;
    hear.play().catch(() => {});
  };
  const signs = () => list.querySelectorAll("button").forEach((b) => {
    b.textContent = !hear.paused && b.dataset.hear && hear.dataset.of === b.dataset.hear ? "❚❚" : "▶";
  });
  for (const event of ["play", "pause", "ended"]) hear.addEventListener(event, signs);

  const draw = (view) => {
    root.dataset.state = view.state;
    const there = Boolean(view.sections);
    title.textContent = there ? view.title : view.other ? t.other : t.nothing;
    message.hidden = !view.message; message.textContent = view.message || "";
    for (const node of [bar, figures, list]) node.hidden = !there;
    buttons.stop.hidden = !view.live;
    buttons.stop.textContent = view.stopping ? t.stopping : t.stop;
    buttons.go.hidden = !["stopped", "failed", "interrupted", "paused", "idle"].includes(view.state) || view.live;
    buttons.open.hidden = !there;
    buttons.look.hidden = !view.other; buttons.look.dataset.name = view.name || "";
    if (!there) { status.textContent = view.other ? say(t.other_title, { title: view.other }) : view.state === "gone" ? "" : t.nothing_hint; player.hidden = true; return; }
    shape(view);
    const names = { ahead: view.ahead, done: view.sections.filter((s) => ["ready", "written"].includes(s.state)).length, all: view.sections.length, length: clock(view.seconds) };
    const state = view.state === "running" ? view.stage || "starting" : view.state === "waiting" && view.ahead ? "behind" : view.state;
    let text = say(t["state_" + state] || state, names);
    if (view.of > 1) text = say(t.version, { n: view.version, of: view.of }) + " " + text;
    if (text !== last) status.textContent = last = text;
    best = view.state === "done" ? 1 : Math.max(best, view.share || 0);
    bar.firstChild.style.width = `${100 * best}%`;
    bar.setAttribute("aria-valuenow", Math.round(100 * best));
    const facts = [`${Math.round(100 * best)} %`];
    if (view.rate) facts.push(say(t["rate_" + view.unit] || t.rate, { n: Math.round(view.rate), unit: view.unit }));
    if (view.elapsed !== undefined) facts.push(say(t.elapsed, { time: clock(view.elapsed) }));
    if (view.state === "running") facts.push(view.eta === null || view.eta === undefined ? t.eta_unknown : say(t.eta, { time: clock(view.eta) }));
    figures.textContent = facts.join(" · ");
    view.sections.forEach((section, i) => {
      const row = list.children[i];
      row.dataset.state = section.state;
      row.querySelector(".y-section-state").textContent = t["section_" + section.state] + (section.draft ? ` · ${t.draft}` : "");
      row.querySelector(".y-thin > span").style.width = `${100 * section.share}%`;
      const button = row.querySelector("button");
      button.disabled = !section.hear;
      const part = section.span ? `#t=${section.span[0]},${section.span[1]}` : "";
      const source = section.hear ? sound(view, section.hear) + part : "";
      if (button.dataset.hear !== source && !(hear.dataset.of === button.dataset.hear && !hear.paused)) button.dataset.hear = source;
    });
    player.hidden = !view.files.includes("mix.flac");
    if (!player.hidden && !player.hasAttribute("src")) player.src = sound(view, "mix.flac");
  };
  const ask = async () => {
    clearTimeout(timer);
    const mine = ++asked;
    let wait = 4000;
    try {
      const view = await server.running_render({ name: props.value || "" });
      if (mine !== asked) return;
      draw(view);
      if (view.state === "running" || view.live || view.stopping) wait = 700;
    } catch { wait = 3000; /* the server is restarting: look again */ }
    if (mine === asked) timer = setTimeout(ask, document.hidden ? 5000 : wait);
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
  watch("value", () => { drawn = ""; ask(); });
  ask();
};
