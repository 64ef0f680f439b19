"""What a file is that is not what was asked for, told by its first bytes, and the way from it to what is needed."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from .image_info import sniff

HEAD, TAIL = 4096, 1 << 16
"""The first bytes of a file suffice for all but packed documents: what those hold stands within their last ones."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file is, in words that end a sentence ("a Git LFS pointer"), and what to do.

    `is_stand_in`: it only stands for the file that is meant, whatever was asked for.
    """

    what: str
    hint: str
    is_stand_in: bool = False


def find_kind(head: bytes, *, tail: bytes = b"", name: str = "FILE") -> FileKind | None:
    """What a file with this head (and, where it is packed, this tail) is; None where nothing is known of it."""
    return find_stand_in(head) or _find_document(head, tail, name) or _find_other(head, name)


def find_stand_in(head: bytes) -> FileKind | None:
    """What only stands for a file: a pointer of a version control system, a placeholder, a copy that never came."""
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        hint = "fetch the file itself: git lfs pull (once, before: git lfs install)"
        return FileKind("a Git LFS pointer, not the file itself", hint, is_stand_in=True)
    if re.match(rb"/?(\.git/)?annex/objects/\S+\s*\Z", head.replace(b"\\", b"/")[:HEAD]):
        return FileKind(
            "a git-annex pointer, not the file itself", "fetch the file itself: git annex get", is_stand_in=True
        )
    if head.startswith(b"bplist00") and b"NSURLNameKey" in head:
        return FileKind(_ICLOUD, _ICLOUD_HINT, is_stand_in=True)
    if head and not head.strip(b"\0"):
        hint = "it was never written or copied to its end: take it from its source again"
        return FileKind("a file of zero bytes, with nothing in it", hint, is_stand_in=True)
    return None


_ICLOUD = "a placeholder of iCloud: the file itself is not on this machine"

_ICLOUD_HINT = "download it first: open it in Finder, or run brctl download FILE"


def find_absent(path: Path) -> FileKind | None:
    """Why there is nothing at a path that was named: a link that leads nowhere, or a file that is still in a cloud."""
    try:
        if path.is_symlink():
            target = str(path.readlink())
            if "annex/objects" in target.replace("\\", "/"):
                return FileKind("a git-annex link whose file is not here", "fetch the file itself: git annex get")
            return FileKind(f"a link to {target}, which is not there", "name the file itself")
        if path.with_name(f".{path.name}.icloud").exists():
            return FileKind(_ICLOUD, _ICLOUD_HINT)
    except (OSError, ValueError):
        return None
    return None


_AS_CSV = {
    "excel": 'save it as "CSV UTF-8" (in Excel: File, Save As)',
    "numbers": "export it as CSV (in Numbers: File, Export To, CSV, encoding UTF-8)",
    "calc": 'save it as "Text CSV" in UTF-8 (in LibreOffice: File, Save As)',
    "text": "save it as plain text in UTF-8",
}

_PACKED = (
    (rb"xl/workbook\.(xml|bin)", "an Excel workbook", "excel"),
    (rb"opendocument\.spreadsheet", "an OpenDocument spreadsheet", "calc"),
    (rb"Index/[\w/-]*\.iwa|Index\.zip", "a Numbers spreadsheet", "numbers"),
    (rb"word/document\.xml", "a Word document", "text"),
    (rb"opendocument\.text", "an OpenDocument text", "text"),
    (rb"ppt/presentation\.xml", "a PowerPoint presentation", "text"),
)
"""What the names inside a zip file tell of it."""


def _find_document(head: bytes, tail: bytes, name: str) -> FileKind | None:
    """Spreadsheets and other documents, which are zip files or Microsoft's older containers."""
    if head.startswith(b"PK\x03\x04"):
        for pattern, what, way in _PACKED:
            if re.search(pattern, head) or re.search(pattern, tail):
                return FileKind(what, _AS_CSV[way])
        suffix = Path(name).suffix.lower()
        if suffix in {".xlsx", ".xlsm", ".xlsb"}:
            return FileKind("an Excel workbook", _AS_CSV["excel"])
        return FileKind("a zip archive", f"unpack it first: unzip {_quoted(name)}")
    if head.startswith(b"\xd0\xcf\x11\xe0"):
        return FileKind("an old Excel workbook or another old Office document", _AS_CSV["excel"])
    if head.startswith(b"PAR1") and _is_binary(head):
        return FileKind("a Parquet file", parquet_hint(name))
    return None


def parquet_hint(name: str) -> str:
    """The line that makes a table of a Parquet file."""
    made = f"{Path(name).stem or 'table'}.csv"
    code = f"import pandas; pandas.read_parquet({name!r}).to_csv({made!r}, index=False)"
    return f"make a CSV file of it: python3 -c {shlex.quote(code)}"


def _quoted(name: str) -> str:
    return shlex.quote(name) if name not in {"-", "standard input"} else "FILE"


_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (b"%PDF-", "a PDF document", "export what is in it"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first: gzip -dc {}"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it first: zstd -dc {}"),
    (b"BZh", "compressed with bzip2", "unpack it first: bzip2 -dc {}"),
    (b"\xfd7zXZ\0", "compressed with xz", "unpack it first: xz -dc {}"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive", "unpack it first"),
    (b"SQLite format 3\0", "an SQLite database", 'export a table: sqlite3 -header -csv {} "SELECT * FROM …"'),
    (b"ARROW1", "an Arrow (Feather) file", "save it as CSV: pandas.read_feather(…).to_csv(…, index=False)"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "save it as CSV"),
    (b"Obj\x01", "an Avro file", "save it as CSV"),
    (b"ORC", "an ORC file", "save it as CSV"),
    (b"{\\rtf", "rich text (RTF)", "save it as plain text in UTF-8"),
    (b"[InternetShortcut]", "a shortcut to a web page", "download what it points to"),
    (b"bplist00", "a property list", "name the file that is meant"),
    (b"\x7fELF", "a program", "name the file that is meant"),
    (b"MZ\x90\0", "a program", "name the file that is meant"),
)


def _find_other(head: bytes, name: str) -> FileKind | None:
    """Everything else that its first bytes tell."""
    for magic, what, hint in _OTHERS:
        # Three letters may begin a text as well; a packed file is no text.
        if head.startswith(magic) and (len(magic) > 3 or not magic.isalpha() or _is_binary(head)):
            return FileKind(what, hint.format(_quoted(name)))
    if head[257:262] == b"ustar":
        return FileKind("a tar archive", f"unpack it first: tar xf {_quoted(name)}")
    if image := sniff(head):
        article = "an" if image == "avif" else "a"
        return FileKind(f"{article} {image.upper()} image", "name it with --image, or the file that is meant")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return FileKind("an HTML page, such as a site shows in place of a download", "download the file itself again")
    if text.startswith((b"<svg", b"<?xml", b"<!doctype svg")) and b"<svg" in text:
        return FileKind("an SVG drawing", "export it as PNG")
    return None


def _is_binary(head: bytes) -> bool:
    return any(byte < 9 for byte in head)
