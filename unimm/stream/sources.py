"""A recipe's data as samples: the one place that knows what each kind of source looks like inside.

    path --find_files--> files --json_rows | parquet_rows | tar_rows--> dicts --images opened, parts marked--> Items

Everything is streamed from local files: nothing is downloaded, copied or cached beside the data. A bad row is an Item
that reads as its problem: it is counted and named, never fatal. A dataset that can't be what the recipe says (absent,
wrong column, not JSON, cut short) is a SourceError.

    pair        (image, text), neither learned: a stage's `task` says which of them is
    chat        parts in order with their speakers; what the assistant says or draws is learned
    text alone  one learned text
"""

import difflib
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from glob import glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple, assert_never

import pyarrow as pa
from pyarrow.parquet import ParquetFile

from data import emoji, shapes
from unimm.config.data import ChatJsonl, Emoji, ImageFolder, ParquetFiles, Shapes, Source, WebDatasetTars
from unimm.errors import UserError
from unimm.sample import Image, Pixels, Sample, SampleError, Text, sample
from unimm.stream.messages import RowError, parts_of, pixels_of, text_of
from unimm.stream.pixels import ImageError

CHAT = ("messages", "images")
IMAGES = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2")
NO_TEXT = "can't be read as text"


class SourceError(UserError):
    """A dataset that can't be read; the message names the file (and line) and the remedy."""


class MissingColumn(RowError):
    """A column that the recipe names and a row lacks; a dataset whose first row lacks it is refused."""


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
            return (Item(f"emoji:{made.parts[1].text}", lambda made=made: made) for made in emoji.pairs(size))
        case Shapes(part=part, count=count, seed=seed, scale=scale, wide=wide):
            return (Item(f"shapes-{part}-{seed}:{n}", lambda made=made: made)
                    for n, made in enumerate(shapes.dataset(part, count, seed, scale, wide)))
        case ImageFolder(path=path):
            file = Path(path).expanduser() / "metadata.jsonl"
            if not file.is_file():
                why = 'no folder with a metadata.jsonl; write one line {"file_name": "1.png", "text": "..."} an image'
                raise SourceError(f"{path}: {why if file.parent.exists() else 'not found'}")
            return _items([file], json_rows, NO_TEXT, partial(_sample, image="file_name"))
        case ChatJsonl(path=path):
            return _items(find_files(path, (".jsonl",)), json_rows, NO_TEXT, _jsonl_row)
        case ParquetFiles(path=path, image=image, text=text):
            rows_of = partial(parquet_rows, columns=[*filter(None, (image, text))])
            return _items(find_files(path, (".parquet",)), rows_of, "not a whole Parquet file",
                          partial(_sample, image=image, text=text))
        case WebDatasetTars(path=path, text=text):
            return _items(find_files(path, (".tar", ".tar.gz", ".tgz")), tar_rows, "not a whole tar file",
                          partial(_tar_row, extension=text))
        case _:
            assert_never(source)


def _items(files: list[Path], rows_of: Callable[[Path], Iterator[tuple[int, dict]]], damaged: str,
           read: Callable[[dict, Path], Sample]) -> Iterator[Item]:
    """Every row of the files: `rows_of` gives those of one file with their places in it, `read` makes a sample of one
    whose image paths are relative to a folder.

    Keys are `name:place`; names are relative to the folder that the files share, so that they survive a move of it.
    """
    def outcome(key: str, value: dict, folder: Path, first: bool) -> Sample | str:
        try:
            return read(value, folder)
        except (RowError, ImageError, SampleError) as why:
            if first and isinstance(why, MissingColumn):
                raise SourceError(f"{key}: {why}") from why
            return f"{key}: {why}"

    shared, first = os.path.commonpath([file.parent for file in files]), True
    for file in files:
        name = Path(os.path.relpath(file, shared)).as_posix()
        try:
            for place, value in rows_of(file):
                key = f"{name}:{place}"
                item = Item(key, cache(partial(outcome, key, value, file.parent, first)))
                if first:
                    item.read()
                first = False
                yield item
        except SourceError:
            raise
        except (ValueError, EOFError, OSError, tarfile.TarError, zlib.error, pa.ArrowException) as why:
            raise SourceError(f"{file}: {damaged}: {' '.join(str(why).split())}") from why


def _sample(row: dict[str, Any], folder: Path, image: str, text: str = "text") -> Sample:
    """A row with messages as a chat; another one as a pair, or text alone where `image` is ''."""
    if "messages" in row:
        parts = parts_of(row["messages"], row.get("images"), folder)
        if not any(part.learn for part in parts):
            raise RowError("the assistant says nothing, so there is nothing to learn")
        return sample(*parts)
    for column in filter(None, (image, text)):
        if column not in row:
            raise missing(column, row)
    words = text_of(row[text])  # before the image, which costs more
    if not image:
        return sample(Text(words, learn=True))
    return sample(Image(Pixels(pixels_of(row[image], folder))), Text(words))


