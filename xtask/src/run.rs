//! Runs steps one after the other, and says at the end what came of each.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// What came of a step.
pub(crate) enum Status {
    Passed(String),
    Failed(String),
    /// It could not be run here. Not a failure, but never silent.
    NotRun(String),
}

pub(crate) struct Runner {
    root: PathBuf,
    started: Instant,
    steps: Vec<(String, Duration, Status)>,
    tests: Tests,
    failures: Vec<Failure>,
}

/// The most failed tests of one step that are run once more: with more of them, something is
/// broken.
const MOST_UNSTEADY: usize = 3;

/// The most lines of a failed test's output that the summary shows.
const MOST_LINES: usize = 40;

/// Sums of the `test result:` lines, and what failed tests printed.
#[derive(Default)]
struct Tests {
    passed: u64,
    failed: u64,
    ignored: u64,
    failures: Vec<Failure>,
    /// Whether the lines that come are those of the last failure.
    in_failure: bool,
}

/// A failed test and the lines that it printed.
#[derive(Clone)]
struct Failure {
    name: String,
    lines: Vec<String>,
}

impl Runner {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self {
            root,
            started: Instant::now(),
            steps: Vec::new(),
            tests: Tests::default(),
            failures: Vec::new(),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Runs a step: announced, timed and remembered.
    pub(crate) fn step(&mut self, name: &str, step: impl FnOnce(&mut Self) -> Status) {
        println!("\n==> {name}");
        let start = Instant::now();
        let status = step(self);
        let took = start.elapsed();
        match &status {
            Status::Passed(note) => println!("==> {name}: passed in {}{}", time(took), after(note)),
            Status::Failed(why) => {
                println!("==> {name}: FAILED after {}{}", time(took), after(why));
            }
            Status::NotRun(why) => println!("==> {name}: NOT RUN{}", after(why)),
        }
        self.steps.push((name.to_owned(), took, status));
    }

    /// A cargo command in the root of the workspace.
    pub(crate) fn cargo(&self, args: &[&str]) -> Command {
        // By name, not by the variable `CARGO`: only rustup's proxy understands `+nightly`.
        let mut command = Command::new("cargo");
        command.args(args).current_dir(&self.root);
        command
    }

    /// Runs a command that prints for itself.
    pub(crate) fn shown(&self, mut command: Command) -> Status {
        println!("    {}", line(&command));
        match command.status() {
            Ok(status) if status.success() => Status::Passed(String::new()),
            Ok(status) => Status::Failed(format!("{}: {status}", line(&command))),
            Err(error) => Status::Failed(format!("{}: {error}", line(&command))),
        }
    }

    /// Runs tests as [`shown`](Self::shown) and adds up the results. A command that runs no test
    /// has failed. A test that fails is run once more, by itself: it passes then where two cores
    /// were too few for its neighbours, and is named in the summary as unsteady, which is a fault
    /// to mend; or it has failed.
    pub(crate) fn tested(&mut self, args: &[&str], variables: &[(&str, &str)]) -> Status {
        let command = |more: &[&str]| {
            let mut command = self.cargo(args);
            command.args(more).envs(variables.iter().copied());
            command
        };
        let typed = line(&command(&[]));
        let (tests, succeeded) = match counted(command(&[])) {
            Ok(ran) => ran,
            Err(error) => return Status::Failed(format!("{typed}: {error}")),
        };
        let names: Vec<&str> = tests.failures.iter().map(|failure| failure.name.as_str()).collect();
        let alone = [&["--", "--exact", "--test-threads=1"], &*names].concat();
        let again = command(&alone);
        self.tests.add(&tests);
        self.failures.extend(tests.failures.iter().cloned());
        if succeeded {
            return match tests.passed {
                0 => Status::Failed("no test was run".to_owned()),
                _ => Status::Passed(tests.to_string()),
            };
        }
        let failed = || Status::Failed(format!("{}; {typed}", names.join(", ")));
        if names.len() as u64 != tests.failed || !(1..=MOST_UNSTEADY).contains(&names.len()) {
            return failed();
        }
        println!("==> Once more, alone: {}", names.join(", "));
        match counted(again) {
            Ok((alone, true)) if alone.passed >= names.len() as u64 => {
                Status::Passed(format!("{tests}, UNSTEADY: {}", names.join(", ")))
            }
            _ => failed(),
        }
    }

    /// What a command prints, or what is wrong.
    pub(crate) fn output(&self, mut command: Command) -> Result<String, String> {
        let output = command.output().map_err(|error| format!("{}: {error}", line(&command)))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{}: {}\n{}", line(&command), output.status, said.trim_end()))
    }

    /// What cargo knows of the workspace, with all its dependencies or without.
    pub(crate) fn metadata(&self, dependencies: bool) -> Result<Value, String> {
        let mut args = vec!["metadata", "--format-version", "1"];
        if dependencies {
            // A licence may depend on a feature: look at everything.
            args.push("--all-features");
        } else {
            args.push("--no-deps");
        }
        serde_json::from_str(&self.output(self.cargo(&args))?).map_err(|error| error.to_string())
    }

