//! The file of a snapshot: read block by block, replaced as a whole. Everything here blocks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;

use crate::wire::snapshot::{Block, Head, LEN, LONGEST_HEAD, MAGIC, SUM, is_intact, push_block};

/// Buffers of this size, so that small entries are not read and written one by one.
const BUFFER: usize = 1 << 16;

/// A file that was opened as a snapshot.
pub(super) enum Opened {
    Snapshot(Reader),
    /// A snapshot that cannot be read, with the reason. It may be replaced.
    Damaged(&'static str),
    /// Something else, which must not be replaced.
    Foreign,
}

/// Opens the file; `None` if there is none.
pub(super) fn open(path: &Path) -> io::Result<Option<Opened>> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // To open a pipe could take forever.
    if !metadata.is_file() {
        return Ok(Some(Opened::Foreign));
    }
    let mut input = BufReader::with_capacity(BUFFER, File::open(path)?);
    let mut magic = Vec::new();
    input.by_ref().take(MAGIC.len() as u64).read_to_end(&mut magic)?;
    let (name, version) = MAGIC.split_at(MAGIC.len() - 1);
    let opened = match magic.split_at_checked(name.len()) {
        None if name.starts_with(&magic) => Opened::Damaged("it ends early"),
        Some((start, rest)) if start == name => match rest {
            [] => Opened::Damaged("it ends early"),
            rest if rest == version => {
                let left = metadata.len().saturating_sub(MAGIC.len() as u64);
                Reader::begin(input, left)?
            }
            _ => Opened::Damaged("another version of the library wrote it"),
        },
        _ => Opened::Foreign,
    };
    Ok(Some(opened))
}

/// A snapshot that is being read.
pub(super) struct Reader {
    pub(super) head: Head,
    input: BufReader<File>,
    /// The bytes that follow.
    left: u64,
    /// The number of the next block.
    number: u64,
}

impl Reader {
    fn begin(mut input: BufReader<File>, mut left: u64) -> io::Result<Opened> {
        let body = read_block(&mut input, &mut left, 0, 0, LONGEST_HEAD)?;
        Ok(match body.ok().and_then(|body| Head::parse(&body).ok()) {
            Some(head) => Opened::Snapshot(Self { head, input, left, number: 1 }),
            None => Opened::Damaged("its first block is damaged"),
        })
    }

    /// The body of the next block; an error if it is not as it was written. Nothing may be read
    /// after that.
    pub(super) fn next(&mut self) -> io::Result<Result<Bytes, &'static str>> {
        let Self { head, input, left, number } = self;
        let body = read_block(input, left, head.file, *number, usize::MAX)?;
        *number += 1;
        Ok(body)
    }

    /// Whether the whole file was read.
    pub(super) fn is_at_end(&self) -> bool {
        self.left == 0
    }
}

/// The body of a block that has at most `most` bytes. Its memory is that which the file has.
fn read_block(
    input: &mut impl Read,
    left: &mut u64,
    file: u64,
    number: u64,
    most: usize,
) -> io::Result<Result<Bytes, &'static str>> {
    const DAMAGED: &str = "a block is damaged";
    let around = (LEN + SUM) as u64;
    if *left < around {
        return Ok(Err("it ends early"));
    }
    let mut len = [0; LEN];
    input.read_exact(&mut len)?;
    let len = u32::from_be_bytes(len);
    if u64::from(len) > *left - around || len as usize > most {
        return Ok(Err(DAMAGED));
    }
    let mut body = vec![0; len as usize];
    let mut sum = [0; SUM];
    input.read_exact(&mut body)?;
    input.read_exact(&mut sum)?;
    *left -= around + u64::from(len);
    Ok(if is_intact(file, number, &body, sum) { Ok(body.into()) } else { Err(DAMAGED) })
}

/// Writes the blocks of a snapshot.
pub(super) struct Writer<W> {
    output: W,
    block: Vec<u8>,
    file: u64,
    /// The number of entries so far.
    entries: u64,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(mut output: W, head: &Head) -> io::Result<Self> {
        let mut block = MAGIC.to_vec();
        if !push_block(&mut block, 0, 0, |body| head.write(body)) {
            return Err(io::Error::new(ErrorKind::InvalidInput, "the store's name is too long"));
        }
        output.write_all(&block)?;
        Ok(Self { output, block, file: head.file, entries: 0 })
    }

    /// Writes an entry. Returns false if it is too large for the file.
    pub(super) fn push(&mut self, entry: &Block<'_>) -> io::Result<bool> {
        let pushed = self.write(entry)?;
        self.entries += u64::from(pushed);
        Ok(pushed)
    }

    /// Writes the last block. Returns the output and the number of entries.
    pub(super) fn finish(mut self) -> io::Result<(W, u64)> {
        self.write(&Block::End(self.entries))?;
        self.output.flush()?;
        Ok((self.output, self.entries))
    }

    fn write(&mut self, block: &Block<'_>) -> io::Result<bool> {
        self.block.clear();
        let number = self.entries + 1;
        let fits = push_block(&mut self.block, self.file, number, |body| block.write(body));
        self.output.write_all(&self.block)?;
        // One large entry must not keep its memory until the end.
        self.block.shrink_to(BUFFER);
        Ok(fits)
    }
}

