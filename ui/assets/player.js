// The player: one sound is heard at a time, and one clock says where. Sounds are decoded whole, so that going over from
// one to another (a stem, another take) is a short crossfade at the same instant: nothing restarts, nothing jumps.
window.yuegp = window.yuegp || {};
window.yuegp.player = (() => {
  const FADE = 0.015, AHEAD = 0.02, KEPT = 6, RATE = 44100;
  const sounds = new Map(); // url -> promise of its samples; the one used last stands last
  const ears = new Set();
  let context, master, volume = 1;
  let voice = null; // what sounds: {source, level, when, from}; `from` is its place at the time `when` of the clock
  let url = "", place = 0, range = null, turn = 0;

  const tell = (error) => ears.forEach((ear) => ear(error));

  function load(wanted) {
    const known = sounds.get(wanted) || fetch(wanted).then(async (answer) => {
      if (!answer.ok) throw new Error(`${answer.status}`);
      return new OfflineAudioContext(1, 1, RATE).decodeAudioData(await answer.arrayBuffer());
    });
    sounds.delete(wanted);
    sounds.set(wanted, known);
    known.catch(() => sounds.delete(wanted));
    for (const old of [...sounds.keys()].slice(0, -KEPT)) sounds.delete(old);
    return known;
  }

  // Where the voice is at a time of the clock.
  function placeAt(time) {
    if (!voice) return place;
    const at = voice.from + Math.max(0, time - voice.when);
    if (range && at >= range[1]) return range[0] + (at - range[0]) % (range[1] - range[0]);
    return Math.min(at, voice.source.buffer.duration);
  }
  const at = () => placeAt(context ? context.currentTime : 0);

  function silence(when) {
    if (!voice) return;
    const { source, level } = voice;
    source.onended = null;
    level.gain.cancelScheduledValues(0);
    level.gain.setValueAtTime(1, when);
    level.gain.linearRampToValueAtTime(0, when + FADE);
    source.stop(when + FADE);
    voice = null;
  }

  function sound(buffer, when, from) {
    const source = new AudioBufferSourceNode(context, { buffer });
    if (range) Object.assign(source, { loop: true, loopStart: range[0], loopEnd: range[1] });
    const level = new GainNode(context, { gain: 0 });
    level.gain.setValueAtTime(0, when);
    level.gain.linearRampToValueAtTime(1, when + FADE);
    source.connect(level).connect(master);
    source.start(when, from);
    voice = { source, level, when, from };
    source.onended = () => { voice = null; place = 0; tell(); };
  }

  function wake() {
    if (!context) {
      context = new AudioContext();
      master = new GainNode(context, { gain: volume });
      master.connect(context.destination);
    }
    return context.resume();
  }

  const inside = (x) => (range && (x < range[0] || x >= range[1]) ? range[0] : Math.max(0, x));

  // Let `wanted` be heard from where the place is then, as `where` translates it; what sounds goes on until it can.
  // `loop` is the range to repeat from then on, null for none; left out, it stays.
  async function change(wanted, where, sounding, loop = range) {
    const mine = ++turn;
    try {
      const [buffer] = await Promise.all([load(wanted), sounding && wake()]);
      if (mine !== turn) return;
      const when = context ? context.currentTime + AHEAD : 0;
      const was = placeAt(when);
      range = loop;
      place = Math.min(inside(where(was)), buffer.duration);
      if (place >= buffer.duration - 0.01) place = inside(0);
      url = wanted;
      if (context) silence(when);
      if (sounding) sound(buffer, when, place);
      tell();
    } catch (error) {
      if (mine === turn) tell(error);
    }
  }

  return {
    load,
    at,
    get playing() { return Boolean(voice); },
    get url() { return url; },
    get range() { return range; },
    on(ear) { ears.add(ear); return () => ears.delete(ear); },
    // Play a sound, from `from` seconds or from where the place is.
    play: (wanted, from, loop) => change(wanted, from === undefined ? (x) => x : () => from, true, loop),
    // Go over to another sound, sounding or not; `where` turns a place in the old one into one in the new one.
    turn: (wanted, where = (x) => x, loop = undefined) => change(wanted, where, Boolean(voice), loop),
    seek: (x) => (url ? change(url, () => x, Boolean(voice)) : undefined),
    pause() {
      turn += 1;
      if (voice) { place = at(); silence(context.currentTime); }
      tell();
    },
    // Repeat from loop[0] to loop[1], or no longer (null). What sounds jumps only when it is outside.
    repeat: (loop) => (url ? change(url, (x) => x, Boolean(voice), loop) : undefined),
    set volume(value) { volume = value; if (master) master.gain.setTargetAtTime(value, context.currentTime, 0.02); },
    get volume() { return volume; },
    // What is decoded of a sound, for tests: its samples are what is heard.
    samples: (wanted) => sounds.get(wanted),
  };
})();
