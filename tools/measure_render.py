"""Memory and time of turning a song's codes into stems and mix, at the released widths, with random weights.

    python tools/measure_render.py [--seconds 180] [--threads 1] [--folder FOLDER] [--json]

`--folder` is a codec folder in the released layout; without it one is written to a temporary place (450 MB). Extra
memory is the process's highest resident size minus its size once codec and both upsamplers are loaded. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def measure(seconds: float = 180.0, threads: int = 1, folder: Path | None = None) -> dict[str, Any]:
    """Render `seconds` of random codes of both tracks, mix and write them, in a process of its own.

    Returns seconds of wall time by step (`load`, `vocal`, `instrumental`, `mix`, `write`), `loaded_mb`, `extra_mb`."""
    with tempfile.TemporaryDirectory() as place:
        if folder is None:
            from tools.make_set import SIZES, write_codec

            folder = Path(place) / "codec"
            write_codec(folder, SIZES["released"].codec, seed=0)
        command = [sys.executable, __file__, "--inside", place, "--folder", str(folder)]
        command += ["--seconds", str(seconds), "--threads", str(threads)]
        env = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, encoding="utf-8", check=True)
        return json.loads(done.stdout)


def _inside(seconds: float, threads: int, folder: Path, place: Path) -> dict[str, Any]:
    import resource

    import numpy as np
    import torch

    from yuegp.audio import files, mix
    from yuegp.codec import load_codec, load_upsampler, render_track
    from yuegp.song.schema import Track

    torch.set_num_threads(threads)
    result: dict[str, Any] = {"seconds": seconds, "threads": threads}
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        result[name] = round(time.perf_counter() - clock, 2)
        clock = time.perf_counter()

    codec = load_codec(folder)
    upsamplers = {track: load_upsampler(folder, track) for track in Track}
    loaded = int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * resource.getpagesize() / 1e6
    lap("load")
    frames = round(seconds * codec.frame_rate)
    codes = np.random.default_rng(0).integers(0, codec.codebook_size, (2, 8, frames)).astype(np.int16)
    waves: list[np.ndarray] = []
    for track in Track:
        waves += render_track(codec, upsamplers[track], codes[track])
        lap(track.name.lower())
    finished = mix.finish(*waves)
    lap("mix")
    for name in ("vocal", "instrumental", "mix"):
        files.write(place / f"{name}.flac", getattr(finished, name), mix.RATE)
    lap("write")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return result | {"loaded_mb": round(loaded), "extra_mb": round(peak - loaded)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and time of rendering a song at the released widths.")
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="a codec folder; random weights without it")
    parser.add_argument("--json", action="store_true", help="one line of JSON only")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        print(json.dumps(_inside(args.seconds, args.threads, args.folder, args.inside)))
        return
    result = measure(args.seconds, args.threads, args.folder)
    if args.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name:>14}  {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
