"""A recipe's data as samples: the one place that knows what each kind of source looks like inside.

    path --find_files--> files --json_rows | parquet_rows | tar_rows--> Row --images opened, parts marked--> Item

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
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from glob import escape, glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple, assert_never

from unimm.config.data import ChatJsonl, Emoji, ImageFolder, ParquetFiles, Shapes, Source, WebDatasetTars
from unimm.errors import UserError
from unimm.sample import Image, Pixels, Sample, SampleError, Text, sample
from unimm.stream.messages import RowError, parts_of, pixels_of, text_of
from unimm.stream.pixels import ImageError

CHAT = ("messages", "images")
IMAGES = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2")


class SourceError(UserError):
    """A dataset that can't be read; the message names the file (and line) and the remedy."""


class MissingColumn(SourceError):
    """A column that the recipe names and the dataset, or one row of it, lacks."""


class Row(NamedTuple):
    """One row as found. `key` names it for good: its file, relative to the dataset, and its place in the file."""

    key: str
    value: dict[str, Any]
    file: Path
    """Image paths in the row are relative to this file's folder."""


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
            return _items(json_rows([_metadata(path)]), partial(_sample, image="file_name"))
        case ChatJsonl(path=path):
            return _items(json_rows(find_files(path, (".jsonl",))), _jsonl_row)
        case ParquetFiles(path=path, image=image, text=text):
            rows = parquet_rows(find_files(path, (".parquet",)), [image, text] if image else [text])
            return _items(rows, partial(_sample, image=image, text=text))
        case WebDatasetTars(path=path, text=text):
            rows = tar_rows(find_files(path, (".tar", ".tar.gz", ".tgz")))
            return _items(rows, partial(_tar_row, extension=text))
        case _:
            assert_never(source)


def _items(rows: Iterator[Row], read: Callable[[Row], Sample]) -> Iterator[Item]:
    """A column missing from the first row is missing from the dataset; from a later row, that row's problem."""
    def outcome(row: Row, first: bool) -> Sample | str:
        try:
            return read(row)
        except MissingColumn as why:
            if first:
                raise
            return str(why)
        except (RowError, ImageError, SampleError) as why:
            return f"{row.key}: {why}"

    for number, row in enumerate(rows):
        item = Item(row.key, cache(partial(outcome, row, number == 0)))
        if number == 0:
            item.read()
        yield item


def _metadata(path: str) -> Path:
    file = Path(path).expanduser() / "metadata.jsonl"
    if not file.parent.exists():
        raise SourceError(f"{path}: not found")
    if not file.is_file():
        raise SourceError(f"{path}: no folder with a metadata.jsonl; write one line "
                                  '{"file_name": "1.png", "text": "..."} an image')
    return file


def _jsonl_row(row: Row) -> Sample:
    image = next((name for name in ("image", "file_name") if name in row.value), "")
    if not image and not row.value.keys() & {"messages", "text"}:
        raise missing("messages", row.value, row.key)
    return _sample(row, image)


def _sample(row: Row, image: str, text: str = "text") -> Sample:
    """A row with messages as a chat; another one as a pair, or text alone where `image` is ''."""
    if "messages" in row.value:
        parts = parts_of(row.value["messages"], row.value.get("images"), row.file.parent)
        if not any(part.learn for part in parts):
            raise RowError("the assistant says nothing, so there is nothing to learn")
        return sample(*parts)
    for column in (image, text) if image else (text,):
        if column not in row.value:
            raise missing(column, row.value, row.key)
    if image:
        return _pair(row.value[image], row.value[text], row)
    return Sample((Text(text_of(row.value[text]), learn=True),))


def _tar_row(row: Row, extension: str) -> Sample:
    members = dict(row.value)
    stem = members.pop("__key__")
    image = next((name for name in IMAGES if name in members), None)
    if extension not in members:
        raise missing(extension, members, f"{row.key} ({stem})", what="member with the extension")
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


def _pair(image: Any, text: Any, row: Row) -> Sample:
    text = text_of(text)  # before the image, which costs more
    return Sample((Image(Pixels(pixels_of(image, row.file.parent))), Text(text)))


def find_files(path: str, endings: tuple[str, ...]) -> list[Path]:
    """The files of a file, a folder (searched below) or a pattern, sorted. Raises SourceError where none is."""
    given = Path(path).expanduser()
    if given.is_file():
        return [given]
    if given.is_dir():
        why = f"the folder holds no {' or '.join(endings)} file"
        found = (file for file in given.rglob("*") if file.name.endswith(endings))
    else:
        why = "no file matches the pattern" if has_magic(path) else "not found"
        found = map(Path, glob(str(given), recursive=True))
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise SourceError(f"{path}: {why}")
    return files


