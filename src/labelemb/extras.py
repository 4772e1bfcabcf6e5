"""What to install for a package that is missing: the library alone needs torch, the command line the extras."""

_EXTRAS = {
    "text": ("tokenizers", "sacrebleu", "rouge_score"),
    "export": ("onnx", "onnxscript", "onnxruntime"),
}


def how_to_install(package: str | None) -> str:
    """The command that installs the extra with `package`, for an installed library and for a checkout of it."""
    extra = next((extra for extra, packages in _EXTRAS.items() if package in packages), "train")
    return f"pip install 'labelemb[{extra}]', or in a checkout of labelemb: pip install '.[{extra}]'"
