"""What the file of a label table must say beside its numbers; the same for readers with torch and without.

A safetensors file whose metadata holds `format`, `version`, optionally `label_names` (JSON), and `sha256` of all the
rest. Files written before there was a checksum have none, and are read as they are.
"""

import hashlib
import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from labelemb.errors import InputError

FORMAT = {"format": "labelemb.table", "version": "1"}
_CHECKSUM = "sha256"
_BLOCK_BYTES = 2**20


def checksum_of(content: bytes) -> dict[str, str]:
    """The entry of the metadata that guards `content`, a file that is whole but for it."""
    return {_CHECKSUM: _checksum(BytesIO(content))}


def checked_label_names(path: Path, metadata: Mapping[str, str]) -> list[str] | None:
    """The label names in the metadata of a table file, None where it has none, after checking all that it says.

    Raises:
        InputError: names the file, which is of another format or version, or not what its checksum says, or whose
            names are none.
    """
    if any(metadata.get(key) != value for key, value in FORMAT.items()):
        found = f"format {metadata.get('format')!r}, version {metadata.get('version')!r}"
        raise InputError(f"{path} is no label table of version {FORMAT['version']}: it says {found}")
    if _CHECKSUM in metadata:
        with path.open("rb") as file:
            if _checksum(file) != metadata[_CHECKSUM]:
                raise InputError(f"{path} is damaged: its checksum does not fit; write the table again")
    try:
        names = json.loads(metadata.get("label_names", "null"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: its label_names are no list of names: {error}") from None
    if names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return names
    raise InputError(f"{path} is damaged: its label_names are no list of names")


def _checksum(file: BinaryIO) -> str:
    """Of the header (names, types, shapes and places of the tensors, metadata but for the checksum), then all bytes."""
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header["__metadata__"].pop(_CHECKSUM, None)
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()
