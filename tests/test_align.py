"""Clock corrections: the true error is never above the stated bound, and int64 stays exact."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasf_hpc.trace.align import (
    LONE_MARK_LAG_NS,
    QUICK,
    UTC_DISAGREEMENT_NS,
    Correction,
    fit_marks,
    fit_probes,
    fit_utc,
)

Integers = npt.NDArray[np.int64]

SECOND = 1_000_000_000
HOUR = 3600 * SECOND

times = st.integers(-(2**60), 2**60)
corrections = st.builds(
    Correction,
    source=st.just("probes"),
    origin_ns=times,
    offset_ns=times,
    drift=st.floats(-5e-4, 5e-4),
    bound_ns=st.integers(0, 10**9),
    residual_ns=st.integers(0, 10**9),
    points=st.integers(1, 1000),
)


class Clock:
    """A pair of clocks whose difference is known: reference = local + offset + drift(local)."""

    def __init__(self, seed: int, drift: float = 0.0, step_ns: int = 0, step_at: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.start = int(random.integers(0, 10**18))
        self.offset = int(random.integers(-(10**18), 10**18))
        self.drift, self.step_ns, self.step_at = drift, step_ns, step_at
        self.wander, self.cycles = 0.0, 0.0

    def local(self, since: npt.NDArray[np.float64]) -> Integers:
        return self.start + np.floor(since).astype(np.int64)

    def reference(self, since: npt.NDArray[np.float64]) -> Integers:
        ahead = self.drift * since + self.step_ns * (since > self.step_at)
        ahead = ahead + self.wander * np.sin(2 * np.pi * self.cycles * since)
        times: Integers = self.start + self.offset + np.floor(since + ahead).astype(np.int64)
        return times

    def error(self, fitted: Correction, since: npt.NDArray[np.float64]) -> Integers:
        """Give how far a correction is off at local times."""
        difference: Integers = np.abs(fitted.apply(self.local(since)) - self.reference(since))
        return difference


def exchange(
    clock: Clock,
    seed: int,
    count: int,
    duration: float,
    base_ns: float = 100e3,
    jitter_ns: float = 1e6,
    asymmetry: float = 0.5,
    begin: float = 0.0,
) -> Integers:
    """Make probes with a constant and an exponential part of the delay each way.

    As in a run there are bursts at the start and at the end, where there are enough.
    """
    random = np.random.default_rng(seed)
    sent = np.sort(random.uniform(0, duration, count))
    if count >= 40:
        sent[:10] = np.arange(10) * 2e6
        sent[-10:] = duration - np.arange(10)[::-1] * 2e6
    sent += begin
    received = sent + base_ns * asymmetry + random.exponential(jitter_ns, count)
    answered = received + random.uniform(1e3, 50e3, count)
    back = answered + base_ns * (1 - asymmetry) + random.exponential(jitter_ns, count)
    return np.column_stack(
        (clock.local(sent), clock.reference(received), clock.reference(answered), clock.local(back))
    )


def instants(probes: Integers, clock: Clock, seed: int) -> npt.NDArray[np.float64]:
    random = np.random.default_rng(seed + 1)
    return random.uniform(probes[0, 0] - clock.start, probes[:, 3].max() - clock.start, 1000)


class TestCorrection:
    @given(correction=corrections, local=st.lists(times, min_size=1, max_size=20))
    def test_arrays_and_integers_give_the_same_times(
        self, correction: Correction, local: list[int]
    ) -> None:
        array = correction.apply(np.array(local, np.int64))
        assert array.dtype == np.int64
        assert array.tolist() == [correction.apply(time) for time in local]

    @given(local=times, offset=times)
    def test_without_drift_every_nanosecond_is_exact(self, local: int, offset: int) -> None:
        correction = Correction("probes", 0, offset, 0.0, 0, 0, 1)
        assert correction.apply(local) == local + offset
        assert correction.inverse().apply(local + offset) == local

    @given(correction=corrections, since=st.integers(-10 * HOUR, 10 * HOUR))
    def test_the_inverse_gives_the_local_time_back(
        self, correction: Correction, since: int
    ) -> None:
        local = correction.origin_ns + since
        assert abs(correction.inverse().apply(correction.apply(local)) - local) <= 1

    @given(first=corrections, second=corrections, since=st.integers(-10 * HOUR, 10 * HOUR))
    def test_two_in_one_give_what_both_give_in_turn(
        self, first: Correction, second: Correction, since: int
    ) -> None:
        meeting = first.apply(first.origin_ns)
        second = Correction(
            "utc", meeting - HOUR, second.offset_ns, second.drift, second.bound_ns, 0, 3
        )
        local = first.origin_ns + since
        both = first.then(second)
        assert abs(both.apply(local) - second.apply(first.apply(local))) <= 2
        assert both.bound_ns >= first.bound_ns * (1 - 5e-4) + second.bound_ns - 1
        assert both.source == "probes+utc"

    def test_the_reference_corrects_nothing(self) -> None:
        fitted = Correction("marks", 5, 10**18 + 1, 1e-6, 7, 0, 3)
        assert Correction.reference().apply(10**18 + 1) == 10**18 + 1
        assert fitted.then(Correction.reference()) == fitted
        assert Correction.reference().then(fitted) == fitted

    def test_times_near_1e18_do_not_lose_their_last_digits(self) -> None:
        correction = Correction("probes", 10**18, 10**18 + 7, 100e-6, 0, 0, 1)
        local = 10**18 + np.arange(0, 50_000, 10_000)
        assert (correction.apply(local) - 2 * 10**18).tolist() == [
            7,
            10_008,
            20_009,
            30_010,
            40_011,
        ]


class TestProbes:
    @settings(max_examples=200, deadline=None)
    @given(
        seed=st.integers(0, 2**32),
        count=st.sampled_from([1, 2, 3, 10, 100, 400]),
        duration=st.sampled_from([SECOND, 60 * SECOND, HOUR, 24 * HOUR]),
        drift=st.floats(-200e-6, 200e-6),
        jitter=st.sampled_from([1e3, 1e5, 1e6, 2e7]),
        asymmetry=st.floats(0, 1),
    )
    def test_the_true_error_is_within_the_bound(
        self,
        seed: int,
        count: int,
        duration: int,
        drift: float,
        jitter: float,
        asymmetry: float,
    ) -> None:
        clock = Clock(seed, drift)
        probes = exchange(clock, seed, count, duration, jitter_ns=jitter, asymmetry=asymmetry)
        fitted = fit_probes(probes)
        assert clock.error(fitted, instants(probes, clock, seed)).max() <= fitted.bound_ns
        assert fitted.source == "probes"
        assert fitted.points == count

    @pytest.mark.parametrize("seed", range(20))
    def test_an_hour_of_drift_is_recovered_from_jittery_probes_some_of_them_lost(
        self, seed: int
    ) -> None:
        drift = (100e-6, -200e-6)[seed % 2]
        clock = Clock(seed, drift)
        probes = exchange(clock, seed, 360, HOUR)
        probes = probes[np.random.default_rng(seed).random(360) > 0.05]
        fitted = fit_probes(probes)
        error = clock.error(fitted, instants(probes, clock, seed))
        assert np.percentile(error, 99) <= 200_000
        assert error.max() <= fitted.bound_ns <= 2_000_000
        assert fitted.drift == pytest.approx(drift, abs=0.1e-6)

    @pytest.mark.parametrize("step", [-5 * SECOND, -1_000_000, 1_000_000, SECOND])
    @pytest.mark.parametrize("seed", range(10))
    def test_a_clock_that_steps_has_a_bound_that_says_so(self, seed: int, step: int) -> None:
        at = int(np.random.default_rng(seed).uniform(0.02, 0.98) * HOUR)
        clock = Clock(seed, 50e-6, step, at)
        probes = exchange(clock, seed, 360, HOUR, jitter_ns=3e5)
        fitted = fit_probes(probes)
        assert clock.error(fitted, instants(probes, clock, seed)).max() <= fitted.bound_ns
        assert fitted.bound_ns <= abs(step) + 5_000_000
        assert fitted.residual_ns > 0

    @pytest.mark.parametrize("bursts", [2, 3, 4])
    @pytest.mark.parametrize("seed", range(10))
    def test_a_step_that_few_bursts_cannot_tell_from_a_drift_is_in_the_bound(
        self, seed: int, bursts: int
    ) -> None:
        random = np.random.default_rng(seed)
        clock = Clock(seed, 20e-6, int(random.uniform(-1, 1) * SECOND / 100), 20 * SECOND)
        probes = np.concatenate(
            [
                exchange(clock, seed + burst, 8, 2e6, jitter_ns=2e4, begin=burst * 30e9)
                for burst in range(bursts)
            ]
        )
        fitted = fit_probes(probes)
        assert clock.error(fitted, instants(probes, clock, seed)).max() <= fitted.bound_ns

    @pytest.mark.parametrize("seed", range(10))
    def test_a_rate_that_wanders_unseen_is_within_the_bound(self, seed: int) -> None:
        clock = Clock(seed)
        random = np.random.default_rng(seed)
        clock.wander, clock.cycles = random.uniform(20e3, 300e3), random.uniform(0.5, 3) / HOUR
        probes = exchange(clock, seed, 360, HOUR, jitter_ns=3e5)
        fitted = fit_probes(probes)
        assert clock.error(fitted, instants(probes, clock, seed)).max() <= fitted.bound_ns

    def test_one_probe_tells_an_offset_and_half_its_round_trip(self) -> None:
        # 300 ns there, 100 ns back, 50 ns in between; the reference is 1000 ahead
        fitted = fit_probes(np.array([[0, 1300, 1350, 450]], np.int64))
        assert fitted.offset_ns == 1100
        assert fitted.drift == 0.0
        assert fitted.bound_ns == pytest.approx(200, abs=2)
        assert fitted.points == 1

    def test_probes_too_close_to_tell_a_drift_give_none(self) -> None:
        clock = Clock(3, 20e-6)
        fitted = fit_probes(exchange(clock, 3, 50, SECOND / 10))
        assert fitted.drift == 0.0

    def test_the_bound_grows_with_the_span_it_has_to_hold_for(self) -> None:
        clock = Clock(4, 30e-6)
        probes = exchange(clock, 4, 60, 60 * SECOND)
        narrow = fit_probes(probes)
        wide = fit_probes(probes, span=(clock.start - 60 * SECOND, clock.start + 600 * SECOND))
        assert wide.bound_ns > narrow.bound_ns
        since = np.linspace(-60 * SECOND, 600 * SECOND, 1000)
        assert clock.error(wide, since).max() <= wide.bound_ns

    def test_probes_that_cannot_have_happened_are_left_out(self) -> None:
        clock = Clock(5, 10e-6)
        probes = exchange(clock, 5, 100, 600 * SECOND)
        good = fit_probes(probes)
        spoiled = probes.copy()
        spoiled[10, 3] = spoiled[10, 0] - 1  # received before it was sent
        spoiled[20, 2] += HOUR  # held longer than it was away
        spoiled[30, 1:3] = 0  # an answer that never came
        spoiled[40] = np.iinfo(np.int64).min
        fitted = fit_probes(spoiled)
        assert fitted.points == 96
        assert abs(fitted.offset_ns - good.offset_ns) < good.bound_ns + fitted.bound_ns
        assert clock.error(fitted, instants(probes, clock, 5)).max() <= fitted.bound_ns

    def test_without_a_usable_probe_there_is_no_correction(self) -> None:
        with pytest.raises(ValueError, match="probe"):
            fit_probes(np.empty((0, 4), np.int64))
        with pytest.raises(ValueError, match="probe"):
            fit_probes(np.array([[10, 0, 0, 9]], np.int64))


class TestGraded:
    """Runs of every kind, with known truth: the figures of the README come from here."""

    @pytest.mark.parametrize("seed", range(200))
    def test_the_true_error_is_never_above_the_bound(self, seed: int) -> None:
        """200 ppm, asymmetric delays, jitter, lost and late probes; a third each steps or strays.

        A step falls between two bursts, anywhere from the first quick probe to the last.
        """
        random = np.random.default_rng(seed)
        duration = float(random.choice([10, 60, 600, 3600])) * SECOND
        at = np.sort(np.append(random.uniform(0, duration, random.choice([0, 1, 2, 4, 8, 60])), 0))
        bursts = at[np.append(True, np.diff(at) > 0.2 * SECOND)]
        counts = random.integers(1, 9, len(bursts))
        clock = Clock(seed, random.uniform(-200e-6, 200e-6))
        base, jitter = random.choice([2e4, 1e5, 1e6]), random.choice([1e3, 1e5, 1e6])
        asymmetry = random.uniform(0, 1)
        late = random.random(counts.sum()) < 0.05
        lateness = random.integers(0, SECOND // 2, len(late)) * late
        kept = random.random(counts.sum()) > 0.05
        kept[[0, -1]] = True
        if seed % 3 == 2:
            clock.cycles = random.uniform(0.5, 3) / duration
            clock.wander = random.uniform(0, 1e-6) / (2 * np.pi * clock.cycles)

        def probed() -> Integers:
            probes = np.concatenate(
                [
                    exchange(clock, seed * 1000 + n, count, 1e6, base, jitter, asymmetry, begin)
                    for n, (begin, count) in enumerate(zip(bursts, counts, strict=True))
                ]
            )
            probes[:, 3] += lateness  # they waited to be read
            left: Integers = probes[kept]
            return left

        probes = probed()
        t1, t2, t3, t4 = probes.T
        took = (t4 - t1) - (t3 - t2)
        quick = (t1 - clock.start)[took <= QUICK * took.min()]
        if seed % 3 == 1 and quick[-1] - quick[0] > 0.2 * SECOND:
            clock.step_ns = int(random.choice([-1, 1]) * 10 ** random.uniform(4, 9.7))
            at_step = random.uniform(quick[0], quick[-1])
            before = np.searchsorted(bursts, at_step)
            clock.step_at = int(max(at_step, bursts[before - 1] + 0.15 * SECOND))
            probes = probed()
        fitted = fit_probes(probes)
        error = clock.error(fitted, instants(probes, clock, seed))
        assert error.max() <= fitted.bound_ns


class TestUtc:
    def test_hosts_that_share_utc_are_aligned_within_what_reading_it_took(self) -> None:
        utc = 1_795_410_982_000_000_000
        since = np.arange(0, 60, 5) * SECOND
        local = np.column_stack((1000 + since, utc + since, 1400 + since))
        reference = np.array([[5 * 10**17, utc, 5 * 10**17 + 100]])
        fitted = fit_utc(local, reference, same_clock=True)
        assert fitted.source == "utc"
        assert abs(fitted.apply(1200) - (5 * 10**17 + 50)) <= fitted.bound_ns
        # between two readings each clock may stray by 2e-6 of the 5 s
        assert fitted.bound_ns <= 11_000

    def test_different_hosts_utc_is_not_trusted(self) -> None:
        anchors = np.array([[0, 10**18, 100]], np.int64)
        same = fit_utc(anchors, anchors, same_clock=True)
        assert fit_utc(anchors, anchors).bound_ns == same.bound_ns + UTC_DISAGREEMENT_NS

    def test_a_utc_that_was_set_during_the_run_widens_the_bound(self) -> None:
        since = np.arange(0, 600, 10) * SECOND
        utc = 10**18 + since + np.where(since > 300 * SECOND, 5 * SECOND, 0)
        local = np.column_stack((since, utc, since + 100))
        fitted = fit_utc(local, local.copy(), same_clock=True)
        error = np.abs(fitted.apply(since) - since)
        assert error.max() <= fitted.bound_ns

    def test_a_host_without_anchors_cannot_be_aligned(self) -> None:
        with pytest.raises(ValueError, match="probe"):
            fit_utc(np.empty((0, 3), np.int64), np.array([[0, 1, 2]]))


def burst_marks(seed: int, bursts: int, duration: float, drift: float) -> tuple[Integers, Integers]:
    """Make marks as measured: the first of a burst is late, the others about a microsecond."""
    random = np.random.default_rng(seed)
    session, clock = [], []
    for begin in np.linspace(0, duration, bursts):
        at = begin
        for place in range(8):
            clock.append(at + drift * at)
            at += random.uniform(20e3, 60e3) if place == 0 else 300 + random.exponential(500)
            session.append(at)
            at += random.uniform(500, 1500)
    return np.array(session, np.int64), 10**17 + np.array(clock, np.int64)


class TestMarks:
    @pytest.mark.parametrize("drift", [0.0, 2e-6, -60e-6])
    @pytest.mark.parametrize("duration", [2 * SECOND, HOUR])
    @pytest.mark.parametrize("seed", range(5))
    def test_bursts_tie_the_clocks_to_microseconds(
        self, seed: int, duration: int, drift: float
    ) -> None:
        session, clock = burst_marks(seed, 20, duration, drift)
        fitted = fit_marks(session, clock)
        at = np.linspace(0, duration, 1000).astype(np.int64)
        error = np.abs(fitted.apply(at) - (10**17 + np.rint(at * (1 + drift)).astype(np.int64)))
        between = 2e-6 * duration / 20  # what the rate may stray from one burst to the next
        assert error.max() <= fitted.bound_ns <= 10_000 + 1.1 * between
        assert error.max() <= 5_000
        assert fitted.source == "marks"
        assert fitted.points == 160

    @pytest.mark.parametrize("seed", range(10))
    def test_the_smallest_lag_tells_not_the_mean(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        clock = 10**17 + np.sort(random.integers(0, HOUR, 300))
        lag = 5_000 + random.exponential(20_000, 300).astype(np.int64)
        lag[random.random(300) < 0.1] += 2_000_000
        session = clock - 10**17 + lag
        fitted = fit_marks(session, clock)
        error = np.abs(fitted.apply(clock - 10**17) - clock)
        assert error.max() <= fitted.bound_ns <= 1_200_000
        assert error.max() <= 30_000

    def test_marks_of_other_threads_do_not_stand_for_the_next_one(self) -> None:
        # each thread's marks are far apart, and thread 2 reads its clock before thread 1's stamp
        session = np.array([1_000, 1_010, 2_000_000_000, 2_000_000_010], np.int64)
        clock = np.array([990, 500, 1_999_999_990, 1_999_999_500], np.int64)
        threads = np.array([1, 2, 1, 2], np.int64)
        fitted = fit_marks(session, clock, threads)
        assert fitted.residual_ns == 0
        assert abs(fitted.apply(1_000) - 990) <= 10

    def test_one_mark_is_worth_what_a_first_mark_is(self) -> None:
        fitted = fit_marks(np.array([10**9]), np.array([10**17]))
        assert fitted.apply(10**9) == 10**17
        assert fitted.bound_ns == pytest.approx(LONE_MARK_LAG_NS, rel=0.01)

    def test_without_marks_there_is_no_correction(self) -> None:
        with pytest.raises(ValueError, match="mark"):
            fit_marks(np.empty(0, np.int64), np.empty(0, np.int64))
