"""``gancomp data``: public data sets, laid out as the other verbs read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from gancomp.data.catalogue import SETS, public_set
from gancomp.data.prepare import Wishes, prepare
from gancomp.errors import ConfigError


@dataclass(frozen=True)
class DataRun:
    """Fetch a public data set and lay it out (`prepare NAME`), or list those that are known (`list`).

    Folders of your own images need none of this. The sets carry their makers' terms: most are for research only.
    """

    action: Positional[Literal["prepare", "list"]]
    """What to do."""
    name: Positional[str] = ""
    """The set, such as `horse2zebra`; `gancomp data list` has them all."""
    out: str = "data"
    """Folder that sets go into; this one becomes its folder `NAME`."""
    url: str = ""
    """Another address of the same archive. An archive that already lies in the folder `out` is not fetched."""
    sha256: str = ""
    """SHA-256 that the archive must have, in place of the published or recorded one."""
    split_seed: int = -1
    """Seed that training images for the search (`val`) are drawn by, at most 200; -1 leaves the published folders."""
    keep_archive: bool = False
    """Whether the archive stays when its images are laid out."""
    source: str = ""
    """Cityscapes: folder of your own download, the two zip files or what is in them."""
    form: Literal["pairs", "labels"] = "pairs"
    """Cityscapes: side-by-side pairs for pix2pix, or label maps for GauGAN."""
    width: int = 0
    """Cityscapes: pixels that images are wide; 0 is 256 for pairs, 512 for label maps."""


def run_data(run: DataRun) -> Path | list[str]:
    """Prepare a set and return its folder, or return the lines of the list.

    Raises:
        ConfigError: an unknown name, or a wrong setting.
        DataError: as of :func:`gancomp.data.prepare.prepare`.
    """
    if run.action == "list":
        if run.name:
            raise ConfigError(f"name={run.name!r}: `gancomp data list` takes no name")
        return _listing()
    wishes = Wishes(run.url, run.sha256, run.split_seed, run.keep_archive, run.source, run.form, run.width)
    return prepare(public_set(run.name), Path(run.out), wishes)


def _listing() -> list[str]:
    rows = [("name", "kind", "size", "SHA-256", "address")]
    for public in SETS.values():
        size = f"{public.size / 1e6:.0f} MB" if public.size else "-"
        digest = "published" if public.sha256 else "recorded" if public.url else "-"
        rows.append((public.name, public.kind, size, digest, public.url or "your own download (--source)"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[-1]]) for row in rows]
