"""Each statistic against a hand-worked value or the same number by another route."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from ablate import stats
from ablate.stats import crossed, two_way
from ablate.stats.efficiency import NOT_FROM_ONE_SEED, first_reached

NAN = float("nan")


def resamples(num: int = 2000, seed: int = 0, **options: int) -> stats.Resamples:
    return stats.Resamples(np.random.default_rng(seed), num, **options)


# --- sums, counts, seeds -----------------------------------------------------------------------------


def test_mre_weighs_landmarks_and_image_mean_weighs_images() -> None:
    errors_SIK = [[[1.0, 2.0, 3.0], [10.0, NAN, NAN]]]  # image means 2 and 10
    assert stats.error_sums(errors_SIK).values_S() == pytest.approx([16 / 4])
    assert stats.image_means([[2.0, 10.0]]).values_S() == pytest.approx([12 / 2])


def test_sdr_counts_an_error_equal_to_the_threshold_and_no_missing_landmark() -> None:
    scores = stats.hit_sums([[[2.0, 2.1], [NAN, 0.0]]], 2.0)
    assert scores.values_S() == pytest.approx([2 / 3])
    assert scores.counts_SI.tolist() == [[2, 1]]


def test_infinite_errors_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        stats.error_sums([[[math.inf]]])


def test_seed_mean_of_an_image_is_over_the_seeds_that_have_it() -> None:
    scores = stats.image_means([[1.0, NAN, NAN], [3.0, 5.0, NAN]])
    np.testing.assert_allclose(scores.seed_mean_I(), [2.0, 5.0, NAN])


def test_sd_over_seeds_divides_by_n_minus_1_and_missing_seeds_are_counted() -> None:
    summary = stats.over_seeds([1.0, 2.0, 6.0, NAN])
    assert summary == stats.SeedSummary(mean=3.0, sd=pytest.approx(math.sqrt(14 / 2)), num_seeds=3, num_missing=1)


def test_one_seed_has_no_sd_and_no_seed_has_no_mean() -> None:
    assert stats.over_seeds([4.0]) == stats.SeedSummary(4.0, None, 1, 0)
    assert stats.over_seeds([NAN]) == stats.SeedSummary(None, None, 0, 1)


# --- crossed bootstrap -------------------------------------------------------------------------------


def test_counts_do_not_depend_on_the_order_of_the_calls_and_rows_sum_to_the_size() -> None:
    one, two = resamples(50), resamples(50)
    images, seeds = one.image_counts_RI(7), one.seed_counts_RS(3)
    np.testing.assert_array_equal(two.seed_counts_RS(3), seeds)
    np.testing.assert_array_equal(two.image_counts_RI(7), images)
    assert set(images.sum(axis=1)) == {7}
    assert set(seeds.sum(axis=1)) == {3}
    assert not np.array_equal(one.seed_counts_RS(3, arm=1), seeds)


def test_chunked_resampling_equals_one_table() -> None:
    scores_SI = np.random.default_rng(3).gamma(2.0, size=(3, 40))
    scores = stats.image_means(scores_SI)
    whole = stats.crossed_bootstrap(scores, resamples())
    assert stats.crossed_bootstrap(scores, resamples(most_counts=100)) == whole


def exact_crossed_distribution(scores_SI: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every equally likely pair of seed and image draws: image parts and seed parts, worked by gathering."""
    num_seeds, num_images = scores_SI.shape
    image, seed = [], []
    for images in itertools.product(range(num_images), repeat=num_images):
        on_images = scores_SI[:, images].mean(axis=1)
        for seeds in itertools.product(range(num_seeds), repeat=num_seeds):
            image.append(on_images.mean() - scores_SI.mean())
            seed.append(on_images[list(seeds)].mean() - on_images.mean())
    return np.array(image), np.array(seed)


def test_standard_errors_equal_the_enumerated_bootstrap_on_2x2() -> None:
    scores_SI = np.array([[1.0, 4.0], [3.0, 7.0]])
    image, seed = exact_crossed_distribution(scores_SI)
    # by hand: seed means 2.5 and 5, image means 2 and 5.5, interactions +-0.25
    assert image.var() == pytest.approx(1.75**2 / 2)
    assert (image + seed).var() == pytest.approx(1.25**2 / 2 + 1.75**2 / 2 + 0.25**2 / 4)
    estimate = stats.crossed_bootstrap(stats.image_means(scores_SI), resamples(200_000))
    assert estimate.value == 3.75
    # unbiased: U_images = 1.75^2 (n - 1 = 1), U_seeds - U_interaction = 1.25^2 - 0.25^2
    assert estimate.se_images == pytest.approx(1.75, rel=0.01)
    assert estimate.se_seeds == pytest.approx(math.sqrt(1.25**2 - 0.25**2), rel=0.01)


def test_replicates_equal_the_enumerated_bootstrap_after_rescaling() -> None:
    scores_SI = np.array([[1.0, 4.0, 4.5], [4.0, 8.0, 7.0], [2.0, 4.5, 7.0]])
    image, seed = exact_crossed_distribution(scores_SI)
    effects = scores_SI - scores_SI.mean(0) - scores_SI.mean(1)[:, None] + scores_SI.mean()
    u_seeds, u_interaction = scores_SI.mean(1).var(ddof=1) / 3, (effects**2).sum() / 4 / 9
    t_over_z = scipy_stats.t.ppf(0.975, 2) / scipy_stats.norm.ppf(0.975)
    scale_seed = math.sqrt((u_seeds - u_interaction) / seed.var())
    expected = scores_SI.mean() + t_over_z * (math.sqrt(3 / 2) * image + scale_seed * seed)
    scores = stats.PerImage(scores_SI, np.ones((3, 3)), bounds=(-math.inf, math.inf))
    estimate = stats.crossed_bootstrap(scores, resamples(100_000))
    for level in (0.025, 0.1, 0.5, 0.9, 0.975):
        below = (estimate.replicates_R < np.quantile(expected, level)).mean()
        upto = (estimate.replicates_R <= np.quantile(expected, level) + 0.02).mean()
        assert below - 0.01 <= level <= upto + 0.01
    assert (estimate.lower, estimate.upper) == pytest.approx(tuple(np.quantile(estimate.replicates_R, [0.025, 0.975])))