/// Replaces the file in one step by what `write` writes, if `may_replace` allows it at the end.
/// Returns the number of entries.
pub(super) fn replace(
    path: &Path,
    head: &Head,
    write: impl FnOnce(&mut Writer<BufWriter<File>>) -> io::Result<()>,
    may_replace: impl FnOnce() -> io::Result<()>,
) -> io::Result<u64> {
    let directory = directory_of(path);
    let (file, temporary) = Temporary::create(directory, path)?;
    let mut writer = Writer::new(BufWriter::with_capacity(BUFFER, file), head)?;
    write(&mut writer)?;
    let (output, entries) = writer.finish()?;
    output.get_ref().sync_all()?;
    drop(output);
    may_replace()?;
    temporary.move_to(path)?;
    sync(directory)?;
    Ok(entries)
}

/// Takes the file away, or at least its content.
pub(super) fn discard(path: &Path) -> io::Result<()> {
    match fs::remove_file(path).and_then(|()| sync(directory_of(path))) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(_) => OpenOptions::new().write(true).truncate(true).open(path)?.sync_all(),
    }
}

/// Removes temporary files of processes that were killed while they wrote a snapshot.
pub(super) fn remove_leftovers(path: &Path) {
    const OLD: Duration = Duration::from_secs(3_600);
    let Ok(files) = fs::read_dir(directory_of(path)) else { return };
    let start = temporary_name(path, "");
    for file in files.flatten() {
        let name = file.file_name();
        let is_ours = name.to_string_lossy().strip_prefix(&*start).is_some_and(|rest| {
            rest.strip_suffix(TEMPORARY).is_some_and(|id| id.bytes().all(|b| b.is_ascii_digit()))
        });
        let age = file.metadata().and_then(|metadata| metadata.modified());
        if is_ours && age.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > OLD)) {
            // Another process may have been first.
            let _ = fs::remove_file(file.path());
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

const TEMPORARY: &str = ".tmp";

fn temporary_name(path: &Path, id: &str) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!(".{name}.{id}")
}

/// A new file in the directory of the snapshot. Dropping it removes it.
struct Temporary {
    path: PathBuf,
    is_moved: bool,
}

impl Temporary {
    fn create(directory: &Path, path: &Path) -> io::Result<(File, Self)> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        loop {
            let id = format!("{}{TEMPORARY}", fastrand::u64(..));
            let path = directory.join(temporary_name(path, &id));
            match options.open(&path) {
                Ok(file) => return Ok((file, Self { path, is_moved: false })),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn move_to(mut self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        self.is_moved = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_moved {
            // If this fails too, a later start removes the file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes renames and removals in a directory survive a power failure.
fn sync(directory: &Path) -> io::Result<()> {
    // On other systems directories cannot be opened, and file systems log such changes.
    if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            is_last: true,
            written_at: 5,
            run: 6,
            file: 7,
            store: "main".into(),
            root: "bentocache:".into(),
        }
    }

    fn entry(key: &str) -> Block<'_> {
        Block::Entry(crate::wire::snapshot::Record {
            key,
            graced: false,
            fresh_until: 8,
            life: 9,
            document: Bytes::from_static(b"document"),
        })
    }

    /// A disk without room after some bytes.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            let written = bytes.len().min(self.0);
            self.0 -= written;
            Ok(written)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn write_to(output: impl Write) -> io::Result<u64> {
        let mut writer = Writer::new(output, &head())?;
        for key in ["a", "b"] {
            writer.push(&entry(key))?;
        }
        writer.finish().map(|(_, entries)| entries)
    }

    #[test]
    fn a_full_disk_is_an_error_wherever_it_is_full() {
        let mut whole = Vec::new();
        assert_eq!(write_to(&mut whole).unwrap(), 2);
        for room in 0..whole.len() {
            assert_eq!(write_to(Full(room)).unwrap_err().kind(), ErrorKind::StorageFull);
        }
        assert_eq!(write_to(Full(whole.len())).unwrap(), 2);
    }

    #[test]
    fn what_fails_leaves_the_former_file_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("l1");
        replace(&path, &head(), |writer| writer.push(&entry("a")).map(drop), || Ok(())).unwrap();
        let former = fs::read(&path).unwrap();
        let full = || io::Error::from(ErrorKind::StorageFull);
        replace(&path, &head(), |_| Err(full()), || Ok(())).unwrap_err();
        replace(&path, &head(), |_| Ok(()), || Err(full())).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), former);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_old_temporary_files_of_the_same_snapshot_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("l1");
        let old = std::time::SystemTime::now() - Duration::from_secs(2 * 3_600);
        for (name, is_old) in
            [(".l1.7.tmp", true), (".l1.8.tmp", false), (".l1.x.tmp", true), (".l12.7.tmp", true)]
        {
            let file = File::create(directory.path().join(name)).unwrap();
            if is_old {
                file.set_modified(old).unwrap();
            }
        }
        remove_leftovers(&path);
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [".l1.8.tmp", ".l1.x.tmp", ".l12.7.tmp"]);
    }

    #[test]
    fn only_snapshots_and_their_remains_may_be_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("l1");
        assert!(open(&path).unwrap().is_none());
        let mut whole = Vec::new();
        write_to(&mut whole).unwrap();
        for end in 0..whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            assert!(!matches!(open(&path).unwrap(), Some(Opened::Foreign)), "{end}");
        }
        whole[MAGIC.len() - 1] = 9;
        fs::write(&path, &whole).unwrap();
        assert!(matches!(open(&path).unwrap(), Some(Opened::Damaged(_))), "another version");
        for other in ["x", "bentoL2", "{\"value\":1}"] {
            fs::write(&path, other).unwrap();
            assert!(matches!(open(&path).unwrap(), Some(Opened::Foreign)), "{other}");
        }
        assert!(matches!(open(directory.path()).unwrap(), Some(Opened::Foreign)));
    }
}
