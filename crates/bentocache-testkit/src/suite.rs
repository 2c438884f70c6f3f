//! The conformance suites: the rules for drivers, as one test per case.
//!
//! [`l2_suite!`](crate::l2_suite), [`l1_suite!`](crate::l1_suite), [`bus_suite!`](crate::bus_suite)
//! and [`lock_suite!`](crate::lock_suite) have the same form:
//!
//! ```text
//! bentocache_testkit::l2_suite! {
//!     #[cfg(unix)]                        // optional: attributes for every test
//!     mod shelf;                          // optional: the name of the module with the tests
//!     open = async || Shelf::new(),       // opens one driver
//!     link = async || Shelf::proxied(),   // for a driver with a server: how to break its link
//!     without = [atomic_pull, keys],      // optional: what the backend cannot do
//! }
//! ```
//!
//! `open` is an expression that returns an async closure. It is evaluated once per test, inside an
//! async block, so it can create a directory, a table or a server for that test and use `.await`.
//! The closure owns these and keeps them until the test has ended. Each of its calls opens one more
//! driver, like one more process, and **all drivers of one closure must share their data**; a store
//! inside of the driver itself returns clones:
//!
//! ```
//! # #[allow(dead_code)] struct Dir; impl Dir { fn path(&self) -> &'static str { "" } }
//! # fn tempdir() -> Dir { Dir }
//! # use bentocache_testkit::MapL2;
//! # fn open_file(_: &str) -> MapL2 { MapL2::new() }
//! // Nothing to keep, nothing shared between tests:
//! let open = {
//!     let store = MapL2::new();
//!     async move || store.clone()
//! };
//! # let _: MapL2 = futures_lite(open());
//! // A directory per test, removed when the test is over:
//! let open = {
//!     let dir = tempdir();
//!     async move || open_file(dir.path())
//! };
//! # let _: MapL2 = futures_lite(open());
//! # fn futures_lite<T>(f: impl std::future::Future<Output = T>) -> T {
//! #     tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(f)
//! # }
//! ```
//!
//! `link` returns an async closure that opens a driver on a separate network path to that server,
//! and returns it with a [`FaultyLink`], which breaks the path. A driver without a server, such as
//! a directory, declares `without = [link]`:
//!
//! ```text
//! bentocache_testkit::l2_suite! {
//!     open = async || Shelf::new(server().url()),
//!     link = async || {
//!         let proxy = FaultProxy::start(server().addr()).await.unwrap();
//!         (Shelf::new(format!("shelf://{}", proxy.addr())), proxy)
//!     },
//! }
//! ```
//!
//! The case `outlives_its_runtime` evaluates `open` on a Tokio runtime that ends before the test does:
//! the driver must work on the next one.
//!
//! On a server that tests share, give each test a table, a prefix or a database of its own, named
//! with [`unique`](crate::unique). The suites use unique keys and channels, so most cases can share
//! a server, but `clear("")`, the empty key and `prune` cannot.
//!
//! `without` names the abilities that the backend lacks. The cases that need them are listed as
//! ignored, with the reason. The case `declares_what_it_lacks` compares the list with the
//! capabilities of the driver in both directions: a driver that declares `atomic_pull` is tested
//! for it, and one that does not must name it here. The module of each suite lists the known names.
//!
//! A case that fails says what it found, which rule the driver breaks, and what to change:
//!
//! ```text
//! "a" lives after 110ms, with a ttl of 0ns
//!
//! The rule `l2::zero_ttl`: a ttl of zero leaves nothing under the key.
//! What to change: delete the key; many stores read 0 as "no expiry".
//! ```
//!
//! Tests run on a multi-threaded runtime of their own and fail after two minutes. The cases are
//! plain functions, so you can call a single one during development:
//!
//! ```
//! use bentocache_testkit::{MapL2, suite};
//!
//! suite::run(suite::l2::round_trip(async || MapL2::new()));
//! ```

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bentocache_driver::ErrorKind;
use futures_core::Stream;
use tokio::time::Instant;

use crate::Chaos;
use crate::runtimes::{Calls, MakeCalls, first_failure};

pub mod bus;
pub mod l1;
pub mod l2;
pub mod lock;
mod rules;

