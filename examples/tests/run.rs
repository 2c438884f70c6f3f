//! The example programs that need neither a server nor an argument run to their end.

use std::path::PathBuf;
use std::process::Command;

/// Runs the example of that name as it was built beside this test.
fn run(name: &str) {
    let test = std::env::current_exe().expect("the path of this test");
    let built = test.ancestors().nth(2).map(|target| target.join("examples").join(name));
    let program: PathBuf = built.expect("a directory above this test");
    assert!(program.exists(), "{} is missing; run `cargo build --examples`", program.display());
    let output = Command::new(&program).output().expect("the program starts");
    let printed = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {}\n{printed}\n{failed}", output.status);
    assert!(!printed.is_empty(), "{name} prints nothing");
}

macro_rules! examples {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            run(stringify!($name));
        })*
    };
}

examples! {
    basic two_tiers bus tags grace_and_timeouts stale_while_revalidate typed blocking custom_driver
    testing_with_a_paused_clock quickstart
}
