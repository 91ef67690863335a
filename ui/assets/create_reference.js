// The wave of a reference recording and the window of it that is listened to. The value is what the server found in the
// files; the window goes back as `window` inside it.
window.yuegp.reference = (element, props, server, trigger, watch) => {
  const { el, say, clock, later } = window.yuegp;
  const t = props.say;
  const root = element.querySelector(".y-reference");
  let shown = { files: [], seconds: 0 }, start = 0, length = 30, players = [], stopping = 0;

  const draw = () => {
    const canvas = root.querySelector("canvas");
    if (!canvas) return;
    const style = getComputedStyle(root), ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = width * ratio; canvas.height = height * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const lanes = shown.files.length;
    shown.files.forEach((file, lane) => {
      const middle = (height / lanes) * (lane + 0.5), room = height / lanes / 2 - 3;
      const wide = width / file.peaks.length;
      file.peaks.forEach((peak, i) => {
        const second = (i + 0.5) / file.peaks.length * shown.seconds;
        pen.fillStyle = style.getPropertyValue(second >= start && second < start + length ? "--y-accent" : "--y-line-strong");
        pen.fillRect(i * wide, middle - Math.max(1, peak * room), Math.max(1, wide - 0.6), 2 * Math.max(1, peak * room));
      });
    });
  };
  const tell = later(() => { props.value = { ...shown, window: { start, end: start + length } }; }, 150);
  const set = (from, span) => {
    length = Math.min(Math.max(1, span || 30), Math.max(1, shown.seconds));
    start = Math.min(Math.max(0, from || 0), Math.max(0, shown.seconds - length));
    const range = root.querySelector("#reference-start"), number = root.querySelector("#reference-length");
    range.value = start; range.setAttribute("aria-valuetext", say(t.window, { start: clock(start), end: clock(start + length) }));
    if (document.activeElement !== number) number.value = Math.round(length);
    root.querySelector(".y-window").textContent = say(t.window, { start: clock(start), end: clock(start + length) });
    draw();
    tell();
  };
  const silence = () => {
    clearInterval(stopping);
    players.forEach((player) => player.pause());
    const button = root.querySelector("#reference-play");
    if (button) button.textContent = t.play;
  };
  const play = async () => {
    if (players.some((player) => !player.paused)) return silence();
    players.forEach((player) => { player.currentTime = start; });
    root.querySelector("#reference-play").textContent = t.stop;
    try { await Promise.all(players.map((player) => player.play())); } catch { return silence(); }
    stopping = setInterval(() => { if (players[0].ended || players[0].currentTime >= start + length) silence(); }, 100);
  };
  const render = () => {
    silence();
    const next = props.value || {};
    shown = { files: [], seconds: 0, ...next };
    root.replaceChildren();
    if (shown.error) root.append(el("p", { class: "y-bad", role: "alert", text: shown.error }));
    if (!shown.files.length || shown.seconds <= 0) { players = []; return; }
    players = shown.files.map((file) => {
      const player = el("audio", { preload: "metadata", src: new URL(`gradio_api/file=${file.path}`, document.baseURI).href });
      player.dataset.together = "1";
      return player;
    });
    const canvas = el("canvas", { class: "y-wave", role: "img", "aria-label": say(t.wave, { name: shown.files.map((f) => f.name).join(", ") }),
      onpointerdown: (event) => { drag(event); canvas.setPointerCapture(event.pointerId); },
      onpointermove: (event) => { if (event.buttons) drag(event); } });
    const drag = (event) => set(event.offsetX / canvas.clientWidth * shown.seconds - length / 2, length);
    root.append(canvas,
      el("label", { class: "y-slide" }, el("span", { text: t.start }), el("input", { type: "range", id: "reference-start", min: 0, max: shown.seconds, step: 0.5,
        oninput: (event) => set(Number(event.target.value), length) })),
      el("div", { class: "y-words-bar" },
        el("span", { class: "y-window", "aria-live": "polite" }),
        el("label", { class: "y-inline" }, el("span", { text: t.length }), el("input", { type: "number", id: "reference-length", class: "y-line y-short", min: 1, max: 60, step: 1,
          oninput: (event) => set(start, Number(event.target.value)) })),
        el("button", { type: "button", class: "y-quiet", id: "reference-play", text: t.play, onclick: play })),
      el("p", { class: "y-faint", text: t.advice }));
    const before = next.window && typeof next.window === "object" ? next.window : null;
    set(before ? before.start : Math.max(0, shown.seconds / 2 - 15), before ? before.end - before.start : 30);
  };
  watch("value", render);
  new ResizeObserver(draw).observe(root);
  render();
};
