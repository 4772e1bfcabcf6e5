"""What to install for a package that is missing: the library alone needs torch, the command line the extras."""

_TEXT_PACKAGES = ("tokenizers", "sacrebleu", "rouge_score")


def how_to_install(package: str | None) -> str:
    """The command that installs the extra with `package`, for an installed library and for a checkout of it."""
    extra = "text" if package in _TEXT_PACKAGES else "train"
    return f"pip install 'labelemb[{extra}]', or in a checkout of labelemb: pip install '.[{extra}]'"