def test_total_standard_error_is_unbiased_for_the_two_way_random_effects_model() -> None:
    generator = np.random.default_rng(5)
    sd_seed, sd_image, sd_both, num_seeds, num_images = 0.4, 1.0, 0.8, 4, 20
    truth = sd_seed**2 / num_seeds + sd_image**2 / num_images + sd_both**2 / (num_seeds * num_images)
    variances = []
    for _ in range(600):
        scores_SI = sd_seed * generator.normal(size=(num_seeds, 1)) + sd_image * generator.normal(size=num_images)
        scores_SI = scores_SI + sd_both * generator.normal(size=(num_seeds, num_images))
        estimate = stats.crossed_bootstrap(stats.image_means(scores_SI), stats.Resamples(generator, 300))
        variances.append(estimate.se_seeds**2 + estimate.se_images**2)  # type: ignore[operator]
    standard_error = np.std(variances) / math.sqrt(600)
    assert np.mean(variances) == pytest.approx(truth, abs=3.5 * standard_error)
    assert standard_error < 0.04 * truth  # the check can fail: the plain bootstrap is 20 % off


def test_the_same_images_are_resampled_for_all_seeds() -> None:
    image_effect = np.random.default_rng(0).normal(size=30)
    estimate = stats.crossed_bootstrap(stats.image_means(5 + np.tile(image_effect, (4, 1))), resamples())
    # four equal seeds are no more images than one
    assert estimate.se_images == pytest.approx(image_effect.std(ddof=1) / math.sqrt(30), rel=0.05)
    assert estimate.se_seeds == pytest.approx(0.0, abs=1e-9)


def test_interval_over_seeds_alone_is_students() -> None:
    seeds = np.random.default_rng(1).normal(10, 1, size=40)
    estimate = stats.crossed_bootstrap(stats.image_means(seeds[:, None]), resamples(20_000))
    students = scipy_stats.t.interval(0.95, 39, seeds.mean(), scipy_stats.sem(seeds))
    assert (estimate.lower, estimate.upper) == pytest.approx(students, abs=0.03)
    assert estimate.note == crossed.ONE_IMAGE


def test_one_seed_is_bootstrapped_over_images_alone_and_flagged() -> None:
    values = np.random.default_rng(1).normal(10, 1, size=60)
    estimate = stats.crossed_bootstrap(stats.image_means(values[None]), resamples(20_000))
    students = scipy_stats.t.interval(0.95, 59, values.mean(), scipy_stats.sem(values))
    assert (estimate.lower, estimate.upper) == pytest.approx(students, abs=0.03)
    assert estimate.se_seeds is None
    assert estimate.note == crossed.ONE_SEED


def test_one_seed_and_one_image_have_no_interval_but_a_reason() -> None:
    estimate = stats.crossed_bootstrap(stats.error_sums([[[3.0, 5.0]]]), resamples())
    assert (estimate.value, estimate.lower, estimate.upper) == (4.0, None, None)
    assert estimate.note == crossed.ONE_SEED_ONE_IMAGE
    assert not estimate.excludes_zero


def test_nothing_measured_has_no_value_but_a_reason() -> None:
    for errors in (np.full((2, 3, 1), NAN), np.empty((0, 3, 1))):
        estimate = stats.crossed_bootstrap(stats.error_sums(errors), resamples())
        assert estimate.value is None
        assert estimate.note == crossed.NO_VALUES


def test_numbers_that_never_vary_have_no_interval_but_a_reason() -> None:
    estimate = stats.crossed_bootstrap(stats.hit_sums(np.full((3, 9, 7), 0.3), 2.0), resamples())
    assert (estimate.value, estimate.lower, estimate.note) == (1.0, None, crossed.NO_VARIATION)
    estimate = stats.crossed_bootstrap(stats.error_sums(np.full((3, 9, 7), 0.1)), resamples())  # rounding only
    assert (estimate.lower, estimate.note) == (None, crossed.NO_VARIATION)


def test_missing_seeds_and_images_change_nothing_but_their_numbers() -> None:
    errors_SIK = np.random.default_rng(0).gamma(2.0, size=(3, 20, 4))
    whole = stats.crossed_bootstrap(stats.error_sums(errors_SIK), resamples())
    padded = np.full((4, 22, 4), NAN)
    padded[:3, :20] = errors_SIK
    assert stats.crossed_bootstrap(stats.error_sums(padded), resamples()) == whole
    assert (whole.num_seeds, whole.num_images, whole.note) == (3, 20, None)


def test_a_seed_that_lacks_an_image_is_noted() -> None:
    errors_SIK = np.random.default_rng(0).gamma(2.0, size=(3, 20, 4))
    errors_SIK[0, 0] = NAN
    estimate = stats.crossed_bootstrap(stats.error_sums(errors_SIK), resamples())
    assert estimate.note == crossed.MISSING_IMAGES
    assert estimate.value == pytest.approx(np.mean([np.nanmean(seed) for seed in errors_SIK]))


