"""A case: a command, and the folder that it is run in."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.fuzz.watch import CANARY


class Case(NamedTuple):
    """A command and what goes with it."""

    arguments: list[str]
    may_write: tuple[str, ...] = ("out",)
    """Names in the sandbox at or below which it may write."""
    stdin: bytes = b""


class Desk(NamedTuple):
    """Where a case is made up: what it is drawn from, its sandbox, and the whole data and runs."""

    draw: Random
    sandbox: Path
    originals: Path

    def write(self, name: str, content: bytes) -> str:
        """Write a file in the sandbox; its name."""
        path = self.sandbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return name

    def copy(self, original: str, name: str) -> Path:
        """Copy data or a run into the sandbox."""
        source, target = self.originals / original, self.sandbox / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        else:
            shutil.copy2(source, target)
        return target


def lay_out(sandbox: Path) -> None:
    """What every sandbox has: a module that makes the canary when it is imported, and a file that is no one's."""
    sandbox.mkdir(parents=True)
    code = f"open({CANARY!r}, 'w').close()\n\ndef make(num_classes):\n    raise SystemExit('imported')\n"
    (sandbox / f"{CANARY}.py").write_text(code, encoding="utf-8")
    (sandbox / "bystander").write_text("not to be written\n", encoding="utf-8")


def as_arguments(texts: Sequence[str]) -> list[str]:
    """Texts as a process is given them: without NUL, and with surrogates for bytes that are not UTF-8."""
    return [os.fsdecode(text.replace("\0", "").encode("utf-8", "surrogatepass")) for text in texts]
