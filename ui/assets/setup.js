// Set-up: facts in panels. The check-up takes seconds, so it is asked for when the page is first looked at.
window.yuegp.setup = (element, props, server, trigger, watch) => {
  const { el, say, newest } = window.yuegp;
  const t = props.say;
  const root = element.querySelector(".y-setup");
  const panel = (id, title, ...inside) => el("section", { class: "y-panel y-facts", id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title`, text: title }), ...inside);
  const rows = (list) => el("dl", {}, ...list.flatMap((row) => [el("dt", { text: row.name }), el("dd", { text: row.text })]));
  const error = el("p", { class: "y-bad", id: "setup-error", role: "alert", hidden: true });

  const language = el("select", { class: "y-line", id: "setup-language", "aria-describedby": "setup-language-info", onchange: async () => {
    try {
      const answer = await server.setup_action({ do: "language", value: language.value });
      error.hidden = !answer.error; error.textContent = answer.error;
      if (!answer.error) location.assign(new URL("../", document.baseURI).href);
    } catch { error.hidden = false; error.textContent = t.unreachable; }
  } }, ...props.languages.map(([value, text]) => el("option", { value, text, lang: value || null })));

  const why = el("ul", { class: "y-notes" });
  const profile = el("div", { id: "setup-profile", hidden: true }, el("dl", {}, el("dt", { text: t.profile }), el("dd")), el("details", {}, el("summary", { text: t["profile.why"] }), why));
  const machine = el("div"), models = el("ul", { class: "y-models", id: "setup-models" }), folders = el("div");
  const version = el("p", { class: "y-count", id: "setup-version" });
  const copied = el("span", { class: "y-count", role: "status" });
  const well = el("details", { hidden: true }, el("summary", { text: t["check.well"] }), el("ul", { class: "y-findings" }));
  const bad = el("ul", { class: "y-findings", id: "setup-findings" });
  const status = el("p", { class: "y-count", id: "setup-check-status", role: "status" });
  const again = el("button", { type: "button", class: "y-quiet", id: "setup-check", text: t["check.start"], onclick: () => check() });
  const column = (...panels) => el("div", { class: "y-column" }, ...panels);
  root.append(error, column(
    panel("setup-language-panel", t.language, language, el("p", { class: "y-faint", id: "setup-language-info", text: t["language.info"] })),
    panel("setup-machine", t.machine, machine, profile),
    panel("setup-check-panel", t.check, el("p", { class: "y-faint", text: t["check.text"] }), status, bad, well, el("div", {}, again)),
  ), column(
    panel("setup-models-panel", t.models, el("p", { class: "y-faint", text: t["models.text"] }), models, copied),
    panel("setup-folders", t.folders, folders), version));
  language.setAttribute("aria-labelledby", "setup-language-panel-title");

  const model = (row) => {
    const command = `python launch.py ${row.get}`;
    const copy = el("button", { type: "button", class: "y-quiet y-small", text: t.copy, "aria-label": say(t.copy_of, { title: row.title }), onclick: async () => {
      try { await navigator.clipboard.writeText(command); copied.textContent = t.copied; } catch { getSelection().selectAllChildren(code); }
    } });
    const code = el("code", { text: command });
    const start = el("button", { type: "button", class: "y-quiet", text: t["get.start"], "aria-label": say(t["get.start_of"], { title: row.title }), "data-get": row.name, onclick: () => get("ask", row.name) });
    return el("li", { "data-model": row.name, class: row.here ? "here" : "" },
      el("div", { class: "y-model" }, el("b", { text: row.title }), el("span", { class: "y-count", text: row.text })),
      row.note ? el("p", { class: "y-faint", text: row.note }) : null,
      row.can ? el("div", {}, start) : null,
      row.get ? el("details", {}, el("summary", { text: t["model.get"] }), el("p", { class: "y-faint", text: t["model.run"] }), el("p", { class: "y-command" }, code, copy)) : null);
  };
  // Getting a model: one place that moves below the model it speaks of, and asks how far it is while that changes.
  const said = el("p", { role: "status" }), bar = el("progress", { max: 1, "aria-label": t["get.progress"] });
  const button = (id, text, act) => el("button", { type: "button", class: "y-quiet", id, text, onclick: act });
  let got = { name: "", state: "" }, asking = 0, stopping = false;
  const go = button("setup-get-go", t["get.go"], () => get("go", got.name)), stop = button("setup-get-stop", t["get.stop"], () => get("stop", got.name));
  const place = el("div", { class: "y-get", id: "setup-get" }, said, bar, el("div", {}, go, " ", stop));
  const getting = (now) => {
    const over = now.state === "done" && got.state !== "done" && got.state;
    got = now;
    if (now.error) { error.hidden = false; error.textContent = now.error; }
    said.textContent = now.text;
    said.className = now.state === "failed" ? "y-bad" : "";
    bar.hidden = now.state !== "getting";
    bar.value = now.share;
    go.hidden = now.state !== "offered";
    stop.hidden = !["asking", "offered", "getting"].includes(now.state);
    const busy = ["asking", "getting"].includes(now.state);
    for (const start of models.querySelectorAll("[data-get]")) start.disabled = busy || (now.state === "offered" && start.dataset.get === now.name);
    const row = now.state && models.querySelector(`[data-model="${now.name}"]`);
    if (row && place.parentElement !== row) row.append(place);
    if (!row) place.remove();
    clearTimeout(asking);
    stopping = stopping && !stop.hidden;
    if (busy || stopping) asking = setTimeout(() => server.setup_download({}).then(getting, () => { said.textContent = t.unreachable; }), 500);
    if (over) ask();
  };
  const get = async (what, name) => {
    error.hidden = true;
    stopping = what === "stop";
    try { getting(await server.setup_action({ do: what, name })); } catch { error.hidden = false; error.textContent = t.unreachable; }
  };
  const finding = (one) => el("li", { class: one.state }, el("b", { text: one.said }), el("div", {}, el("p", { text: one.what }), el("p", { class: "y-faint", text: one.hint, hidden: !one.hint })));

  const ask = newest(() => server.setup_render({}), (answer) => {
    machine.replaceChildren(rows(answer.machine));
    profile.hidden = !answer.profile;
    if (answer.profile) {
      profile.querySelector("dd").textContent = answer.profile.text;
      why.replaceChildren(...answer.profile.reasons.map((text) => el("li", { text })));
    }
    folders.replaceChildren(rows(answer.folders));
    const open = [...models.querySelectorAll("details[open]")].map((one) => one.closest("li").dataset.model);
    models.replaceChildren(...answer.models.map(model));
    getting(answer.download);
    for (const name of open) models.querySelector(`[data-model="${name}"] details`)?.setAttribute("open", "");
    version.textContent = answer.version;
    if (document.activeElement !== language) language.value = answer.language;
  });
  let checked = false;
  const check = async () => {
    checked = true;
    again.disabled = true;
    status.textContent = t["check.busy"];
    try {
      const { findings } = await server.setup_check({});
      const worse = findings.filter((one) => one.state !== "ok"), good = findings.filter((one) => one.state === "ok");
      bad.replaceChildren(...worse.map(finding));
      well.hidden = !good.length;
      well.querySelector("ul").replaceChildren(...good.map(finding));
      status.textContent = worse.length ? "" : t["check.good"];
    } catch { status.textContent = t.unreachable; }
    again.disabled = false;
  };
  new IntersectionObserver((seen) => {
    if (!seen.some((one) => one.isIntersecting)) return;
    ask();
    if (!checked) check();
  }).observe(root);
};
