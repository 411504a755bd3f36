"""Files of a person's own data as rows: what a dataset on disk says, before an image is opened.

    path --find_files--> files --json_rows | parquet_rows | tar_rows--> Row(key, value, folder, ...)

Everything is streamed through `datasets` from local files: nothing is downloaded, copied or cached beside the
data. What is wrong with a whole file (absent, cut short, not of its format) is a SourceError; what is wrong with
one row is for the reader of the row.
"""

import difflib
import json
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from glob import escape, glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple

from unimm.errors import UserError

CHAT = ("messages", "images")


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


def find_files(path: str, endings: tuple[str, ...]) -> list[Path]:
    """The files of a file, a folder (searched below) or a pattern, sorted. Raises SourceError where none is."""
    given = Path(path).expanduser()
    kinds = " or ".join(endings)
    if given.is_file():
        return [given]
    if given.is_dir():
        found = [file for file in given.rglob("*") if file.name.endswith(endings) and file.is_file()]
        if not found:
            raise SourceError(f"{path}: the folder holds no {kinds} file")
    else:
        found = [Path(name) for name in glob(str(given), recursive=True) if Path(name).is_file()]
        if not found:
            raise SourceError(f"{path}: {'no file matches the pattern' if has_magic(path) else 'not found'}")
    return sorted(found)


def missing(name: str, present: Iterable[str], where: str, what: str = "column") -> MissingColumn:
    """The refusal of a dataset without a column: what it has, and which of it may have been meant."""
    present = sorted(present)
    close = difflib.get_close_matches(name, present, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(present) or 'none'}"
    return MissingColumn(f"{where}: no {what} {name!r}; {hint}")


def json_rows(files: Sequence[Path]) -> Iterator[Row]:
    """Lines of JSONL files as dicts, keys `name:line`. Empty lines are no rows.

    Lines are read as text and parsed here, for `datasets` wants one type per field of all lines, and a chat's
    content is a string in one and a list in the next. Raises SourceError(file:line) where one is no JSON object.
    """
    for file, name in _named(files):
        for number, line in enumerate(_stream("text", file, encoding="utf-8-sig"), 1):
            if line["text"].strip():
                yield Row(f"{name}:{number}", _parsed(line["text"], f"{file}:{number}"), file)


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
    import pyarrow.parquet

    for file, name in _named(files):
        with _refused(file, "not a whole Parquet file"):
            present = pyarrow.parquet.read_schema(file).names
        wanted = [column for column in CHAT if column in present] if "messages" in present else columns
        for column in wanted:
            if column not in present:
                raise missing(column, present, str(file))
        for number, value in enumerate(_stream("parquet", file, columns=wanted)):
            yield Row(f"{name}:{number}", value, file)


def tar_rows(files: Sequence[Path]) -> Iterator[Row]:
    """Samples of WebDataset tars as {extension: bytes, "__key__": stem}, keys `name:number`.

    `datasets` opens the archive; its WebDataset reader is not used, for one undecodable text ends its stream and
    images of two formats in one tar are refused.
    """
    from datasets import StreamingDownloadManager

    for file, name in _named(files):
        _check_tar(file)
        sample: dict[str, Any] = {}
        number = 0
        for member, data in StreamingDownloadManager().iter_archive(str(file)):
            folder, _, base = member.rpartition("/")
            stem, dot, extension = base.partition(".")
            stem = f"{folder}/{stem}" if folder else stem
            extension = extension.lower()
            if not dot:
                continue
            if sample and (sample["__key__"] != stem or extension in sample):
                yield Row(f"{name}:{number}", sample, file)
                sample, number = {}, number + 1
            sample["__key__"] = stem
            sample[extension] = data.read()
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


def _stream(kind: str, file: Path, **options) -> Iterator[dict]:
    """The rows of one local file through `datasets`, media undecoded."""
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # or it asks a server for every local file
    # streaming leaves nothing behind but an empty lock file
    with tempfile.TemporaryDirectory() as cache, _refused(file, f"can't be read as {kind}"):
        rows = datasets.load_dataset(kind, data_files=[escape(str(file.resolve()))], split="train",
                                     streaming=True, cache_dir=cache, **options)
        yield from rows.decode(False) if rows.features else rows


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
    except (ValueError, EOFError, OSError, tarfile.TarError, pyarrow.ArrowException) as why:
        raise SourceError(f"{file}: {what}: {' '.join(str(why).split())}") from why
