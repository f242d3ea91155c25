"""Few annotated images beside many without labels: who takes part in what."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_trial

from ablate.datasets import check_dataset, load_dataset, require_dataset
from ablate.errors import InputError
from ablate.finetune import select_shots
from ablate.running.checks import check_trials
from ablate.running.plan_words import plan_lines
from ablate.space import Grid, TrialSpec, plan_of
from ablate.stage.inputs import pretraining_images


def write(root: Path, table: str, description: str, names: list[str], unlabelled: tuple[str, ...] = ()) -> None:
    """Write the data set `mine` with pictures of these names, each its own noise."""
    folder = root / "mine"
    for place, files in (("images", names), ("unlabelled", unlabelled)):
        for file in files:
            (folder / place).mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(list(file.encode())).integers(0, 256, (10, 20), dtype=np.uint8)
            Image.fromarray(noise).save(folder / place / file)
    (folder / "landmarks.csv").write_text(table)
    (folder / "dataset.yaml").write_text(description)


def labelled(*names: str) -> str:
    return "image,x0,y0,x1,y1\n" + "".join(f"{name},3,4,5,6\n" for name in names)


COUNTS = "unit: px\nsplits: {train: 2, val: 1}\n"


def test_an_image_without_a_row_or_with_an_empty_row_is_for_pretraining_alone(tmp_path: Path) -> None:
    table = labelled("b.png", "d.png", "f.png", "h.png") + "a.png,,,,\ne.png\n"
    write(tmp_path, table, COUNTS, [f"{letter}.png" for letter in "abcdefgh"], unlabelled=("c.png", "z.png"))
    data = load_dataset("mine", tmp_path, 16)
    assert data.train.names == ("b.png", "d.png")
    assert (data.val.names, data.test.names) == (("f.png",), ("h.png",))
    assert data.unlabelled.names == ("a.png", "c.png", "e.png", "g.png", "unlabelled/c.png", "unlabelled/z.png")
    assert data.unlabelled.images_NHW.shape == (6, 16, 16)
    assert not np.array_equal(data.unlabelled.images_NHW[0], data.unlabelled.images_NHW[1])
    info = require_dataset("mine", tmp_path)
    assert (info.of(None).train, info.of(None).val, info.of(None).test, info.of(None).unlabelled) == (2, 1, 1, 6)
    assert ("images", "4 annotated, 6 unlabelled") in check_dataset("mine", tmp_path).rows()


def test_in_a_split_column_train_and_unlabelled_join_the_pool_and_val_and_test_join_nothing(tmp_path: Path) -> None:
    table = (
        "image,split,x0,y0\na.png,train,1,1\nb.png,val,1,1\nc.png,test,1,1\nd.png,unlabelled,,\ne.png,train,,\n"
        "f.png,,,\ng.png,unlabelled,1,1\nh.png,test,,\ni.png,val,,\n"
    )
    write(tmp_path, table, "unit: px\n", [f"{letter}.png" for letter in "abcdefghij"])
    data = load_dataset("mine", tmp_path, 16)
    assert data.unlabelled.names == ("d.png", "e.png", "f.png", "g.png", "j.png")
    assert [data.train.names, data.val.names, data.test.names] == [("a.png",), ("b.png",), ("c.png",)]
    (warning,) = require_dataset("mine", tmp_path).warnings
    assert warning == (
        "mine: 2 images of val and test without a landmark are left out, also of pre-training, for example h.png"
    )


def test_a_row_with_landmarks_needs_a_split(tmp_path: Path) -> None:
    write(tmp_path, "image,split,x0,y0\na.png,,1,1\n", "unit: px\n", ["a.png"])
    with pytest.raises(InputError, match=r":2: column split must be one of train, val, test, unlabelled; got ''"):
        require_dataset("mine", tmp_path)


def test_more_shots_than_annotated_images_are_refused_however_many_images_there_are(tmp_path: Path) -> None:
    names = [f"{number:02}.png" for number in range(80)]
    write(tmp_path, labelled(*names[:10]), "unit: px\nsplits: {train: 7, val: 1}\n", names)
    trial = tiny_trial("scratch", dataset="mine", shots=25)
    with pytest.raises(InputError, match="shots must be at most 7, the number of annotated training images of mine"):
        check_trials([trial], str(tmp_path))
    check_trials([tiny_trial("scratch", dataset="mine", shots=7)], str(tmp_path))


def trial_on(images: str | None = None, **fields: object) -> TrialSpec:
    given = {} if images is None else {"images": images}
    return tiny_trial("simclr", dataset="mine", pretrain=given, **{"shots": 1, **fields})


def test_unlabelled_images_change_pretraining_and_nothing_else(tmp_path: Path) -> None:
    names = [f"{letter}.png" for letter in "abcd"]
    write(tmp_path / "few", labelled(*names), COUNTS, names)
    write(tmp_path / "many", labelled(*names), COUNTS, names, unlabelled=("x.png", "y.png"))
    few, many = (load_dataset("mine", tmp_path / folder, 16) for folder in ("few", "many"))
    for split in ("train", "val", "test"):
        one, other = getattr(few, split), getattr(many, split)
        assert one.names == other.names
        np.testing.assert_array_equal(one.images_NHW, other.images_NHW)
        np.testing.assert_array_equal(one.points_NK2, other.points_NK2)
    assert few.fingerprint != many.fingerprint
    pretraining = trial_on().pretraining
    assert pretraining is not None
    assert len(pretraining_images(pretraining, few)) == 3
    assert len(pretraining_images(pretraining, many)) == 5


def test_each_choice_of_images_sees_what_it_says_and_has_a_key_of_its_own(tmp_path: Path) -> None:
    names = [f"{letter}.png" for letter in "abcd"]
    write(tmp_path, labelled(*names), COUNTS, names, unlabelled=("x.png", "y.png"))
    data = load_dataset("mine", tmp_path, 16)
    expected = {
        "all": [*data.train.images_NHW, *data.val.images_NHW, *data.unlabelled.images_NHW],
        "train": data.train.images_NHW,
        "unlabelled": data.unlabelled.images_NHW,
        "shots": data.train.images_NHW[:1],
    }
    keys = {trial_on().pretrain_key}
    for images, seen in expected.items():
        pretraining = trial_on(images).pretraining
        assert pretraining is not None
        np.testing.assert_array_equal(pretraining_images(pretraining, data), seen)
        keys.add(pretraining.key)
    assert len(keys) == 4  # left out means all
    assert trial_on("all").trial_id == trial_on().trial_id


def test_a_pretraining_on_the_shots_is_shared_by_equal_shots_alone() -> None:
    def key(images: str, **fields: object) -> str | None:
        return trial_on(images, **fields).pretrain_key

    assert key("shots", shots=5) != key("shots", shots=10)
    assert key("shots", shots=5, seed=1) == key("shots", shots=5, seed=2)  # the first five in both
    drawn = {"shots": 5, "few_shot": "random"}
    assert key("shots", **drawn, seed=1) != key("shots", **drawn, seed=2)
    assert key("shots", **drawn, seed=1) == key("shots", **drawn, seed=2, draw=1)
    assert key("train", **drawn, seed=1) == key("train", shots=3)


def test_a_draw_of_its_own_chooses_the_shots_whatever_the_seed() -> None:
    def chosen(**fields: object) -> list[int]:
        selection = trial_on(few_shot="random", **{"shots": 5, **fields}).selection
        return select_shots(selection, 50, dataset="mine").tolist()

    assert chosen(seed=3) == chosen(seed=0, draw=3) == chosen(seed=9, draw=3)
    assert chosen(seed=0, draw=3) != chosen(seed=0, draw=4)
    assert trial_on(few_shot="random", seed=3).trial_id != trial_on(few_shot="random", seed=3, draw=3).trial_id
    for fields in ({"draw": 1}, {"draw": 1, "few_shot": "random", "shots": "all"}):
        with pytest.raises(ValueError, match="draw must be left out where no shots are drawn"):
            trial_on(**fields)


def test_a_pretraining_on_unlabelled_images_needs_some(tmp_path: Path) -> None:
    names = [f"{letter}.png" for letter in "abcd"]
    write(tmp_path, labelled(*names), COUNTS, names)
    with pytest.raises(InputError, match=r"pretrain.images must not be unlabelled for data set mine, .*choose all"):
        check_trials([trial_on("unlabelled")], str(tmp_path))


def test_shots_of_one_data_set_are_no_images_of_another() -> None:
    with pytest.raises(ValueError, match=r"pretrain.images must not be shots where pretrain.dataset is another"):
        tiny_trial("simclr", dataset="mine", shots=1, pretrain={"images": "shots", "dataset": "synthetic"})


def test_the_plan_tells_pretrainings_apart_that_differ_in_their_images_alone() -> None:
    trials = tuple(tiny_trial("ddpm", pretrain={"images": images}) for images in ("all", "train"))
    lines = plan_lines(Grid("images", "", trials, {}), plan_of(trials))
    keys = [trial.pretrain_key for trial in trials]
    assert [line for line in lines if any(f"    {key}" in line for key in keys)] == [
        f"    {key}  DDPM T=500, 6 steps on synthetic (DDPM, images {images}), unet, 1 trial"
        for key, images in zip(keys, ("all", "train"), strict=True)
    ]
