"""Which characters count as Chinese."""

import pytest

from verse.poems.lines import IDEOGRAPHS


@pytest.mark.parametrize("code", [0x3007, 0x3400, 0x4E00, 0x9FFF, 0xF900, 0xFAFF, 0x20000, 0x3FFFF])
def test_ideographs(code):
    assert IDEOGRAPHS.fullmatch(chr(code))


@pytest.mark.parametrize(
    "code",
    [
        0x33FF,
        0x4DC0,  # a hexagram
        0xA000,  # Yi
        0xAC00,  # Hangul
        0xD800,  # half a surrogate pair
        0xE000,  # private use
        0xF8FF,
        0xFB00,  # a Latin ligature
        0x1F600,  # an emoji
        0x40000,
    ],
)
def test_other_characters(code):
    assert not IDEOGRAPHS.search(chr(code))