/// Keys and channel names that stores have mistaken for a pattern, a path, a number, an end or
/// another key. No two are the same string.
pub const HOSTILE: &[&str] = &[
    ":",
    "::",
    "a:b",
    "a::b",
    ":a",
    "a:",
    "/",
    "//",
    "a/b",
    "a//b",
    "/a",
    "a/",
    ".",
    "..",
    "./a",
    "../a",
    "../../a",
    "a/../b",
    "..:..:a",
    "a.b",
    ".a",
    "a.",
    "~",
    "\\",
    "a\\b",
    "..\\a",
    "C:\\a",
    "NUL",
    "con",
    "%",
    "%a",
    "%41",
    "%2F",
    "%2f",
    "%00",
    "%s",
    "_",
    "__proto__",
    "*",
    "a*",
    "?",
    "a?",
    "[",
    "[a]",
    "[a-z]",
    "{a}",
    "{",
    "^a",
    "a$",
    ">",
    "a b",
    " a",
    "a ",
    "a  ",
    "\ta",
    "a\n",
    "a\r\n",
    "'",
    "''",
    "\"",
    "`",
    "' OR 1=1 --",
    ";",
    "#",
    "&",
    "|",
    "a,b",
    "-",
    "--help",
    "+",
    "=",
    "@",
    "0",
    "00",
    "1e0",
    "null",
    "a",
    "A",
    "aa",
    "aA",
    "ss",
    "SS",
    "ß",
    "i",
    "ı",
    "İ",
    "\u{e9}",
    "e\u{301}",
    "e",
    "\u{fb01}",
    "fi",
    "日本",
    "🍱",
    "\u{1f469}\u{200d}\u{1f467}",
    "\u{200b}",
    "\u{feff}a",
    "\u{fffd}",
    "\u{202e}a",
    "\u{1}",
    "\u{7f}",
    "\u{10ffff}",
];

/// Runs one case on a multi-threaded runtime of its own.
///
/// # Panics
/// If the case panics, or after two minutes.
pub fn run(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("a runtime for the test");
    let ended = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            if tokio::time::timeout(Duration::from_secs(120), case).await.is_err() {
                panic!("the case has not ended after two minutes");
            }
        });
    }));
    // Dropping the runtime would wait forever for a thread that a driver blocks.
    runtime.shutdown_timeout(Duration::from_secs(1));
    if let Err(panic) = ended {
        resume_unwind(panic);
    }
}

/// As [`run`], for a case by its name: a failure says which rule the driver breaks, and what to
/// change.
#[doc(hidden)]
pub fn run_case(suite: &str, case: &str, run: impl FnOnce()) {
    let (rule, change) = rules::of(suite, case);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let failure = text.or_else(|| panic.downcast_ref().copied()).unwrap_or("it panicked");
        let text =
            format!("{failure}\n\nThe rule `{suite}::{case}`: {rule}.\nWhat to change: {change}.");
        // The panic has printed the failure itself.
        eprintln!("\nThe rule `{suite}::{case}`: {rule}.\nWhat to change: {change}.");
        resume_unwind(Box::new(text));
    }
}

/// The next item of a stream.
async fn next<S: Stream + ?Sized>(stream: &mut Pin<Box<S>>) -> Option<S::Item> {
    std::future::poll_fn(|cx| stream.as_mut().poll_next(cx)).await
}

/// A driver's network path to its server, which the driver's test can break.
///
/// A proxy in front of the server, for example: the driver connects to its address.
pub trait FaultyLink {
    /// Closes the connections and refuses new ones.
    fn cut(&self) -> impl Future<Output = ()>;

    /// Keeps connections open, and forwards nothing.
    fn silence(&self) -> impl Future<Output = ()>;

    /// Everything works again.
    fn restore(&self) -> impl Future<Output = ()>;
}

/// Like a cable that is pulled, for either fault.
impl FaultyLink for Chaos {
    async fn cut(&self) {
        Chaos::cut(self);
    }

    async fn silence(&self) {
        Chaos::cut(self);
    }

    async fn restore(&self) {
        Chaos::restore(self);
    }
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Cut,
    Silence,
}

impl Fault {
    const ALL: [Self; 2] = [Self::Cut, Self::Silence];

    async fn befalls(self, link: &impl FaultyLink) {
        match self {
            Self::Cut => link.cut().await,
            Self::Silence => link.silence().await,
        }
    }
}

/// The time limit for a driver to end a call by itself, and to work again after its server is back.
const GONE: Duration = Duration::from_secs(30);

