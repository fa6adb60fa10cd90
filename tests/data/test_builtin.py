"""The built-in data sets, whose rows are generated."""

import pytest

from lmtrain.data.builtin import english, korean


@pytest.mark.parametrize(
    ("number", "in_english", "in_korean"),
    [
        (1, "one", "일"),
        (10, "ten", "십"),
        (11, "eleven", "십일"),
        (342, "three hundred forty-two", "삼백사십이"),
        (1000, "one thousand", "천"),
        (10_000, "ten thousand", "만"),
        (110_011, "one hundred ten thousand eleven", "십일만 십일"),
        (37_025, "thirty-seven thousand twenty-five", "삼만 칠천이십오"),
    ],
)
def test_numbers_in_words(number: int, in_english: str, in_korean: str):
    assert english(number) == in_english
    assert korean(number) == in_korean
