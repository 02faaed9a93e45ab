"""Reads preference rows out of files, whatever kind they are: the first stop of a pair."""

from minimind.data.sources.json_text import RowError, parse_json
from minimind.data.sources.names import find_sources, local_paths
from minimind.data.sources.source import START, Content, Place, Source, open_source

__all__ = [
    "START",
    "Content",
    "Place",
    "RowError",
    "Source",
    "find_sources",
    "local_paths",
    "open_source",
    "parse_json",
]
