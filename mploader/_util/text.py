"""Long texts cut for messages."""

from __future__ import annotations


def clip(text: str, characters: int) -> str:
    """Cuts a long text at its end and says so."""
    return text if len(text) <= characters else f"{text[:characters]}... ({len(text):,} characters in all)"


def clip_front(text: str, characters: int) -> str:
    """Cuts a long text at its front and says so."""
    return text if len(text) <= characters else f"({len(text):,} characters in all) ...{text[-characters:]}"
