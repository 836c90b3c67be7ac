"""The forms of Tang poems, and the characters that they are written in."""

import re

FORMS = {(4, 5): "五絕", (4, 7): "七絕", (8, 5): "五律", (8, 7): "七律"}  # (lines, characters)

# By number, since U+F900, the first compatibility ideograph, looks just like U+8C48.
IDEOGRAPHS = re.compile(r"[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
