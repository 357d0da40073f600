"""The shared loop: what is saved and when, interrupts, logs, pictures, progress."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from gancomp.data import Batch
from gancomp.errors import RunError
from gancomp.io import read_jsonl
from gancomp.train import Interrupted, Stage, StageFolder, TrainOptions, fit
from gancomp.train.adversary import Precision
from gancomp.train.log import TrainLog

STEPS = 12


class Toy(Stage):
    """A network of one number that takes the mean of what it sees, and a hook that is called in every step."""

    name = "toy"

    def __init__(self, at_step=lambda step: None, at_preview=lambda: None, **options) -> None:
        settings = {"steps": STEPS, "batch_size": 2, "lr": 0.1, "save_every": 4, "log_every": 3, "sample_every": 5}
        self.options = TrainOptions(device="cpu", **{**settings, **options})
        self.device = torch.device("cpu")
        self.precision = Precision(self.options, self.device)
        self.network = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.zeros_(self.network.weight)
        self.modules = {"network": self.network}
        self.optimizers = {"network": torch.optim.SGD(self.network.parameters(), lr=9.0)}
        self.at_step, self.at_preview = at_step, at_preview
        self.seen: list[tuple[int, float, float]] = []

    def step(self, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        self.seen.append((step, float(torch.rand(())), self.optimizers["network"].param_groups[0]["lr"]))
        loss = (self.network.weight.sum() - batch.target.mean()).square() + 0.01 * torch.rand(())
        self.precision.backward(loss)
        self.precision.step(self.optimizers["network"])
        changed = self.at_step(step)
        return {"loss": loss.detach() if changed is None else changed}

    def preview(self, batch: Batch) -> dict[str, torch.Tensor]:
        self.at_preview()
        return {"input": batch.input, "ground truth": batch.target}

    def write_products(self, folder: StageFolder, provenance: dict) -> None:
        (folder / "product.txt").write_text(f"{self.network.weight.item()} {provenance}")


@pytest.fixture
def run(train_set, val_set, tmp_path: Path):
    """Train a toy in a folder; without a name in the folder of all."""

    def call(toy: Toy, name: str = "run", **options) -> bool:
        folder = StageFolder(tmp_path / name)
        folder.open({"toy": 1})
        return fit(toy, train_set, val_set, folder, {"from": "test"}, progress=False, **options)

    return call


def log(folder: Path) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in read_jsonl(folder / "log.jsonl")]


@pytest.fixture
def straight(run, tmp_path: Path) -> Path:
    """The folder of a run that nothing disturbed."""
    assert run(Toy(), "straight")
    return tmp_path / "straight"


def assert_same_end(folder: Path, straight: Path) -> None:
    assert (folder / "product.txt").read_text() == (straight / "product.txt").read_text()
    assert log(folder) == log(straight)
    samples = [{path.name: path.read_bytes() for path in (f / "samples").iterdir()} for f in (folder, straight)]
    assert samples[0] == samples[1]
    assert not (folder / "state.pt").exists()


def test_what_a_run_leaves_behind(straight: Path, run) -> None:
    assert {path.name for path in straight.iterdir()} - {"tensorboard"} == {
        "run.yaml", "log.jsonl", "samples", "product.txt", "done.json",
    }  # fmt: skip
    assert [record["step"] for record in log(straight)] == [1, 3, 6, 9, 12]
    assert all(record.keys() == {"step", "loss", "lr"} for record in log(straight))
    assert StageFolder(straight).done["steps"] == STEPS
    assert "{'from': 'test'}" in (straight / "product.txt").read_text()
    again = Toy()
    assert run(again, "straight"), "a finished stage is not trained again"
    assert again.seen == []


def test_pictures_are_drawn(straight: Path) -> None:
    names = sorted(path.name for path in (straight / "samples").iterdir())
    assert names == ["step_0000005.png", "step_0000010.png", "step_0000012.png"]
    with Image.open(straight / "samples" / names[0]) as picture:
        picture.load()
        assert picture.mode == "RGB"
        assert picture.width >= 2 * 32, "two columns"
        assert picture.height >= 3 * 32, "three validation pairs"


def test_only_the_last_picture(run, tmp_path: Path) -> None:
    run(Toy(sample_every=0))
    assert [path.name for path in (tmp_path / "run/samples").iterdir()] == ["step_0000012.png"]


def test_every_step_has_its_own_rate_and_randomness(run) -> None:
    toy = Toy(decay_start=0.5)
    torch.manual_seed(123)
    run(toy, "first")
    assert [rate for *_, rate in toy.seen] == pytest.approx([toy.options.learning_rate(step) for step in range(STEPS)])
    drawn = [number for _, number, _ in toy.seen]
    assert len(set(drawn)) == STEPS
    again, other = Toy(), Toy(seed=7)
    run(again, "second")
    run(other, "third")
    assert [number for _, number, _ in again.seen] == drawn
    assert [number for _, number, _ in other.seen] != drawn


@pytest.mark.parametrize("stops", [[6], [1, 2, 11], list(range(1, 12))])
def test_time_slices(run, straight: Path, tmp_path: Path, stops: list[int]) -> None:
    for stop in stops:
        toy = Toy()
        assert not run(toy, stop_at=stop)
        assert (tmp_path / "run/state.pt").exists()
        assert not (tmp_path / "run/done.json").exists()
    assert [step for step, *_ in toy.seen] == list(range(stops[-2] if len(stops) > 1 else 0, stops[-1]))
    assert not run(Toy(), stop_at=stops[-1]), "nothing is left to do in this slice"
    assert run(Toy(), stop_at=10**6)
    assert_same_end(tmp_path / "run", straight)


@pytest.mark.parametrize("crash", [0, 3, 4, 7, 11])
def test_a_crash_costs_the_steps_since_the_last_saved_state(run, straight: Path, tmp_path: Path, crash: int) -> None:
    """As after a kill, the log holds lines of steps that the resumed run does again: each is there once in the end."""

    def fail(step: int) -> None:
        if step == crash:
            raise MemoryError

    with pytest.raises(MemoryError):
        run(Toy(fail))
    toy = Toy()
    assert run(toy)
    assert toy.seen[0][0] == crash // 4 * 4
    assert_same_end(tmp_path / "run", straight)


def test_a_crash_between_training_and_products(run, straight: Path, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Toy, "write_products", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(Toy())
    toy = Toy()
    assert run(toy)
    assert toy.seen == []
    assert_same_end(tmp_path / "run", straight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [0, 5, 10, STEPS - 1])
def test_interrupts_save_and_stop(run, straight: Path, tmp_path: Path, number: int, at: int) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def send(step: int) -> None:
        if step == at:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as caught:
        run(Toy(send))
    assert str(caught.value) == f"toy: stopped at step {at + 1} of {STEPS}; the same command goes on from there"
    assert caught.value.exit_code == 130
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    toy = Toy()
    assert run(toy)
    assert [step for step, *_ in toy.seen] == list(range(at + 1, STEPS)), "not a step is lost"
    assert_same_end(tmp_path / "run", straight)


def test_an_interrupt_while_a_picture_is_drawn_stops_after_the_next_step(run, tmp_path: Path, straight: Path) -> None:
    """The step it came in has already decided not to save: stopping there would lose steps."""
    sent = []

    def send() -> None:
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGINT))

    with pytest.raises(Interrupted, match="stopped at step 6 of 12"):
        run(Toy(at_preview=send, save_every=1000))
    toy = Toy(save_every=1000)
    assert run(toy)
    assert toy.seen[0][0] == 6
    assert_same_end(tmp_path / "run", straight)


def test_a_second_interrupt_stops_at_once(run, tmp_path: Path, straight: Path) -> None:
    def send(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(Toy(send))
    toy = Toy()
    assert run(toy)
    assert toy.seen[0][0] == 4, "the last saved state"
    assert_same_end(tmp_path / "run", straight)


def test_it_runs_outside_the_main_thread(run, tmp_path: Path, straight: Path) -> None:
    """Signals can only be handled in the main thread."""
    results = []
    thread = threading.Thread(target=lambda: results.append(run(Toy())))
    thread.start()
    thread.join(60)
    assert results == [True]
    assert_same_end(tmp_path / "run", straight)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(run, tmp_path: Path, value: str) -> None:
    with pytest.raises(RunError) as caught:
        run(Toy(lambda step: torch.tensor(float(value)) if step == 8 else None))
    assert str(caught.value) == (
        f"{tmp_path / 'run'}: loss loss is {value} at step 9; lower lr (the state saved before is still there)"
    )
    toy = Toy()
    assert run(toy)
    assert toy.seen[0][0] == 8


def test_damaged_state(run, tmp_path: Path) -> None:
    run(Toy(), stop_at=4)
    state = tmp_path / "run/state.pt"
    state.write_bytes(state.read_bytes()[:-10])
    with pytest.raises(RunError, match=r"state\.pt: cannot be resumed from"):
        run(Toy())
    state.unlink()
    assert run(Toy()), "removed, the run starts again"


def test_damaged_log(run, tmp_path: Path, straight: Path) -> None:
    run(Toy(), stop_at=8)
    path = tmp_path / "run/log.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 9, "lo')
    assert run(Toy()), "a line cut short by a kill is dropped"
    assert_same_end(tmp_path / "run", straight)
    run(Toy(), "other", stop_at=8)
    path = tmp_path / "other/log.jsonl"
    path.write_text(whole.replace("}", "", 1))
    with pytest.raises(RunError, match=r"log\.jsonl: line 1 is damaged"):
        run(Toy(), "other")


def test_log_counts_the_seconds_of_all_parts(tmp_path: Path, monkeypatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    first = TrainLog(tmp_path / "log.jsonl")
    clock[0] += 5
    first.scalars(1, {"loss": 0.5})
    clock[0] += 2
    first.scalars(2, {"loss": 0.25})
    again = TrainLog(tmp_path / "log.jsonl", start_step=1)
    clock[0] += 1
    again.scalars(2, {"loss": 0.25})
    assert [record["seconds"] for record in read_jsonl(tmp_path / "log.jsonl")] == [5.0, 6.0]


def test_a_killed_clean_up_loses_no_line(tmp_path: Path, monkeypatch) -> None:
    """The lines of undone steps are dropped whole or not at all."""
    path = tmp_path / "log.jsonl"
    before = TrainLog(path)
    for step in range(1, 6):
        before.scalars(step, {"loss": 0.0})
    content = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            TrainLog(path, start_step=3)
    assert path.read_bytes() == content
    TrainLog(path, start_step=3)
    assert [record["step"] for record in read_jsonl(path)] == [1, 2, 3]


def test_tensorboard_shows_numbers_and_pictures(run, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(Toy(), stop_at=6)
    run(Toy())
    events = reader.EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 3, 6, 9, 12]
    assert [event.step for event in events.Images("samples")] == [5, 10, 12]


def test_a_logger_that_fails_stops_nothing(run, tmp_path: Path, monkeypatch) -> None:
    class Broken:
        def add_scalar(self, *_) -> None:
            raise OSError("disk quota exceeded")

    monkeypatch.setattr(TrainLog, "_open_tensorboard", staticmethod(lambda *_: Broken()))
    with pytest.warns(UserWarning, match="TensorBoard is off from here on: disk quota exceeded") as warned:
        assert run(Toy())
    assert len(warned) == 1
    assert len(log(tmp_path / "run")) == 5


def test_progress_off_a_terminal_is_a_line_with_rate_and_time_left(train_set, val_set, tmp_path: Path, capsys) -> None:
    folder = StageFolder(tmp_path / "run")
    folder.open({})
    fit(Toy(), train_set, val_set, folder, {})
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("toy: 12/12 steps, ")
    assert "/s, 0 s left, loss=" in last
