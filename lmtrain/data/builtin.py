"""Built-in data sets for the quickstarts: `--data example:NAME`."""

import random
from collections.abc import Callable, Iterator

from lmtrain.data.columns import Record

ONES = (
    *("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
DIGITS = "영일이삼사오육칠팔구"
POWERS = ((1000, "천"), (100, "백"), (10, "십"))


def python_docs() -> Iterator[tuple[int, Record]]:
    """Lines of the Python language reference, which every Python installation contains (see `help`)."""
    from pydoc_data.topics import topics

    lines = [line for name in sorted(topics) for line in topics[name].splitlines(keepends=True)]
    yield from ((number, {"text": line}) for number, line in enumerate(lines, 1))


def numbers() -> Iterator[tuple[int, Record]]:
    """12,000 numbers below 100,000 in English or Korean words (source) and in digits (target), from a fixed seed."""
    sampled = random.Random(0).sample(range(1, 100_000), 12_000)
    for row, number in enumerate(sampled, 1):
        words = english(number) if row % 2 else korean(number)
        yield row, {"source": words, "target": str(number)}


def english(number: int) -> str:
    """37025 -> "thirty-seven thousand twenty-five"; for 1 to 999,999."""
    if number >= 1000:
        return f"{english(number // 1000)} thousand {english(number % 1000)}".strip()
    if number >= 100:
        return f"{ONES[number // 100]} hundred {english(number % 100)}".strip()
    if number >= 20:
        return "-".join(filter(None, (TENS[number // 10], ONES[number % 10])))
    return ONES[number]


def korean(number: int) -> str:
    """37025 -> "삼만 칠천이십오"; for 1 to 999,999. A leading one is omitted: 10 is 십, 10,000 is 만."""
    if number >= 10_000:
        myriads, rest = divmod(number, 10_000)
        return f"{korean(myriads) if myriads > 1 else ''}만 {korean(rest)}".strip()
    words = ""
    for power, name in POWERS:
        digit, number = divmod(number, power)
        words += "" if digit == 0 else name if digit == 1 else DIGITS[digit] + name
    return words + (DIGITS[number] if number else "")


EXAMPLES: dict[str, tuple[Callable[[], Iterator[tuple[int, Record]]], bool]] = {
    "python-docs": (python_docs, True),
    "numbers": (numbers, False),
}
"""Name -> (reader, whether its records are lines of text)."""
