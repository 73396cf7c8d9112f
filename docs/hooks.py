"""Adds the pages that are made of the code (search/docs.py) when mkdocs builds the site."""

from __future__ import annotations

from typing import Any

from mkdocs.structure.files import File, Files

from search.docs import navigation, pages


def on_config(config: Any) -> Any:
    """The methods take their place in the navigation."""
    for entry in config["nav"]:
        if "Methods" in entry:
            entry["Methods"] = navigation()
    return config


def on_files(files: Files, config: Any) -> Files:
    """The pages themselves."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files
