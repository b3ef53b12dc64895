"""What the simulated model knows: the tickets' phrases, the questions, moods. Touches: nothing.

`scripts/sample_data` writes the questions to `sample_data/`, and checks that every ticket it makes
is labelled by these phrases as intended, so the gold columns and the simulated answers agree.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["LABELS", "MOODS", "PHRASES", "QUESTIONS", "Question"]


class Question(NamedTuple):
    """A question with the one right answer; wrong ones are taken from the same subject."""

    subject: str
    question: str
    gold: str


PHRASES: dict[str, dict[int, tuple[str, ...]]] = {
    "billing": {
        3: (
            "charged twice",
            "double charge",
            "invoice",
            "refund",
            "money back",
            "overcharged",
            "billed",
            "payment method",
            "vat number",
            "direct debit",
            "promo code",
            "bank statement",
            "rechnung",
            "abgebucht",
            "erstattung",
            "lastschrift",
            "factura",
            "cobrado",
            "cobro",
            "reembolso",
            "결제",
            "환불",
            "청구",
            "영수증",
        ),
        1: ("credit card", "subscription", "kreditkarte", "tarjeta", "카드"),
    },
    "bug": {
        3: (
            "crash",
            "error message",
            "freezes",
            "blank page",
            "white screen",
            "nothing happens",
            "stopped working",
            "error 500",
            "stack trace",
            "won't load",
            "spinner",
            "wrong total",
            "garbled",
            "stürzt",
            "fehlermeldung",
            "funktioniert nicht",
            "bleibt leer",
            "no funciona",
            "se cierra sol",
            "pantalla en blanco",
            "mensaje de error",
            "오류",
            "버그",
            "멈춰",
            "작동하지",
        ),
        1: ("since the update", "seit dem update", "reinstall", "업데이트 이후"),
    },
    "account": {
        3: (
            "password",
            "log in",
            "locked out",
            "two-factor",
            "delete my account",
            "my email address",
            "sign in",
            "reset link",
            "username",
            "my profile",
            "admin rights",
            "passwort",
            "einloggen",
            "konto löschen",
            "e-mail-adresse ändern",
            "contraseña",
            "iniciar sesión",
            "darme de baja",
            "비밀번호",
            "로그인",
            "계정",
            "탈퇴",
        ),
        1: ("verification code", "mi cuenta", "mein konto", "인증"),
    },
    "shipping": {
        3: (
            "parcel",
            "tracking number",
            "tracking page",
            "delivered",
            "courier",
            "has not arrived",
            "never arrived",
            "out for delivery",
            "customs",
            "at the depot",
            "wrong item",
            "paket",
            "lieferung",
            "sendung",
            "zugestellt",
            "paquete",
            "envío",
            "repartidor",
            "택배",
            "배송",
            "운송장",
        ),
        1: ("delivery", "the box", "neighbour", "nachbar", "entrega", "도착"),
    },
    "feature": {
        3: (
            "would be great if",
            "feature request",
            "please add",
            "any plans to",
            "could you add",
            "wish there was",
            "would love to see",
            "would help us if",
            "on your roadmap",
            "is missing an option",
            "would like to be able to",
            "a suggestion",
            "wäre schön, wenn",
            "wünsche mir",
            "könntet ihr",
            "vorschlag",
            "sería genial",
            "podrían añadir",
            "me gustaría poder",
            "추가해",
            "있으면 좋겠",
            "제안",
        ),
        1: ("dark mode", "shortcut", "integration", "dunkelmodus", "modo oscuro", "다크 모드"),
    },
    "praise": {
        3: (
            "thank you so much",
            "keep up the",
            "best support",
            "just wanted to say",
            "big fan",
            "amazing work",
            "five stars",
            "made my day",
            "so impressed",
            "hats off",
            "a pleasure to use",
            "compliments to",
            "großes lob",
            "begeistert",
            "weiter so",
            "enhorabuena",
            "encantad",
            "excelente servicio",
            "최고",
            "감동",
            "칭찬",
            "마음에 들",
        ),
        1: ("fantastic", "wonderful", "love it", "klasse", "genial", "훌륭"),
    },
}
"""By label, by weight: 3 decides, 1 only leans. Lower case, found anywhere in a ticket."""

LABELS = tuple(PHRASES)

MOODS: dict[str, str] = {
    "positive": (
        "good great excellent amazing awesome love loved loves perfect wonderful fantastic happy"
        " nice best brilliant superb enjoyed pleasant delighted recommend thanks gut toll super"
        " wunderbar bueno excelente genial encanta 좋아요 최고 감사합니다"
    ),
    "negative": (
        "bad terrible awful horrible hate hated worst broken poor disappointed disappointing angry"
        " slow useless annoying waste rude never boring sad schlecht furchtbar schrecklich malo"
        " terribles pésimo horribles 싫어요 최악 실망"
    ),
}
"""By mood, the words that carry it, parted by spaces."""

_FACTS = {
    "arithmetic": """
        A baker fills 7 trays with 12 rolls each and sells 59 of them. How many rolls are left? | 25
        Mina reads 18 pages on each weekday and 40 pages on each weekend day. \
