"""The profiles `paper` and `recommended` differ exactly where the README's table says, each with a reason."""

from pathlib import Path

import profiles
import pytest

from ablate.space import find_grid, load_grid

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_readme_has_the_table_of_differences() -> None:
    assert profiles.table() in README


def test_every_difference_has_a_reason_and_every_reason_a_difference() -> None:
    assert {field for field, *_ in profiles.differences()} == set(profiles.REASONS)


@pytest.mark.parametrize(
    ("method", "field", "authors", "ours"),
    [  # the authors' numbers, of their published code
        ("ddpm", "pretrain_clip_on", "sum", "mean"),
        ("ddpm", "pretrain_ema_ramp", False, True),
        ("ddpm", "pretrain_epoch_end", "short", "full"),
        ("ddpm", "network_input_range", "unit", "symmetric"),
        ("mocov3", "pretrain_min_crop", 0.08, 0.2),
        ("mocov3", "pretrain_projector_layers", 3, 2),
        ("simclrv2", "pretrain_jitter", 0.8, 0.4),
        ("dino", "pretrain_prototypes", 256, 65_536),
        ("dino", "pretrain_teacher_temperature", 0.5, 0.04),
        ("dino", "pretrain_snapshot", "student", "teacher"),
        ("imagenet", "network_input", "grey", "imagenet"),
        ("scratch", "finetune_target", "pixel_disk", "disk"),
        ("scratch", "finetune_augment_normalize", "after", "before"),
    ],
)
def test_the_profiles_hold(method: str, field: str, authors: object, ours: object) -> None:
    found = [profiles.fields_of(name)["cephalo", method][field] for name in profiles.PROFILES]
    assert found == [authors, ours]


def test_both_profiles_have_the_papers_size() -> None:
    for name in profiles.PROFILES:
        assert len(load_grid(find_grid(name)).trials) == 3 * 5 * 3 * 6
