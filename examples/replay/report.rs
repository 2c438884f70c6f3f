//! The numbers at the end.

use std::fmt;
use std::time::Duration;

use examples::{count, time};

use crate::input::{Format, Lined};
use crate::line::Bad;
use crate::play::Latencies;
use crate::stack::Answered;
use crate::{Args, Clock, L2};

/// Everything that was measured.
pub(crate) struct Report {
    pub(crate) name: String,
    pub(crate) format: Format,
    pub(crate) clock: Clock,
    pub(crate) args: Args,
    pub(crate) took: Duration,
    /// The time between the first and the last request, on the trace's own clock.
    pub(crate) covered: Option<Duration>,
    pub(crate) stopped: bool,
    pub(crate) lined: Lined,
    pub(crate) requests: u64,
    pub(crate) wrong: u64,
    pub(crate) errors: u64,
    /// The first of them.
    pub(crate) error: Option<String>,
    pub(crate) answered: [u64; Answered::ALL.len()],
    pub(crate) latencies: Latencies,
    pub(crate) source_calls: u64,
    pub(crate) written: u64,
    pub(crate) evicted: u64,
    pub(crate) l2_failures: u64,
    /// The first of them.
    pub(crate) l2_failure: Option<String>,
    pub(crate) breaker_openings: u64,
    pub(crate) l1_entries: usize,
    pub(crate) memory: Memory,
}

impl Report {
    /// Whether all went well.
    pub(crate) fn is_good(&self) -> bool {
        self.adds_up() && self.wrong == 0 && self.errors == 0 && self.lined.failed.is_none()
    }

    /// The cache counts hits and misses, the replay counts requests: they must agree.
    pub(crate) fn adds_up(&self) -> bool {
        let all_read = self.stopped || self.requests == self.lined.requests;
        self.answered.iter().sum::<u64>() == self.requests && all_read
    }

    fn trace(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lined, args, .. } = self;
        let format = match self.format {
            Format::Log => "access log",
            Format::Keys | Format::Auto => "keys",
        };
        writeln!(f, "Trace      {} ({format}), {} lines", self.name, count(lined.lines))?;
        for bad in Bad::ALL {
            let number = lined.bad[bad as usize];
            if number > 0 {
                writeln!(f, "           {} left out: {bad}", count(number))?;
            }
        }
        for sample in &lined.samples {
            writeln!(f, "             {sample}")?;
        }
        if lined.other_methods > 0 {
            let number = count(lined.other_methods);
            writeln!(f, "           {number} left out: neither GET nor HEAD")?;
        }
        if let Some(error) = &lined.failed {
            writeln!(f, "           NOT READ TO ITS END: {error}")?;
        }
        if self.stopped {
            writeln!(f, "           stopped before its end")?;
        }
        let l2 = match &args.l2 {
            L2::None => "no L2".into(),
            L2::Memory => "L2 a map in this process".into(),
            L2::TemporaryFiles => "L2 files in a temporary directory".into(),
            L2::Directory(path) => format!("L2 files in {}", path.display()),
        };
        let items = count(args.items as u64);
        writeln!(
            f,
            "Cache      L1 memory for {items} entries, {l2}, ttl {}, grace {}",
            args.ttl, args.grace
        )?;
        let clock = match self.clock {
            Clock::Auto | Clock::Real => "the real one".into(),
            Clock::Log => "that of the log".into(),
            Clock::Rate(rate) => format!("{rate} requests a second"),
        };
        let covered = self.covered.map(|covered| format!(", {} covered", span(covered)));
        writeln!(f, "Clock      {clock}{}", covered.unwrap_or_default())?;
        writeln!(
            f,
            "Source     simulated, {} bytes a value, latency {}",
            args.value_size,
            time(args.source_latency)
        )
    }

    fn requests(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.requests as f64 / self.took.as_secs_f64().max(1e-9);
        writeln!(
            f,
            "\n{} requests in {}, {} a second, {} at a time\n",
            count(self.requests),
            time(self.took),
            count(rate as u64),
            self.args.concurrency
        )?;
        write!(f, "  {:<14}{:>14}{:>9}", "answered by", "requests", "share")?;
        writeln!(f, "{:>11}{:>11}{:>11}{:>11}{:>11}", "p50", "p90", "p99", "p99.9", "max")?;
        for answered in Answered::ALL {
            let number = self.answered[answered as usize];
            let name = match answered {
                Answered::L1 => "L1 (memory)",
                Answered::L2 => "L2",
                Answered::Stale => "stale value",
                Answered::Miss => "miss",
            };
            write!(f, "  {name:<14}{:>14}{:>9}", count(number), self.share(number))?;
            let latencies = &self.latencies[answered as usize];
            for quantile in [0.5, 0.9, 0.99, 0.999, 1.0] {
                let latency = match latencies.is_empty() {
                    true => "-".into(),
                    false => time(Duration::from_nanos(latencies.value_at_quantile(quantile))),
                };
                write!(f, "{latency:>11}")?;
            }
            writeln!(f)?;
        }
        let hits = self.answered[..3].iter().sum();
        writeln!(f, "  {:<14}{:>14}{:>9}", "all hits", count(hits), self.share(hits))
    }

    fn work(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        row(f, "Source", &count(self.source_calls), "calls")?;
        let misses = self.answered[Answered::Miss as usize];
        // A refresh of a stale value is a call without a miss.
        if let Some(shared @ 1..) = misses.checked_sub(self.source_calls) {
            row(f, "", &count(shared), "misses got the answer of a call that was under way")?;
        }
        row(f, "Cache", &count(self.written), "values written")?;
        row(f, "", &count(self.evicted), "evicted from L1 to make room")?;
        row(f, "", &count(self.l1_entries as u64), "in L1 at the end")?;
        if self.l2_failures > 0 {
            let first = self.l2_failure.as_deref().unwrap_or_default();
            let failed = format!("calls of L2 FAILED, the first was {first}");
            row(f, "", &count(self.l2_failures), &failed)?;
            row(f, "", &count(self.breaker_openings), "times L2 was left alone for it")?;
        }
        self.memory.fmt(f)
    }

    fn verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.errors > 0 {
            let error = self.error.as_deref().unwrap_or_default();
            writeln!(f, "\nFAILED: {} requests, the first: {error}", count(self.errors))?;
        }
        if self.wrong > 0 {
            writeln!(f, "\nFAILED: {} answers were another key's value", count(self.wrong))?;
        }
        if !self.adds_up() {
            writeln!(f, "\nFAILED: hits and misses do not add up to the requests")?;
        }
        if self.is_good() {
            writeln!(
                f,
                "\nHits and misses add up to the requests; every answer was its key's value."
            )?;
        }
        Ok(())
    }

    fn share(&self, number: u64) -> String {
        match self.requests {
            0 => "-".into(),
            all => format!("{:.2} %", number as f64 * 100.0 / all as f64),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.trace(f)?;
        self.requests(f)?;
        self.work(f)?;
        self.verdict(f)
    }
}

