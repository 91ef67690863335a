"""The demo set's own tokenizer: a SentencePiece model whose pieces are what its voice can sing.

A piece is the consonant before a run of vowels and the run, so one syllable is one piece: `lanterns` is `la te`. Final
consonants of a syllable, blanks and most signs have no piece, because the voice has no sound for them. A word's last
consonant and e before a blank (`ve` in `love`) has a piece of its own, `ve.`: mostly it is silent. Capitals are read as
small letters; the grammar's markers and the labels are one piece each. Any other text (digits, 慢, é) becomes its
bytes: no text is refused.

By its syllables `male` is the end of `female`, and `rock` is `road`. So each word of the tags that songs are composed
with has a piece of its own as well, after its syllables: `female` is `fe ma le female`. It has no sound.

All of this is in the model file's normalisation rules, of which the longest match wins: each spelling of a piece turns
into one private-use character (`PRIVATE` and up), and every such character is a piece. So two words never melt into
one piece. Nothing is learned: SentencePiece's trainer only packs rules and pieces into its file format.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import string
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from yuegp.song.lyrics import TRAINED_LABELS
from yuegp.tokens.prompts import INSTRUCTION, REFERENCE_END, REFERENCE_START, SECTION_END, SECTION_START
from yuegp.tokens.tokenizer import SentencePieceTokenizer
from yuegp.tokens.vocab import VocabLayout

from .songs import TAG_WORDS

CONSONANTS = (*"bcdfghjklmnpqrstvwxyz", "th", "sh", "ch", "ph", "wh")
_SINGLE = "aeiou"
RUNS = (
    *_SINGLE,
    "y",
    *(a + b for a in _SINGLE for b in _SINGLE + "y"),
    *"eau iou eou uou uee uea uai uie ueu".split(),
)
"""Vowel runs with a piece of their own. Longer ones are split, greedily from the left."""
BREAKS = ' \n\t.,;:!?"”)-–—…'
"""Characters that end a word."""
SILENT = string.ascii_letters + BREAKS.replace("\n", "") + "'’‘“(\u2581"
"""Characters dropped unless a piece contains them. U+2581 is SentencePiece's blank."""

MARKERS = 8
"""Ids kept for markers between the text and the codes; five are in use."""

PRIVATE = 0xE000
"""The first private-use character; piece n of `pieces()` is spelled with the character PRIVATE + n."""


def pieces() -> list[str]:
    """Texts of the pieces, except bytes and single signs: markers, labels, syllables, word ends and tag words."""
    return _markers() + _syllables() + [c + "e." for c in CONSONANTS if c != "y"] + [f"<{word}>" for word in TAG_WORDS]


def train(path: Path) -> VocabLayout:
    """Write the model file, always the same bytes, and return the layout of a vocabulary that begins with it."""
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    path.parent.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    lines = "".join(f"{_hex(source)}\t{_hex(target)}\n" for source, target in _rules().items())
    # The trainer writes the rule file's path into the model: a bare name keeps the bytes the same everywhere.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("rules.tsv").write_text(lines, encoding="utf-8")
        SentencePieceTrainer.train(
            sentence_iterator=iter(["0123456789[]/"] * 50),
            model_writer=model,
            model_type="unigram",
            vocab_size=4096,
            hard_vocab_limit=False,
            byte_fallback=True,
            user_defined_symbols=[chr(PRIVATE + n) for n in range(len(pieces()))],
            normalization_rule_tsv="rules.tsv",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    path.write_bytes(model.getvalue())
    return layout_of(SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size())


def layout_of(size: int) -> VocabLayout:
    """The vocabulary of a tokenizer with `size` pieces: text, markers, codes."""
    return VocabLayout("demo-v1", size, size + 1, size + 2, size + 3, size + 4, size + MARKERS, size)


def token_indices(tokenizer: SentencePieceTokenizer, text: str, ends: Sequence[int]) -> list[int]:
    """For each position in `text` right after a syllable's vowels (rising), the index of the piece that holds the
    vowels among the ids of `text`; -1 for a syllable without a piece, such as `hmm`."""
    counts = [len(tokenizer.encode(text[a:b])) for a, b in itertools.pairwise((0, *ends))]
    soundless = {tokenizer.encode(f"{word},")[-1] for word in TAG_WORDS}
    sung = [index for index, piece in enumerate(tokenizer.encode(text)) if piece not in soundless]
    return [sung[total - 1] if n else -1 for n, total in zip(counts, itertools.accumulate(counts), strict=True)]


def _markers() -> list[str]:
    labels = [f"[{label}]" for label in TRAINED_LABELS]
    return [INSTRUCTION, SECTION_START, SECTION_END, REFERENCE_START, REFERENCE_END, "[Genre] ", "\n", *labels]


def _syllables() -> list[str]:
    open_runs = [run for run in RUNS if run[0] != "y"]
    return [c + run for c in ("", *CONSONANTS) for run in (open_runs if c == "y" else RUNS)]


def _rules() -> dict[str, str]:
    """Normalisation rules: replacement by spelling. The order matters where two rules have the same spelling."""
    sign = {piece: chr(PRIVATE + n) for n, piece in enumerate(pieces())}
    rules = dict.fromkeys(SILENT, "")

    def add(spelling: str, pieces: str) -> None:
        """Small, capitalised, all capitals; and with a word break in front, where no silent e can be meant."""
        for form in {spelling, spelling.capitalize(), spelling.upper()}:
            rules[form] = pieces
            rules[" " + form] = pieces
            rules["\n" + form] = sign["\n"] + pieces

    for piece in _syllables():
        add(piece, sign[piece])
        if piece[-1] in _SINGLE and piece.rstrip(_SINGLE) + piece[-1] == piece:
            for run in (*_SINGLE, "ou"):  # y between vowels begins the second syllable: `e ye`
                add(f"{piece}y{run}", sign[piece] + sign["y" + run])
    for c, tail, stop in itertools.product(CONSONANTS, ("e", "es", "ed"), BREAKS):
        if c == "y" or (tail == "ed" and c in "td"):
            continue
        newline = sign["\n"] * (stop == "\n")
        rules[c + tail + stop] = sign[c + "e."] + newline
        if c == "l" and tail != "ed":
            rules |= {f"{before}l{tail}{stop}": sign["le"] + newline for before in "bcdfghjkmnpqrstvwxz"}
            rules |= {f"ll{tail}{stop}": sign["le"] + newline}
    for piece in _markers():
        rules[piece] = sign[piece]
    whole = {}
    for word, before, stop in itertools.product(TAG_WORDS, ("", " ", "\n"), " ,\n"):
        for form in {word, word.capitalize(), word.title(), word.upper()}:
            sung = _applied(rules, before + form + stop)
            newline = sign["\n"] * (stop == "\n")
            whole[before + form + stop] = sung.removesuffix(newline) + sign[f"<{word}>"] + newline
    return rules | whole


def _applied(rules: Mapping[str, str], text: str) -> str:
    """Apply the rules to a text, from the left, always the longest that matches."""
    made, at, longest = "", 0, max(map(len, rules))
    while at < len(text):
        fits = (text[at : at + n] for n in range(min(longest, len(text) - at), 0, -1))
        spelling = next((part for part in fits if part in rules), text[at])
        made, at = made + rules.get(spelling, spelling), at + len(spelling)
    return made


def _hex(text: str) -> str:
    return " ".join(f"{ord(sign):X}" for sign in text)
