"""The public data sets that ``gancomp data`` lays out: where they are, how large, in which folders.

Addresses are those of the sets' own projects: pix2pix (Isola et al. 2017) and CycleGAN (Zhu et al. 2017). Sizes and SHA-256
digests of the CycleGAN archives are those that TensorFlow Datasets verifies its downloads by (``url_checksums/cycle_gan.txt``);
for those of pix2pix none is published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gancomp.errors import ConfigError

PIX2PIX = "http://efrosgans.eecs.berkeley.edu/pix2pix/datasets/"
CYCLEGAN = "http://efrosgans.eecs.berkeley.edu/cyclegan/datasets/"


@dataclass(frozen=True)
class PublicSet:
    """A data set with an archive, or one that its user must ask its owners for (no ``url``).

    ``size`` (bytes) and ``sha256`` are 0 and empty where nobody has published them; ``folders`` are those of the archive that
    hold images.
    """

    name: str
    kind: Literal["pairs", "unpaired", "cityscapes"]
    url: str
    size: int
    sha256: str
    folders: tuple[str, ...]

    @property
    def archive(self) -> str:
        """The file name of its archive."""
        return self.name + (".tar.gz" if self.url.endswith(".tar.gz") else ".zip")


def _pairs(name: str, *folders: str) -> PublicSet:
    return PublicSet(name, "pairs", f"{PIX2PIX}{name}.tar.gz", 0, "", folders)


def _unpaired(name: str, size: int, sha256: str) -> PublicSet:
    return PublicSet(name, "unpaired", f"{CYCLEGAN}{name}.zip", size, sha256, ("trainA", "trainB", "testA", "testB"))


_SETS = (
    _pairs("edges2shoes", "train", "val"),
    _pairs("facades", "train", "val", "test"),
    _pairs("maps", "train", "val"),
    _unpaired("apple2orange", 78456409, "845a191e9af8926408ea597001cd03a452e3300a1f44a79fe329b3d59f6e3eb8"),
    _unpaired("cezanne2photo", 279885071, "3a6c10ca21f9485862f1cbd707744b9dc258954a04631271d23a3605eeb63cff"),
    _unpaired("horse2zebra", 116867962, "a74d9d392eecca9966b51287a76ca126af473d9de4f3e8fc0e9cda08fa1730a1"),
    _unpaired("iphone2dslr_flower", 339964458, "8fcb5e374d631b107e1d961b8c4cd0a186aa2a4ff3e279923f4c426128de7113"),
    _unpaired("monet2photo", 305231073, "88f91b00fc228f97c9411fbf1880ec1d119c98f1722e4cfcfaa2fb35fac05b04"),
    _unpaired("summer2winter_yosemite", 132640856, "167fe1726807a9d22bd106b4a6c0bd7953b688af924ac1bf967439c4961e49f9"),
    _unpaired("ukiyoe2photo", 292946532, "02a2a2fb5ecf425ca1bf86aca7304377da64a2a1d3b86df54eb65e4068bf3b08"),
    _unpaired("vangogh2photo", 306590349, "362c3473e70be0944bda08d49d660eafdc2854df55d697835b8186d1d79caaff"),
    PublicSet("cityscapes", "cityscapes", "", 0, "", ("train", "val")),
)
SETS = {public.name: public for public in _SETS}


def public_set(name: str) -> PublicSet:
    """The set of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SETS:
        raise ConfigError(f"name={name!r}: expected one of {', '.join(SETS)}")
    return SETS[name]
