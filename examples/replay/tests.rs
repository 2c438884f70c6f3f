//! Whole replays of small traces, checked against what must come out.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::Cursor;

use clap::Parser;
use indicatif::ProgressBar;
use tokio::sync::watch;

use crate::input::{Format, Input};
use crate::line::Bad;
use crate::report::Report;
use crate::stack::{Answered, Scratch};
use crate::{Args, Clock, L2, play};

fn replay(trace: &str, options: &str) -> Report {
    let args = Args::parse_from(["replay", "-"].into_iter().chain(options.split_whitespace()));
    let input = Input::new("test", Cursor::new(trace.to_owned()), args.format).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (_stop, stopped) = watch::channel(false);
    let bar = ProgressBar::hidden();
    let scratch = Scratch::new().unwrap();
    let report = play::play(&args, input, Some(&scratch), &bar, stopped);
    let report = runtime.block_on(report).unwrap();
    scratch.remove().unwrap();
    report
}

/// Keys of which some come far more often than others, the same ones in every run.
fn trace(requests: usize, keys: u64) -> Vec<String> {
    let mut state = 1_u64;
    let mut random = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    (0..requests).map(|_| format!("key {}", random() % (random() % keys + 1))).collect()
}

fn by(report: &Report, answered: Answered) -> u64 {
    report.answered[answered as usize]
}

fn distinct<'a>(keys: impl IntoIterator<Item = &'a String>) -> u64 {
    keys.into_iter().collect::<HashSet<_>>().len() as u64
}

#[test]
fn with_room_for_all_keys_each_costs_one_source_call() {
    let keys = trace(5_000, 500);
    let distinct = distinct(&keys);
    for l2 in ["none", "memory", "file"] {
        let report = replay(&keys.join("\n"), &format!("--items 10000 --l2 {l2}"));
        assert!(report.is_good(), "{report}");
        assert_eq!(report.requests, 5_000);
        assert_eq!(report.source_calls, distinct);
        assert_eq!(report.l1_entries as u64, distinct);
        assert_eq!(report.evicted, 0);
        // Others may have waited for the same call; each counts as a miss of its own.
        assert!(by(&report, Answered::Miss) >= distinct);
        assert_eq!(by(&report, Answered::Stale), 0);
    }
}

#[test]
fn one_at_a_time_each_key_misses_once() {
    let keys = trace(5_000, 500);
    let distinct = distinct(&keys);
    let report = replay(&keys.join("\n"), "--items 10000 --l2 memory --concurrency 1");
    assert!(report.is_good(), "{report}");
    assert_eq!(by(&report, Answered::Miss), distinct);
    assert_eq!(by(&report, Answered::L1), 5_000 - distinct);
}

#[test]
fn what_leaves_a_small_l1_is_found_in_l2() {
    let keys = trace(5_000, 500);
    let distinct = distinct(&keys);
    for l2 in ["memory", "file"] {
        let report = replay(&keys.join("\n"), &format!("--items 50 --l2 {l2} --concurrency 1"));
        assert!(report.is_good(), "{report}");
        assert_eq!(report.source_calls, distinct);
        assert_eq!(by(&report, Answered::Miss), distinct);
        assert!(by(&report, Answered::L2) > 0 && report.evicted > 0);
        assert!(report.l1_entries <= 50);
    }
}

#[test]
fn without_l2_a_small_l1_costs_source_calls() {
    let keys = trace(5_000, 500);
    let report = replay(&keys.join("\n"), "--items 50 --l2 none");
    assert!(report.is_good(), "{report}");
    assert!(report.source_calls > distinct(&keys));
    assert_eq!(by(&report, Answered::L2), 0);
}

fn logged(minute: usize, request: &str) -> String {
    format!("::1 - - [10/Oct/2000:13:{minute:02}:00 +0000] \"{request}\" 200 5 \"-\" \"curl\"")
}

