//! Packages of npm, for programs that tests start.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

/// Has `npm` install the packages of a `package.json` and its lock file, once, and returns the
/// directory with `node_modules` in it.
///
/// The directory is made below `target`, for which a test gives `env!("CARGO_TARGET_TMPDIR")`, and
/// is used again by later runs. Test programs that start at the same time wait for each other.
///
/// # Panics
/// When `node` or `npm` are missing, Node is older than 20, or the packages cannot be had.
pub fn npm_install(target: &Path, name: &str, package: &str, lock: &str) -> PathBuf {
    let version = Command::new("node").arg("--version").output();
    let version =
        version.expect("the program `node` is missing: install Debian's package `nodejs`");
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    let major = version.trim_start_matches('v').split('.').next().and_then(|n| n.parse().ok());
    assert!(major >= Some(20), "the packages need Node 20 or later, not {version}");

    fs::create_dir_all(target).expect("the target directory");
    let mut hasher = DefaultHasher::new();
    (package, lock, &version).hash(&mut hasher);
    let directory = target.join(format!("{name}-{:016x}", hasher.finish()));
    let _lock = FileLock::take(&directory.with_extension("lock"));
    if !directory.exists() {
        install(&directory, package, lock);
    }
    directory
}

/// Installs into a directory beside it, so that it is complete as soon as it is there.
fn install(directory: &Path, package: &str, lock: &str) {
    let unfinished = directory.with_extension("unfinished");
    let _ = fs::remove_dir_all(&unfinished);
    fs::create_dir_all(&unfinished).expect("a directory");
    fs::write(unfinished.join("package.json"), package).expect("a file");
    fs::write(unfinished.join("package-lock.json"), lock).expect("a file");
    let npm = Command::new("npm")
        .args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"])
        .current_dir(&unfinished)
        .stdin(Stdio::null())
        .output()
        .expect("the program `npm` is missing: install Debian's package `npm`");
    assert!(
        npm.status.success(),
        "`npm ci` failed; it needs a package registry once:\n{}{}",
        String::from_utf8_lossy(&npm.stdout),
        String::from_utf8_lossy(&npm.stderr),
    );
    fs::rename(&unfinished, directory).expect("the finished directory");
}

/// A file that one process at a time can make. One that a killed process left is broken after a
/// while, longer than an installation takes.
struct FileLock(PathBuf);

impl FileLock {
    fn take(path: &Path) -> Self {
        const STALE: Duration = Duration::from_secs(300);
        loop {
            match fs::File::create_new(path) {
                Ok(_) => return Self(path.to_owned()),
                Err(error) => {
                    assert_eq!(
                        error.kind(),
                        ErrorKind::AlreadyExists,
                        "{}: {error}",
                        path.display()
                    );
                }
            }
            let made = fs::metadata(path).and_then(|file| file.modified());
            let age = made.map(|made| SystemTime::now().duration_since(made).unwrap_or_default());
            if age.is_ok_and(|age| age > STALE) {
                let _ = fs::remove_file(path);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