def missing(name: str, present: Iterable[str], where: str, what: str = "column") -> MissingColumn:
    """The refusal of a dataset without a column: what it has, and which of it may have been meant."""
    present = sorted(present)
    close = difflib.get_close_matches(name, present, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(present) or 'none'}"
    return MissingColumn(f"{where}: no {what} {name!r}; {hint}")


def json_rows(files: Sequence[Path]) -> Iterator[Row]:
    """Lines of JSONL files as dicts, keys `name:line`. Empty lines are no rows.

    Not by `datasets`, which wants one type per field of all lines: a chat's content is a string in one and a list in
    the next. Raises SourceError(file:line) where one is no JSON object.
    """
    for file, name in _named(files):
        with _refused(file, "can't be read as text"), open(file, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield Row(f"{name}:{number}", _parsed(line.rstrip("\n"), f"{file}:{number}"), file)


def _parsed(line: str, where: str) -> dict:
    try:
        value = json.loads(line)
    except ValueError as why:
        raise SourceError(f"{where}: not JSON: {why}") from why
    if not isinstance(value, dict):
        raise SourceError(f"{where}: a line must be an object {{...}}, got {line[:40]}")
    return value


def parquet_rows(files: Sequence[Path], columns: list[str]) -> Iterator[Row]:
    """Rows of Parquet files as dicts, keys `name:row`; images stay paths and bytes.

    Read are `messages`, and their `images`, where a file has them, `columns` where it has not.
    """
    import datasets
    import pyarrow.parquet

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # or it asks a server for every local file
    for file, name in _named(files):
        with _refused(file, "not a whole Parquet file"):
            present = pyarrow.parquet.read_schema(file).names
        wanted = [column for column in CHAT if column in present] if "messages" in present else columns
        for column in wanted:
            if column not in present:
                raise missing(column, present, str(file))
        # Streaming leaves nothing behind but an empty lock file.
        with tempfile.TemporaryDirectory() as cache, _refused(file, "can't be read as parquet"):
            rows = datasets.load_dataset("parquet", data_files=[escape(str(file.resolve()))], split="train",
                                         streaming=True, cache_dir=cache, columns=wanted)
            for number, value in enumerate(rows.decode(False)):  # media stay as they are
                yield Row(f"{name}:{number}", value, file)


def tar_rows(files: Sequence[Path]) -> Iterator[Row]:
    """Samples of WebDataset tars as {extension: bytes, "__key__": stem}, keys `name:number`.

    `datasets` opens the archive; its WebDataset reader is not used, for one undecodable text ends its stream and
    images of two formats in one tar are refused.
    """
    from datasets import StreamingDownloadManager

    for file, name in _named(files):
        _check_tar(file)
        sample, number = {}, 0
        for member, data in StreamingDownloadManager().iter_archive(str(file)):
            folder, slash, base = member.rpartition("/")
            stem, dot, extension = base.partition(".")
            stem, extension = f"{folder}{slash}{stem}", extension.lower()
            if not dot:
                continue
            if sample and (sample["__key__"] != stem or extension in sample):
                yield Row(f"{name}:{number}", sample, file)
                sample, number = {}, number + 1
            sample |= {"__key__": stem, extension: data.read()}
        if sample:
            yield Row(f"{name}:{number}", sample, file)


def _check_tar(file: Path) -> None:
    """Refuse a tar that is cut short. Readers of streams take the cut for the end and yield fewer samples."""
    with _refused(file, "not a whole tar file"), tarfile.open(file) as tar:
        last = "no member"
        while member := tar.next():
            last = member.name
            tar.members = []  # or all members stay in memory
        tar.fileobj.seek(tar.offset)
        end = tar.fileobj.read(1 << 20)  # blocks of zeros, two or more
    if len(end) < 1024 or any(end):
        raise SourceError(f"{file}: not a whole tar file: cut short, damaged or followed by another tar after {last}")


def _named(files: Sequence[Path]) -> list[tuple[Path, str]]:
    """Files with their names relative to the folder they share, so that keys survive a move of the dataset."""
    shared = os.path.commonpath([file.parent for file in files])
    return [(file, Path(os.path.relpath(file, shared)).as_posix()) for file in files]


@contextmanager
def _refused(file: Path, what: str) -> Iterator[None]:
    """Raises SourceError, one line, for whatever a reader says of a damaged file."""
    import pyarrow

    try:
        yield
    except SourceError:
        raise
    except (ValueError, EOFError, OSError, tarfile.TarError, pyarrow.ArrowException) as why:
        raise SourceError(f"{file}: {what}: {' '.join(str(why).split())}") from why