def test_limits_stay_where_values_can_lie() -> None:
    near_one = stats.hit_sums(np.where(np.arange(40) == 0, 9.0, 1.0).reshape(1, 40, 1).repeat(2, axis=0), 2.0)
    estimate = stats.crossed_bootstrap(near_one, resamples())
    assert estimate.upper == 1.0
    two_seeds = stats.crossed_bootstrap(stats.image_means([[1.0, 1.2], [2.0, 2.1]]), resamples())
    assert two_seeds.lower == 0.0  # t with one degree of freedom reaches far below


def test_a_few_images_with_few_landmarks_give_finite_limits() -> None:
    errors_SIK = np.full((3, 12, 2), NAN)
    errors_SIK[:, :, 0] = np.random.default_rng(0).gamma(2.0, size=(3, 12))
    errors_SIK[:, :2, 1] = 5.0 + np.arange(6).reshape(3, 2)  # annotated on two images: some replicates hold neither
    curve = stats.landmark_curve(errors_SIK, resamples())
    np.testing.assert_allclose(curve.values_M, [np.nanmean(errors_SIK[:, :, 0]), np.nanmean(errors_SIK[:, :, 1])])
    assert np.isfinite(curve.lower_M).all()
    assert (curve.lower_M < curve.values_M).all()


def test_pre_training_seeds_as_the_units_widen_the_interval() -> None:
    generator = np.random.default_rng(0)
    of_pretraining = np.repeat([1.0, 2.0, 3.0, 4.0], 3)[:, None]
    errors_SIK = (5 + of_pretraining + 0.1 * generator.normal(size=(12, 30)))[:, :, None]
    clusters = np.repeat([7, 8, 9, 11], 3).tolist()
    as_rows = stats.crossed_bootstrap(stats.error_sums(errors_SIK), resamples())
    as_clusters = stats.crossed_bootstrap(stats.error_sums(errors_SIK, clusters), resamples())
    assert as_clusters.value == pytest.approx(as_rows.value)
    assert (as_rows.num_seeds, as_clusters.num_seeds) == (12, 4)
    assert as_clusters.se_seeds == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 2, rel=0.05)
    assert as_clusters.se_seeds > 1.7 * as_rows.se_seeds  # type: ignore[operator]


# --- paired difference -------------------------------------------------------------------------------


def test_hard_images_cancel_in_a_paired_difference() -> None:
    generator = np.random.default_rng(0)
    hard = 3 * generator.gamma(2.0, size=50)
    a, b = (stats.image_means(hard + shift + 0.1 * generator.normal(size=(5, 50))) for shift in (1.0, 1.5))
    difference = stats.paired_difference(a, b, resamples())
    assert difference.value == pytest.approx(-0.5, abs=0.05)
    assert difference.excludes_zero
    assert difference.se_images < 0.05 * stats.crossed_bootstrap(a, resamples()).se_images  # type: ignore[operator]


def test_independent_seeds_add_their_variances_and_paired_seeds_cancel() -> None:
    generator = np.random.default_rng(0)
    seed = generator.normal(size=(6, 1))
    noise = 0.01 * generator.normal(size=(2, 6, 40))
    a, b = stats.image_means(10 + seed + noise[0]), stats.image_means(11 + seed + noise[1])
    independent = stats.paired_difference(a, b, resamples(), seeds="independent")
    paired = stats.paired_difference(a, b, resamples(), seeds="paired")
    assert independent.value == pytest.approx(paired.value)
    assert independent.se_seeds == pytest.approx(math.sqrt(2) * seed.std(ddof=1) / math.sqrt(6), rel=0.05)
    assert paired.se_seeds < 0.02  # type: ignore[operator]


def half_width_by_hand(differences_SI: np.ndarray) -> float:
    """t^2(S-1) U_seeds + t^2(I-1) max(0, U_images - U_interaction), with the residuals written out."""
    num_seeds, num_images = differences_SI.shape
    unit_S, image_I, mean = differences_SI.mean(axis=1), differences_SI.mean(axis=0), differences_SI.mean()
    residual_SI = differences_SI - unit_S[:, None] - image_I + mean
    u_seeds, u_images = unit_S.var(ddof=1) / num_seeds, image_I.var(ddof=1) / num_images
    mean_square = (residual_SI**2).sum() / ((num_seeds - 1) * (num_images - 1))
    u_interaction = mean_square / (num_seeds * num_images)
    t_seeds, t_images = (scipy_stats.t.ppf(0.975, n - 1) for n in (num_seeds, num_images))
    return math.sqrt(t_seeds**2 * u_seeds + t_images**2 * max(0.0, u_images - u_interaction))


@pytest.mark.parametrize("image_sd", [0.0, 2.0])
def test_the_interval_of_pairs_is_the_formula_of_the_two_way_analysis_of_variance(image_sd: float) -> None:
    generator = np.random.default_rng(0)
    a_SI, b_SI = generator.gamma(3.0, size=(2, 4, 25))
    a_SI = a_SI + image_sd * generator.normal(size=25)
    paired = stats.paired_difference(stats.image_means(a_SI), stats.image_means(b_SI), resamples(), seeds="paired")
    half = half_width_by_hand(a_SI - b_SI)
    mean = (a_SI - b_SI).mean()
    assert (paired.lower, paired.upper) == pytest.approx((mean - half, mean + half), rel=1e-12)


def test_the_interval_of_pairs_on_2x2_by_hand() -> None:
    differences_SI = np.array([[1.0, 4.0], [3.0, 7.0]])
    # unit means 2.5 and 5, image means 2 and 5.5, residuals +-0.25
    t = scipy_stats.t.ppf(0.975, 1)
    assert half_width_by_hand(differences_SI) == pytest.approx(t * math.sqrt(1.25**2 + 1.75**2 - 0.25**2))
    a, b = stats.image_means(10 + differences_SI), stats.image_means(np.full((2, 2), 10.0))
    paired = stats.paired_difference(a, b, resamples(), seeds="paired")
    assert paired.upper == pytest.approx(3.75 + t * math.sqrt(1.25**2 + 1.75**2 - 0.25**2))
    assert paired.se_seeds == pytest.approx(math.sqrt(1.25**2 - 0.25**2))
    assert paired.se_images == pytest.approx(1.75)


