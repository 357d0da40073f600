"""Stage folders and saved states: whole or not at all, and only continued by the same run."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from torch import nn

from gancomp.errors import RunError
from gancomp.train import StageFolder, TrainOptions
from gancomp.train.adversary import Precision
from gancomp.train.state import first_difference, load_state, save_state

SETTINGS = {"verb": "train", "train": {"steps": 4, "lr": 0.1}, "sizes": [1, 2], "root": None}


def test_a_folder_is_made_and_opened_again(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "a" / "b")
    folder.open(SETTINGS)
    StageFolder(tmp_path / "a" / "b").open(SETTINGS)
    assert [path.name for path in folder.path.iterdir()] == ["run.yaml"]
    assert folder.done is None


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({**SETTINGS, "train": {"steps": 5, "lr": 0.1}}, "train.steps=4, now 5"),
        ({**SETTINGS, "train": {"steps": 4, "lr": 0.1, "ema": 0.5}}, "train.ema without a value, now the other way round"),
        ({**SETTINGS, "train": {"steps": 4}}, "train.lr with a value, now the other way round"),
        ({**SETTINGS, "sizes": [1, 3]}, "sizes=[1, 2], now [1, 3]"),
        ({**SETTINGS, "train": 5}, "train={'steps': 4, 'lr': 0.1}, now 5"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, settings: dict, difference: str) -> None:
    StageFolder(tmp_path / "run").open(SETTINGS)
    before = (tmp_path / "run/run.yaml").read_bytes()
    with pytest.raises(RunError) as caught:
        StageFolder(tmp_path / "run").open(settings)
    assert str(caught.value) == (f"{tmp_path / 'run'}: was begun with {difference}; use the same settings or another folder")
    assert (tmp_path / "run/run.yaml").read_bytes() == before


def test_equal_settings_have_no_difference() -> None:
    assert first_difference(SETTINGS, {**SETTINGS}) is None
    assert first_difference(None, SETTINGS) == f"settings=None, now {SETTINGS!r}"


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/me.jpg").touch()
    with pytest.raises(RunError, match="the folder is not empty and holds no run"):
        StageFolder(tmp_path / "photos").open(SETTINGS)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["me.jpg"]
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file, expected a folder"):
        StageFolder(tmp_path / "file").open(SETTINGS)


def test_damaged_settings(tmp_path: Path) -> None:
    StageFolder(tmp_path / "run").open(SETTINGS)
    (tmp_path / "run/run.yaml").write_text("{: [")
    with pytest.raises(RunError, match=r"run\.yaml: damaged; remove the folder"):
        StageFolder(tmp_path / "run").open(SETTINGS)
    (tmp_path / "run/run.yaml").write_text("")
    with pytest.raises(RunError, match="was begun with settings=None"):
        StageFolder(tmp_path / "run").open(SETTINGS)


def test_leftovers_of_killed_processes_do_no_harm(tmp_path: Path) -> None:
    """A process can be killed while it writes the settings, or a state of gigabytes."""
    run = tmp_path / "run"
    run.mkdir()
    (run / ".run.yaml.a1b2.tmp").write_text("verb: tr")
    StageFolder(run).open(SETTINGS)
    (run / "samples").mkdir()
    (run / "samples/.step_1.png.x.tmp").touch()
    StageFolder(run).open(SETTINGS)
    assert sorted(path.name for path in run.rglob("*")) == ["run.yaml", "samples"]


def test_finished(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "run")
    folder.open(SETTINGS)
    folder.state_path.touch()
    folder.finish({"steps": 3})
    assert folder.done == {"steps": 3}
    assert not folder.state_path.exists()
    (folder / "done.json").write_text("{")
    with pytest.raises(RunError, match=r"done\.json: not valid JSON"):
        _ = folder.done


def parts() -> dict:
    network = nn.Conv2d(2, 2, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network(torch.ones(1, 2, 1, 1)).sum().backward()
    optimizer.step()
    return {"network": network, "network optimizer": optimizer, "loss scale": Precision(TrainOptions(), torch.device("cpu"))}


def test_state_comes_back(tmp_path: Path) -> None:
    saved, loaded = parts(), parts()
    path = tmp_path / "state.pt"
    assert load_state(path, loaded) == 0
    save_state(path, 17, saved)
    assert load_state(path, loaded) == 17
    assert torch.equal(saved["network"].weight, loaded["network"].weight)
    moments = [part["network optimizer"].state_dict()["state"][0]["exp_avg"] for part in (saved, loaded)]
    assert torch.equal(*moments)
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_the_loss_scale_of_half_precision_is_part_of_the_state(tmp_path: Path) -> None:
    """Without it a resumed run would begin again with the largest scale and skip its first steps."""

    first, second = (Precision(TrainOptions(amp="fp16"), torch.device("cpu")) for _ in range(2))
    weight = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    first.backward(weight.sum() * float("inf"))
    first.step(optimizer)
    first.end_step()
    assert first.state_dict()["scale"] == second.state_dict()["scale"] / 2
    save_state(tmp_path / "state.pt", 1, {"loss scale": first})
    load_state(tmp_path / "state.pt", {"loss scale": second})
    assert second.state_dict() == first.state_dict()


def refused(path: Path, into: dict) -> None:
    with pytest.raises(RunError) as caught:
        load_state(path, into)
    text = str(caught.value)
    assert text.startswith(f"{path}: cannot be resumed from (")
    assert text.endswith("); remove it to start again")
    assert "\n" not in text


def test_damaged_states(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, 1, parts())
    data = path.read_bytes()
    for length in [0, 1, 10, 100, *(len(data) * k // 8 for k in range(1, 8)), len(data) - 1]:
        path.write_bytes(data[:length])
        refused(path, parts())
    path.write_bytes(b"not a state")
    refused(path, parts())
    for value in ([], {}, {"step": 3}, {"step": None, "parts": parts()["network"].state_dict()}):
        torch.save(value, path)
        refused(path, parts())


def test_states_of_other_networks(tmp_path: Path) -> None:
    save_state(tmp_path / "state.pt", 1, parts())
    refused(tmp_path / "state.pt", {**parts(), "network": nn.Conv2d(3, 3, 1)})
    refused(tmp_path / "state.pt", {**parts(), "discriminator": nn.Conv2d(2, 2, 1)})


def test_a_full_disk_leaves_the_old_state(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "state.pt"
    save_state(path, 1, parts())
    before = path.read_bytes()

    def full(state, file) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_state(path, 2, parts())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]
