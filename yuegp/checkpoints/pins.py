"""Commits and file checksums of the published repositories when this program was made.

Data only: `registry` says what the repositories are for, `download` compares what arrives. Sources: for the commits,
those SceneWorks' engine for YuE was made with; for the checksums, the hub's pages and audits that quote its API. A file
not listed here has no published checksum; it is compared with the hub's.
"""

from __future__ import annotations

from typing import NamedTuple


class Pinned(NamedTuple):
    """One file at the pinned commit."""

    sha256: str
    """64 hexadecimal digits, or the first 16 where the publisher gives no more."""
    size: int | None = None
    """Bytes; None if only a rounded number is published."""


COMMITS = {
    "m-a-p/YuE-s1-7B-anneal-en-cot": "454c20e1748888800f8e4b3da45125f55482d967",
    "m-a-p/YuE-s1-7B-anneal-en-icl": "024ea105533fdd99f8a67ee75abce61c7b813938",
    "m-a-p/YuE-s1-7B-anneal-zh-cot": "46b16f41821b3cab5af17146e703a61c3db1af66",
    "m-a-p/YuE-s1-7B-anneal-zh-icl": "e631706ec784e48ba646f0fdfc3d4d7fc1fa6d72",
    "m-a-p/YuE-s1-7B-anneal-jp-kr-cot": "9dd546b94b2316c0b994176c98c831d74f66a425",
    "m-a-p/YuE-s1-7B-anneal-jp-kr-icl": "2e34fc94fa01e02b1d3d6f687ac9ac88ebaa9a74",
    "m-a-p/YuE-s2-1B-general": "9dfa90b7013f6b5e7eb5eb2991620dca33058a0e",
    "m-a-p/xcodec_mini_infer": "fe781a67815ab47b4a3a5fce1e8d0a692da7e4e5",
}
"""Commit by repository. Other repositories are downloaded at the newest commit of their branch."""

_TOKENIZER = Pinned("ee5c7cbf32da93989f14d9ba635e3e1d1ab2cc88a92908a5ed0f149375f6ee49", 1_761_962)
"""The tokenizer, the same in every repository of YuE v1's makers."""


def _shards(*sums: str) -> dict[str, Pinned]:
    return {f"model-{n:05}-of-{len(sums):05}.safetensors": Pinned(sha256) for n, sha256 in enumerate(sums, 1)}


FILES: dict[str, dict[str, Pinned]] = {
    **{repo: {"tokenizer.model": _TOKENIZER} for repo in COMMITS if "/YuE-" in repo},
    "m-a-p/xcodec_mini_infer": {
        "final_ckpt/ckpt_00360000.pth": Pinned(
            "c8c379ea2d3cbde1c8ba1b9717975220e79ba3f556bb161766fd5e4585dcd59c", 1_360_444_883
        ),
        "decoders/decoder_131000.pth": Pinned(
            "b99f0be84eeef3a32f29cd55beb89727fd0b2fd0df3dbad3023508f4c7185c37", 72_611_958
        ),
        "decoders/decoder_151000.pth": Pinned(
            "8af97a29d3483f9d4a3755992837501bd7d6caa1a69382ed16e64039e0ea0998", 72_610_550
        ),
    },
    "SceneWorks/xcodec-mini-infer": {
        "final_ckpt/ckpt_00360000.safetensors": Pinned("b8467e2173e15ffa"),
        "decoders/decoder_131000.safetensors": Pinned("de479526121d6be8"),
        "decoders/decoder_151000.safetensors": Pinned("e961e2c9f1220bdc"),
    },
}
"""File checksums by repository, at the commit in `COMMITS` (without one, at any)."""

FILES["m-a-p/YuE-s1-7B-anneal-en-cot"] |= _shards(
    "93c6f48ec95c0e36e681fb1c200754b9e39b9d7603ebdee88580429b526a86b2",
    "d9a7c7adf0142010ea7fb2d6d60b2698b86f36847d00d0afa4170c3a9fb66a9c",
    "c4c9f1d21524ad189e63230a62a62997c52205f9ce3099948c7fc3d27385d0dc",
)
FILES["m-a-p/YuE-s1-7B-anneal-en-icl"] |= _shards(
    "ebd58560f2fcaf0b805775ae86580b56cad381cde6c30e6a0a85f13dd8d265b6",
    "47599ce66b20ea26ce0155bebd207bc083178534e19b4adfa34eb775fdecb725",
    "7b09d57129feeb2e434f1ac64070ae0db57571b556f39778348239ec69687141",
)
FILES["m-a-p/YuE-s1-7B-anneal-zh-cot"] |= _shards(
    "f48d5b56f76dfd4e67f6ebda63426605be1f31d8ff3b2ac1bcfb996f5f738e48",
    "a5a84f1239efe3eee6c41154c5f52bbaa1210fe73aa57e43aeb0e12f957ca335",
    "23d87cd6d87458dc03bbd1d0286bf8fdd4b6857954ff312b45d98ea0ef645850",
)
FILES["m-a-p/YuE-s2-1B-general"] |= {
    "model.safetensors": Pinned("87839fa9693a15d84c6bc96df2ac270063d4d87598b0fd0555996fe934fdf42f")
}