/// Makes the calls concurrently while the server is gone: each must fail, within [`GONE`], with an
/// error that says that the server does not answer.
async fn all_fail_for_now(calls: Calls<'_>, situation: &str) {
    let waiting = calls.into_iter().map(async |(name, call)| {
        let Ok(answer) = tokio::time::timeout(GONE, call).await else {
            panic!("{situation}: {name} has not ended after {GONE:?}");
        };
        match answer {
            Ok(()) => panic!("{situation}: {name} succeeds"),
            Err(error) if error.kind() == ErrorKind::Unsupported => {}
            Err(error) => {
                let is_for_now =
                    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout);
                assert!(is_for_now, "{situation}: {name} fails with {:?}: {error}", error.kind());
            }
        }
    });
    let mut waiting: Vec<_> = waiting.map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        waiting.retain_mut(|call| call.as_mut().poll(cx).is_pending());
        if waiting.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Repeats the calls until all of them succeed.
async fn all_work_again<D>(driver: &D, space: &str, calls: MakeCalls<D>, situation: &str) {
    let start = Instant::now();
    while let Some((name, error)) = first_failure(calls(driver, space)).await {
        assert!(start.elapsed() < GONE, "{situation}: {name} still fails: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Compares the abilities that the macro call says are missing with the actual ones.
fn compare_declared(driver: &str, declared: &[&str], features: &[(&str, bool)]) {
    for name in declared {
        assert!(
            features.iter().any(|(known, _)| known == name),
            "`without = [{name}]`: this suite knows only {:?}",
            features.iter().map(|(known, _)| known).collect::<Vec<_>>(),
        );
    }
    for (name, is_there) in features {
        match (*is_there, declared.contains(name)) {
            (true, true) => panic!(
                "the {driver} driver can do {name}: remove it from `without`, so that it is tested"
            ),
            (false, false) => panic!(
                "the {driver} driver says that it cannot do {name}: add it to `without = [...]`, \
                 so that the tests show it"
            ),
            _ => {}
        }
    }
}

/// Runs a case, and explains its failure.
#[doc(hidden)]
#[macro_export]
macro_rules! __run {
    ($suite:ident, $case:ident, $run:block) => {
        $crate::suite::run_case(stringify!($suite), stringify!($case), || {
            $crate::suite::run(async { $run });
        })
    };
}

/// The common expansion of all suites. The cases are lists of `name` or `name: feature`; those of
/// the second list break the driver's link.
#[doc(hidden)]
#[macro_export]
macro_rules! __suite {
    (
        $suite:ident $cases:tt $broken:tt
        $(#[$attribute:meta])*
        mod $module:ident;
        open = $open:expr
        $(, link = $link:expr)?
        $(, without = [$($without:ident),* $(,)?])?
        $(,)?
    ) => {
        mod $module {
            #[allow(unused_imports, clippy::wildcard_imports)]
            use super::*;

            $crate::__cases! {
                $suite, $open, [$($($without)*)?], [$(#[$attribute])*], $cases
            }

            $crate::__links! {
                $suite, $open, [$($link)?], [$($($without)*)?], [$(#[$attribute])*], $broken
            }

            $crate::__runtimes! { $suite, $open, [$($($without)*)?], [$(#[$attribute])*] }

            $(#[$attribute])*
            #[test]
            fn declares_what_it_lacks() {
                $crate::__run!($suite, declares_what_it_lacks, {
                    let lacks: &[&str] = &[$($(stringify!($without)),*)?];
                    $crate::suite::$suite::declares_what_it_lacks($open, lacks).await;
                });
            }
        }
    };
    (
        $suite:ident $cases:tt $broken:tt
        $(#[$attribute:meta])* open = $($rest:tt)*
    ) => {
        $crate::__suite! {
            $suite $cases $broken $(#[$attribute])* mod $suite; open = $($rest)*
        }
    };
}

/// The cases that break the link of a driver, if the macro call has a `link`.
#[doc(hidden)]
#[macro_export]
macro_rules! __links {
    ($suite:ident, $open:expr, [], $without:tt, $attributes:tt, []) => {};
    ($suite:ident, $open:expr, [$link:expr], $without:tt, $attributes:tt, [$($case:ident,)*]) => {
        $($crate::__link! { $suite, $case, $open, $link, $attributes })*
    };
    ($suite:ident, $open:expr, [], [$($without:ident)*], [$($attribute:tt)*], $cases:tt) => {
        $($attribute)*
        #[test]
        fn declares_whether_it_has_a_link() {
            let lacks: &[&str] = &[$(stringify!($without)),*];
            assert!(
                lacks.contains(&"link"),
                "say how to break the link of this driver (`link = ...`), or that it has none \
                 (`without = [link]`)"
            );
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __link {
    ($suite:ident, $case:ident, $open:expr, $link:expr, [$($attribute:tt)*]) => {
        $($attribute)*
        #[test]
        fn $case() {
            $crate::__run!($suite, $case, { $crate::suite::$suite::$case($open, $link).await });
        }
    };
}

/// The case with two runtimes, which evaluates `open` on the first one.
#[doc(hidden)]
#[macro_export]
macro_rules! __runtimes {
    (l1, $($rest:tt)*) => {};
    (lock, $($rest:tt)*) => {};
    ($suite:ident, $open:expr, [runtimes $($rest:ident)*], [$($attribute:tt)*]) => {
        $crate::__runtimes! {
            $suite, $open, [],
            [#[ignore = "without runtimes: the driver ends with its runtime"] $($attribute)*]
        }
    };
    ($suite:ident, $open:expr, [$other:ident $($rest:ident)*], $attributes:tt) => {
        $crate::__runtimes! { $suite, $open, [$($rest)*], $attributes }
    };
    ($suite:ident, $open:expr, [], [$($attribute:tt)*]) => {
        $($attribute)*
        #[test]
        fn outlives_its_runtime() {
            $crate::suite::run_case(stringify!($suite), "outlives_its_runtime", || {
                $crate::suite::$suite::outlives_its_runtime(async || {
                    let open = $open;
                    (open().await, open)
                });
            });
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __cases {
    ($suite:ident, $open:expr, $without:tt, $attributes:tt,
     [$($case:ident $(: $feature:ident)?,)*]) => {
        $($crate::__case! { $suite, $case, $open, $without, $attributes $(, $feature)? })*
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __case {
    ($suite:ident, $case:ident, $open:expr, $without:tt, $attributes:tt, $feature:ident) => {
        $crate::__unless! { $feature in $without, $suite, $case, $open, $attributes }
    };
    ($suite:ident, $case:ident, $open:expr, $without:tt, [$($attribute:tt)*]) => {
        $($attribute)*
        #[test]
        fn $case() {
            $crate::__run!($suite, $case, { $crate::suite::$suite::$case($open).await });
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __ignored {
    ($reason:literal, $suite:ident, $case:ident, $open:expr, [$($attribute:tt)*]) => {
        $($attribute)*
        #[test]
        #[allow(unused_attributes)]
        #[ignore = $reason]
        fn $case() {
            $crate::__run!($suite, $case, { $crate::suite::$suite::$case($open).await });
        }
    };
}

/// The case, ignored if its feature is in the list. A macro cannot compare two names, so each name
/// has a rule.
#[doc(hidden)]
#[macro_export]
macro_rules! __unless {
    (atomic_pull in [atomic_pull $($rest:ident)*], $($case:tt)*) => {
        $crate::__ignored! { "without atomic_pull: the driver does not pull in one step", $($case)* }
    };
    (atomic_compare in [atomic_compare $($rest:ident)*], $($case:tt)*) => {
        $crate::__ignored! { "without atomic_compare: the driver does not compare and act in one step", $($case)* }
    };
    (keys in [keys $($rest:ident)*], $($case:tt)*) => {
        $crate::__ignored! { "without keys: the driver cannot list its keys", $($case)* }
    };
    (clear in [clear $($rest:ident)*], $($case:tt)*) => {
        $crate::__ignored! { "without clear: the driver cannot clear by prefix", $($case)* }
    };
    (prune in [prune $($rest:ident)*], $($case:tt)*) => {
        $crate::__ignored! { "without prune: nothing removes expired values", $($case)* }
    };
    (fine_ttl in [fine_ttl $($rest:ident)*], $($case:tt)*) => {
        $crate::__ignored! { "without fine_ttl: the driver keeps expiry more coarsely than to 10 ms", $($case)* }
    };
    (long_keys in [long_keys $($rest:ident)*], $($case:tt)*) => {
        $crate::__ignored! { "without long_keys: the driver refuses keys of 10 kB", $($case)* }
    };
    (large_values in [large_values $($rest:ident)*], $($case:tt)*) => {
        $crate::__ignored! { "without large_values: the driver refuses values of 64 MiB", $($case)* }
    };
    (weight in [weight $($rest:ident)*], $($case:tt)*) => {
        $crate::__ignored! { "without weight: the driver does not limit the size of values", $($case)* }
    };
    (order in [order $($rest:ident)*], $($case:tt)*) => {
        $crate::__ignored! { "without order: the driver does not keep the order of messages", $($case)* }
    };
    ($feature:ident in [$other:ident $($rest:ident)*], $($case:tt)*) => {
        $crate::__unless! { $feature in [$($rest)*], $($case)* }
    };
    ($feature:ident in [], $suite:ident, $case:ident, $open:expr, $attributes:tt) => {
        $crate::__case! { $suite, $case, $open, [], $attributes }
    };
}
