"""Folders that are shipped with the package: definitions of images, templates of batch scripts."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent


def checkout() -> Path | None:
    """Give the checkout that the package is in; None where it was installed."""
    return PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None


def shipped(folder: str) -> Path:
    """Give a shipped folder: beside the package in a checkout, within it where installed."""
    return (checkout() or PACKAGE) / folder