#[test]
fn a_log_is_played_in_its_own_time() {
    let log: String = (0..60).fold(String::new(), |mut log, minute| {
        let _ = writeln!(log, "{}", logged(minute, "GET /a HTTP/1.1"));
        log
    });
    // An entry of minute 0 is fresh up to minute 9.
    let report = replay(&log, "--ttl 10m --concurrency 1");
    assert!(report.is_good(), "{report}");
    assert_eq!(report.clock, Clock::Log);
    assert_eq!((report.requests, report.source_calls), (60, 6));
    assert_eq!(by(&report, Answered::Miss), 6);
    // In real time it is over at once.
    assert_eq!(replay(&log, "--ttl 10m --clock real").source_calls, 1);
    // With grace nobody waits but the first. A source that answered at once could be faster than
    // the stale value.
    let report = replay(&log, "--ttl 10m --grace 1h --concurrency 1 --source-latency 50ms");
    assert!(report.is_good(), "{report}");
    assert_eq!(by(&report, Answered::Miss), 1);
    assert!(by(&report, Answered::Stale) >= 5);
}

#[test]
fn keys_are_played_at_a_given_rate() {
    let keys = "a\n".repeat(1_000);
    let report = replay(&keys, "--clock 10 --ttl 10s --concurrency 1 --l2 none");
    assert!(report.is_good(), "{report}");
    assert_eq!(report.source_calls, 10);
}

#[test]
fn lines_that_cannot_be_used_are_counted_and_shown() {
    let log = [
        logged(0, "GET /a HTTP/1.1"),
        logged(0, "POST /a HTTP/1.1"),
        "nonsense".into(),
        logged(0, "-"),
        String::new(),
        logged(0, "GET /a HTTP/1.1"),
    ];
    let report = replay(&log.join("\n"), "");
    assert!(report.is_good(), "{report}");
    assert_eq!((report.lined.lines, report.requests, report.source_calls), (6, 2, 1));
    assert_eq!(report.lined.other_methods, 1);
    for bad in [Bad::NotALog, Bad::NoRequest, Bad::Empty] {
        assert_eq!(report.lined.bad[bad as usize], 1);
    }
    assert!(report.to_string().contains("line 3, not a line of an access log: \"nonsense\""));
}

#[test]
fn an_empty_trace_is_no_failure() {
    let report = replay("", "");
    assert!(report.is_good(), "{report}");
    assert_eq!(report.requests, 0);
}

#[test]
fn a_source_that_takes_its_time_is_asked_by_many_at_once() {
    let keys: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    let report = replay(&keys.join("\n"), "--source-latency 20ms --concurrency 100 --l2 none");
    assert!(report.is_good(), "{report}");
    assert_eq!(report.source_calls, 200);
    let fastest = report.latencies[Answered::Miss as usize].min();
    assert!(fastest >= 19_000_000, "{fastest} ns");
    assert!(report.took.as_millis() < 200 * 20, "{:?}", report.took);
}

#[test]
fn a_replay_that_is_told_to_stop_reports_what_it_did() {
    let args = Args::parse_from(["replay", "-", "--l2", "none"]);
    let input = Input::new("test", std::io::repeat(b'\n'), Format::Keys).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let report = runtime.block_on(async {
        let (stop, stopped) = watch::channel(false);
        let bar = ProgressBar::hidden();
        let replay = play::play(&args, input, None, &bar, stopped);
        let stopping = async {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            stop.send_replace(true);
        };
        tokio::join!(replay, stopping).0.unwrap()
    });
    assert!(report.stopped && report.is_good(), "{report}");
}

#[test]
fn options() {
    let parse = |options: &str| Args::try_parse_from(options.split(' '));
    let args = parse("replay a.log --source-latency 1.5ms --l2 some/where --clock 2000").unwrap();
    assert_eq!(args.source_latency.as_micros(), 1_500);
    assert_eq!(args.l2, L2::Directory("some/where".into()));
    assert_eq!(args.clock, Clock::Rate(2000.0));
    for bad in [
        "replay",
        "replay a --clock 0",
        "replay a --clock soon",
        "replay a --source-latency 5",
        "replay a --source-latency -5ms",
        "replay a --concurrency 0",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_help_is_complete() {
    use clap::CommandFactory;
    Args::command().debug_assert();
}
