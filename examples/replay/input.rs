//! The trace: opened, decompressed, and read line by line in constant memory.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use clap::ValueEnum;
use flate2::bufread::MultiGzDecoder;
use indicatif::ProgressBar;
use ruzstd::decoding::StreamingDecoder;
use tokio::sync::mpsc;

use crate::line::{self, Bad, Line};

/// Lines longer than this are not read into memory.
pub(crate) const MAX_LINE: usize = 64 * 1024;
/// How many lines may pass before the input is taken for a list of keys.
const LOOK_AHEAD: usize = 100;
/// A batch of requests is handed on when it has this many, or this many bytes of keys.
const BATCH: usize = 1024;
const BATCH_BYTES: usize = 256 * 1024;
/// How many batches may wait for the workers.
pub(crate) const BATCHES: usize = 4;
/// How many lines that cannot be used are shown.
const SAMPLES: usize = 3;

/// What the lines are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A log if one of the first 100 lines is a line of a log, else keys
    Auto,
    /// One key a line
    Keys,
    /// An access log of nginx or Apache, common or combined format
    Log,
}

/// One read of a cache.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) key: Box<str>,
    /// When it was, in milliseconds since 1970, if the trace tells.
    pub(crate) at: Option<u64>,
}

/// An open trace.
pub(crate) struct Input {
    pub(crate) name: String,
    pub(crate) format: Format,
    lines: Lines,
    /// Lines that were read to find out the format.
    seen: std::vec::IntoIter<Raw>,
}

impl Input {
    /// Opens a file, or standard input for `-`, and finds out what it is.
    pub(crate) fn open(path: &Path, format: Format, bar: &ProgressBar) -> io::Result<Self> {
        if path == Path::new("-") {
            return Self::new("standard input", bar.wrap_read(io::stdin()), format);
        }
        let file = File::open(path)?;
        bar.set_length(file.metadata()?.len());
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Self::new(name, bar.wrap_read(file), format)
    }

    /// A trace from anything that can be read.
    pub(crate) fn new(
        name: impl Into<String>,
        input: impl Read + Send + 'static,
        format: Format,
    ) -> io::Result<Self> {
        let mut lines = Lines { input: decompressed(input)?, line: Vec::new() };
        let mut seen = Vec::new();
        let format = match format {
            Format::Auto => lines.detect(&mut seen)?,
            given => given,
        };
        Ok(Self { name: name.into(), format, lines, seen: seen.into_iter() })
    }

    /// Reads to the end, hands the requests on in batches, and counts the lines. Waits when the
    /// workers cannot keep up. An error of the input ends it, and is in the counts.
    pub(crate) fn read(mut self, requests: &mpsc::Sender<Vec<Request>>, counts: &Counts) {
        let mut batch = Batch::default();
        loop {
            let request = match self.next(counts) {
                Ok(Some(request)) => request,
                Ok(None) => break,
                Err(error) => {
                    counts.lock().failed = Some(error.to_string());
                    break;
                }
            };
            if let Some(request) = request {
                batch.bytes += request.key.len();
                batch.requests.push(request);
            }
            // What came slowly, through a pipe, is not kept back until a batch is full.
            let is_due = batch.is_full() || self.lines.input.buffer().is_empty();
            if is_due && !batch.send(requests) {
                return;
            }
        }
        batch.send(requests);
    }

    /// The next line's request, `Some(None)` if it has none, `None` at the end.
    fn next(&mut self, counts: &Counts) -> io::Result<Option<Option<Request>>> {
        let seen = self.seen.next();
        let raw = match &seen {
            Some(raw) => raw.borrow(),
            None => match self.lines.next()? {
                Some(raw) => raw,
                None => return Ok(None),
            },
        };
        let parsed = raw.parse(self.format);
        counts.note(&parsed, raw);
        Ok(Some(match parsed {
            Ok(Line::Request(request)) => Some(request),
            Ok(Line::OtherMethod) | Err(_) => None,
        }))
    }
}

#[derive(Default)]
struct Batch {
    requests: Vec<Request>,
    bytes: usize,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.requests.len() >= BATCH || self.bytes >= BATCH_BYTES
    }

    /// Whether somebody still wants requests.
    fn send(&mut self, requests: &mpsc::Sender<Vec<Request>>) -> bool {
        let batch = std::mem::take(self);
        batch.requests.is_empty() || requests.blocking_send(batch.requests).is_ok()
    }
}

/// A line as it is in the input, without its end.
#[derive(Clone, Copy)]
struct RawRef<'a> {
    bytes: &'a [u8],
    too_long: bool,
}

struct Raw {
    bytes: Box<[u8]>,
    too_long: bool,
}

impl Raw {
    fn borrow(&self) -> RawRef<'_> {
        RawRef { bytes: &self.bytes, too_long: self.too_long }
    }
}

