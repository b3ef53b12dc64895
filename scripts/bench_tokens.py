"""How far the tokens that are reserved for a prompt are from those that tokenizers count.

The estimate knows no tokenizer: it learns from the usage of answers that came in. Here rows of
several kinds become bodies as in a run, four real tokenizers count them as OpenAI does for chats,
the estimate learns from the first hundred and is asked about the next thousand.

Prints by kind and tokenizer: the error of their sum, and of one row (median and 95th percentile).

    bench_tokens.py FOLDER [RECORD]

FOLDER holds the tokenizers as litellm brings them along; RECORD is a file for the lengths and counts
of some rows, which the tests learn from.
"""

import base64
import itertools
import json
import random
import statistics
import sys
from pathlib import Path

import tiktoken
from tiktoken.load import load_tiktoken_bpe
from tokenizers import Tokenizer

from batcher.read.prompts import Prompter
from batcher.records import Row
from batcher.send.estimate import TokenEstimator

ROOT = Path(__file__).parent.parent
LEARN, ASK = 100, 1000
SYSTEM = "You are a careful clerk. Read what follows and answer in one word, in English. " * 8

KOREAN = ["어제 주문한 상품이 아직 도착하지 않았습니다. 배송 조회를 해 보니 사흘째 같은 곳에 머물러 있네요.", "결제가 두 번 되었는데 한 건은 취소해 주실 수 있나요? 카드사에서는 판매자에게 문의하라고 합니다.", "앱을 업데이트한 뒤로 로그인 화면에서 더 이상 넘어가지 않습니다. 비밀번호를 새로 만들어도 마찬가지입니다.", "상담원이 아주 친절해서 기분 좋게 문제를 해결했습니다. 감사합니다.", "색상이 사진과 달라서 교환하고 싶습니다. 상자는 뜯었지만 한 번도 입지 않았어요.", "구독을 해지했는데도 이번 달 요금이 또 빠져나갔습니다. 환불 규정이 어떻게 되는지 알려 주세요.", "화면 밝기를 자동으로 조절하는 기능이 있으면 좋겠습니다. 밤에는 너무 눈이 부십니다.", "이메일 주소를 바꾸고 싶은데 설정 메뉴를 찾을 수가 없습니다. 어디에 있나요?", "지난주에 보낸 문의에 대한 답을 아직 받지 못했습니다. 접수 번호는 아래에 적어 두었습니다.", "서버가 느려서 파일 하나를 올리는 데 십 분이 넘게 걸립니다. 다른 사이트는 괜찮습니다."]


def english(rng):
    tickets = (ROOT / "sample_data" / "tickets.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in tickets]
    return " ".join(rng.choices(texts, k=rng.randint(1, 6)))


def korean(rng):
    return " ".join(rng.choices(KOREAN, k=rng.randint(1, 6)))


def code(rng):
    lines = rng.choice(CODE).read_text().splitlines()
    begin = rng.randrange(max(1, len(lines) - 40))
    return "\n".join(lines[begin : begin + rng.randint(5, 40)])


CODE = sorted((ROOT / "batcher").rglob("*.py"))


def packed(rng):
    return base64.b64encode(rng.randbytes(rng.randint(30, 900))).decode()


TURNS = itertools.cycle((english, korean, code, packed))


def mixed(rng):
    """In turn: drawn by chance, a hundred rows would have other shares of each than the next."""
    return next(TURNS)(rng)


def tokenizers(folder):
    """Name to a function that counts the tokens of a text; files as litellm brings them along."""
    files = {
        "cl100k": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "o200k": "fb374d419588a4632f3f557e76b4b70aebbca790",
    }
    found = {}
    for name, file in files.items():
        ranks = load_tiktoken_bpe(str(folder / file))
        of = tiktoken.Encoding(
            name, pat_str=PATTERNS[name], mergeable_ranks=ranks, special_tokens={}
        )
        found[name] = lambda text, of=of: len(of.encode_ordinary(text))
    for name in ("anthropic", "deepseek"):
        of = Tokenizer.from_file(str(folder / f"{name}_tokenizer.json"))
        found[name] = lambda text, of=of: len(of.encode(text, add_special_tokens=False).ids)
    return found


PATTERNS = {
    "cl100k": r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s""",
    "o200k": "|".join((
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}""", r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""", r"""\s*[\r\n]+""", r"""\s+(?!\S)""", r"""\s+""",
    )),
}  # fmt: skip


def counted(body, count):
    """Prompt tokens as OpenAI counts those of a chat: three for a message, three for the answer."""
    messages = json.loads(b"{" + body)["messages"]
    return 3 + sum(3 + count(m["role"]) + count(m["content"]) for m in messages)


def main():
    """The table."""
    names = tokenizers(Path(sys.argv[1]))
    recorded = {}
    print(f"{'rows':24}{'tokenizer':11}{'sum':>8}{'a row: median':>16}{'p95':>8}")
    for kind in (english, korean, code, packed, mixed):
        for system in (None, SYSTEM):
            prompter = Prompter("{{ text }}", system, {"temperature": 0}, own_model=False)
            rng = random.Random(kind.__name__)
            rows = [Row(n, "", {"text": kind(rng)}) for n in range(LEARN + ASK)]
            bodies = [prompter.prompt(row).fields for row in rows]
            of_kind = {"bytes": [len(body) for body in bodies[: 2 * LEARN]]}
            for name, count in names.items():
                estimate = TokenEstimator()
                told = [counted(body, count) for body in bodies]
                of_kind[name] = told[: 2 * LEARN]
                for body, tokens in zip(bodies[:LEARN], told, strict=False):
                    estimate.observe(len(body), tokens, 0)
                guessed = [estimate.tokens(len(body), 0)[0] for body in bodies[LEARN:]]
                real = told[LEARN:]
                off = sorted(abs(g / r - 1) for g, r in zip(guessed, real, strict=True))
                what = f"{kind.__name__}{', long system' if system else ''}"
                print(
                    f"{what:24}{name:11}{sum(guessed) / sum(real) - 1:>+8.1%}"
                    f"{statistics.median(off):>16.1%}{off[int(0.95 * len(off))]:>8.1%}"
                )
            recorded.setdefault(kind.__name__, of_kind)
    if sys.argv[2:]:
        Path(sys.argv[2]).write_text(json.dumps(recorded) + "\n")


main()
