"""Translate names of languages and tasks, as data sets spell them, into Whisper's codes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from lorsmerge_cli.errors import UsageFault

TASKS = ("asr", "st")
CODE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")  # Whisper's codes, and others of their form
SHOWN = 16  # characters of a value in a message
# Written without spaces between words: Whisper's texts in them begin without one too.
SPACELESS = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km"})
WHISPER_TASKS = {"asr": "transcribe", "st": "translate"}
_TASK_NAMES = {
    "asr": "asr", "transcribe": "asr", "transcription": "asr",
    "st": "st", "ast": "st", "translate": "st", "translation": "st", "s2t_translation": "st",
}  # fmt: skip

# Whisper's code, then other codes of ISO 639-1, -2 and -3 for the language, old ones too; the code of
# the standard variety where 639-3 divides the language
_CODES = """
en eng|zh zho chi cmn|de deu ger|es spa|ru rus|ko kor|fr fra fre|ja jpn|pt por|tr tur|pl pol|ca cat
nl nld dut|ar ara arb|sv swe|it ita|id ind in|hi hin|fi fin|vi vie|he heb iw|uk ukr|el ell gre
ms msa may zsm|cs ces cze|ro ron rum mo mol|da dan|hu hun|ta tam|no nor nb nob|th tha|ur urd
hr hrv scr|bg bul|lt lit|la lat|mi mri mao|ml mal|cy cym wel|sk slk slo|te tel|fa fas per pes prs
lv lav lvs|bn ben|sr srp scc|az aze azj|sl slv|kn kan|et est ekk|mk mkd mac|br bre|eu eus baq|is isl ice
hy hye arm|ne nep npi|mn mon khk|bs bos|kk kaz|sq sqi alb als|sw swa swh|gl glg|mr mar|pa pan|si sin
km khm|sn sna|yo yor|so som|af afr|oc oci|ka kat geo|be bel|tg tgk|sd snd|gu guj|am amh|yi yid ydd ji
lo lao|uz uzb uzn|fo fao|ht hat|ps pus pbt pst pbu|tk tuk|nn nno|mt mlt|sa san|lb ltz|my mya bur
bo bod tib|tl tgl fil|mg mlg plt|as asm|tt tat|haw|ln lin|ha hau|ba bak|jw jv jav|su sun|yue
"""
# English names in the order of the codes, as transformers has them, which takes a second to load
_NAMES = """
english|chinese|german|spanish|russian|korean|french|japanese|portuguese|turkish|polish|catalan
dutch|arabic|swedish|italian|indonesian|hindi|finnish|vietnamese|hebrew|ukrainian|greek|malay
czech|romanian|danish|hungarian|tamil|norwegian|thai|urdu|croatian|bulgarian|lithuanian|latin
maori|malayalam|welsh|slovak|telugu|persian|latvian|bengali|serbian|azerbaijani|slovenian|kannada
estonian|macedonian|breton|basque|icelandic|armenian|nepali|mongolian|bosnian|kazakh|albanian
swahili|galician|marathi|punjabi|sinhala|khmer|shona|yoruba|somali|afrikaans|occitan|georgian
belarusian|tajik|sindhi|gujarati|amharic|yiddish|lao|uzbek|faroese|haitian creole|pashto|turkmen
nynorsk|maltese|sanskrit|luxembourgish|myanmar|tibetan|tagalog|malagasy|assamese|tatar|hawaiian
lingala|hausa|bashkir|javanese|sundanese|cantonese
"""
_ENTRIES = [entry.split() for entry in re.split(r"[|\n]", _CODES.strip())]
LANGUAGES = dict(
    zip((code for code, *_ in _ENTRIES), re.split(r"[|\n]", _NAMES.strip()), strict=True)
)
_ALIASES = {other: code for code, *others in _ENTRIES for other in others}
_ALIASES |= {name: code for code, name in LANGUAGES.items()}
_ALIASES |= {
    "burmese": "my", "valencian": "ca", "flemish": "nl", "haitian": "ht", "letzeburgesch": "lb",
    "pushto": "ps", "panjabi": "pa", "moldavian": "ro", "moldovan": "ro", "sinhalese": "si",
    "castilian": "es", "mandarin": "zh",
}  # fmt: skip
# Languages by the names that their speakers give them
_ALIASES |= {
    "deutsch": "de", "español": "es", "espanol": "es", "castellano": "es", "français": "fr",
    "francais": "fr", "italiano": "it", "català": "ca", "português": "pt", "portugues": "pt",
    "nederlands": "nl", "svenska": "sv", "norsk": "no", "dansk": "da", "suomi": "fi", "polski": "pl",
    "čeština": "cs", "türkçe": "tr", "русский": "ru", "українська": "uk", "ελληνικά": "el",
    "euskara": "eu", "galego": "gl", "cymraeg": "cy", "中文": "zh", "日本語": "ja", "한국어": "ko",
    "العربية": "ar", "हिन्दी": "hi",
}  # fmt: skip
_ALIASES |= {"filipino": "tl", "farsi": "fa", "bokmål": "no", "bokmal": "no"}
_KNOWN = {code: code for code in LANGUAGES} | _ALIASES
# The nearest language that Whisper has, for some that it lacks
_RELATIVES = {
    "ast": "es", "an": "es", "arg": "es", "ckb": "fa", "kmr": "fa", "ku": "fa", "kur": "fa", "arz": "ar",
    "ary": "ar", "apc": "ar", "acm": "ar", "ajp": "ar", "nan": "zh", "wuu": "zh", "hak": "zh",
    "hsn": "zh", "gsw": "de", "nds": "de", "fy": "nl", "fry": "nl", "ga": "en", "gle": "en", "gd": "en",
    "gla": "en", "sco": "en", "ky": "kk", "kir": "kk", "ug": "uz", "uig": "uz", "or": "bn", "ory": "bn",
    "ori": "bn", "ceb": "tl", "sc": "it", "scn": "it", "fur": "it", "vec": "it", "rm": "it", "kea": "pt",
    "hsb": "cs", "rw": "sw", "kin": "sw", "lg": "sw", "lug": "sw", "zu": "sn", "zul": "sn", "xh": "sn",
    "xho": "sn", "dv": "si", "div": "si", "cv": "tt", "chv": "tt", "sah": "tt", "crh": "tr", "mhr": "fi",
    "sh": "hr", "hbs": "hr", "cnr": "sr", "mai": "hi", "bho": "hi",
}  # fmt: skip
_REGION = re.compile(r"[a-z]{2}|\d{3}")
_SCRIPTS = frozenset({
    "arab", "armn", "beng", "cans", "cyrl", "deva", "ethi", "geor", "grek", "gujr", "guru", "hans",
    "hant", "hebr", "hrkt", "jpan", "khmr", "knda", "kore", "laoo", "latn", "mlym", "mong", "mymr",
    "orya", "sinh", "taml", "telu", "thai", "tibt",
})  # fmt: skip
_VARIANTS = frozenset({"valencia", "1901", "1996", "oxendict", "tarask"})
_CANTONESE = frozenset({"hk", "mo", "yue"})  # after zh


def parse_language(name: str) -> str:
    """Return Whisper's code of a language: `ca` of `ca`, `cat`, `Catalan`, `ca-ES` or `ca_es`.

    Args:
        name: a code of ISO 639-1, -2 or -3, a BCP-47 tag, FLEURS' name of a set, or an English name.

    Raises:
        UsageFault: Whisper has no such language.

    Example:
        >>> parse_language("cmn_hans_cn"), parse_language("zh-HK")
        ('zh', 'yue')
    """
    wanted = name.strip().lower().replace("_", "-")
    wanted = re.split("[.@]", wanted)[0]  # as in de_DE.UTF-8
    head, *rest = wanted.split("-")
    if wanted in _KNOWN:
        return str(_KNOWN[wanted])
    tags = all(_REGION.fullmatch(tag) or tag in _SCRIPTS | _VARIANTS | _CANTONESE for tag in rest)
    if tags and head in _KNOWN and head:
        code = str(_KNOWN[head])
        return "yue" if code == "zh" and _CANTONESE.intersection(rest) else code
    raise UsageFault(f"Whisper has no language {name!r}.", _hint(head if tags else wanted, _KNOWN))


def find_language(name: object) -> str | None:
    """Return Whisper's code of a language as `parse_language` does; None if it is the name of none.

    Example:
        >>> find_language("Catalan"), find_language("train"), find_language(None)
        ('ca', None, None)
    """
    try:
        return parse_language(name) if isinstance(name, str) else None
    except UsageFault:
        return None


def _hint(wanted: str, known: dict[str, str]) -> str:
    if wanted in _RELATIVES:
        return f"The nearest that it has is {_RELATIVES[wanted]}; give that if it is what you want."
    # only names are compared: most codes are close to another one
    names = [key for key in known if len(key) > 3 and len(wanted) > 3]
    close = difflib.get_close_matches(wanted, names, n=3)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    near = [key for key in known if wanted and wanted.startswith(f"{key}-")]
    return f"Did you mean {near[0]}?" if near else "Use a code such as ca, or a name."


def parse_task(name: str) -> str:
    """Return `asr` or `st` for a task's name: those, `transcribe`, `translate`, `ast`, ...

    Raises:
        UsageFault: there is no such task.
    """
    task = find_task(name)
    if task is None:
        raise UsageFault(f"There is no task {name!r}.", "Use asr (transcribe) or st (translate).")
    return task


def find_task(name: object) -> str | None:
    """Return `asr` or `st` as `parse_task` does; None if it is the name of none."""
    return _TASK_NAMES.get(name.strip().lower()) if isinstance(name, str) else None


def text_language(language: str, task: str) -> str:
    """Return the language of a text: the one spoken, or English for a translation."""
    return "en" if task == "st" else language


def joined_text(texts: Iterable[str], language: str) -> str:
    """Join texts, with a blank between them in languages that write spaces."""
    return ("" if language in SPACELESS else " ").join(texts)


def check_labels(language: str, task: str) -> None:
    """Check the language and the task that a file names; either may be empty.

    Raises:
        ValueError: it is no language's code, or no task.
    """
    if language and not CODE.fullmatch(language):
        raise ValueError(f"{language[:SHOWN]!r} is no code of a language")
    if task and task not in TASKS:
        raise ValueError(f"{task[:SHOWN]!r} is no task")