def test_p_is_the_level_at_which_the_interval_ends_at_zero() -> None:
    generator = np.random.default_rng(0)
    values_SI = 0.2 + 0.3 * generator.normal(size=(4, 1)) + generator.normal(size=(4, 30))
    found = two_way.variances_of(values_SI)
    p_value = float(found.p_values_P(values_SI.mean()))
    assert float(found.half_widths_P(p_value)) == pytest.approx(abs(values_SI.mean()))
    assert float(found.p_values_P(found.half_widths_P())) == pytest.approx(0.05)


def test_without_images_to_vary_p_is_students_of_pairs_and_welchs_of_independent_arms() -> None:
    generator = np.random.default_rng(0)
    a_S, b_S = generator.normal(size=6), 2 * generator.normal(size=6) + 1
    flat_a_SI, flat_b_SI = (np.repeat(values_S[:, None], 5, axis=1) for values_S in (a_S, b_S))
    paired = two_way.variances_of(flat_a_SI - flat_b_SI).p_values_P(a_S.mean() - b_S.mean())
    assert float(paired) == pytest.approx(scipy_stats.ttest_rel(a_S, b_S).pvalue)
    independent = two_way.variances_of(flat_a_SI, flat_b_SI).p_values_P(a_S.mean() - b_S.mean())
    assert float(independent) == pytest.approx(scipy_stats.ttest_ind(a_S, b_S, equal_var=False).pvalue)


def test_many_differences_at_once_are_each_alone() -> None:
    values_PSI = np.random.default_rng(0).normal(size=(5, 3, 20))
    together = two_way.variances_of(values_PSI)
    for number, values_SI in enumerate(values_PSI):
        assert together.half_widths_P()[number] == pytest.approx(float(two_way.variances_of(values_SI).half_widths_P()))


def test_ratios_are_made_linear_so_that_unit_means_are_the_units_values() -> None:
    errors_SIK = np.random.default_rng(0).gamma(2.0, size=(3, 9, 4))
    errors_SIK[:, :3, 2:] = NAN  # images with fewer landmarks weigh less
    scores = stats.error_sums(errors_SIK, [4, 4, 8])
    values_UI = two_way.unit_values(scores)
    of_rows = scores.values_S()
    np.testing.assert_allclose(values_UI.mean(axis=1), [of_rows[:2].mean(), of_rows[2]])
    equal = stats.error_sums(errors_SIK[:, 3:])
    np.testing.assert_allclose(two_way.unit_values(equal), equal.image_values_SI())


# --- what is paired ----------------------------------------------------------------------------------


def drawn(num_rows: int, draws: list[int] | None, clusters: list[int] | None = None, seed: int = 0) -> stats.PerImage:
    generator = np.random.default_rng(seed)
    return stats.image_means(9 + generator.normal(size=(num_rows, 30)), clusters, draws)


def test_trainings_on_the_same_draw_are_paired_and_others_are_independent() -> None:
    a, b = drawn(3, [0, 1, 2]), drawn(3, [0, 1, 2], seed=1)
    by_draw, by_row = (stats.paired_difference(a, b, resamples(), seeds=seeds) for seeds in ("drawn", "paired"))
    assert (by_draw.kind, by_draw.lower) == ("paired", pytest.approx(by_row.lower))
    for other in (drawn(3, None, seed=1), drawn(3, [7, 8, 9], seed=1), drawn(3, [2, 8, 9], seed=1)):
        assert stats.paired_difference(a, other, resamples()).kind == "unpaired"


def test_pairs_are_found_by_the_draw_whatever_the_order_of_the_rows() -> None:
    a, b = drawn(3, [0, 1, 2]), drawn(3, [0, 1, 2], seed=1)
    turned = stats.image_means(b.sums_SI[::-1], draws_S=[2, 1, 0])
    assert stats.paired_difference(a, turned, resamples()).lower == pytest.approx(
        stats.paired_difference(a, b, resamples()).lower
    )
    longer = stats.image_means(np.vstack([a.sums_SI, np.full((1, 30), 50.0)]), draws_S=[0, 1, 2, 3])
    assert stats.paired_difference(longer, b, resamples()).value == pytest.approx(
        stats.paired_difference(a, b, resamples()).value
    )


def test_seeds_of_one_draw_are_one_unit_of_a_pair() -> None:
    draws = [0, 0, 1, 1, 2, 2]
    difference = stats.paired_difference(drawn(6, draws, draws), drawn(3, [0, 1, 2], seed=1), resamples())
    assert (difference.kind, difference.num_seeds) == ("paired", 3)


def test_pre_trainings_of_one_draw_each_are_paired_by_the_draw() -> None:
    pretrained, scratch = drawn(3, [0, 1, 2], [10, 11, 12]), drawn(3, [0, 1, 2], seed=1)
    assert stats.paired_difference(pretrained, scratch, resamples()).kind == "paired"


def test_pre_trainings_of_many_draws_each_are_the_units() -> None:
    crossed_units = [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]  # every pre-training with every draw
    a, b = (drawn(6, crossed_units[1], crossed_units[0], seed=seed) for seed in (0, 1))
    both = stats.paired_difference(a, b, resamples())
    assert (both.kind, both.num_seeds) == ("paired", 2)
    one = stats.paired_difference(a, drawn(3, [0, 1, 2], seed=1), resamples())  # the other has no pre-training
    assert (one.kind, one.num_seeds) == ("unpaired", 2)


