// The Queue: jobs as the server tells them, asked for every second while the page is looked at.
window.yuegp.queue = (element, props, server, trigger, watch) => {
  const { el, say, clock, newest } = window.yuegp;
  const t = props.say;
  const root = element.querySelector(".y-queue");
  let latest = null, drawn = "";

  const press = (text, label, wish, kind, disabled) => el("button", { type: "button", disabled, class: kind || "y-quiet y-small", text, "aria-label": label, "data-do": wish.do + (text === "↑" || text === "↓" ? text : ""), onclick: () => act(wish) });
  const trouble = el("p", { class: "y-notice", id: "queue-trouble", role: "status", hidden: true });
  const error = el("p", { class: "y-bad", id: "queue-error", role: "alert", hidden: true });
  const lost = el("p", { class: "y-notice", id: "queue-interrupted", role: "status", text: t.interrupted, hidden: true });
  const all = {
    pause: el("button", { type: "button", class: "y-quiet", id: "queue-pause-all", text: t.pause_all, onclick: () => act({ do: "pause_all" }) }),
    resume: el("button", { type: "button", class: "y-quiet", id: "queue-resume-all", text: t.resume_all, onclick: () => act({ do: "resume_all" }) }),
    clear: el("button", { type: "button", class: "y-quiet", id: "queue-clear", text: t.clear, onclick: () => act({ do: "clear" }) }),
  };
  const now = el("ol", { class: "y-jobs", id: "queue-now", "aria-label": t.now });
  const over = el("ul", { class: "y-jobs", id: "queue-over", "aria-label": t.over });
  const titles = { now: el("h2", { text: t.now }), over: el("h2", { text: t.over }) };
  const empty = el("div", { class: "y-empty", id: "queue-empty", hidden: true },
    el("p", { class: "y-empty-title", text: t.empty }), el("p", { class: "y-faint", text: t["empty.hint"] }),
    el("button", { type: "button", class: "y-solid", text: t["empty.create"], onclick: () => document.getElementById("tab-create-button")?.click() }));
  root.append(trouble, lost, error, empty,
    el("div", { class: "y-head" }, titles.now, all.pause, all.resume), now,
    el("div", { class: "y-head" }, titles.over, all.clear), over);

  const words = (job) => {
    const out = [say(t.take, { n: job.take })];
    if (job.how) out.push(job.how);
    out.push(job.wish ? t[job.wish === "stop" ? "stopping" : "pausing"] : t[`state.${job.state}`]);
    if (job.state === "running" && !job.wish) out.push(job.stage ? t[`stage.${job.stage}`] : t.beginning);
    if (job.state === "running" && job.eta !== null) out.push(say(t.left, { time: clock(job.eta) }));
    else if (job.state === "running" && job.elapsed !== null) out.push(say(t.elapsed, { time: clock(job.elapsed) }));
    return out.join(" · ");
  };
  const line = (job) => {
    const { number, title } = job;
    const acts = [];
    if (job.place && job.places > 1) acts.push(
      press("↑", say(t.up, { title }), { do: "move", number, value: job.place - 1 }, "y-icon", job.place === 1),
      press("↓", say(t.down, { title }), { do: "move", number, value: job.place + 1 }, "y-icon", job.place === job.places));
    if (["waiting", "running"].includes(job.state) && !job.wish) acts.push(press(t.pause, say(t.pause_of, { title }), { do: "pause", number }));
    if (["paused", "interrupted"].includes(job.state) || job.wish === "pause") acts.push(press(t.resume, say(t.resume_of, { title }), { do: "resume", number }));
    if (["failed", "stopped"].includes(job.state)) acts.push(press(t.retry, say(t.retry_of, { title }), { do: "resume", number }));
    if (job.state === "running" && job.wish !== "stop") acts.push(press(t.stop, say(t.stop_of, { title }), { do: "cancel", number }));
    if (job.place) acts.push(press(t.cancel, say(t.cancel_of, { title }), { do: "cancel", number }));
    const name = job.here
      ? el("button", { type: "button", class: "y-song-title", "aria-label": say(t.open, { title }), text: title, onclick: () => trigger("opened", { name: job.name }) })
      : el("span", { class: "y-song-title", text: title });
    return el("li", { "data-job": number, "data-state": job.state },
      el("div", { class: "y-song" }, name, el("p", { class: "y-count", text: words(job) }),
        job.message ? el("p", { class: "y-bad", text: job.message }) : null,
        job.trace ? el("details", {}, el("summary", { text: t.trace }), el("pre", { tabindex: 0, text: job.trace })) : null),
      el("div", { class: "y-song-acts" }, ...acts),
      job.state === "running" ? el("div", { class: "y-progress", role: "progressbar", "aria-label": say(t.progress, { title }), "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(100 * job.share) }, el("span", { style: `width: ${100 * job.share}%` })) : null);
  };

  // What only counts up is written into the line that stands there; anything else is drawn anew, keeping the focus.
  const shape = (jobs) => JSON.stringify(jobs.map(({ share, eta, elapsed, stage, ...rest }) => rest));
  const draw = (answer) => {
    latest = answer;
    error.hidden = !answer.error; error.textContent = answer.error;
    trouble.hidden = !answer.trouble; trouble.textContent = answer.trouble;
    lost.hidden = !answer.now.some((job) => job.state === "interrupted");
    empty.hidden = answer.now.length + answer.over.length > 0 || Boolean(answer.error);
    titles.now.parentElement.hidden = now.hidden = !answer.now.length;
    titles.over.parentElement.hidden = over.hidden = !answer.over.length;
    all.pause.hidden = !answer.now.some((job) => ["waiting", "running"].includes(job.state) && !job.wish);
    all.resume.hidden = !answer.now.some((job) => ["paused", "interrupted"].includes(job.state) || job.wish === "pause");
    const key = shape([...answer.now, ...answer.over]);
    if (key !== drawn) {
      drawn = key;
      const focused = document.activeElement?.closest?.(".y-jobs > li");
      const [job, wish] = focused && root.contains(focused) ? [focused.dataset.job, document.activeElement.dataset.do] : [];
      now.replaceChildren(...answer.now.map(line));
      over.replaceChildren(...answer.over.map(line));
      if (job) {
        const same = root.querySelector(`li[data-job="${job}"]`);
        (same?.querySelector(`[data-do="${wish}"]`) || same?.querySelector("button") || root.querySelector("button:not([hidden])"))?.focus();
      }
    }
    for (const one of answer.now) {
      const node = now.querySelector(`li[data-job="${one.number}"]`);
      if (!node) continue;
      node.querySelector(".y-count").textContent = words(one);
      const bar = node.querySelector(".y-progress");
      if (bar) { bar.setAttribute("aria-valuenow", Math.round(100 * one.share)); bar.firstChild.style.width = `${100 * one.share}%`; }
    }
  };
  const ask = newest(() => server.queue_render({}), draw);
  const act = async (wish) => {
    try { draw(await server.queue_action(wish)); } catch { error.hidden = false; error.textContent = t.unreachable; }
  };
  const visible = () => element.offsetParent !== null && !document.hidden;
  new IntersectionObserver((seen) => { if (seen.some((one) => one.isIntersecting)) ask(); }).observe(root);
  setInterval(() => { if (visible()) ask(); }, 1000);
  ask();
};
