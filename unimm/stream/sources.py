"""A recipe's data as samples: the one place that knows what each kind of source looks like inside.

    config Source --rows--> Row --images opened, parts marked--> Item(key, read)

A bad row is an Item that reads as its problem: it is counted and named, never fatal. A dataset that can't be what
the recipe says (absent, wrong column, not JSON, cut short) is a SourceError.

    pair        (image, text), neither learned: a stage's `task` says which of them is
    chat        parts in order with their speakers; what the assistant says or draws is learned
    text alone  one learned text
"""

import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, assert_never

from unimm.config.data import ChatJsonl, Emoji, ImageFolder, ParquetFiles, Shapes, Source, WebDatasetTars
from unimm.sample import Image, Pixels, Sample, SampleError, Text, sample
from unimm.stream import rows as on_disk
from unimm.stream.messages import RowError, parts_of, pixels_of, text_of
from unimm.stream.pixels import ImageError

IMAGES = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2")


class Item(NamedTuple):
    """One row of a source: `read()` gives its sample, or in words why there is none.

    `key` is stable and unique in its source: the same row has the same key in every run. Images are decoded in `read`:
    whoever passes over rows, because they are another process's or already done, does so at little cost.
    """

    key: str
    read: Callable[[], Sample | str]


def open_source(source: Source) -> Iterator[Item]:
    """Items of a source, in its own order.

    Raises SourceError at once where no file is, while reading where a file turns out to be no such dataset.
    """
    match source:
        case Emoji(size=size):
            from data import emoji

            return (Item(f"emoji:{made.parts[1].text}", lambda made=made: made) for made in emoji.pairs(size))
        case Shapes(part=part, count=count, seed=seed, scale=scale, wide=wide):
            from data.shapes import dataset

            return (Item(f"shapes-{part}-{seed}:{n}", lambda made=made: made)
                    for n, made in enumerate(dataset(part, count, seed, scale, wide)))
        case ImageFolder(path=path):
            return _items(on_disk.json_rows([_metadata(path)]), partial(_sample, image="file_name"))
        case ChatJsonl(path=path):
            return _items(on_disk.json_rows(on_disk.find_files(path, (".jsonl",))), _jsonl_row)
        case ParquetFiles(path=path, image=image, text=text):
            rows = on_disk.parquet_rows(on_disk.find_files(path, (".parquet",)), [image, text] if image else [text])
            return _items(rows, partial(_sample, image=image, text=text))
        case WebDatasetTars(path=path, text=text):
            rows = on_disk.tar_rows(on_disk.find_files(path, (".tar", ".tar.gz", ".tgz")))
            return _items(rows, partial(_tar_row, extension=text))
        case _:
            assert_never(source)


def _items(rows: Iterator[on_disk.Row], read: Callable[[on_disk.Row], Sample]) -> Iterator[Item]:
    """A column missing from the first row is missing from the dataset; from a later row, that row's problem."""
    for number, row in enumerate(rows):
        item = Item(row.key, cache(partial(_outcome, row, read, on_disk.MissingColumn if number else ())))
        if number == 0:
            item.read()
        yield item


def _outcome(row: on_disk.Row, read: Callable[[on_disk.Row], Sample],
             forgiven: type[Exception] | tuple[()]) -> Sample | str:
    try:
        return read(row)
    except forgiven as why:
        return str(why)
    except (RowError, ImageError, SampleError) as why:
        return f"{row.key}: {why}"


def _metadata(path: str) -> Path:
    file = Path(path).expanduser() / "metadata.jsonl"
    if not file.parent.exists():
        raise on_disk.SourceError(f"{path}: not found")
    if not file.is_file():
        raise on_disk.SourceError(f"{path}: no folder with a metadata.jsonl; write one line "
                                  '{"file_name": "1.png", "text": "..."} an image')
    return file


def _jsonl_row(row: on_disk.Row) -> Sample:
    image = next((name for name in ("image", "file_name") if name in row.value), "")
    if not image and not row.value.keys() & {"messages", "text"}:
        raise on_disk.missing("messages", row.value, row.key)
    return _sample(row, image)


def _sample(row: on_disk.Row, image: str, text: str = "text") -> Sample:
    """A row with messages as a chat; another one as a pair, or text alone where `image` is ''."""
    if "messages" in row.value:
        parts = parts_of(row.value["messages"], row.value.get("images"), row.file.parent)
        if not any(part.learn for part in parts):
            raise RowError("the assistant says nothing, so there is nothing to learn")
        return sample(*parts)
    for column in (image, text) if image else (text,):
        if column not in row.value:
            raise on_disk.missing(column, row.value, row.key)
    if image:
        return _pair(row.value[image], row.value[text], row)
    return Sample((Text(text_of(row.value[text]), learn=True),))


def _tar_row(row: on_disk.Row, extension: str) -> Sample:
    members = {name: data for name, data in row.value.items() if name != "__key__"}
    stem = row.value["__key__"]
    image = next((name for name in IMAGES if name in members), None)
    if extension not in members:
        raise on_disk.missing(extension, members, f"{row.key} ({stem})", what="member with the extension")
    if image is None:
        raise RowError(f"{stem} has no image; it has: {', '.join(members)}")
    try:
        text = members[extension].decode()
        found = json.loads(text) if extension == "json" else text
    except ValueError as why:
        raise RowError(f"{stem}.{extension}: not {'JSON' if extension == 'json' else 'UTF-8 text'}: {why}") from why
    if isinstance(found, dict):  # img2dataset writes "caption"
        found = found.get("text", found.get("caption"))
    return _pair({"bytes": members[image], "path": f"{stem}.{image}"}, found, row)


def _pair(image: Any, text: Any, row: on_disk.Row) -> Sample:
    text = text_of(text)  # before the image, which costs more
    return Sample((Image(Pixels(pixels_of(image, row.file.parent))), Text(text)))
