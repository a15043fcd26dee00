"""Tables as texts, in the encodings and with the delimiters that spreadsheets write."""

import codecs
import re
from io import BytesIO
from pathlib import Path
from typing import Any

BY_MARK = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before that of UTF-16, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by the bytes that a text in them begins with."""
DELIMITERS = ",;\t|"
"""Of columns: the first that the head of a table has."""
NAMES = r"^\s*[-+]?(0\d|\d{19})"
"""What looks like a number in CSV and is a name: with a zero before it, or of more digits than numbers hold."""


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, UTF-16 or UTF-32.

    Raises:
        ValueError: it is in none of them.
    """
    content = path.read_bytes()
    marked = next((encoding for mark, encoding in BY_MARK.items() if content.startswith(mark)), "")
    zeros = [content[place:1000:2].count(0) for place in (0, 1)]  # of Latin letters one byte of two is zero
    guessed = "utf-8" if not any(zeros) else "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
    try:
        return content.decode(marked or guessed)
    except UnicodeDecodeError as error:
        where = f"line {content[: error.start].count(10) + 1}"
        raise ValueError(f"{where} is not in UTF-8; save the file in that") from None


def read_csv(path: Path) -> Any:
    """A table of pyarrow; numbers that are names, as 007, stay texts.

    Raises:
        ValueError: the file is not in UTF-8, UTF-16 or UTF-32, or a line has other columns than the first.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    text = read_text(path)
    if said := re.match(r"sep=(.)\r?\n", text):  # as Excel writes and reads it
        text = text[said.end() :]
    head = re.sub(r'"[^"]*"', "", text.lstrip().split("\n", 1)[0])
    delimiter = said[1] if said else next((each for each in DELIMITERS if each in head), ",")
    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    content = text.encode()
    table = csv.read_csv(BytesIO(content), parse_options=parse)
    numbers = [
        (place, field.name)
        for place, field in enumerate(table.schema)
        if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
    ]
    if numbers:
        as_texts = csv.ConvertOptions(column_types={name: pa.string() for _, name in numbers})
        texts = csv.read_csv(BytesIO(content), parse_options=parse, convert_options=as_texts)
        for place, name in numbers:
            if pc.any(pc.match_substring_regex(texts.column(place), NAMES)).as_py():
                table = table.set_column(place, name, texts.column(place))
    return table.rename_columns([name.strip() for name in table.column_names])
