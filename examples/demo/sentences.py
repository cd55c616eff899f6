"""A small grammar: sentences of four to eight words in five languages, and their English.

Every sentence is a meaning (which subject, verb, number, ...) that each language words its own
way, so translations are exact and no corpus has to be downloaded.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

LANGUAGES = ("ca", "de", "es", "fr", "it")

# One line per meaning: English, then ca, de, es, fr, it. Nouns are plural and end with the
# gender of the four Romance languages; colours have a masculine and a feminine plural.
SUBJECTS = """
the teacher | el mestre | der Lehrer | el maestro | le maître | il maestro
my sister | la meva germana | meine Schwester | mi hermana | ma sœur | mia sorella
the doctor | el metge | der Arzt | el médico | le médecin | il medico
her brother | el seu germà | ihr Bruder | su hermano | son frère | suo fratello
the girl | la nena | das Mädchen | la niña | la fille | la ragazza
the neighbour | el veí | der Nachbar | el vecino | le voisin | il vicino
our grandmother | la nostra àvia | unsere Großmutter | nuestra abuela | notre grand-mère | nostra nonna
the farmer | el pagès | der Bauer | el granjero | le fermier | il contadino
"""
VERBS = """
buys | compra | kauft | compra | achète | compra
sees | veu | sieht | ve | voit | vede
sells | ven | verkauft | vende | vend | vende
paints | pinta | malt | pinta | peint | dipinge
finds | troba | findet | encuentra | trouve | trova
carries | porta | trägt | lleva | porte | porta
wants | vol | will | quiere | veut | vuole
counts | compta | zählt | cuenta | compte | conta
"""
NUMBERS = """
three | tres | drei | tres | trois | tre
four | quatre | vier | cuatro | quatre | quattro
five | cinc | fünf | cinco | cinq | cinque
six | sis | sechs | seis | six | sei
seven | set | sieben | siete | sept | sette
nine | nou | neun | nueve | neuf | nove
"""
NOUNS = """
houses | cases f | Häuser | casas f | maisons f | case f
books | llibres m | Bücher | libros m | livres m | libri m
apples | pomes f | Äpfel | manzanas f | pommes f | mele f
chairs | cadires f | Stühle | sillas f | chaises f | sedie f
shoes | sabates f | Schuhe | zapatos m | chaussures f | scarpe f
letters | cartes f | Briefe | cartas f | lettres f | lettere f
birds | ocells m | Vögel | pájaros m | oiseaux m | uccelli m
flowers | flors f | Blumen | flores f | fleurs f | fiori m
hats | barrets m | Hüte | sombreros m | chapeaux m | cappelli m
keys | claus f | Schlüssel | llaves f | clés f | chiavi f
boats | vaixells m | Boote | barcos m | bateaux m | barche f
glasses | gots m | Gläser | vasos m | verres m | bicchieri m
"""
COLOURS = """
red | vermells vermelles | rote | rojos rojas | rouges rouges | rossi rosse
white | blancs blanques | weiße | blancos blancas | blancs blanches | bianchi bianche
black | negres negres | schwarze | negros negras | noirs noires | neri nere
yellow | grocs grogues | gelbe | amarillos amarillas | jaunes jaunes | gialli gialle
green | verds verdes | grüne | verdes verdes | verts vertes | verdi verdi
small | petits petites | kleine | pequeños pequeñas | petits petites | piccoli piccole
"""
PLACES = """
in the kitchen | a la cuina | in der Küche | en la cocina | dans la cuisine | in cucina
at the market | al mercat | auf dem Markt | en el mercado | au marché | al mercato
in the garden | al jardí | im Garten | en el jardín | dans le jardin | nel giardino
at school | a l'escola | in der Schule | en la escuela | à l'école | a scuola
on the beach | a la platja | am Strand | en la playa | à la plage | sulla spiaggia
in the street | al carrer | auf der Straße | en la calle | dans la rue | per strada
in the village | al poble | im Dorf | en el pueblo | au village | nel paese
at the station | a l'estació | am Bahnhof | en la estación | à la gare | alla stazione
"""
DAYS = """
on Monday | dilluns | am Montag | el lunes | lundi | lunedì
on Tuesday | dimarts | am Dienstag | el martes | mardi | martedì
on Wednesday | dimecres | am Mittwoch | el miércoles | mercredi | mercoledì
on Thursday | dijous | am Donnerstag | el jueves | jeudi | giovedì
on Friday | divendres | am Freitag | el viernes | vendredi | venerdì
on Saturday | dissabte | am Samstag | el sábado | samedi | sabato
on Sunday | diumenge | am Sonntag | el domingo | dimanche | domenica
"""
# S subject, V verb, N number and noun, C the same with a colour, P place, D day
TEMPLATES = ("SVN", "SVC", "SVNP", "SVND", "DSVN", "PSVN", "DSVC")

_COLUMN = {"en": 0, "ca": 1, "de": 2, "es": 3, "fr": 4, "it": 5}


def _table(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]


_WORDS = {
    "S": _table(SUBJECTS), "V": _table(VERBS), "#": _table(NUMBERS), "N": _table(NOUNS),
    "C": _table(COLOURS), "P": _table(PLACES), "D": _table(DAYS),
}  # fmt: skip


@dataclass(frozen=True)
class Sentence:
    """One meaning in one language and in English, lower case, without punctuation."""

    text: str
    english: str


def draw(language: str, rng: random.Random) -> Sentence:
    """A sentence at random."""
    template = rng.choice(TEMPLATES)
    choice = {kind: rng.randrange(len(rows)) for kind, rows in _WORDS.items()}
    return Sentence(_say(template, choice, language), _say(template, choice, "en"))


def words(language: str) -> list[str]:
    """Every word that a sentence of the language may hold, sorted."""
    column = _COLUMN[language]
    cells = [row[column].split(" ") for rows in _WORDS.values() for row in rows]
    return sorted({word.lower() for cell in cells for word in cell if word not in ("m", "f")})


def _say(template: str, choice: dict[str, int], language: str) -> str:
    def word(kind: str) -> str:
        return _WORDS[kind][choice[kind]][_COLUMN[language]]

    noun, _, gender = word("N").partition(" ")
    colour = word("C").split(" ")[gender == "f"] if gender else word("C")
    romance = language not in ("en", "de")
    coloured = f"{noun} {colour}" if romance else f"{colour} {noun}"
    phrases = {
        "S": word("S"), "V": word("V"), "P": word("P"), "D": word("D"),
        "N": f"{word('#')} {noun}", "C": f"{word('#')} {coloured}",
    }  # fmt: skip
    order = template
    if language == "de" and template[0] in "DP":  # the verb is second in German
        order = template[0] + "VS" + template[3:]
    return " ".join(phrases[kind] for kind in order).lower()