impl RawRef<'_> {
    fn parse(self, format: Format) -> Result<Line, Bad> {
        if self.too_long {
            return Err(Bad::TooLong);
        }
        let text = std::str::from_utf8(self.bytes).map_err(|_| Bad::NotUtf8)?;
        match format {
            Format::Log => line::log(text),
            Format::Keys | Format::Auto => line::key(text),
        }
    }
}

struct Lines {
    input: BufReader<Box<dyn Read + Send>>,
    line: Vec<u8>,
}

impl Lines {
    /// The next line; of one that is too long the beginning.
    fn next(&mut self) -> io::Result<Option<RawRef<'_>>> {
        self.line.clear();
        let mut too_long = false;
        let mut started = false;
        loop {
            let piece = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            };
            if piece.is_empty() {
                if !started {
                    return Ok(None);
                }
                break;
            }
            started = true;
            let end = piece.iter().position(|&byte| byte == b'\n');
            let text = &piece[..end.unwrap_or(piece.len())];
            let room = MAX_LINE - self.line.len();
            too_long |= text.len() > room;
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            let used = text.len() + usize::from(end.is_some());
            self.input.consume(used);
            if end.is_some() {
                break;
            }
        }
        let bytes = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        Ok(Some(RawRef { bytes, too_long }))
    }

    /// Looks at the first lines, which it keeps in `seen`.
    fn detect(&mut self, seen: &mut Vec<Raw>) -> io::Result<Format> {
        while seen.len() < LOOK_AHEAD {
            let Some(raw) = self.next()? else { break };
            let is_log = matches!(raw.parse(Format::Log), Ok(_) | Err(Bad::NoRequest));
            seen.push(Raw { bytes: raw.bytes.into(), too_long: raw.too_long });
            if is_log {
                return Ok(Format::Log);
            }
        }
        Ok(Format::Keys)
    }
}

/// The plain text of the input, which may be compressed with gzip or zstd. Told by its first bytes.
fn decompressed(
    mut input: impl Read + Send + 'static,
) -> io::Result<BufReader<Box<dyn Read + Send>>> {
    const BUFFER: usize = 256 * 1024;
    let mut start = Vec::new();
    input.by_ref().take(4).read_to_end(&mut start)?;
    let (is_gzip, is_zstd) =
        (start.starts_with(&[0x1f, 0x8b]), start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]));
    let input = Cursor::new(start).chain(input);
    let plain: Box<dyn Read + Send> = if is_gzip {
        Box::new(MultiGzDecoder::new(BufReader::with_capacity(BUFFER, input)))
    } else if is_zstd {
        Box::new(Zstd { state: Some(Frame::Between(BufReader::with_capacity(BUFFER, input))) })
    } else {
        Box::new(input)
    };
    let mut plain = BufReader::with_capacity(BUFFER, plain);
    // A byte order mark is no part of the first key.
    if plain.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        plain.consume(3);
    }
    Ok(plain)
}

/// A file of zstd frames one after the other, as `zstd` and `cat` make them.
struct Zstd<R: BufRead> {
    /// `None` after an error.
    state: Option<Frame<R>>,
}

enum Frame<R: BufRead> {
    Between(R),
    Within(Box<StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>),
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(state) = self.state.take() {
            match state {
                Frame::Between(mut input) => {
                    if input.fill_buf()?.is_empty() {
                        self.state = Some(Frame::Between(input));
                        return Ok(0);
                    }
                    let frame = StreamingDecoder::new(input).map_err(io::Error::other)?;
                    self.state = Some(Frame::Within(Box::new(frame)));
                }
                Frame::Within(mut frame) => {
                    let read = frame.read(buffer)?;
                    if read > 0 || buffer.is_empty() {
                        self.state = Some(Frame::Within(frame));
                        return Ok(read);
                    }
                    self.state = Some(Frame::Between(frame.into_inner()));
                }
            }
        }
        Ok(0)
    }
}

/// What the lines were, counted while they are read.
#[derive(Default)]
pub(crate) struct Counts(Mutex<Lined>);

#[derive(Default, Clone)]
pub(crate) struct Lined {
    pub(crate) lines: u64,
    pub(crate) requests: u64,
    pub(crate) other_methods: u64,
    /// How many there were of each [`Bad`].
    pub(crate) bad: [u64; Bad::ALL.len()],
    /// The first bad lines.
    pub(crate) samples: Vec<Sample>,
    /// Why the input ended before its end.
    pub(crate) failed: Option<String>,
}

#[derive(Clone)]
pub(crate) struct Sample {
    number: u64,
    bad: Bad,
    text: String,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, {}: {}", self.number, self.bad, self.text)
    }
}

impl Counts {
    pub(crate) fn get(&self) -> Lined {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Lined> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, parsed: &Result<Line, Bad>, raw: RawRef<'_>) {
        let mut lined = self.lock();
        lined.lines += 1;
        match parsed {
            Ok(Line::Request(_)) => lined.requests += 1,
            Ok(Line::OtherMethod) => lined.other_methods += 1,
            Err(bad) => {
                lined.bad[*bad as usize] += 1;
                if lined.samples.len() < SAMPLES {
                    let number = lined.lines;
                    lined.samples.push(Sample { number, bad: *bad, text: shown(raw.bytes) });
                }
            }
        }
    }
}

