"""The songs a model is sampled from for calibration: a fixed spread of tags and languages, by number and seed.

Calibration wants what the model will meet: its own audio codes behind real prompts, in every genre and language it was
trained for, with section borders. The lyrics are ours.
"""

from __future__ import annotations

from yuegp.checkpoints.sets import ModelSet
from yuegp.song.schema import Section, SongRequest

SEED = 5_000
"""Song n of a recipe is drawn with this seed plus n, unless another base is given."""

HELD_OUT = 5
"""Every so many songs one is kept back, for judging what the others calibrated."""

TAGS = (
    "inspiring female uplifting pop airy vocal electronic bright vocal",
    "male rock energetic electric guitar drums gritty vocal",
    "folk acoustic guitar melancholic male mellow vocal",
    "female R&B soulful smooth piano warm vocal",
    "hiphop male rap bass dark drum machine clear vocal",
    "female jazz romantic saxophone piano sweet vocal",
    "metal male aggressive electric guitar powerful vocal",
    "dance electronic female happy synthesizer bright vocal",
    "country male hopeful acoustic guitar banjo full vocal",
    "female ballad sad strings piano emotional soft vocal",
    "punk male angry guitar drums shouting vocal",
    "ambient female peaceful synthesizer ethereal airy vocal",
)
"""Twelve corners of the vocabulary: both voices, fast and slow, bright and dark."""

LYRICS: dict[str, tuple[tuple[str, str], ...]] = {
    "en": (
        (
            "verse",
            "Window down and the radio low\nWe take the road where the wild herbs grow\nNobody waits and nobody calls\n"
            "Only the light on the old stone walls",
        ),
        (
            "chorus",
            "Stay till the morning, stay till the rain\nCarry me over the river again\n"
            "Stay till the colours come into the sky\nStay and I will not ask you why",
        ),
        (
            "verse",
            "Seven small towns and a market square\nBread in a basket and dust in the air\n"
            "You learned the names of the stars from the sea\nNow you are teaching them softly to me",
        ),
        ("outro", "Stay till the morning\nStay till the rain"),
    ),
    "zh": (
        ("verse", "巷口的灯亮到了天明\n晒在绳上的衬衫被风吹醒\n你把旧单车推过桥头\n车铃响了一声又一声"),
        ("chorus", "等雨停了我们就出发\n带上一把伞和半个西瓜\n等雨停了什么都不怕\n一路唱到大海的家"),
        ("verse", "外婆的院子种满了豆角\n竹椅上的猫睡得正好\n你说夏天走得太快\n我说明年它还会来"),
        ("outro", "等雨停了\n我们就出发"),
    ),
    "ja": (
        ("verse", "夜明けの駅にひとり立って\n白い息を空へ返す\n遠い町から手紙が来た\n青いインクの短いことば"),
        (
            "chorus",
            "歩いてゆこう川の向こうへ\n名前のない花が咲いている\n歩いてゆこう声を合わせて\n朝の光がほどけるまで",
        ),
        ("verse", "古い映画の終わりのように\n街の灯りがにじんでゆく\n忘れたはずのあの歌を\n君がまた口ずさんでいた"),
        ("outro", "歩いてゆこう\n川の向こうへ"),
    ),
    "ko": (
        ("verse", "골목 끝에 작은 가게\n불빛 아래 고양이 하나\n네가 두고 간 우산 위로\n가을비가 노래를 해"),
        ("chorus", "천천히 걸어가자 우리\n바람이 부는 언덕까지\n천천히 불러 보자 우리\n아침이 문을 열 때까지"),
        ("verse", "오래된 책의 마지막 장\n접어 둔 자리에 꽃잎 하나\n말하지 못한 그 이야기\n이제야 너에게 들려줄게"),
        ("outro", "천천히 걸어가자\n우리"),
    ),
}

_LANGUAGES = {"en": ("en",), "zh": ("zh",), "jp-kr": ("ja", "ko")}


def languages(model: ModelSet) -> tuple[str, ...]:
    """Languages a set is sampled in: its own, or English for one that sings anything."""
    return _LANGUAGES.get(model.language, ("en",))


def request(model: ModelSet, number: int, seed: int = SEED) -> SongRequest:
    """Song `number` of the recipe, from 0: tags and languages in turn, drawn as the set recommends."""
    spoken = languages(model)
    return SongRequest(
        sections=tuple(Section(label, words) for label, words in LYRICS[spoken[number % len(spoken)]]),
        tags=TAGS[number % len(TAGS)],
        title=title(number, seed),
        seed=seed + number,
        model=model.id,
        sampling=model.sampling,
    )


def title(number: int, seed: int = SEED) -> str:
    """By which a song of the recipe is found again."""
    return f"calibration {seed} {number:03}"