def test_with_one_seed_or_one_image_there_is_no_p_value() -> None:
    scores = np.random.default_rng(0).gamma(3.0, size=(3, 25))
    one, three = stats.image_means(scores[:1]), stats.image_means(scores)
    for a, b in ((one, three), (one, one), (stats.image_means(scores[:, :1]), stats.image_means(scores[:, 1:2]))):
        assert stats.paired_difference(a, b, resamples()).p_value is None
        rows = min(len(a.sums_SI), len(b.sums_SI))
        pair = [each.seeds(np.arange(len(each.sums_SI)) < rows) for each in (a, b)]
        assert stats.paired_difference(*pair, resamples(), seeds="paired").p_value is None


def test_difference_is_over_common_images_and_over_common_seeds_when_paired() -> None:
    a_SI = np.array([[1.0, 2.0, 3.0, NAN], [2.0, 3.0, 4.0, 9.0], [NAN] * 4])
    b_SI = np.array([[1.0, 1.0, NAN, 1.0], [1.0, 1.0, 1.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    a, b = stats.image_means(a_SI), stats.image_means(b_SI)
    paired = stats.paired_difference(a, b, resamples(), seeds="paired")
    assert (paired.num_seeds, paired.num_images) == (2, 2)
    assert paired.value == pytest.approx((1.5 + 2.5) / 2 - 1.0)
    independent = stats.paired_difference(a, b, resamples())
    assert independent.value == pytest.approx((1.5 + 2.5) / 2 - 7 / 3)


def test_one_seed_in_either_arm_is_flagged() -> None:
    scores = np.random.default_rng(0).gamma(3.0, size=(3, 25))
    one, three = stats.image_means(scores[:1]), stats.image_means(scores)
    difference = stats.paired_difference(one, three, resamples())
    assert difference.se_seeds is None
    assert difference.note == crossed.ONE_SEED_IN_AN_ARM


def test_swapping_the_arms_mirrors_the_difference() -> None:
    a, b = (stats.image_means(x) for x in np.random.default_rng(0).gamma(3.0, size=(2, 5, 25)))
    one = stats.paired_difference(a, b, resamples(20_000))
    other = stats.paired_difference(b, a, resamples(20_000))
    assert other.value == -one.value  # type: ignore[operator]
    assert (other.lower, other.upper) == pytest.approx((-one.upper, -one.lower), abs=0.03)  # type: ignore[operator]


# --- curves ------------------------------------------------------------------------------


def test_sdr_curve_equals_the_sdr_at_each_threshold_one_by_one() -> None:
    errors_SIK = np.random.default_rng(0).gamma(2.0, size=(3, 15, 4)).round(1)
    errors_SIK[:, 2, 1] = NAN
    errors_SIK[:, 5] = NAN
    thresholds = [0.0, 1.0, 2.5, 100.0]
    curve = stats.sdr_curve(errors_SIK, thresholds, resamples())
    one_by_one = [stats.crossed_bootstrap(stats.hit_sums(errors_SIK, t), resamples()) for t in thresholds]
    np.testing.assert_allclose(curve.values_M, [e.value for e in one_by_one])
    np.testing.assert_allclose(curve.lower_M, [NAN if e.lower is None else e.lower for e in one_by_one])
    np.testing.assert_allclose(curve.upper_M, [NAN if e.upper is None else e.upper for e in one_by_one])
    assert curve.num_images == 14


def test_landmark_curve_equals_the_mre_of_each_landmark_and_keeps_unannotated_ones_visible() -> None:
    errors_SIK = np.random.default_rng(0).gamma(2.0, size=(3, 15, 4))
    errors_SIK[:, :, 2] = NAN
    curve = stats.landmark_curve(errors_SIK, resamples())
    for k in (0, 1, 3):
        one = stats.crossed_bootstrap(stats.error_sums(errors_SIK[:, :, k : k + 1]), resamples())
        assert (curve.values_M[k], curve.lower_M[k]) == pytest.approx((one.value, one.lower))
    assert np.isnan(curve.values_M[2])


def test_curves_of_nothing_and_of_one_seed_on_one_image_say_so() -> None:
    assert stats.sdr_curve(np.full((2, 2, 2), NAN), [1.0], resamples()).note == crossed.NO_VALUES
    one = stats.sdr_curve([[[1.0, 3.0]]], [2.0], resamples())
    assert (one.values_M[0], one.note) == (0.5, crossed.ONE_SEED_ONE_IMAGE)
    assert np.isnan(one.lower_M[0])


# --- tests over images -------------------------------------------------------------------------------


def test_signed_rank_by_enumeration_of_all_signs() -> None:
    differences = np.array([0.3, -0.1, 0.5, 0.7, -0.2, 0.9])  # ranks 3 1 4 5 2 6: W+ = 18, W- = 3
    ranks = np.array([3, 1, 4, 5, 2, 6])
    sums = [ranks[np.array(signs) > 0].sum() for signs in itertools.product((-1, 1), repeat=6)]
    expected = 2 * np.mean(np.array(sums) >= 18)
    test = stats.signed_rank(10 + differences, np.full(6, 10.0))
    assert test.p_value == pytest.approx(expected)
    assert test.effect == pytest.approx((18 - 3) / 21)


def test_effect_is_minus_one_where_the_first_is_better_on_every_image() -> None:
    assert stats.signed_rank([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]).effect == -1.0
    assert stats.signed_rank([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).effect == 1.0


def test_signed_rank_with_many_images_equals_the_normal_approximation_by_formula() -> None:
    a, b = np.random.default_rng(0).gamma(3.0, size=(2, 120))
    ranks = scipy_stats.rankdata(abs(a - b))
    w_plus, mean, sd = ranks[a > b].sum(), 120 * 121 / 4, math.sqrt(120 * 121 * 241 / 24)
    expected = 2 * scipy_stats.norm.sf(abs(w_plus - mean) / sd)
    assert stats.signed_rank(a, b).p_value == pytest.approx(expected)


def test_equal_images_are_dropped_and_counted() -> None:
    with_zeros = stats.signed_rank([1.0, 5.0, 3.0, 8.0, NAN, 4.0], [1.0, 4.0, 5.0, 5.0, 1.0, 4.0])
    without = stats.signed_rank([5.0, 3.0, 8.0], [4.0, 5.0, 5.0])
    assert (with_zeros.p_value, with_zeros.effect) == (without.p_value, without.effect)
    assert (with_zeros.num_images, with_zeros.num_zeros) == (5, 2)


def test_identical_networks_have_p_1_and_no_common_image_has_none() -> None:
    assert stats.signed_rank([1.0, 2.0], [1.0, 2.0]) == stats.SignedRank(1.0, 0.0, 2, 2)
    assert math.isnan(stats.signed_rank([1.0, NAN], [NAN, 2.0]).p_value)


def test_holm_by_hand_and_by_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    np.testing.assert_allclose(stats.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    for seed in range(20):
        p_values = np.random.default_rng(seed).beta(0.4, 2, size=9).round(2)
        np.testing.assert_allclose(stats.holm(p_values), multitest.multipletests(p_values, method="holm")[1])


def test_untestable_comparisons_do_not_enlarge_the_family() -> None:
    np.testing.assert_allclose(stats.holm([0.01, NAN, 0.03]), [0.02, NAN, 0.03])
    assert stats.holm([]).size == 0


def test_comparing_pairs_gives_every_pair_once_with_holm_over_the_family_shown() -> None:
    generator = np.random.default_rng(0)
    base = generator.gamma(3.0, size=30)
    arms = {n: stats.image_means(base + m + generator.normal(size=(3, 30))) for n, m in (("x", 9), ("y", 9), ("z", 12))}
    family = stats.compare_pairs(arms, resamples())
    assert [(c.a, c.b) for c in family] == [("x", "y"), ("x", "z"), ("y", "z")]
    raw = [c.difference.p_value for c in family]
    assert [c.p_holm for c in family] == pytest.approx(list(stats.holm(raw)))
    assert [c.differs for c in family] == [False, True, True]
    doubled = stats.adjust_family([*family, *family])
    assert [c.p_holm for c in doubled] == pytest.approx(list(stats.holm(raw + raw)))
    assert {c.family_size for c in doubled} == {6}


@pytest.mark.parametrize("seeds", ["independent", "paired"])
@pytest.mark.parametrize("missing", ["nothing", "an image", "a seed"])
def test_many_pairs_at_once_equal_each_pair_alone(seeds: stats.Seeds, missing: str) -> None:
    errors_XSIK = np.random.default_rng(0).gamma(3.0, size=(3, 4, 20, 2))
    errors_XSIK[0, 1, slice(3, 4) if missing == "an image" else slice(0, 20 * (missing == "a seed"))] = NAN
    arms = {str(i): stats.error_sums(errors_SIK) for i, errors_SIK in enumerate(errors_XSIK)}
    pairs = [("0", "1"), ("2", "1"), ("0", "2")]
    together = stats.paired_differences(arms, pairs, resamples(), seeds=seeds)
    for (a, b), difference in zip(pairs, together, strict=True):
        alone = stats.paired_difference(arms[a], arms[b], resamples(), seeds=seeds)
        assert (difference.num_seeds, difference.num_images) == (alone.num_seeds, alone.num_images)
        assert (difference.value, difference.lower, difference.upper) == pytest.approx(
            (alone.value, alone.lower, alone.upper), rel=1e-9
        )


def test_best_is_lowest_error_or_highest_rate_and_names_those_not_worse() -> None:
    generator = np.random.default_rng(0)
    base = generator.gamma(3.0, size=30)
    arms = {n: stats.image_means(base + m + generator.normal(size=(5, 30))) for n, m in (("x", 9), ("y", 9), ("z", 14))}
    arms["failed"] = stats.image_means(np.full((5, 30), NAN))
    pairs = stats.compare_pairs(arms, resamples())
    best = stats.best_of(arms, pairs)
    assert {best.name, *best.not_worse} == {"x", "y"}
    assert stats.best_of(arms, pairs, higher_is_better=True) == stats.Best("z", ())
    assert stats.best_of({}, []) == stats.Best(None)


def test_with_one_seed_nothing_is_marked_and_no_one_is_not_worse() -> None:
    generator = np.random.default_rng(0)
    arms = {name: stats.image_means(mean + generator.normal(size=(1, 40))) for name, mean in (("x", 5), ("y", 9))}
    (pair,) = stats.compare_pairs(arms, resamples())
    assert pair.difference.excludes_zero  # over these images, of these networks
    assert (pair.tested, pair.differs, pair.family_size) == (False, False, 0)
    assert math.isnan(pair.p_holm)
    assert stats.best_of(arms, [pair]) == stats.Best("x", (), ("y",))


def test_a_mark_needs_the_corrected_p_value_and_the_interval() -> None:
    generator = np.random.default_rng(0)
    arms = {n: stats.image_means(m + 0.3 * generator.normal(size=(4, 30))) for n, m in (("x", 9), ("y", 9.2))}
    (pair,) = stats.compare_pairs(arms, resamples())
    assert pair.differs
    many = stats.adjust_family([pair, *[dataclasses.replace(pair, a=str(i)) for i in range(10_000)]])
    assert many[0].difference.excludes_zero
    assert not many[0].differs


# --- ranks -------------------------------------------------------------------------------------------


def friedman_by_formula(ranks_Nk: np.ndarray) -> float:
    """Friedman's chi-squared with tie correction (Conover 1999, eq. 5.8.3)."""
    num_blocks, k = ranks_Nk.shape
    sum_squares, correction = (ranks_Nk**2).sum(), num_blocks * k * (k + 1) ** 2 / 4
    spread = ((ranks_Nk.sum(axis=0) - num_blocks * (k + 1) / 2) ** 2).sum()
    return float((k - 1) * spread / (sum_squares - correction))


def test_friedman_with_ties_equals_the_formula() -> None:
    scores = np.random.default_rng(0).integers(1, 6, size=(12, 4)).astype(float)
    ranks = np.array([[(row < x).sum() + ((row == x).sum() + 1) / 2 for x in row] for row in scores])
    result = stats.compare_ranks(list("abcd"), scores)
    assert result is not None
    assert result.test == "friedman"
    assert result.average_ranks == pytest.approx(ranks.mean(axis=0))
    assert result.statistic == pytest.approx(friedman_by_formula(ranks))
    assert result.p_value == pytest.approx(scipy_stats.chi2.sf(friedman_by_formula(ranks), 3))


@pytest.mark.parametrize(
    ("num_names", "q"),
    list(zip(range(2, 11), [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164], strict=True)),
)
def test_nemenyi_q_equals_the_table_of_demsar_2006(num_names: int, q: float) -> None:
    assert stats.nemenyi_q(num_names) == pytest.approx(q, abs=0.001)


def test_critical_difference_equals_demsars_example() -> None:
    # Demsar 2006, section 3.2.2: 4 classifiers on 14 data sets, CD = 2.569 sqrt(4 * 5 / (6 * 14)) = 1.25
    assert stats.nemenyi_critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)


def test_two_initialisations_are_compared_by_the_exact_sign_test() -> None:
    scores = np.array([[1.0, 2.0]] * 7 + [[2.0, 1.0]] + [[3.0, 3.0]])
    result = stats.compare_ranks(["a", "b"], scores)
    assert result is not None
    assert (result.test, result.statistic) == ("sign", 7.0)
    assert result.p_value == pytest.approx(2 * (1 + 8) / 2**8)
    assert result.average_ranks == pytest.approx(((7 + 2 + 1.5) / 9, (14 + 1 + 1.5) / 9))


def test_incomplete_blocks_are_left_out_and_counted() -> None:
    scores = [[1.0, 2.0, 3.0], [1.0, NAN, 3.0], [2.0, 1.0, 3.0]]
    result = stats.compare_ranks(list("abc"), scores)
    assert result is not None
    assert (result.num_blocks, result.num_incomplete) == (2, 1)
    assert result.average_ranks == (1.5, 1.5, 3.0)


def test_equal_initialisations_have_equal_ranks_and_p_1() -> None:
    for k in (2, 4):
        result = stats.compare_ranks(list("abcd")[:k], np.ones((5, k)))
        assert result is not None
        assert (result.p_value, set(result.average_ranks)) == (1.0, {(k + 1) / 2})
        assert result.cliques == (tuple("abcd"[:k]),)


def test_ranks_need_two_initialisations_and_one_complete_block() -> None:
    assert stats.compare_ranks(["a"], [[1.0]]) is None
    assert stats.compare_ranks(["a", "b"], [[1.0, NAN]]) is None


@pytest.mark.parametrize("names", ["ab", "abcd"])
def test_one_block_and_one_seed_have_ranks_and_no_test(names: str) -> None:
    scores = np.random.default_rng(0).normal(size=(3, len(names)))
    for blocks, tested in ((scores[:1], True), (scores, False)):
        result = stats.compare_ranks(list(names), blocks, tested=tested)
        assert result is not None
        assert (result.p_value, result.critical_difference, result.cliques) == (None, None, ())
        assert sum(result.average_ranks) == pytest.approx(sum(range(1, len(names) + 1)))
    assert stats.compare_ranks(list(names), scores).p_value is not None  # type: ignore[union-attr]


def test_higher_rates_rank_first() -> None:
    result = stats.compare_ranks(["a", "b"], [[0.9, 0.8]], higher_is_better=True)
    assert result is not None
    assert result.average_ranks == (1.0, 2.0)


def test_cliques_are_the_largest_groups_within_the_critical_difference() -> None:
    # 30 blocks, 4 names: CD = 2.569 sqrt(20 / 180) = 0.856; ranks 1.0, 2.25, 2.75, 4.0
    blocks = [[1.0, 2.0, 3.0, 4.0]] * 3 + [[1.0, 3.0, 2.0, 4.0]]
    result = stats.compare_ranks(list("abcd"), blocks * 8)
    assert result is not None
    assert result.cliques == (("b", "c"),)
    few = stats.compare_ranks(list("abcd"), blocks)  # CD = 2.35
    assert few is not None
    assert few.cliques == (("a", "b", "c"), ("b", "c", "d"))


# --- label efficiency --------------------------------------------------------------------------------

SHOTS = np.array([5.0, 10.0, 40.0])


def test_shots_are_interpolated_linearly_in_the_error_over_log_shots() -> None:
    curve = np.array([[8.0, 6.0, 2.0]])
    assert first_reached(SHOTS, curve, [4.0]) == pytest.approx([20.0])  # halfway from log 10 to log 40
    assert first_reached(SHOTS, curve, [7.0]) == pytest.approx([math.sqrt(50)])
    assert first_reached(SHOTS, curve, [6.0]) == pytest.approx([10.0])
    assert first_reached(SHOTS, curve, [8.0]) == pytest.approx([5.0])
    assert first_reached(SHOTS, curve, [2.0]) == pytest.approx([40.0])


def test_beyond_the_measured_range_shots_are_censored() -> None:
    curve = np.array([[8.0, 6.0, 2.0]])
    assert first_reached(SHOTS, curve, [1.9]) == [math.inf]
    assert first_reached(SHOTS, curve, [8.1]) == [0.0]


def test_first_crossing_counts_where_the_curve_is_not_monotone() -> None:
    assert first_reached(SHOTS, np.array([[8.0, 4.0, 5.0]]), [6.0]) == pytest.approx([math.sqrt(50)])
    assert first_reached(np.array([5.0]), np.array([[3.0], [5.0]]), [4.0, 4.0]).tolist() == [0.0, math.inf]


def curve_of(means: dict[int, float], first_arm: int, spread: float = 0.02) -> dict[int, stats.Estimate]:
    generator = np.random.default_rng(first_arm)
    hard = np.random.default_rng(99).normal(size=40) * 0.5
    hard -= hard.mean()
    return {
        shots: stats.crossed_bootstrap(
            stats.image_means(mean + hard + spread * generator.normal(size=(5, 40))), resamples(), arm=first_arm + i
        )
        for i, (shots, mean) in enumerate(means.items())
    }


def test_label_efficiency_has_an_interval_in_which_hard_images_cancel() -> None:
    target = curve_of({5: 4.0}, 10)[5]
    efficiency = stats.label_efficiency(target, curve_of({40: 2.0, 5: 8.0, 10: 6.0}, 20))
    assert efficiency is not None
    assert efficiency.lower is not None
    assert efficiency.upper is not None
    assert efficiency.shots.value == pytest.approx(20.0, rel=0.02)
    assert 19 < efficiency.lower.value < efficiency.shots.value < efficiency.upper.value < 21
    assert efficiency.text() == "20 (95 % interval 20 to 20)"


def test_label_efficiency_is_censored_in_value_and_limits() -> None:
    curve = curve_of({5: 8.0, 10: 6.0, 50: 4.0}, 20)
    beyond = stats.label_efficiency(curve_of({5: 3.0}, 10)[5], curve)
    assert beyond is not None
    assert beyond.text() == "> 50 (95 % interval > 50 to > 50)"
    before = stats.label_efficiency(curve_of({5: 9.0}, 10)[5], curve)
    assert before is not None
    assert before.shots.text() == "< 5"
    edge = stats.label_efficiency(curve_of({5: 4.02}, 10, spread=0.5)[5], curve)
    assert edge is not None
    assert edge.upper is not None
    assert edge.lower is not None
    assert (edge.upper.text(), edge.lower.censored) == ("> 50", "")


def test_label_efficiency_without_interval_says_why_and_without_measurement_is_none() -> None:
    def single(value: float) -> stats.Estimate:
        return stats.crossed_bootstrap(stats.image_means([[value]]), resamples())

    efficiency = stats.label_efficiency(single(4.0), {10: single(6.0), 40: single(2.0), 50: single(NAN)})
    assert efficiency is not None
    assert efficiency.text() == "20"
    assert efficiency.lower is None
    assert crossed.ONE_SEED_ONE_IMAGE in str(efficiency.note)

    def one_seed(value: float) -> stats.Estimate:
        images = value + np.random.default_rng(0).normal(size=(1, 20))
        return stats.crossed_bootstrap(stats.image_means(images), resamples())

    over_images = stats.label_efficiency(one_seed(4.0), {10: one_seed(6.0), 40: one_seed(2.0)})
    assert over_images is not None
    assert (over_images.lower, over_images.note) == (None, NOT_FROM_ONE_SEED)
    assert stats.label_efficiency(single(NAN), {10: single(6.0)}) is None
    assert stats.label_efficiency(single(4.0), {10: single(NAN)}) is None


def test_shots_read_as_numbers_or_limits() -> None:
    texts = [stats.Shots(7.46).text(), stats.Shots(5.0).text(), stats.Shots(18.2).text(), stats.Shots(50, ">").text()]
    assert texts == ["7.5", "5", "18", "> 50"]


# --- selection ---------------------------------------------------------------------------------------


def test_selection_takes_the_lowest_validation_error_and_on_ties_the_smaller_candidate() -> None:
    chosen = stats.select_by_validation([3.0, 2.0, 2.0], [2000, 8000, 4000])
    assert chosen == stats.Selection(candidate=4000, val_mre=2.0, num_seeds=1, missing=())


def test_selection_compares_on_common_seeds_and_names_candidates_without_a_value() -> None:
    val_mre_CS = [[3.0, 1.0], [2.5, NAN], [NAN, NAN]]  # a mean over what is there would choose the first
    chosen = stats.select_by_validation(val_mre_CS, [100, 250, 500])
    assert chosen == stats.Selection(candidate=250, val_mre=2.5, num_seeds=1, missing=(500,))
    assert stats.select_by_validation([NAN, NAN], [1, 2]) is None
    assert stats.select_by_validation([[1.0, NAN], [NAN, 1.0]], [1, 2]) is None


# --- what captions say of the numbers ----------------------------------------------------------------


def test_captions_name_what_wilcoxon_and_the_intervals_leave_out() -> None:
    assert "variation between trainings" in stats.WILCOXON_CAPTION
    assert "CSV" in stats.WILCOXON_CAPTION
    assert "pretrain.seed" in stats.INTERVAL_CAPTION


def test_resampling_is_done_once_for_all_numbers_of_one_shape() -> None:
    errors_SIK = np.random.default_rng(0).gamma(2.0, size=(3, 25, 4))
    shared = resamples(50)
    first = stats.crossed_bootstrap(stats.error_sums(errors_SIK), shared)
    assert stats.crossed_bootstrap(stats.error_sums(errors_SIK), shared) == first
    assert shared.image_counts_RI(25) is shared.image_counts_RI(25)
    assert shared.seed_counts_RS(3) is shared.seed_counts_RS(3)