    /// Prints what came of everything.
    pub(crate) fn summary(&self) -> ExitCode {
        let width = self.steps.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
        for Failure { name, lines } in &self.failures {
            println!("\n==> What {name} printed:");
            lines.iter().take(MOST_LINES).for_each(|text| println!("    {text}"));
        }
        println!("\n==> Summary");
        let (mut failed, mut not_run) = (0, 0);
        for (name, took, status) in &self.steps {
            let (word, note) = match status {
                Status::Passed(note) => ("passed", note),
                Status::Failed(why) => ("FAILED", why),
                Status::NotRun(why) => ("NOT RUN", why),
            };
            failed += u32::from(matches!(status, Status::Failed(_)));
            not_run += u32::from(matches!(status, Status::NotRun(_)));
            let note = note.lines().next().unwrap_or_default();
            let text = format!("    {name:width$}  {word:7}  {:>11}  {note}", time(*took));
            println!("{}", text.trim_end());
        }
        if self.tests.passed + self.tests.failed > 0 {
            println!("    Tests: {}.", self.tests);
        }
        let total = time(self.started.elapsed());
        let missing = if not_run == 0 { String::new() } else { format!(", {not_run} not run") };
        if failed == 0 {
            println!("==> All {} steps passed{missing}, in {total}.", self.count() - not_run);
        } else {
            println!("==> {failed} of {} steps FAILED{missing}, in {total}.", self.count());
        }
        let _ = std::io::stdout().flush();
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn count(&self) -> u32 {
        u32::try_from(self.steps.len()).unwrap_or(u32::MAX)
    }

    /// Whether a step has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.steps.iter().any(|(.., status)| matches!(status, Status::Failed(_)))
    }
}

impl Tests {
    /// Takes a line of what the tests print: `test result: ok. 12 passed; 0 failed; 1 ignored`, or
    /// what a failed test printed, between `---- its name stdout ----` and `failures:`.
    fn read(&mut self, text: &str) {
        let name = text.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        if let Some(name) = name {
            self.failures.push(Failure { name: name.to_owned(), lines: Vec::new() });
            self.in_failure = true;
            return;
        }
        if let Some(rest) = text.strip_prefix("test result: ") {
            self.count(rest);
        }
        self.in_failure &= text != "failures:";
        if self.in_failure
            && let Some(failure) = self.failures.last_mut()
        {
            failure.lines.push(text.to_owned());
        }
    }

    fn count(&mut self, result: &str) {
        let words: Vec<&str> =
            result.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(number) = pair[0].parse::<u64>() else { continue };
            match pair[1] {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }

    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

impl std::fmt::Display for Tests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { passed, failed, ignored, .. } = self;
        write!(f, "{passed} passed, {failed} failed, {ignored} ignored")
    }
}

/// Runs tests: what came of them, and whether the command succeeded.
fn counted(mut command: Command) -> std::io::Result<(Tests, bool)> {
    println!("    {}", line(&command));
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut tests = Tests::default();
    if let Some(stdout) = child.stdout.take() {
        for text in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&text);
            println!("{text}");
            tests.read(&text);
        }
    }
    Ok((tests, child.wait()?.success()))
}

/// A list of faults as the end of a step.
pub(crate) fn faults(found: Result<Vec<String>, String>, good: impl Into<String>) -> Status {
    match found {
        Err(error) => {
            println!("{error}");
            Status::Failed(error)
        }
        Ok(faults) if faults.is_empty() => Status::Passed(good.into()),
        Ok(faults) => {
            faults.iter().for_each(|fault| println!("    {fault}"));
            Status::Failed(format!("faults: {}; the first: {}", faults.len(), faults[0]))
        }
    }
}

/// The command as it would be typed.
fn line(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        Some(format!("{}={:?} ", name.to_string_lossy(), value?.to_string_lossy()))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    variables.collect::<String>() + &words.join(" ")
}

fn after(note: &str) -> String {
    if note.is_empty() { String::new() } else { format!(": {note}") }
}

fn time(took: Duration) -> String {
    let seconds = took.as_secs();
    if seconds >= 60 {
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    } else {
        format!("{:.1} s", took.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_results_are_added_up() {
        let mut tests = Tests::default();
        tests.read("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out");
        tests.read("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured");
        tests.read("the test result: 5 passed");
        assert_eq!(tests.to_string(), "13 passed, 2 failed, 1 ignored");
    }

    #[test]
    fn what_failed_tests_print_is_kept() {
        let mut tests = Tests::default();
        let printed = "test a ... FAILED\nfailures:\n\n---- a stdout ----\npanicked\n\n\
                       ---- b::c stdout ----\nwrong\n\nfailures:\n    a\n    b::c\n";
        printed.lines().for_each(|text| tests.read(text));
        let kept = tests.failures.iter().map(|failure| (&*failure.name, &*failure.lines[0]));
        assert_eq!(kept.collect::<Vec<_>>(), [("a", "panicked"), ("b::c", "wrong")]);
    }

    #[test]
    fn times_are_short() {
        assert_eq!(time(Duration::from_millis(1_240)), "1.2 s");
        assert_eq!(time(Duration::from_secs(65)), "1 min 05 s");
    }
}