/// The beginning of a line, with nothing in it that could upset a terminal.
fn shown(bytes: &[u8]) -> String {
    const SHOWN: usize = 60;
    let start = &bytes[..bytes.len().min(SHOWN)];
    let dots = if bytes.len() > SHOWN { "..." } else { "" };
    format!("\"{}\"{dots}", start.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: impl Into<Vec<u8>>, format: Format) -> (Format, Vec<String>, Lined) {
        let input = Input::new("test", Cursor::new(input.into()), format).unwrap();
        let format = input.format;
        let (sender, mut receiver) = mpsc::channel(1_000);
        let counts = Counts::default();
        input.read(&sender, &counts);
        drop(sender);
        let mut keys = Vec::new();
        while let Some(batch) = receiver.blocking_recv() {
            keys.extend(batch.into_iter().map(|request| request.key.into_string()));
        }
        (format, keys, counts.get())
    }

    const LOGGED: &str = r#"::1 - - [10/Oct/2000:13:55:36 +0000] "GET /a HTTP/1.1" 200 1"#;

    #[test]
    fn a_list_of_keys() {
        let (format, keys, lined) = read("a\nb\r\n\nc d\na", Format::Auto);
        assert_eq!(format, Format::Keys);
        assert_eq!(keys, ["a", "b", "c d", "a"]);
        assert_eq!((lined.lines, lined.requests, lined.bad[Bad::Empty as usize]), (5, 4, 1));
    }

    #[test]
    fn a_log_is_recognised_also_when_it_does_not_begin_well() {
        let (format, keys, lined) = read(format!("what?\n{LOGGED}\n{LOGGED}\n"), Format::Auto);
        assert_eq!(format, Format::Log);
        assert_eq!(keys, ["/a", "/a"]);
        assert_eq!(lined.bad.iter().sum::<u64>(), 1);
        assert_eq!(lined.samples[0].to_string(), "line 1, not a line of an access log: \"what?\"");
    }

    #[test]
    fn a_format_that_is_given_is_not_guessed() {
        let (format, keys, _) = read(LOGGED, Format::Keys);
        assert_eq!((format, &*keys[0]), (Format::Keys, LOGGED));
    }

    #[test]
    fn bytes_that_are_no_text_are_counted_and_shown_without_harm() {
        let (_, keys, lined) = read(b"a\n\xff\x1b[31m\nb\n".to_vec(), Format::Auto);
        assert_eq!(keys, ["a", "b"]);
        assert_eq!(lined.bad[Bad::NotUtf8 as usize], 1);
        assert_eq!(lined.samples[0].to_string(), r#"line 2, not UTF-8: "\xff\x1b[31m""#);
    }

    #[test]
    fn a_line_that_is_too_long_is_counted_and_the_next_one_is_read() {
        let longest = "x".repeat(MAX_LINE);
        let text = format!("{longest}\n{longest}y\nz\n{}", "w".repeat(3 * MAX_LINE));
        let (_, keys, lined) = read(text, Format::Keys);
        assert_eq!(keys, [&longest, "z"]);
        assert_eq!(lined.bad[Bad::TooLong as usize], 2);
    }

    #[test]
    fn nothing_at_all() {
        for nothing in ["", "\u{feff}"] {
            let (format, keys, lined) = read(nothing, Format::Auto);
            assert_eq!((format, keys.len(), lined.lines), (Format::Keys, 0, 0));
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_key() {
        assert_eq!(read("\u{feff}a\nb", Format::Auto).1, ["a", "b"]);
    }

    #[test]
    fn many_lines_come_in_order() {
        let expected: Vec<String> = (0..10_000).map(|n| n.to_string()).collect();
        assert_eq!(read(expected.join("\n"), Format::Auto).1, expected);
    }

    #[test]
    fn gzip_in_several_members() {
        use flate2::{Compression, write::GzEncoder};
        let mut packed = Vec::new();
        for part in ["a\nb\n", "c\n"] {
            let mut encoder = GzEncoder::new(&mut packed, Compression::fast());
            io::Write::write_all(&mut encoder, part.as_bytes()).unwrap();
            encoder.finish().unwrap();
        }
        assert_eq!(read(packed.clone(), Format::Auto).1, ["a", "b", "c"]);
        packed.truncate(packed.len() - 10);
        assert!(read(packed, Format::Keys).2.failed.is_some());
    }

    #[test]
    fn zstd_in_several_frames() {
        use ruzstd::encoding::{CompressionLevel, compress_to_vec};
        let pack = |text: &str| compress_to_vec(text.as_bytes(), CompressionLevel::Fastest);
        let packed = [pack("a\nb\n"), pack("c\n")].concat();
        assert_eq!(read(packed, Format::Auto).1, ["a", "b", "c"]);
    }
}
