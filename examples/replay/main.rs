//! Replays an access trace through a cache and reports what the cache achieved: see
//! `cargo run --release --example replay -- --help`.
//!
//! `input.rs` reads the trace in constant memory, `line.rs` parses a line of it, `stack.rs` is the
//! cache and the source behind it, `play.rs` sends the requests, `report.rs` shows the numbers.

mod input;
mod line;
mod play;
mod report;
mod stack;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use bentocache::BoxError;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::watch;

use crate::input::{Format, Input};
use crate::report::Report;
use crate::stack::Scratch;

/// Replays an access trace through a cache and reports what the cache achieved.
///
/// The trace is a text with one key per line, or an access log of nginx or Apache; it may be
/// compressed with gzip or zstd. Each request reads its key from a two-tier cache, as fast as the
/// cache allows; a value that is in no tier comes from a simulated source. The report has the
/// requests, the hit ratio of each tier, the calls of the source, the latency of requests, and the
/// memory used. The trace is streamed: memory does not grow with its length.
#[derive(Debug, Clone, Parser)]
#[command(name = "replay", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The trace; `-` for standard input
    file: PathBuf,

    /// Format of the lines of the trace
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    format: Format,

    /// Largest number of entries in L1 (memory)
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    items: usize,

    /// L2: `file` for files in a temporary directory (one per key; see TMPDIR), `memory` for a map
    /// in this process (it grows with the number of keys), `none`, or a directory to use and keep
    #[arg(long, value_name = "TIER", default_value = "file")]
    l2: L2,

    /// How long an entry is fresh, such as 500ms, 30s, 5m, 2h or forever
    #[arg(long, value_name = "TIME", default_value = "30m")]
    ttl: String,

    /// How long after its ttl a stale entry may be served while it is refreshed, or off
    #[arg(long, value_name = "TIME", default_value = "off")]
    grace: String,

    /// Clock of the ttl: `real`, `log` (the times in the log), or a constant number of requests per
    /// second. `auto` is `log` for a log and otherwise `real`
    #[arg(long, value_name = "TIME", default_value = "auto")]
    clock: Clock,

    /// Latency of the simulated source, such as 500us, 5ms or 1s
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = duration)]
    source_latency: Duration,

    /// Size of a value of the source, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    value_size: usize,

    /// Number of concurrent requests
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    concurrency: usize,
}

const EXAMPLES: &str = "\
Examples:
  replay access.log --items 50000 --ttl 5m
  replay access.log.gz --l2 none
  make_log 5000000 | replay -          (an example of its own, which makes a log)
  zstd -dc trace.txt.zst | replay - --items 1000 --clock 500 --ttl 10m --grace 1h

The exit code is 0 if all went well, also when lines could not be used (they are counted and the
first are shown), and 1 if not: if the trace could not be read to its end, if a request failed or
was answered with another key's value, or if hits and misses do not add up to the requests.";

/// The L2 of the replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum L2 {
    None,
    Memory,
    TemporaryFiles,
    Directory(PathBuf),
}

impl FromStr for L2 {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "" => return Err("is empty".into()),
            "none" => Self::None,
            "memory" => Self::Memory,
            "file" => Self::TemporaryFiles,
            directory => Self::Directory(directory.into()),
        })
    }
}

/// The clock of the cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Clock {
    Auto,
    Real,
    Log,
    /// Requests per second.
    Rate(f64),
}

impl FromStr for Clock {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "real" => Ok(Self::Real),
            "log" => Ok(Self::Log),
            rate => match rate.parse() {
                Ok(rate) if (1e-3..=1e9).contains(&rate) => Ok(Self::Rate(rate)),
                _ => Err("is not auto, real, log or a number of requests a second".into()),
            },
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return Err("has no unit: us, ms, s or m".into()),
    };
    let number: f64 = number.trim().parse().map_err(|_| "is not a number with a unit")?;
    Duration::try_from_secs_f64(number * seconds).map_err(|error| error.to_string())
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("is not a number from 1 on".into()),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match start(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Not `eprintln`, which panics where standard error is closed.
            let _ = writeln!(io::stderr(), "replay: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Replays and reports. Returns whether all checks passed.
fn start(args: &Args) -> Result<bool, BoxError> {
    let bar = progress_bar(args);
    let input = Input::open(&args.file, args.format, &bar)
        .map_err(|error| format!("cannot read {}: {error}", args.file.display()))?;
    let scratch = (args.l2 == L2::TemporaryFiles).then(Scratch::new).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(async {
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(stop_when_told(stop));
        play::play(args, input, scratch.as_ref(), &bar, stopped).await
    });
    bar.finish_and_clear();
    let report = report?;
    show(&report)?;
    if let Some(scratch) = scratch {
        scratch.remove()?;
    }
    Ok(report.is_good())
}

fn show(report: &Report) -> io::Result<()> {
    match io::stdout().lock().write_all(report.to_string().as_bytes()) {
        // `replay FILE | head` is not a failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// On the terminal only: nothing is drawn when standard error is something else.
fn progress_bar(args: &Args) -> ProgressBar {
    let bar = ProgressBar::no_length();
    let template = if args.file.as_os_str() == "-" {
        "{spinner} {elapsed} {msg}"
    } else {
        "{elapsed} {wide_bar} {percent}% {msg} eta {eta}"
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// The first signal ends the replay with a report of the requests so far. The second one ends it at
/// once, and leaves temporary files behind.
async fn stop_when_told(stop: watch::Sender<bool>) {
    let signal = signalled().await;
    let _ = writeln!(io::stderr(), "\n{signal}: stopping; once more to stop at once");
    stop.send_replace(true);
    // Some senders send a signal twice.
    tokio::time::sleep(Duration::from_secs(1)).await;
    signalled().await;
    std::process::exit(130);
}

async fn signalled() -> &'static str {
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        "interrupted"
    };
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            return tokio::select! {
                signal = interrupted => signal,
                Some(()) = terminate.recv() => "terminated",
            };
        }
    }
    interrupted.await
}
