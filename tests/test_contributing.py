"""CONTRIBUTING.md names what is there."""

from __future__ import annotations

import re
from pathlib import Path

from dasf_hpc.systems import SYSTEMS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def test_every_path_it_names_is_there() -> None:
    named = set(re.findall(r"\b((?:dasf_hpc|tests)/[\w/.]*\w/?)", PAGE))
    assert len(named) > 40
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_name_of_code_it_gives_is_in_the_code() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "dasf_hpc").rglob("*.py"))
    for name in (
        "BatchSystem",
        "ANALYSES",
        "Answer",
        "Finding",
        "Stream",
        "RECORDS",
        "format_page",
    ):
        assert f"`{name}" in PAGE
        assert re.search(rf"\b{name}\b", code), name


def test_every_batch_system_stands_in_the_way_of_the_data() -> None:
    way = PAGE.split("## The way of the data")[1].split("\n## ")[0]
    assert [name for name in SYSTEMS if f"{name}.py" not in way] == []


def test_imports_go_the_one_way_that_it_says() -> None:
    known: dict[str, set[str]] = {
        "profile": set(),
        "trace": {"profile"},
        "nsight": {"trace"},
        "analysis": {"profile", "trace", "nsight"},
        "launch": {"profile", "trace", "nsight"},
        "show": {"profile", "trace", "nsight", "analysis", "launch"},
    }
    for part, others in known.items():
        for path in (ROOT / "dasf_hpc" / part).rglob("*.py"):
            found = set(re.findall(r"^\s*from dasf_hpc\.(\w+)", path.read_text(), re.MULTILINE))
            assert found & (known.keys() - {part}) <= others, path


def test_what_is_named_beside_a_folder_is_in_it() -> None:
    way = PAGE.split("## The way of the data")[1].split("\n## ")[0]
    for step in re.split(r"^\d+\. ", way, flags=re.MULTILINE)[1:]:
        paths = [ROOT / path for path in re.findall(r"`(dasf_hpc/[\w/.]+)`", step)]
        folders = {path if path.is_dir() else path.parent for path in paths}
        for name in re.findall(r"`(\w+\.(?:py|c))`", step):
            assert any((folder / name).exists() for folder in folders), (name, step)
