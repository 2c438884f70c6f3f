//! No file of more than 800 lines, unless its head says "long because".

use std::fs;
use std::path::{Path, PathBuf};

const MOST_LINES: usize = 800;
const REASON: &str = "long because";

pub(crate) fn check(root: &Path) -> Result<Vec<String>, String> {
    let mut faults = Vec::new();
    for file in rust_files(root)? {
        let text = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let lines = text.lines().count();
        if lines > MOST_LINES && !gives_reason(&text) {
            let name = file.strip_prefix(root).unwrap_or(&file).display();
            faults.push(format!(
                "{name}:{lines}: more than {MOST_LINES} lines; split it, or say in its head \
                 comment \"{REASON} …\""
            ));
        }
    }
    Ok(faults)
}

/// Whether the comment at the head of the file says why it is long.
fn gives_reason(text: &str) -> bool {
    let head: Vec<_> = text
        .lines()
        .map_while(|line| line.trim_start().strip_prefix("//"))
        .flat_map(|comment| comment.trim_start_matches(['/', '!']).split_whitespace())
        .collect();
    head.join(" ").contains(REASON)
}

/// All Rust files of the project.
pub(crate) fn rust_files(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    let entries = fs::read_dir(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
    for entry in entries.filter_map(Result::ok) {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" {
                files.extend(rust_files(&path)?);
            }
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_looked_for_in_the_head_only() {
        assert!(gives_reason(
            "//! Cases.\n//! The file is long\n//! because it is a list.\nuse x;"
        ));
        assert!(!gives_reason("//! Cases.\n\n// It is long because of this."));
    }
}
