"""Names: short, unique, and the same whatever the run is called."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dasf_hpc.trace.names import LONGEST, natural, short_hosts, short_workers
from dasf_hpc.units import (
    byte_time_text,
    bytes_text,
    count_text,
    duration_text,
    share_text,
    three_digits,
)

TEXT = st.one_of(st.none(), st.text(st.sampled_from("ab01-_.:/ [2]w"), max_size=40))


def test_hosts_lose_the_domain_that_they_share() -> None:
    assert short_hosts(["n1.site.org", "n2.site.org", None]) == ["n1", "n2", "?"]


def test_hosts_of_two_sites_keep_what_tells_them_apart() -> None:
    assert short_hosts(["n1.here.org", "n1.there.org"]) == ["n1.here.org", "n1.there.org"]


def test_addresses_of_hosts_stay_whole() -> None:
    assert short_hosts(["10.0.0.1", "10.0.0.2", "fe80::1"]) == ["10.0.0.1", "10.0.0.2", "fe80::1"]


def test_workers_of_a_run_are_called_by_node_job_and_number() -> None:
    run = "2026-11-29T17-14-21-big-job-3f2a"
    assert short_workers([f"{run}-0-0", f"{run}-0-1", f"{run}-1-0"]) == ["w0-0", "w0-1", "w1-0"]


def test_one_worker_alone_is_called_as_it_would_be_among_others() -> None:
    assert short_workers(["2026-11-29T17-14-21-job-3f2a-0-1"]) == ["w0-1"]
    assert short_workers(["SLURMCluster-0"]) == ["SLURMCluster-0"]


def test_workers_of_other_clusters_lose_what_all_begin_with() -> None:
    assert short_workers(["SLURMCluster-0", "SLURMCluster-12"]) == ["w0", "w12"]
    assert short_workers([0, 1, 2]) == ["w0", "w1", "w2"]
    assert short_workers(["alice", "bob"]) == ["alice", "bob"]
    assert short_workers(["worker-0", "worker-1"]) == ["worker-0", "worker-1"]


def test_workers_without_a_name_are_called_by_their_port() -> None:
    assert short_workers(["tcp://10.0.0.1:43211", "tls://[fe80::1]:40001"]) == ["w43211", "w40001"]
    alike = short_workers(["tcp://10.0.0.1:4000", "tcp://10.0.0.2:4000"])
    assert len(set(alike)) == 2


def test_a_worker_that_came_back_under_its_name_is_numbered() -> None:
    assert short_workers(["w", "w", "w [2]"]) == ["w", "w [3]", "w [2]"]


@given(st.lists(TEXT, max_size=8))
def test_names_are_unique_short_and_not_empty(names: list[str | None]) -> None:
    for short in (short_workers(names), short_hosts([*dict.fromkeys(names)])):
        assert len(set(short)) == len(short)
        # a number behind a name takes four characters or so more
        assert all(0 < len(name) <= LONGEST + 6 for name in short)


def test_numbers_in_names_sort_by_value() -> None:
    assert sorted(["w10", "w9", "w1-2", "w1-10"], key=natural) == ["w1-2", "w1-10", "w9", "w10"]


def test_durations_have_three_digits_and_the_unit_that_suits() -> None:
    told = {0: "0 ns", 999: "999 ns", 27_753: "27.8 us", 999_600: "1 ms", 95_612_000_000: "95.6 s"}
    assert {ns: duration_text(ns) for ns in told} == told
    assert duration_text(3_600 * 10**9) == "3,600 s"
    assert duration_text(-1_500_000) == "-1.5 ms"


def test_sizes_shares_and_counts() -> None:
    assert (bytes_text(96_000_000), bytes_text(512), bytes_text(999_999)) == (
        "96 MB",
        "512 B",
        "1 MB",
    )
    assert (byte_time_text(0.23), byte_time_text(1.13e-6)) == ("230 MB s", "1.13 kB s")
    assert (share_text(7.71), share_text(19.4), share_text(9.96)) == ("7.7 %", "19 %", "10 %")
    assert (count_text(5195), count_text(0.5)) == ("5,195", "0.5")


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e18, max_value=1e18))
def test_numbers_are_never_powers_of_ten_and_right_to_three_digits(value: float) -> None:
    text = duration_text(value)
    assert "e" not in text
    number = float(text.split()[0].replace(",", ""))
    size = {"s": 1e9, "ms": 1e6, "us": 1e3, "ns": 1.0}[text.split()[1]]
    assert abs(number * size - value) <= max(0.5, abs(value) * 0.0051)


def test_small_numbers_keep_their_digits() -> None:
    assert [three_digits(v) for v in (0.01234, 0.09996, 9.996, 1270.4)] == [
        "0.0123",
        "0.1",
        "10",
        "1,270",
    ]