fn row(f: &mut fmt::Formatter<'_>, what: &str, number: &str, of: &str) -> fmt::Result {
    writeln!(f, "  {what:<14}{number:>14}  {of}")
}

/// A span of trace time.
fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => time(span),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// The memory that this process has in RAM, in KiB, where the system tells.
pub(crate) struct Memory {
    start: Option<u64>,
    /// After so many requests.
    samples: Vec<(u64, u64)>,
    peak: Option<u64>,
    end: Option<u64>,
    next: u64,
}

impl Memory {
    pub(crate) fn at_start() -> Self {
        Self { start: status("VmRSS:"), samples: Vec::new(), peak: None, end: None, next: 100_000 }
    }

    /// To be called now and then; keeps a sample after 100,000 requests, a million, and so on.
    pub(crate) fn sample(&mut self, requests: u64) {
        if requests >= self.next {
            self.samples.extend(status("VmRSS:").map(|kib| (requests, kib)));
            while self.next <= requests {
                self.next *= 10;
            }
        }
    }

    pub(crate) fn at_end(&mut self) {
        self.end = status("VmRSS:");
        self.peak = status("VmHWM:");
    }

    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |kib: Option<u64>| {
            kib.map_or_else(|| "n/a".into(), |kib| format!("{:.1} MiB", kib as f64 / 1024.0))
        };
        row(f, "Memory", &shown(self.start), "at the start")?;
        for (requests, kib) in &self.samples {
            row(f, "", &shown(Some(*kib)), &format!("after {} requests", count(*requests)))?;
        }
        row(f, "", &shown(self.end), "at the end")?;
        row(f, "", &shown(self.peak), "at most")
    }
}

/// A line of Linux's `/proc/self/status`, in KiB.
fn status(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        assert_eq!(span(Duration::from_secs(12)), "12.0 s");
        assert_eq!(span(Duration::from_secs(3_700)), "1 h 1 min");
        assert_eq!(span(Duration::from_secs(90_000)), "1 d 1 h");
    }
}
