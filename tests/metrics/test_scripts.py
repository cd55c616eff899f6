"""Texts in a script that is none of their language's."""

# ruff: noqa: RUF001

from __future__ import annotations

import unicodedata

import pytest

from lorsmerge_cli.data.languages import LANGUAGES
from lorsmerge_cli.metrics.scripts import other_script, scripts_of

SAID = {
    "ca": "La nena veu ocells, l'àvia col·labora a 1ª hora", "ru": "Девочка видит птиц", "el": "Το κορίτσι",
    "zh": "女孩看到鸟。", "ja": "女の子はカメラを見る", "ko": "소녀는 새를 본다", "hi": "लड़की पक्षी देखती है",
    "th": "เด็กหญิงเห็นนก", "ar": "الفتاة ترى الطيور", "he": "הילדה רואה", "hy": "Աղջիկը", "ka": "გოგონა",
    "ta": "பெண் பறவை", "am": "ልጅቷ", "my": "မိန်းကလေး", "km": "ក្មេងស្រី", "lo": "ເດັກຍິງ", "bo": "བུ་མོ",
    "bn": "মেয়েটি", "gu": "છોકરી", "pa": "ਕੁੜੀ", "te": "అమ్మాయి", "kn": "ಹುಡುಗಿ", "ml": "പെൺകുട്ടി", "si": "කෙල්ල",
    "sr": "Девојчица", "vi": "Cô bé nhìn thấy chim", "yue": "個女仔睇到雀仔", "fa": "دختر پرنده", "de": "Straße",
}  # fmt: skip


@pytest.mark.parametrize("language", SAID)
def test_a_language_is_written_in_its_own_script(language: str) -> None:
    assert other_script(SAID[language], language) == ""
    other = "ru" if language != "ru" and "Cyrillic" not in scripts_of(language) else "ka"
    if other != language:
        assert other_script(SAID[other], language) == {"ru": "Cyrillic", "ka": "Georgian"}[other]


@pytest.mark.parametrize(
    ("text", "language", "script"),
    [
        ("", "ca", ""), ("123 €!", "ru", ""), ("Привет, Anna", "ca", "Cyrillic"), ("WhatsApp и Оля здесь", "ru", ""),
        ("hola", "ru", "Latin"), ("ＨＥＬＬＯ", "en", ""), ("ﾃｽﾄ", "ja", ""), ("µ", "el", ""), ("abc вгд", "ca", ""),
        ("Zdravo", "sr", ""), ("女孩", "ca", "Cjk"), ("新しいです", "zh", "Hiragana"),
    ],
)  # fmt: skip
def test_scripts_of_texts(text: str, language: str, script: str) -> None:
    assert other_script(text, language) == script


def test_every_language_has_scripts_that_unicode_has() -> None:
    known = {
        unicodedata.name(chr(code), "").partition(" ")[0].capitalize() for code in range(0x30000)
    }
    for language in LANGUAGES:
        assert scripts_of(language)
        assert scripts_of(language) <= known
    assert scripts_of("en") == {"Latin"}