How many pages does she read in one week? | 170
        A cinema has 14 rows of 22 seats, and 37 seats are empty. How many seats are taken? | 271
        Four friends share a bill of 92 euros equally. How many euros does each of them pay? | 23
        A tank holds 240 litres and loses 6 litres every hour. After how many hours is it empty? | 40
        Tickets cost 9 dollars for adults and 5 dollars for children. \
What do 3 adults and 4 children pay together, in dollars? | 47
        A shirt costs 60 euros and is reduced by 15 percent. What does it cost now, in euros? | 51
        A train covers 330 kilometres in 3 hours. What is its average speed in km/h? | 110
        Jonas has twice as many stamps as Ida, and together they have 147. \
How many stamps does Jonas have? | 98
        A garden is 16 metres long and 9 metres wide. How many metres of fence go around it? | 50
        A farmer packs 500 eggs into boxes of 12. How many eggs are left over? | 8
        A phone plan costs 11 dollars a month plus 20 dollars once. \
What does the first year cost, in dollars? | 152
        Six machines make 54 parts in an hour. How many parts do ten such machines make in an hour? \
| 90
        Soyeon is 9 years old and her mother is 4 times as old. \
How old will the mother be in 5 years? | 41
        A book of 372 pages is two thirds read. How many pages are still to be read? | 124
        A lift carries at most 8 people. How many trips does it need for 50 people? | 7
        A recipe for 4 people needs 300 grams of rice. How many grams do 7 people need? | 525
        Omar saves 35 euros a month. After how many months has he saved 420 euros? | 12
        A class of 28 has three boys for every four girls. How many girls are in the class? | 16
        The sum of three consecutive whole numbers is 84. What is the largest of them? | 29
        A car uses 6 litres of fuel for 100 kilometres. How many litres does it use for 450? | 27
        A square has a perimeter of 52 centimetres. What is its area in square centimetres? | 169
        A shop sold 45 lamps on Friday and one fifth more on Saturday. \
How many lamps did it sell on Saturday? | 54
        A rope of 17.5 metres is cut into 5 equal pieces. How long is each piece, in metres? | 3.5
        What is 17 * 23? | 391
        What is 1008 / 24? | 42
        What is 615 - 278? | 337
    """,
    "capitals": """
        What is the capital of Norway? | Oslo
        What is the capital of Portugal? | Lisbon
        What is the capital of Kenya? | Nairobi
        What is the capital of Canada? | Ottawa
        What is the capital of Australia? | Canberra
        What is the capital of Peru? | Lima
        What is the capital of Vietnam? | Hanoi
        What is the capital of South Korea? | Seoul
        What is the capital of Morocco? | Rabat
        What is the capital of Hungary? | Budapest
        What is the capital of Uruguay? | Montevideo
        ¿Cuál es la capital de Ecuador? | Quito
        Wie heißt die Hauptstadt von Estland? | Tallinn
    """,
    "units": """
        How many metres are in 3.2 kilometres? | 3200
        How many minutes are in a day? | 1440
        How many grams are in 4.5 kilograms? | 4500
        How many millilitres are in three quarters of a litre? | 750
        How many seconds are in 2 hours? | 7200
        How many square metres are in a hectare? | 10000
        At how many degrees Celsius does water boil at sea level? | 100
        How many bytes are in a kibibyte? | 1024
        How many inches are in 3 feet? | 36
        How many millimetres are in 27 centimetres? | 270
    """,
    "calendar": """
        How many days does a leap year have? | 366
        How many days are in April and May together? | 61
        A course begins on Monday the 3rd. On which day of the month is its third Monday? | 17
        How many months of the year have exactly 30 days? | 4
    """,
    "science": """
        Which chemical element has the symbol Fe? | Iron
        Which chemical element has the symbol Na? | Sodium
        Which chemical element has the symbol Au? | Gold
        Which gas is the largest part of the air we breathe? | Nitrogen
        Which metal is liquid at room temperature and used in old thermometers? | Mercury
        Which chemical element has the atomic number 1? | Hydrogen
    """,
}

QUESTIONS = tuple(
    Question(subject, *(part.strip() for part in line.split("|")))
    for subject, lines in _FACTS.items()
    for line in lines.strip().splitlines()
)