def _jsonl_row(row: dict[str, Any], folder: Path) -> Sample:
    image = next((name for name in ("image", "file_name") if name in row), "")
    if not image and not row.keys() & {"messages", "text"}:
        raise missing("messages", row)
    return _sample(row, folder, image)


def _tar_row(row: dict[str, Any], folder: Path, extension: str) -> Sample:
    stem, members = row["__key__"], {name: data for name, data in row.items() if name != "__key__"}
    image = next((name for name in IMAGES if name in members), None)
    if extension not in members:
        raise missing(extension, members, f"member of {stem} with the extension")
    if image is None:
        raise RowError(f"{stem} has no image; it has: {', '.join(members)}")
    try:
        text = members[extension].decode()
        found = json.loads(text) if extension == "json" else text
    except ValueError as why:
        raise RowError(f"{stem}.{extension}: not {'JSON' if extension == 'json' else 'UTF-8 text'}: {why}") from why
    if isinstance(found, dict):  # img2dataset writes "caption"
        found = found.get("text", found.get("caption"))
    return _sample({"image": {"bytes": members[image], "path": f"{stem}.{image}"}, "text": found}, folder, "image")


def find_files(path: str, endings: tuple[str, ...]) -> list[Path]:
    """The files of a file, a folder (searched below) or a pattern, sorted. Raises SourceError where none is."""
    given = Path(path).expanduser()
    if given.is_dir():
        why = f"the folder holds no {' or '.join(endings)} file"
        found = (file for file in given.rglob("*") if file.name.endswith(endings))
    else:
        why = "no file matches the pattern" if has_magic(path) else "not found"
        found = [given] if given.is_file() else map(Path, glob(str(given), recursive=True))
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise SourceError(f"{path}: {why}")
    return files


def missing(name: str, present: Iterable[str], what: str = "column") -> MissingColumn:
    """The refusal of a row without a column: what it has, and which of it may have been meant."""
    present = sorted(present)
    close = difflib.get_close_matches(name, present, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(present) or 'none'}"
    return MissingColumn(f"no {what} {name!r}; {hint}")


def json_rows(file: Path) -> Iterator[tuple[int, dict]]:
    """Lines of a JSONL file as dicts, with their numbers from 1. Empty lines are no rows.

    Raises SourceError(file:line) where one is no JSON object.
    """
    with open(file, encoding="utf-8-sig") as lines:
        for number, line in enumerate(map(str.strip, lines), 1):
            if not line:
                continue
            try:
                value = json.loads(line)
            except ValueError as why:
                raise SourceError(f"{file}:{number}: not JSON: {why}") from why
            if not isinstance(value, dict):
                raise SourceError(f"{file}:{number}: a line must be an object {{...}}, got {line[:40]}")
            yield number, value


def parquet_rows(file: Path, columns: list[str]) -> Iterator[tuple[int, dict]]:
    """Rows of a Parquet file as dicts, counted from 0; images stay paths and bytes.

    Read are `messages`, and their `images`, where a file has them, `columns` where it has not.
    """
    with ParquetFile(file) as parquet:
        present = parquet.schema_arrow.names
        wanted = [column for column in CHAT if column in present] if "messages" in present else columns
        for column in wanted:
            if column not in present:
                raise SourceError(f"{file}: {missing(column, present)}")
        few = 64  # rows in memory at once, for their pictures may be large
        yield from enumerate(row for batch in parquet.iter_batches(few, columns=wanted) for row in batch.to_pylist())


def tar_rows(file: Path) -> Iterator[tuple[int, dict]]:
    """Samples of a WebDataset tar as {extension: bytes, "__key__": stem}, counted from 0; hidden files are passed over.

    Raises SourceError at the end of a tar that is cut short, which readers of streams take for fewer samples.
    """
    with tarfile.open(file) as tar:
        sample, number, last = {}, 0, "no member"
        while member := tar.next():
            tar.members, last = [], member.name  # or all members stay in memory
            folder, slash, base = last.rpartition("/")
            stem, dot, extension = base.partition(".")
            if not member.isreg() or not dot or base.startswith((".", "__")):
                continue
            stem, extension = f"{folder}{slash}{stem}", extension.lower()
            if sample and (sample["__key__"] != stem or extension in sample):
                yield number, sample
                sample, number = {}, number + 1
            sample |= {"__key__": stem, extension: tar.extractfile(member).read()}
        tar.fileobj.seek(tar.offset)
        end = tar.fileobj.read(1 << 20)  # blocks of zeros, two or more
    if len(end) < 1024 or any(end):
        raise SourceError(f"{file}: not a whole tar file: cut short, damaged or followed by another tar after {last}")
    if sample:
        yield number, sample
