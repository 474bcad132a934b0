"""``--plans DIR`` schedules stored plans again, for another tokenizer or layout, without asking a planner."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import Made, assert_same, contents, pipeline
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline import convert, open_dataset


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level BPE that cuts text otherwise than the built-in one."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(["Step 1 gives 2. Question: what is 3 times 4?"] * 3, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture
def planned(small: Made, tmp_path: Path) -> Path:
    ran = pipeline(*small.options, "--out", tmp_path / "planned", "--ray", "off")
    assert ran.code == 0, ran.output
    return tmp_path / "planned"


def test_equals_planning(
    small: Made, planned: Path, other_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grids and plans are those of planning directly; the manifest also says where the plans came from."""
    options = [*small.options, "--tokenizer", str(other_tokenizer), "--ray", "off"]
    assert pipeline(*options, "--out", tmp_path / "directly").code == 0

    def no_planner(*_: object) -> object:
        return lambda parts: pytest.fail("the planner was asked")

    monkeypatch.setattr(convert, "build_planner", no_planner)
    ran = pipeline(*options, "--out", tmp_path / "again", "--plans", planned)
    assert ran.code == 0, ran.output
    directly, again = contents(tmp_path / "directly"), contents(tmp_path / "again")
    assert directly.pop("dataset.json") != again.pop("dataset.json")
    assert directly == again
    assert directly["data/part-00000.parquet"] != small.contents["data/part-00000.parquet"]


def test_shards_may_be_cut_otherwise(small: Made, planned: Path, tmp_path: Path) -> None:
    options = [*small.options, "--set", "shard.records=7", "--ray", "off"]
    assert pipeline(*options, "--out", tmp_path / "directly").code == 0
    assert pipeline(*options, "--out", tmp_path / "again", "--plans", planned).code == 0
    again = contents(tmp_path / "again")
    del again["dataset.json"]
    assert_same(tmp_path / "directly", {**again, "dataset.json": contents(tmp_path / "directly")["dataset.json"]})


def test_records_without_a_plan_are_quarantined(small: Made, planned: Path, tmp_path: Path) -> None:
    """The dataset with the plans has only the first fifty records; those that it lacks are named, and no others."""
    short = tmp_path / "short"
    assert pipeline(*small.options, "--limit", "50", "--out", short, "--ray", "off").code == 0
    ran = pipeline(*small.options, "--out", tmp_path / "out", "--plans", short, "--ray", "off")
    assert ran.code == 0, ran.output
    every, some, made = (open_dataset(path).manifest for path in (planned, short, tmp_path / "out"))
    unplanned = every.counts.converted - some.counts.converted
    assert unplanned > 0 and made.quarantine_reasons == {**every.quarantine_reasons, "plan_invalid": unplanned}
    assert made.counts.converted == some.counts.converted
    assert made.counts.quarantined == every.counts.quarantined + unplanned
    assert f"{unplanned} plan_invalid" in ran.output


def test_other_plans_are_another_run(small: Made, planned: Path, tmp_path: Path) -> None:
    ran = pipeline(*small.options, "--out", planned, "--plans", _copy(planned, tmp_path / "copy"), "--ray", "off")
    assert ran.code == 2 and "plans: none there" in ran.output


def _copy(dataset: Path, to: Path) -> Path:
    for name, data in contents(dataset).items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).write_bytes(data)
    return to


def test_a_dataset_is_not_made_from_its_own_plans(small: Made, planned: Path) -> None:
    """``--fresh`` would delete them first."""
    before = contents(planned)
    ran = pipeline(*small.options, "--out", planned, "--plans", planned, "--fresh", "--ray", "off")
    assert ran.code == 2 and "is --out too" in ran.output
    assert contents(planned) == before


def test_no_dataset_there(small: Made, tmp_path: Path) -> None:
    ran = pipeline(*small.options, "--out", tmp_path / "out", "--plans", tmp_path / "nothing", "--ray", "off")
    assert ran.code == 2 and "--plans" in ran.output and "no dataset" in ran.output


def test_plans_that_have_gone(small: Made, planned: Path, tmp_path: Path) -> None:
    (planned / "plans" / "part-00000.jsonl.zst").unlink()
    ran = pipeline(*small.options, "--out", tmp_path / "out", "--plans", planned, "--ray", "off")
    assert ran.code == 2 and "plans/part-00000.jsonl.zst: missing" in ran.output


@pytest.mark.parametrize("layout", ["chat-2", "solve-audit-3", "cognition-10"])
def test_another_layout(layout: str, small: Made, planned: Path, tmp_path: Path) -> None:
    """The plans' recipe, but for the layout. Where thoughts are dropped, the answer still follows what they had read."""
    options = [*small.options, "--set", f"layout={layout}", "--ray", "off"]
    ran = pipeline(*options, "--plans", planned, "--out", tmp_path / "again")
    assert ran.code == 0, ran.output
    ran = pipeline("validate", tmp_path / "again")
    assert ran.code == 0, ran.output
    before, made = open_dataset(planned), open_dataset(tmp_path / "again")
    assert made.manifest.counts.converted == before.manifest.counts.converted
    assert made.manifest.recipe == {**before.manifest.recipe, "layout": layout}
    assert made.layout.name == layout
    if layout == "cognition-10":  # has a stream for every role that the plans' layout has one for: as if planned for it
        assert pipeline(*options, "--out", tmp_path / "directly").code == 0
        directly, relaid = contents(tmp_path / "directly"), contents(tmp_path / "again")
        assert directly.pop("dataset.json") != relaid.pop("dataset.json")
        assert directly == relaid


def test_a_layout_that_keeps_what_was_dropped(small: Made, planned: Path, tmp_path: Path) -> None:
    options = [*small.options, "--ray", "off"]
    assert pipeline(*options, "--set", "layout=chat-2", "--out", tmp_path / "narrow").code == 0
    ran = pipeline(*options, "--set", "layout=agent", "--plans", tmp_path / "narrow", "--out", tmp_path / "out")
    assert ran.code == 1 and "without think parts" in ran.output and "plan_invalid" in ran.output


def test_the_manifest_names_the_planner_that_made_the_plans(small: Made, planned: Path, tmp_path: Path) -> None:
    """Whatever recipe is given beside ``--plans``: only its layout and limits count."""
    options = [*small.options, "--recipe", "agent", "--set", "layout=chat-think-3"]
    pipeline(*options, "--out", tmp_path / "out", "--plans", planned, "--ray", "off")
    made = json.loads((tmp_path / "out" / "dataset.json").read_bytes())["recipe"]
    before = json.loads((planned / "dataset.json").read_bytes())["recipe"]
    assert (made["planner"], made["options"]) == (before["planner"], before["options"])
