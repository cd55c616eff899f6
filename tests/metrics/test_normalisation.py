"""Normalisation by language: no two words become one, whatever script they are in."""

# ruff: noqa: RUF001  letters that look alike are what it is about

from __future__ import annotations

import json
import unicodedata
from itertools import combinations

import pytest
from transformers.models.whisper.english_normalizer import (
    BasicTextNormalizer,
    EnglishTextNormalizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES
from whisper_package import package_file

from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.metrics.normalisation import (
    CHARACTER_LANGUAGES,
    CHOICES,
    MARK_LANGUAGES,
    NORMALISATIONS,
    SPELLING,
    check_choice,
    normalisation_for,
    normalise,
)
from lorsmerge_cli.metrics.wer import count_errors

# two words or more of each language that differ by a vowel sign, a tone, a dot or an accent alone
WORDS = {
    "ar": "سأل سال|آن ان|كَتَبَ كُتِبَ|درس درّس",
    "as": "কৰ কৰি কাৰ|পানী পানি",
    "az": "qar qır|ışıq işıq|Irak irak",
    "be": "вуліца вўліца|еш ёш",
    "bg": "и ѝ|край краи",
    "bn": "কার কর কারা|বাড়ি বাডি|দিন দীন",
    "bo": "ཀ ཀི ཀུ ཀེ ཀོ|ལ ལྷ",
    "ca": "dona dóna|mes més|os ós",
    "cs": "byt být|rada ráda řada",
    "da": "for får før",
    "de": "schon schön|zahlen zählen|Masse Maße",
    "el": "πότε ποτέ|γέρος γερός|νόμος νομός",
    "es": "ano año|papa papá|si sí",
    "et": "tee töö|sada säda",
    "fa": "آب اب|مَرد مُرد",
    "fi": "tapa tapä|saa sää",
    "fr": "du dû|ou où|pêcheur pécheur|mais maïs",
    "gu": "કલ કાલ કીલ|દિન દીન",
    "ha": "ƙasa kasa|بَبَ بِبِ",
    "haw": "pau paʻu pāʻū",
    "he": "שׁר שׂר|סֵפֶר סַפָּר סְפָר",
    "hi": "कम काम|दिन दीन|बाग बाघ|जरा ज़रा|किताब कताब",
    "hr": "kos koš|sto što",
    "hu": "kor kór kör|öt őt",
    "is": "ar ár|fara fára",
    "it": "e è|papa papà|pero però",
    "ja": "か が|は ば ぱ|カキ ガギ|ビル ビール",
    "jw": "ꦏ ꦏꦶ ꦏꦸ ꦏꦺ",
    "ka": "კარი ქარი",
    "kk": "тұз түз|қар кар",
    "km": "ក កា កិ កី កុ|ដៃ ដើ",
    "kn": "ಕಲ ಕಾಲ ಕಲೆ|ದಿನ ದೀನ",
    "ko": "달 딸 탈|사과 사고",
    "ln": "mokɔ́lɔ mokɔlɔ́ mokɔlɔ|ɛ́ ɛ̂",
    "lo": "ກາ ກິ ກີ ກຳ|ຂ້າ ຂ່າ ຂາ",
    "lt": "ji jį|karta kartą",
    "lv": "kazas kāzas|tevs tēvs",
    "mg": "n̈a na|ao aô",
    "mi": "keke kēkē|mata matā",
    "mk": "ќе ке|не нè",
    "ml": "കല കാല കലി|പുസ്തകം പുസ്തക",
    "mr": "कर कार कीर|दिवस दीवस",
    "mt": "ħall hall|ġara gara|żir zir",
    "my": "က ကာ ကိ ကီ ကု|ငါ ငါး ငါ့|၌ ၍ ၏",
    "ne": "कल काल कील|बाटो बाटा",
    "nl": "een één|voor vóór",
    "no": "for får fôr",
    "pa": "ਕਲ ਕਾਲ ਕੀਲ|ਸ਼ਰਮ ਸਰਮ|ਪਤਾ ਪੱਤਾ",
    "pl": "sad sąd|kat kąt|los łoś",
    "ps": "يم ېم ۍم|مَر مُر",
    "pt": "avo avó avô|pais país",
    "ro": "fata fată față|tari țări",
    "ru": "мой мои|все всё|край краи|мука́ му́ка",
    "sa": "नर नार नारी|कर्म करम|रामः राम",
    "sd": "۾ ۽|ڪَر ڪُر",
    "si": "කල කාල කැල කිල|ගම ගාම",
    "sk": "lad ľad|pas pás",
    "sl": "kosa koša|se še",
    "sn": "bara bhara",
    "sq": "me më|cap çap",
    "sr": "кућа куча|ђак џак|sat šat",
    "su": "ᮊ ᮊᮤ ᮊᮥ",
    "sv": "mal mål mäl|for för får",
    "ta": "கல் கால் கில்|கல கல்|பழம் பழ",
    "te": "కల కాల కల్ల|పని పాని",
    "tg": "кӯр кур|сӣ си",
    "th": "มา ม้า หมา|ปี ปิ|เขา เข้า ขาว|น้ำ นำ น้า",
    "tk": "at ät|ol öl",
    "tr": "sık sik|ölmek olmak|kar kâr|açı acı|Irak irak|ISI isi",
    "uk": "мій міи|їжа іжа|об'єкт обєкт",
    "ur": "آم ام|اِس اُس|گھر گھرّ",
    "uz": "oʻt ot|sogʻ sog",
    "vi": "ma má mà mả mã mạ|cô co cơ|đi di",
    "yi": "אַ אָ א|װאָס װאַס|פּאָר פֿאָר|ייִד ייד",
    "yo": "ọkọ ọkọ̀ ọkọ́ oko|ìgbà igbá",
    "yue": "買 賣",
    "zh": "买 卖",
}  # fmt: skip
SCRIPTS = {  # first and last code point of the letters and signs of a script
    "hi": (0x0900, 0x097F), "bn": (0x0980, 0x09FF), "pa": (0x0A00, 0x0A7F), "gu": (0x0A80, 0x0AFF),
    "ta": (0x0B80, 0x0BFF), "te": (0x0C00, 0x0C7F), "kn": (0x0C80, 0x0CFF), "ml": (0x0D00, 0x0D7F),
    "si": (0x0D80, 0x0DFF), "th": (0x0E00, 0x0E7F), "lo": (0x0E80, 0x0EFF), "bo": (0x0F00, 0x0FBC),
    "my": (0x1000, 0x109F), "km": (0x1780, 0x17DD), "jw": (0xA980, 0xA9CF), "su": (0x1B80, 0x1BBF),
    "he": (0x0591, 0x05F4), "ar": (0x0610, 0x06FF), "am": (0x1200, 0x135A), "ka": (0x10D0, 0x10FA),
    "hy": (0x0561, 0x0586), "el": (0x03AC, 0x03CE), "ru": (0x0430, 0x045F), "kk": (0x048A, 0x052F),
    "fr": (0x00DF, 0x00FF), "cs": (0x0100, 0x017E), "vi": (0x1E00, 0x1EF9), "ko": (0xAC00, 0xB000),
    "ja": (0x30A1, 0x30FF),
}  # fmt: skip


def by_default(text: str, language: str) -> str:
    found = normalise(text, normalisation_for(language))
    return found.replace(" ", "") if language in CHARACTER_LANGUAGES else found


def pairs() -> list[tuple[str, str, str]]:
    return [
        (language, *pair)
        for language, groups in WORDS.items()
        for words in groups.split("|")
        for pair in combinations(words.split(), 2)
    ]


@pytest.mark.parametrize(("language", "a", "b"), pairs())
def test_two_words_are_never_one_by_default(language: str, a: str, b: str) -> None:
    assert language in LANGUAGES
    for form in ("NFC", "NFD"):
        one, other = (unicodedata.normalize(form, word) for word in (a, b))
        assert by_default(one, language) != by_default(other, language)
        unit = "char" if language in CHARACTER_LANGUAGES else "word"
        how = normalisation_for(language)
        assert count_errors(normalise(one, how), normalise(other, how), unit).errors


@pytest.mark.parametrize("language", sorted(set(WORDS) - {"en"}))
def test_composed_and_decomposed_spelling_are_one(language: str) -> None:
    for word in WORDS[language].replace("|", " ").split():
        spelt = {by_default(unicodedata.normalize(form, word), language) for form in ("NFC", "NFD")}
        assert len(spelt) == 1


def letters(first: int, last: int) -> list[str]:
    """Letters of a block, and with every mark on the first of them; none a form of another."""
    known = [chr(n) for n in range(first, last + 1) if unicodedata.name(chr(n), "")]
    known = [c for c in known if unicodedata.normalize("NFKC", c) == c]  # no compatibility forms
    alone = [c for c in known if unicodedata.category(c) in ("Lo", "Ll")]
    marks = [c for c in known if unicodedata.category(c) in ("Mn", "Mc")]
    combined = (unicodedata.normalize("NFC", alone[0] + mark) for mark in marks)
    return list(dict.fromkeys([*alone, *combined]))


@pytest.mark.parametrize("language", SCRIPTS)
def test_no_letter_or_sign_of_a_script_is_lost(language: str) -> None:
    found = letters(*SCRIPTS[language])
    assert len(found) > 20
    words = {by_default(f"{letter}{found[-1]}", language) for letter in found}
    assert len(words) == len(found)
    assert all(word and " " not in word for word in words)


def test_languages_of_the_table_are_whispers() -> None:
    assert set(LANGUAGES) >= MARK_LANGUAGES | CHARACTER_LANGUAGES
    assert {normalisation_for(code) for code in LANGUAGES} == {
        "basic", "marks", "english", "turkish",
    }  # fmt: skip
    assert all(normalisation_for(code, how) == how for code in LANGUAGES for how in NORMALISATIONS)


@pytest.mark.parametrize("text", ["Straße, ﬁn №5 (riu)", "L'any [soroll] ÉS", "ｶﾞｷﾞ １２"])
def test_basic_is_whispers(text: str) -> None:
    assert normalise(text, "basic") == BasicTextNormalizer()(text).strip()


ENGLISH = [
    ("I'm going to the colour centre, it's Mr. Smith",
     "I am going to the color center it is mister Smith"),
    ("twenty five dollars", "$25"),
    ("Uh, we won't analyse it", "we will not analyze it"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), ENGLISH)
def test_english_is_whispers(a: str, b: str) -> None:
    table = json.loads(package_file("normalizers/english.json").read_text())
    reference = EnglishTextNormalizer(table)
    for text in (a, b):
        assert normalise(text, "english") == reference(text).strip()
    assert by_default(a, "en") == by_default(b, "en")
    assert by_default(a, "de") != by_default(b, "de")


def test_the_spelling_table_is_openais() -> None:
    ours = json.loads(SPELLING.read_text(encoding="utf-8"))
    assert ours == json.loads(package_file("normalizers/english.json").read_text())


def test_capitals_of_turkish() -> None:
    assert normalise("İSTANBUL'da IŞIK", "turkish") == "istanbul da ışık"
    assert normalise(unicodedata.normalize("NFD", "İyi ILIK"), "turkish") == "iyi ılık"


def test_a_zero_width_space_parts_words() -> None:
    assert normalise("ភាសា\u200bខ្មែរ", "marks") == "ភាសា ខ្មែរ"


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    assert not [fault for how in CHOICES for fault in check_choice(how)]
    (fault,) = check_choice("anglish")
    assert isinstance(fault, UsageFault)
    assert "'anglish'. Use auto, raw, basic, marks, english, turkish, leaderboard." in str(fault)
