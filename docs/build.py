"""The documentation as pages in site/: `make site`. Strict: what is linked and is not there fails it.

Zensical makes them, and checks links between pages. Here follow the pictures of measured runs, which lie in results/,
outside of docs/; and what it does not check: that every picture, script and style of a page is in site/.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SITE = ROOT / "site"
MEASURED = re.compile(r'(?<=")\.\./(results/[^"]+)(?=")')
LOADED = re.compile(r'<(?:img|script|source)\b[^>]*?\bsrc="?([^"\s>]+)|<link\b[^>]*?\brel="?(?:stylesheet|icon)"?[^>]*')
ADDRESS = re.compile(r'\bhref="?([^"\s>]+)')


def add_measured_pictures(page: Path) -> None:
    """Bring what a page shows of results/ into the site."""
    text = page.read_text(encoding="utf-8")
    for name in sorted(set(MEASURED.findall(text))):
        target = SITE / "measured" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    page.write_text(MEASURED.sub(r"measured/\1", text), encoding="utf-8")


def faults(page: Path) -> list[str]:
    """What a page loads from elsewhere, or loads or links to and is not there."""
    text = page.read_text(encoding="utf-8")
    loaded = [match[1] or ADDRESS.search(match[0])[1] for match in LOADED.finditer(text)]
    found = [f"{page.name} loads {address}" for address in loaded if re.match(r"(https?:)?//", address)]
    for address in {*loaded, *re.findall(r'<a\b[^>]*\bhref="?([^"\s>]+)', text)}:
        file = address.partition("#")[0].partition("?")[0]
        if file and not re.match(r"[a-z]+:|/", file) and not (page.parent / file).exists():
            found.append(f"{page.name} leads to {address}, which is not there")
    return found


def main() -> None:
    shutil.rmtree(SITE, ignore_errors=True)
    built = subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=ROOT, check=False)
    if built.returncode:
        sys.exit(built.returncode)
    pages = sorted(SITE.rglob("*.html"))
    for page in pages:
        add_measured_pictures(page)
    all_faults = [fault for page in pages if page.name != "404.html" for fault in faults(page)]
    if all_faults:
        sys.exit("\n".join(all_faults))
    print(f"{len(pages)} pages, {SITE / 'index.html'}")


if __name__ == "__main__":
    main()
