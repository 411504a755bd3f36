"""A person's own data, in every form: rows become samples, bad rows become problems, bad datasets one clear line."""

import base64
import json
import socket
from pathlib import Path

import datasets
import numpy as np
import pytest
from stream.files import COLOURS, block, file_of, tar, write

from data import emoji
from unimm.config.data import ChatJsonl, Emoji, ImageFolder, ParquetFiles, Shapes, WebDatasetTars
from unimm.sample import Image, Pixels, Sample, Text
from unimm.stream.sources import SourceError, open_source


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No source may look anything up: any attempt fails the test."""
    tried = []

    def refuse(*args, **_):
        tried.append(args)
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert tried == []


def pair(colour: str) -> Sample:
    return Sample((Image(Pixels(block(colour))), Text(f"a {colour} block")))


def samples(source) -> list[Sample]:
    items = list(open_source(source))
    found = [item.read() for item in items]
    assert all(isinstance(each, Sample) for each in found), found
    assert len({item.key for item in items}) == len(items)
    return found


def problems(source) -> list[str | None]:
    found = [item.read() for item in open_source(source)]
    return [each if isinstance(each, str) else None for each in found]


def refusal(source) -> str:
    with pytest.raises(SourceError) as caught:
        list(open_source(source))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def folder_of(tmp_path: Path, name: str = "own") -> Path:
    rows = [{"file_name": f"images/{colour}.png", "text": f"a {colour} block"} for colour in COLOURS]
    for colour in COLOURS:
        write(tmp_path / name / "images" / f"{colour}.png", file_of(colour))
    write(tmp_path / name / "metadata.jsonl", rows)
    return tmp_path / name


EXPECTED = [pair(colour) for colour in COLOURS]


# every form gives the same samples


def test_image_folder(tmp_path):
    assert samples(ImageFolder(path=str(folder_of(tmp_path)))) == EXPECTED


def test_image_folder_with_an_awkward_name(tmp_path):
    assert samples(ImageFolder(path=str(folder_of(tmp_path, "my photos [2024] *")))) == EXPECTED


@pytest.mark.parametrize("form", ["image feature", "paths", "bytes", "structs"])
def test_parquet(tmp_path, form):
    folder = folder_of(tmp_path)
    texts = [f"a {colour} block" for colour in COLOURS]
    paths = [f"images/{colour}.png" for colour in COLOURS]
    data = [file_of(colour) for colour in COLOURS]
    column = {"image feature": [{"bytes": one, "path": None} for one in data], "paths": paths, "bytes": data,
              "structs": [{"bytes": None, "path": path} for path in paths]}[form]
    made = datasets.Dataset.from_dict({"picture": column, "caption": texts, "other": [1, 2, 3, 4]})
    if form == "image feature":
        made = made.cast_column("picture", datasets.Image())
    made.to_parquet(str(folder / "a.parquet"))
    for path in (folder / "a.parquet", folder, folder / "*.parquet"):
        assert samples(ParquetFiles(path=str(path), image="picture", text="caption")) == EXPECTED


def test_webdataset_of_mixed_formats(tmp_path):
    kinds = zip(COLOURS, ["png", "webp", "png", "webp"], strict=True)
    members = []
    for colour, kind in kinds:
        members += [(f"a/{colour}.{kind}", file_of(colour, kind.upper())),
                    (f"a/{colour}.txt", f"a {colour} block".encode()),
                    (f"a/{colour}.json", json.dumps({"caption": f"a {colour} block"}).encode())]
    tar(tmp_path / "0.tar", members)
    tar(tmp_path / "z.tar.gz", members, "w:gz")
    for name in ("0.tar", "z.tar.gz"):
        assert samples(WebDatasetTars(path=str(tmp_path / name))) == EXPECTED
        assert samples(WebDatasetTars(path=str(tmp_path / name), text="json")) == EXPECTED
    assert samples(WebDatasetTars(path=str(tmp_path))) == EXPECTED * 2


def test_jsonl_pairs(tmp_path):
    folder = folder_of(tmp_path)
    rows = [{"image": f"images/{colour}.png", "text": f"a {colour} block"} for colour in COLOURS]
    assert samples(ChatJsonl(path=str(write(folder / "pairs.jsonl", rows)))) == EXPECTED


def test_chats_mark_what_the_assistant_says_and_draws(tmp_path):
    folder = folder_of(tmp_path)
    red, blue = Pixels(block("red")), Pixels(block("blue"))
    encoded = base64.b64encode(file_of("blue")).decode()
    rows = [
        {"messages": [{"role": "system", "content": "Be brief."},
                      {"role": "user", "content": [{"type": "image", "image": "images/red.png"},
                                                   {"type": "text", "text": "Make it "},
                                                   {"type": "text", "text": "blue."}]},
                      {"role": "assistant", "content": [{"type": "image", "image": {"bytes": encoded}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": {"path": "images/red.png"}},
                                                   {"type": "image", "image": str(folder / "images/blue.png")},
                                                   {"type": "text", "text": "Same?"}]},
                      {"role": "assistant", "content": "No — red, blue.\u2028"}]},
        {"text": "Text alone."},
    ]
    made = samples(ChatJsonl(path=str(write(folder / "chat.jsonl", rows))))
    assert made == [
        Sample((Text("Be brief.", role="system"), Image(red, role="user"), Text("Make it blue.", role="user"),
                Image(blue, learn=True, role="assistant"))),
        Sample((Image(red, role="user"), Image(blue, role="user"), Text("Same?", role="user"),
                Text("No — red, blue.\u2028", learn=True, role="assistant"))),
        Sample((Text("Text alone.", learn=True),)),
    ]


def test_chats_in_parquet_take_their_images_in_order(tmp_path):
    messages = [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "image", "text": None},
                                             {"type": "text", "text": "Same?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "No."}]}]
    made = datasets.Dataset.from_list(
        [{"messages": messages, "images": [{"bytes": file_of(colour), "path": None} for colour in ("red", "blue")]}],
        features=datasets.Features({
            "messages": [{"role": datasets.Value("string"),
                          "content": [{"type": datasets.Value("string"), "text": datasets.Value("string")}]}],
            "images": datasets.List(datasets.Image())}))
    made.to_parquet(str(tmp_path / "a.parquet"))
    [chat] = samples(ParquetFiles(path=str(tmp_path / "a.parquet")))
    assert [image.content for image in chat.images] == [Pixels(block("red")), Pixels(block("blue"))]
    assert chat.parts[2:] == (Text("Same?", role="user"), Text("No.", learn=True, role="assistant"))


def test_parquet_of_text_alone(tmp_path):
    datasets.Dataset.from_dict({"text": ["one", "two"]}).to_parquet(str(tmp_path / "a.parquet"))
    made = samples(ParquetFiles(path=str(tmp_path / "a.parquet"), image=""))
    assert made == [Sample((Text("one", learn=True),)), Sample((Text("two", learn=True),))]


def test_built_in_emoji():
    try:
        emoji.find_font()
    except emoji.FontMissing as why:
        pytest.skip(str(why))
    items = list(open_source(Emoji(size=16)))
    assert [item.read() for item in items] == list(emoji.pairs(16))
    assert len({item.key for item in items}) == len(items)


@pytest.mark.parametrize("part", ["pairs", "chats", "edits"])
def test_built_in_shapes(part):
    first, again = ([*open_source(Shapes(part=part, count=6, seed=3))] for _ in range(2))
    assert [item.key for item in first] == [item.key for item in again] and len({item.key for item in first}) == 6
    assert [item.read() for item in first] == [item.read() for item in again]
    assert all(item.read().images for item in first)


# keys, shares and leavings


def test_rows_that_are_passed_over_are_not_decoded(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("unimm.stream.messages.load_pixels", lambda path, where: opened.append(where) or block("red"))
    items = list(open_source(ImageFolder(path=str(folder_of(tmp_path)))))
    assert opened == ["images/red.png"]  # the first row proves the columns
    assert items[2].read().parts[0] == Image(Pixels(block("red")))
    assert items[2].read() is items[2].read()
    assert opened == ["images/red.png", "images/blue.png"]  # once, however often it is read


def test_keys_survive_a_move_of_the_dataset(tmp_path):
    folder = folder_of(tmp_path)
    keys = [item.key for item in open_source(ImageFolder(path=str(folder)))]
    moved = folder.rename(tmp_path / "elsewhere")
    assert keys == [item.key for item in open_source(ImageFolder(path=str(moved)))]
    assert keys == [f"metadata.jsonl:{line}" for line in range(1, 5)]


def test_files_of_one_name_in_two_folders_have_different_keys(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "chat.jsonl", [{"text": name}])
    items = list(open_source(ChatJsonl(path=str(tmp_path))))
    assert [(item.key, item.read()) for item in items] == [
        (f"{name}/chat.jsonl:1", Sample((Text(name, learn=True),))) for name in ("a", "b")]


def test_nothing_is_written_beside_the_data_nor_printed(tmp_path, capfd):
    folder = folder_of(tmp_path)
    tar(folder / "a.tar", [("1.png", file_of("red")), ("1.txt", b"x")])
    datasets.Dataset.from_dict({"text": ["one"]}).to_parquet(str(folder / "a.parquet"))
    before = sorted(tmp_path.rglob("*"))
    capfd.readouterr()
    for source in (ImageFolder(path=str(folder)), WebDatasetTars(path=str(folder)),
                   ParquetFiles(path=str(folder), image="")):
        list(open_source(source))
    assert sorted(tmp_path.rglob("*")) == before
    assert capfd.readouterr() == ("", "")


# a bad row is an item with a problem


def test_bad_rows_of_a_folder_are_named_and_the_rest_is_kept(tmp_path):
    folder = folder_of(tmp_path)
    png = file_of("red")
    write(folder / "cut.png", png[:50])
    write(folder / "page.png", "<html>")
    names = ("images/red.png", "cut.png", "page.png", "absent.png", "images", "https://example.org/a.png", None)
    rows = [{"file_name": name, "text": "x"} for name in names]
    rows += [{"file_name": "images/red.png", "text": text} for text in (None, " ", 5)]
    rows += [{"file_name": "images/red.png"}]
    write(folder / "metadata.jsonl", [*rows, {"file_name": "images/blue.png", "text": "last"}])
    items = list(open_source(ImageFolder(path=str(folder))))
    read = [item.read() for item in items]
    assert [isinstance(each, str) for each in read] == [False] + [True] * 10 + [False]
    words = ["cut short", "not an image", "No such file", "Is a directory", "an address", "path or bytes", "text",
             "text", "text", "no column 'text'"]
    for line, (problem, word) in enumerate(zip(read[1:-1], words, strict=True), 2):
        assert word in problem and problem.startswith(f"metadata.jsonl:{line}: "), problem
        assert "\n" not in problem


@pytest.mark.parametrize(("messages", "word"), [
    ("hello", "list of {role, content}"),
    ([{"role": "robot", "content": "x"}], "'robot'"),
    ([{"role": "user", "content": "x"}], "nothing to learn"),
    ([{"role": "user", "content": "x"}, {"role": "user", "content": "y"}], "in a row"),
    ([{"role": "user", "content": 5}], "content must be"),
    ([{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}], "'video'"),
    ([{"role": "user", "content": ["x"]}], "'x'"),
    ([{"role": "user", "content": [{"type": "image"}]}], "path or bytes"),
    ([{"role": "user", "content": [{"type": "image", "image": {"bytes": "%%%"}}]}], "base64"),
    ([{"role": "user", "content": [{"type": "image", "image": "absent.png"}]}], "absent.png"),
    ([], "nothing to learn"),
])
def test_bad_chats_are_problems(tmp_path, messages, word):
    good = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    file = write(tmp_path / "chat.jsonl", [good, {"messages": messages}, good])
    first, second, third = problems(ChatJsonl(path=str(file)))
    assert first is third is None
    assert word in second and second.startswith("chat.jsonl:2: ")


def test_images_without_a_place_are_a_problem_and_not_lost(tmp_path):
    row = {"messages": [{"role": "user", "content": "<image> What?"}, {"role": "assistant", "content": "y"}],
           "images": ["a.png"]}
    [problem] = problems(ChatJsonl(path=str(write(tmp_path / "chat.jsonl", [row]))))
    assert "have no place" in problem


def test_bad_samples_of_a_tar_are_problems(tmp_path):
    good = [("png", file_of("red")), ("txt", b"a red block")]
    groups = [good, [("png", b"zz"), ("txt", b"x")], [("png", file_of("red")), ("txt", b"\xff\xfe")],
              [("txt", b"x")], [("png", file_of("red"))], good]
    tar(tmp_path / "a.tar", [(f"{i}.{kind}", data) for i, group in enumerate(groups) for kind, data in group])
    found = problems(WebDatasetTars(path=str(tmp_path / "a.tar")))
    for problem, word in zip(found[1:5], ["not an image", "UTF-8", "no image", "'txt'"], strict=True):
        assert word in problem and problem.startswith("a.tar:")
    assert found[0] is found[5] is None and len(found) == 6


def test_a_repeated_member_starts_another_sample(tmp_path):
    members = [("same.png", file_of("red")), ("same.txt", b"1"), ("same.png", file_of("blue")), ("same.txt", b"2")]
    made = samples(WebDatasetTars(path=str(tar(tmp_path / "a.tar", members))))
    assert [one.parts[1].text for one in made] == ["1", "2"]


# a bad dataset is one clear line


def test_a_missing_path_is_named_at_once(tmp_path):
    absent = str(tmp_path / "absent")
    for kind in (ImageFolder, ChatJsonl, ParquetFiles, WebDatasetTars):
        with pytest.raises(SourceError, match="absent: not found"):
            open_source(kind(path=absent))
    with pytest.raises(SourceError, match="no file matches the pattern"):
        open_source(ParquetFiles(path=absent + "/*.parquet"))
    with pytest.raises(SourceError, match=r"the folder holds no \.parquet file"):
        open_source(ParquetFiles(path=str(tmp_path)))


def test_a_folder_without_metadata_says_what_to_write(tmp_path):
    assert '{"file_name": "1.png", "text": "..."}' in refusal(ImageFolder(path=str(tmp_path)))
    assert "no folder with a metadata.jsonl" in refusal(ImageFolder(path=str(write(tmp_path / "a.png", b"x"))))


@pytest.mark.parametrize(("line", "word"), [('{"text": "cut', "not JSON"), ("[1]", "must be an object")])
def test_a_line_that_is_not_json_is_named_with_its_number(tmp_path, line, word):
    file = write(tmp_path / "chat.jsonl", '{"text": "a"}\n\n{"text": "b"}\n' + line + "\n")
    assert refusal(ChatJsonl(path=str(file))).startswith(f"{file}:4: ")
    assert word in refusal(ChatJsonl(path=str(file)))


def test_a_file_that_is_not_text_is_refused(tmp_path):
    file = write(tmp_path / "a.jsonl", b"\xff\xfe\x00")
    assert "a.jsonl: can't be read as text" in refusal(ChatJsonl(path=str(file)))


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    file = write(tmp_path / "a.jsonl", '\ufeff{"text": "one"}\r\n{"text": "two"}\r\n'.encode())
    assert [one.parts[0].text for one in samples(ChatJsonl(path=str(file)))] == ["one", "two"]


def test_a_wrong_column_brings_a_suggestion(tmp_path):
    folder = folder_of(tmp_path)
    datasets.Dataset.from_dict({"image": ["a.png"], "texts": ["x"]}).to_parquet(str(folder / "a.parquet"))
    assert "no column 'text'; did you mean 'texts'?" in refusal(ParquetFiles(path=str(folder)))
    assert "no column 'picture'; it has: image, texts" in refusal(ParquetFiles(path=str(folder), image="picture"))
    write(folder / "metadata.jsonl", [{"filename": "images/red.png", "text": "x"}])
    assert "no column 'file_name'; did you mean 'filename'?" in refusal(ImageFolder(path=str(folder)))
    assert "did you mean 'message'?" in refusal(ChatJsonl(path=str(write(folder / "c.jsonl", [{"message": []}]))))
    tar(folder / "a.tar", [("1.png", file_of("red")), ("1.text", b"x")])
    assert "'txt'; did you mean 'text'?" in refusal(WebDatasetTars(path=str(folder)))


def test_a_wrong_column_is_found_by_who_passes_over_every_row(tmp_path):
    file = write(tmp_path / "c.jsonl", [{"message": []}] * 3)
    with pytest.raises(SourceError):
        for _ in open_source(ChatJsonl(path=str(file))):
            pass


def test_a_damaged_parquet_file_is_refused(tmp_path):
    datasets.Dataset.from_dict({"text": ["one"] * 1000}).to_parquet(str(tmp_path / "a.parquet"))
    whole = (tmp_path / "a.parquet").read_bytes()
    for content in (whole[:-20], b"", b"PAR1" + bytes(100) + whole[104:]):
        write(tmp_path / "a.parquet", content)
        assert "a.parquet: " in refusal(ParquetFiles(path=str(tmp_path), image=""))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_cut_tar_never_yields_fewer_samples_silently(tmp_path, mode):
    members = [(f"{i}.{kind}", data) for i in range(4) for kind, data in (("png", file_of("red")), ("txt", b"red"))]
    whole = tar(tmp_path / "a.tar", members, mode).read_bytes()
    source = WebDatasetTars(path=str(tmp_path / "a.tar"))
    assert len(samples(source)) == 4
    ends = range(0, 512 * 17, 256) if mode == "w" else np.linspace(0, len(whole) - 9, 20).astype(int)
    for end in ends:
        write(tmp_path / "a.tar", whole[:end])
        assert "a.tar: not a whole tar file" in refusal(source), end


def test_two_tars_in_one_file_are_refused_and_not_read_as_one(tmp_path):
    whole = tar(tmp_path / "a.tar", [("1.png", file_of("red")), ("1.txt", b"red")]).read_bytes()
    write(tmp_path / "a.tar", whole * 2)
    assert "followed by another tar after 1.txt" in refusal(WebDatasetTars(path=str(tmp_path)))
