"""Where samples come from, and what a stage makes of them."""

from typing import Literal

from unimm.config.check import config


@config(kind="shapes", positive="count scale")
class Shapes:
    """The built-in world of coloured shapes (`data/shapes.py`)."""

    part: Literal["pairs", "chats", "edits", "rounds", "sentences"]
    """Pictures with captions, with questions, with one edit, with several edits in turn; or sentences alone."""
    count: int
    seed: int = 0
    scale: int = 1
    """Pixels of the picture to a pixel of the world, which is 32 wide."""
    wide: float = 0.0
    """Share of pictures that are half as wide again as high, or as high as wide, the world in their middle."""


@config(kind="emoji", positive="size")
class Emoji:
    """Colour emoji with their Unicode names, drawn from the system's font (`data/emoji.py`)."""

    size: int = 32


@config(kind="image_folder")
class ImageFolder:
    """A folder of images with a metadata.jsonl: one {"file_name": ..., "text": ...} a line."""

    path: str


@config(kind="chat_jsonl")
class ChatJsonl:
    """A JSONL file of {"messages": [...]} with text and image parts; image paths relative to the file."""

    path: str


@config(kind="parquet")
class ParquetFiles:
    """Parquet files (a file, a folder or a pattern) with an image and a text column, or a messages column."""

    path: str
    image: str = "image"
    text: str = "text"


@config(kind="webdataset")
class WebDatasetTars:
    """WebDataset tars (a file, a folder or a pattern): members that share a stem are one sample."""

    path: str
    text: str = "txt"
    """The extension of the member that holds the text."""


Task = Literal["t2i", "caption", "draw", "as_is"]
Source = Shapes | Emoji | ImageFolder | ChatJsonl | ParquetFiles | WebDatasetTars


@config(positive="weight")
class Use:
    """A dataset's share of a stage, and what is made of its pairs."""

    data: str
    task: Task = "as_is"
    """t2i: text, then the image is learned. caption: image, then the text is learned.
    draw: the same as t2i as a turn of chat. as_is: the sample as the source marks it."""
    weight: float = 1.0
    """Share of documents, relative to the other uses."""
